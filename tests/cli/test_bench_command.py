"""``pabzip bench``: what it prints, from nothing on disk."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch

SMALL = (
    "bench", "bitops", "--arch", "resnet20", "--set", "arch_options.width=4", "--data", "digits",
    "--set", "search.iterations=3",
)  # fmt: skip
METHODS = {
    "pab-bop", "pab-bop-psg", "pab-latent", "pab-latent-psg", "sgd", "signsgd", "dense-sgd",
    "dense-sgd-short",
}  # fmt: skip


@pytest.fixture
def bitops(run, tmp_path, monkeypatch):
    """Run ``bench bitops --json`` in an empty folder without any cache, and return its object."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nothing"))

    def invoke(*arguments):
        result = run(*SMALL, *arguments, "--json")
        assert result.exit_code == 0, result.stderr
        assert list(tmp_path.iterdir()) == []
        return json.loads(result.stdout)

    return invoke


def test_json_is_one_object_with_every_method_and_layer(bitops):
    found = bitops("--keep-ratio", 0.25)
    assert set(found["methods"]) == METHODS
    assert (found["arch"], found["data"], found["keep_ratio"]) == ("resnet20", "digits", 0.25)
    assert found["survivors"] == round(0.25 * found["weights"])
    for method, total in found["methods"].items():
        layers = [sum(layer["operations"][method].values()) for layer in found["layers"]]
        assert sum(layers) == pytest.approx(total, abs=len(layers) * 3)
    macs = sum(layer["macs"] for layer in found["layers"])
    assert found["methods"]["dense-sgd"] == macs * 3 * 1024
    assert found["methods"]["pab-bop-psg"] < found["methods"]["pab-bop"]
    first, *_, last = found["layers"]
    assert first["name"] == "conv1.weight"
    # 8x8 positions of 4 kernels of 9 weights.
    assert first["macs"] == 64 * 4 * 9
    assert last == {
        "name": "fc.weight", "macs": 160, "kept": 1.0, "masked": False,
        "operations": {
            method: dict.fromkeys(("forward", "input_gradient", "weight_gradient"), 160 * 1024)
            for method in METHODS
        },
    }  # fmt: skip


def test_bits_and_dropped_steps(bitops):
    changes = ("psg.input_bits=4", "psg.weight_bits=2", "psg.gradient_bits=8", "drop_ratio=0.5",
               "classifier=seeded")  # fmt: skip
    found = bitops(*(part for change in changes for part in ("--set", change)))
    assert found["bits"] == {"input": 4, "weight": 2, "gradient": 8}
    kept = found["methods"]["pab-bop"] / (3 * 1024)
    assert found["methods"]["pab-bop-psg"] == pytest.approx(kept * (1024 + 8 * 6), abs=99)
    assert found["methods"]["dense-sgd"] == sum(r["macs"] for r in found["layers"]) * 3 * 512


def test_an_exact_input_gradient_is_counted(bitops):
    found = bitops("--set", "psg.input_gradient=exact", "--set", "psg.gradient_bits=8",
                   "--set", "classifier=seeded")  # fmt: skip
    kept = found["methods"]["pab-bop"] / (3 * 1024)
    assert found["methods"]["pab-bop-psg"] == pytest.approx(kept * (2 * 1024 + 8 * 8), abs=99)


def test_a_setting_that_the_count_does_not_depend_on_is_told(run):
    result = run(*SMALL, "--set", "bop.threshold=1", "--json")
    assert result.exit_code == 0
    assert result.stderr == "pabzip: bop.threshold: the count does not depend on it\n"


def test_another_dataset_is_only_looked_up(bitops):
    found = bitops("--data", "tiny-imagenet", "--keep-ratio", 1)
    assert found["layers"][0]["macs"] == 64 * 64 * 3 * 4 * 9
    assert found["layers"][-1]["macs"] == 16 * 200


def test_a_recipe_says_what_to_count(run):
    result = run(
        "bench", "bitops", "--recipe", "table5-4-4-8", "--arch", "resnet20", "--set",
        "arch_options.width=2", "--set", "search.iterations=2", "--json",
    )  # fmt: skip
    found = json.loads(result.stdout)
    assert found["bits"] == {"input": 4, "weight": 4, "gradient": 8}
    assert (found["arch"], found["data"], found["keep_ratio"]) == ("resnet20", "cifar10", 0.1)


def test_the_scope_of_the_search_counts(bitops):
    for layer in bitops("--set", "search.scope=layer", "--keep-ratio", 0.25)["layers"]:
        if layer["masked"]:
            assert layer["kept"] == pytest.approx(0.25, abs=0.02)
    kept = [layer["kept"] for layer in bitops("--keep-ratio", 0.25)["layers"] if layer["masked"]]
    assert max(kept) - min(kept) > 0.1


def test_the_estimate_is_told_the_whole_search(monkeypatch):
    from pabzip.registry import SEARCHES
    from pabzip.train import Recipe, SearchRecipe, estimate_costs

    told = {}
    whole = SEARCHES.get("synflow")

    def synflow(*arguments, **options):
        told.update(options)
        return whole(*arguments, **options)

    monkeypatch.setattr(SEARCHES, "get", {"synflow": synflow}.__getitem__)
    search = SearchRecipe(iterations=3, schedule="linear", scope="layer", precision="float32")
    options = {"width": 4}
    estimate_costs(Recipe(arch="conv2", arch_options=options, keep_ratio=0.5, search=search))
    told.pop("on_iteration")
    told.pop("input_shape")
    assert told == {
        "iterations": 3, "schedule": "linear", "scope": "layer", "dtype": torch.float32, "seed": 0
    }  # fmt: skip


def test_several_shots_are_counted_by_the_last_mask(run):
    small = (
        "--recipe", "table4-3-shots-pab-bop", "--arch", "resnet20", "--set",
        "arch_options.width=2", "--set", "search.iterations=2",
    )  # fmt: skip
    result = run("bench", "bitops", *small, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["search_epoch"], found["search_shots"]) == (50, 3)
    assert found["survivors"] == round(0.1 * found["weights"])
    shown = " ".join(run("bench", "bitops", *small).stdout.split())
    assert "last search (of 3) follows epoch 50" in shown
    assert "found in one go" in shown
    assert "in one go" not in run(*SMALL).stdout


def test_other_searches_are_refused(run, tmp_path):
    recipe = tmp_path / "snip.toml"
    recipe.write_text('[search]\nmethod = "snip"\n')
    result = run("bench", "bitops", "--recipe", recipe)
    assert result.exit_code != 0
    assert "search.method: expected synflow, which needs no data, found 'snip'" in " ".join(
        result.stderr.split()
    )


def test_tables_for_people(run):
    result = run(*SMALL)
    assert result.exit_code == 0, result.stderr
    for word in ("pab-bop-psg", "of dense-sgd", "100.0%", "stages.2.2.conv2.weight", "kept"):
        assert word in result.stdout
    assert "resnet20 on digits: 1,690 of 16,900 weights survive" in result.stdout
    assert run(*SMALL, "--quiet").stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "cifar"), "data: expected one of .*cifar10.*, digits, .* found 'cifar'"),
        (("--arch", "resnet19"), "arch: expected one of .*found 'resnet19'"),
        (("--keep-ratio", 0), "keep_ratio"),
        (("--set", "arch_options.in_channels=3"), "input_shape"),
    ],
)
def test_errors(run, arguments, message):
    result = run(*SMALL, *arguments)
    assert result.exit_code != 0
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert re.search(message, result.stderr), result.stderr


def test_the_group_lists_its_measurements(run):
    result = run("bench", "--help")
    assert result.exit_code == 0
    assert "\n  bitops " in result.stdout
    assert "No such command 'bitop'" in run("bench", "bitop").stderr


def test_help_explains_every_flag_without_torch(run):
    from pabzip.cli.bench import bitops as command

    result = run("bench", "bitops", "--help")
    assert result.exit_code == 0
    for option in command.params:
        assert option.help, option.name
        assert option.opts[0] in result.stdout
    code = (
        "import sys\nfrom pabzip.cli import main\n"
        "try:\n    main(['bench', 'bitops', '--help'])\n"
        "except SystemExit:\n    sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Every method of the paper through the command line: train, pack, verify, eval, unpack, export."""

from __future__ import annotations

import json

import pytest
import torch

from pabzip.registry import METHODS
from pabzip.train.config import Recipe, method_of

TINY = (
    "--arch", "lenet-300-100", "--set", "arch_options.width=12", "--epochs", "1",
    "--set", "sgd.milestones=[1]", "--set", "search.iterations=3", "--device", "cpu",
    "--keep-ratio", "0.3", "--json",
)  # fmt: skip


@pytest.fixture
def ask(tmp_path, monkeypatch, run):
    """Run a command in a folder of its own and return what it prints as JSON."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments):
        result = run(*arguments)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return invoke


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_packs_verifies_and_evaluates_equally(ask, tmp_path, method):
    kind = method_of(Recipe(method=method))
    trained = ask("train", "--method", method, *TINY)
    assert (trained["method"], trained["epochs"]) == (method, 1)
    assert trained["keep_ratio"] == (0.3 if kind.masked else 1.0)
    content = torch.load("model.pt", weights_only=True)
    weights = {name: v for name, v in content["state_dict"].items() if v.dim() == 2}
    assert set(content["init"]) == (set(weights) if kind.seeded else set())
    assert content["recipe"]["method"] == method
    alive = sum(int(v.count_nonzero()) for v in weights.values())
    assert alive == trained["survivors"]

    packed = ask("pack", "model.pt", "--json")
    total = sum(v.numel() for v in weights.values())
    assert (packed["weights"], packed["survivors"]) == ((total, alive) if kind.seeded else (0, 0))
    assert ask("verify", "model.pabz", "--json") == {"ok": True, "sha256": packed["sha256"]}
    assert ask("info", "model.pabz", "--json")["codes_bytes"] == packed["codes_bytes"]
    accuracies = [
        ask("eval", name, "--json", "--device", "cpu")["accuracy"]
        for name in ("model.pt", "model.pabz")
    ]
    assert accuracies == [trained["test_accuracy"]] * 2


@pytest.mark.parametrize("method", ["sgd", "dense-sgd"])
def test_a_baseline_unpacks_to_the_bit_and_exports(ask, run, tmp_path, method):
    from safetensors.torch import load_file

    ask("train", "--method", method, *TINY)
    packed = run("pack", "model.pt")
    assert "all tensors dense" in packed.stdout
    assert "all dense, none of a seed" in run("info", "model.pabz").stdout
    assert run("unpack", "model.pabz").exit_code == 0
    state = torch.load("model.pt", weights_only=True)["state_dict"]
    found = load_file("model.safetensors")
    assert set(found) == set(state)
    assert all(torch.equal(found[name], value) for name, value in state.items())
    result = run("export", "model.pabz")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "model.onnx").stat().st_size > 0


@pytest.mark.parametrize("bits", [(4, 4, 4), (4, 4, 8), (8, 8, 8), (8, 8, 16), (16, 16, 16),
                                  (16, 16, 32)])  # fmt: skip
@pytest.mark.parametrize("method", ["pab-bop-psg", "pab-latent-psg"])
def test_every_configuration_of_table_5_trains(ask, method, bits):
    names = ("psg.input_bits", "psg.weight_bits", "psg.gradient_bits")
    pairs = zip(names, bits, strict=True)
    flags = [part for name, count in pairs for part in ("--set", f"{name}={count}")]
    trained = ask("train", "--method", method, *flags, *TINY)
    assert 0 < trained["flipped"] < 1
    forward, backward = 32 * 32, bits[2] * (bits[0] + bits[1])
    assert trained["bitops"] == trained["survivors"] * (forward + backward)


def test_the_published_choices_train(ask):
    changes = ("psg.input_bits=4", "psg.gradient_bits=8", "psg.input_gradient=exact",
               "psg.quantizer=published")  # fmt: skip
    flags = [part for change in changes for part in ("--set", change)]
    trained = ask("train", "--method", "pab-bop-psg", *flags, *TINY)
    assert 0 < trained["flipped"] < 1
    assert trained["bitops"] == trained["survivors"] * (2 * 32 * 32 + 4 * 8)


@pytest.mark.parametrize("behavior", ["remove", "all", "correct"])
def test_every_behavior_of_figure_4_trains(ask, behavior):
    trained = ask("train", "--method", "pab-bop-psg", "--set", f"psg.behavior={behavior}",
                  "--set", "psg.threshold=0.01", *TINY)  # fmt: skip
    assert 0 < trained["flipped"] < 1

"""Each benchmark runs on something tiny and computes what it says; no time is ever judged.

Where times make ratios, the clock is replaced by one whose times are known.
"""

from __future__ import annotations

import importlib
import json
import lzma
import os
import runpy
import subprocess
import sys
from pathlib import Path

import brotli
import numpy as np
import pytest
import torch
import zstandard
from scipy.stats import entropy
from torch.utils._python_dispatch import TorchDispatchMode

import pabzip
from pabzip.seeds import unpack_codes

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def bench(tmp_path, cache):
    """Run one script; return its stdout, its stderr and the JSON that it wrote."""

    def run(name, *arguments):
        command = [sys.executable, FOLDER / f"{name}.py", "--quick", "--results", tmp_path]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [*map(str, command), *map(str, arguments)],
            capture_output=True, text=True, timeout=300, env=environment, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr, read(tmp_path, cache, name, done.stdout)

    return run


@pytest.fixture
def load(monkeypatch):
    """Import one of the benchmarks' modules."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def timed(load, monkeypatch, capsys, tmp_path, cache):
    """Run one script in this process; return its stdout, its JSON, and what was timed.

    Times are not taken but given, a list of seconds by name.
    """

    def run(name, seconds, *arguments):
        made = []

        def turns(runs, repeats, *, clock=None, on_turn=None):
            made.append({name: each() for name, each in runs.items()})
            return {name: seconds.get(name, [1.0]) for name in runs}

        monkeypatch.setattr(load("_shared"), "turns", turns)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        command = [f"{name}.py", "--quick", "--results", str(tmp_path), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        stdout = capsys.readouterr().out
        return stdout, read(tmp_path, cache, name, stdout), made

    return run


def read(results, cache, name, stdout):
    """Return what a script wrote; neither that nor what it printed names a folder."""
    assert [file.name for file in results.iterdir()] == [f"{name}-quick.json"]
    text = (results / f"{name}-quick.json").read_text(encoding="utf-8")
    for place in (results, cache, FOLDER.parent, Path.home()):
        assert str(place) + os.sep not in text + stdout
    found = json.loads(text)
    check_machine(found["machine"])
    return found


def check_machine(found):
    assert found["cpu"]
    assert found["cores"] >= 1
    assert found["versions"]["numpy"] == np.__version__
    assert len(found["date"]) == len("2026-01-01")


def test_codec_size(bench, cache):
    stdout, stderr, found = bench("codec_size", "--cache", cache)
    assert "SynFlow 0.1" in stderr
    for word in ("huffman", "context", "auto", "zstd -19 --long", "xz -9e", "brotli 11", "order-0"):
        assert word in stdout
    assert {row["kind"] for row in found["cases"]} == {"SynFlow", "magnitude", "random"}
    for row in found["cases"]:
        ours, limits = row["coders"], row["limits"]
        assert row["case"] in stdout
        assert ours["auto"] <= min(ours["huffman"], ours["context"])
        assert ours["huffman"] == pytest.approx((row["weights"] + row["survivors"]) / 8, abs=40)
        # No coder beats the entropy of a random mask; ours does where the seed tells of the mask.
        if row["kind"] == "random":
            n, k = row["weights"], row["survivors"]
            order0 = n * entropy([k / n, 1 - k / n], base=2) / 8 + limits["signs"]
            assert limits["order-0 + signs"] == pytest.approx(order0, rel=0.01)
            assert 1 < row["ratios"]["auto / order-0 + signs"] < 1.6
        else:
            assert row["ratios"]["auto / order-0 + signs"] < 0.8
            assert row["ratios"]["best peer / auto"] > 1.2
        assert set(row["peers"]) == {"zstd -19 --long", "xz -9e", "brotli 11"}
        if row["flips"] == 0.5:
            assert limits["signs"] == pytest.approx(row["survivors"] / 8, rel=0.01)
        else:
            assert limits["signs"] < 0.6 * row["survivors"] / 8
            assert "our mask + signs" in limits
    assert [file.name for file in cache.iterdir()] == [
        "synflow-resnet20-width4-keep0.1-iterations5-seed3.npz"
    ]

    stdout, _, again = bench("codec_size", "--cache", cache, "--json", "--keep-ratio", 0.1)
    assert json.loads(stdout) == again
    assert again["cases"] == found["cases"]


def test_delta_size(bench):
    stdout, stderr, found = bench("delta_size")
    assert "random, a hundredth" in stderr
    rows = {row["case"].partition(", ")[2]: row for row in found["cases"]}
    assert len(rows) == 12
    for case, row in rows.items():
        assert case in stdout
        assert row["pabzip"] < row["whole"]
        if "ternary" in case or case == "float32, 8 bits" or "4 bits" in case:
            assert row["changes"]["steps"] >= 10  # the rest is smaller as differences
        if "ternary" in case:
            assert row["pabzip"] < row["xor"]
        assert row["changes"]["equal"] > 10


def test_dense_coding(bench):
    stdout, stderr, found = bench("dense_coding", "--elements", 1 << 15)
    assert "bfloat16, normal" in stderr
    for word in ("planes", "zstd -3", "zstd -19", "deflate -9", "entropy", "encode 2"):
        assert word in stdout
    rows = {row["case"]: row for row in found["cases"]}
    assert len(rows) == 9
    for row in rows.values():
        assert row["elements"] == 1 << 15
        assert 0 < row["sizes"]["planes"] < 1.001 * row["bytes"]
        assert set(row["sizes"]) == {"planes", "zstd -3", "zstd -19", "deflate -9"}
        assert all(speed > 0 for speed in row["speeds"].values())
    small = rows["ternary, 42 % zero, five a byte"]
    assert 1 < small["sizes"]["planes"] / small["entropy"] < 1.03  # a table of 243 bytes
    exact = 5 * entropy([0.42, 0.29, 0.29], base=2) / 8
    assert small["entropy"] == pytest.approx(exact * small["bytes"], rel=0.01)
    assert rows["bfloat16, normal"]["sizes"]["planes"] < 0.68 * 2 * (1 << 15)


def test_ternary_model(bench):
    stdout, stderr, found = bench("ternary_model", "--shard-bytes", 500_000)
    assert "comparing" in stderr
    assert f"{found['weights']:,} ternary weights in {found['tensors']} tensors" in stdout
    assert found["weights"] == 3 * (2 * 256 * 256 + 2 * 64 * 256 + 3 * 688 * 256)
    assert found["tensors"] == 2 + 3 * (2 * 7 + 4)
    sizes = found["bytes"]
    assert sizes["pabz"] < 1.005 * sizes["entropy"]
    assert sizes["pabz"] < sizes["zstd -19"] < sizes["checkpoint"]
    for command in ("pack", "verify", "unpack"):
        run = found["commands"][command]
        assert found["rates"][command] == pytest.approx(found["weights"] / run["seconds"])
        assert run["peak_bytes"] > 1 << 20


def test_a_model_that_came_back_otherwise_is_told(load, tmp_path):
    script = load("ternary_model")
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
        script.write_model(tmp_path / name / "model", script.TINY, 500_000)
    before, after = tmp_path / "before" / "model", tmp_path / "after" / "model"
    assert script.compare(before, after) == 56
    shard = script.shards(after)[1]
    changed = bytearray(shard.read_bytes())
    changed[-1] ^= 1
    shard.write_bytes(changed)
    with pytest.raises(SystemExit, match="expected the bytes that were packed, found others"):
        script.compare(before, after)


def test_bitops_table(bench, cache):
    stdout, stderr, found = bench("bitops_table", "--cache", cache)
    assert "resnet18" in stderr
    cases = {case["method"]: case for case in found["cases"]}
    assert set(cases) == {"dense-sgd", "edge-popup", "pab-bop", "pab-bop-psg"}
    # Forward and two backward products, 32 bits times 32 bits; edge-popup's forward a tenth of it.
    macs = multiplications()
    dense = 3 * 32 * 32 * macs
    assert cases["dense-sgd"]["ours"] == dense
    assert cases["edge-popup"]["ours"] == pytest.approx(2.1 * 32 * 32 * macs)
    assert cases["dense-sgd"]["ratio"] == pytest.approx(dense / 1.71e12)
    assert 0.9 < cases["pab-bop"]["ratio"] < 1.1
    assert f"{dense / 1e12:.3f}" in stdout


def multiplications():
    """Count the multiplications of ResNet-18 on one image of 32x32 pixels."""
    counts = []

    def count(module, _, output):
        positions = output[0, 0].numel() if output.dim() == 4 else 1
        counts.append(positions * module.weight.numel())

    net = pabzip.models.build("resnet18").eval()
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(count)
    net(torch.zeros(1, 3, 32, 32))
    return sum(counts)


def test_codec_speed(timed, cache):
    seconds = {"pabzip": [1.0], "torch.load": [4.0], "safetensors": [0.25], "torch.save": [2.0]}
    stdout, found, made = timed("codec_speed", seconds, "--cache", cache)
    rows = {(row["what"], row["threads"]): row for row in found["rows"]}
    assert set(rows) == {
        ("pack", 2), ("load", 1), ("load", 2), ("one tensor", 1), ("unpack, cold process", 2),
    }  # fmt: skip
    assert rows["load", 2]["ratios"] == {
        "pabzip / kaiming_normal_": 1.0, "pabzip / torch.load": 0.25, "pabzip / safetensors": 4.0,
        "pabzip / safetensors + zstd": 1.0,
    }  # fmt: skip
    assert "4 s (0.25)" in stdout
    assert "250 ms (4.00)" in stdout
    assert found["bytes"]["pabzip"] < found["bytes"]["safetensors + zstd"]
    assert found["bytes"]["safetensors + zstd"] < found["bytes"]["safetensors"]
    # All ways to load give the same network, so their times are comparable.
    load, one = made[1], made[3]
    for name in ("torch.load", "safetensors", "safetensors + zstd"):
        assert set(load[name]) == set(load["pabzip"])
        assert all(np.array_equal(load[name][key], load["pabzip"][key]) for key in load[name])
    assert np.array_equal(one["pabzip"], one["safetensors"])
    assert one["pabzip"].size == max(value.size for value in load["pabzip"].values())


def test_regenerate(timed):
    seconds = {"weights": [2.0], "regenerate": [0.5], "torch": [1.0]}
    stdout, found, made = timed("regenerate", seconds, "--elements", 5000)
    assert found["elements"] == 5000
    drawn = {(row["distribution"], row["threads"]) for row in found["rows"]}
    assert drawn == {(name, n) for name in ("normal", "uniform", "signed_constant") for n in (1, 2)}
    for row in found["rows"]:
        assert row["weights_per_second"] == {"weights": 2500, "regenerate": 10000, "torch": 5000}
        assert row["ratios"] == {"weights / torch": 2.0, "regenerate / torch": 0.5}
    assert "| normal          |       1 |     2 s |     500 ms |   1 s |" in stdout
    kept = np.count_nonzero(made[0]["regenerate"])
    assert kept == pytest.approx(500, abs=100)  # a tenth, as --keep-ratio has it


def test_train_speed(timed):
    seconds = {"dense SGD": [1, 2, 10], "Bop with PSG": [4, 6, 5], "Bop": [1, 1, 5]}
    seconds["Bop with PSG as published"] = [2, 4, 20]
    stdout, found, _ = timed("train_speed", seconds, "--json", "--threads", 1)
    assert json.loads(stdout) == found
    assert set(found["seconds"]) == {
        "dense SGD", "Bop", "Bop with PSG", "Bop with PSG as published"
    }  # fmt: skip
    # The median of the ratios within a turn, not the ratio of the medians.
    assert (found["psg_over_dense"], found["bop_over_dense"]) == (3.0, 0.5)
    assert found["seconds"]["Bop with PSG"] == 5.0
    assert found["fastest"]["Bop with PSG"] == 4.0


def test_published_psg_keeps_the_forward_pass(load):
    module = load("train_speed")
    exact = pabzip.init_(pabzip.models.build("resnet20", {"width": 2}), 0).eval()
    twice = pabzip.init_(pabzip.models.build("resnet20", {"width": 2}), 0).eval()
    module.apply_published_psg(twice, module.PsgConfig(threshold=0.2))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(exact(images), twice(images))
    for net in (exact, twice):
        net(images).square().sum().backward()
    first, second = (next(net.parameters()).grad for net in (exact, twice))
    assert not torch.equal(first, second)  # the second comes from quantized operands
    cosine = torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0)
    assert cosine > 0.9
    kept = second != 0
    assert (second.abs()[kept] >= 0.2 * second.abs().max()).all()  # small ones are removed
    assert 0 < kept.sum() < kept.numel()


class Products(TorchDispatchMode):
    """Counts the backward products of convolutions: gradients of inputs and of weights."""

    def __init__(self):
        super().__init__()
        self.inputs = self.weights = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            of_input, of_weight, _ = args[-1]
            self.inputs += of_input
            self.weights += of_weight
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("way", "products"), [("dense", (19, 20)), ("ours", (19, 20)),
                                               ("published", (19, 40))])  # fmt: skip
def test_backward_products_of_a_training_step(load, way, products):
    module = load("train_speed")
    net = pabzip.init_(pabzip.models.build("resnet18", {"width": 4}), 0)
    if way == "ours":
        module.apply_psg(net)
    elif way == "published":
        module.apply_published_psg(net, module.PsgConfig())
    loss = net(torch.randn(2, 3, 32, 32)).square().sum()
    with Products() as counted:
        loss.backward()
    assert (counted.inputs, counted.weights) == products


def test_published_psg_computes_what_our_published_choices_do(load):
    module = load("train_speed")
    config = module.PsgConfig(4, 4, 8, 0.1, input_gradient="exact", quantizer="published")
    gradients = []
    for apply in (module.apply_psg, module.apply_published_psg):
        net = pabzip.init_(pabzip.models.build("resnet20", {"width": 2}), 0, skip=["fc"]).double()
        apply(net, config)
        images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        net(images.double()).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    torch.testing.assert_close(*gradients)


PUBLISHED_PSG = {"bop.start=first-gradient", "psg.input_gradient=exact", "psg.quantizer=published"}


@pytest.mark.parametrize("name", ["digits", "cluttered-digits"])
def test_a_row_is_called_published_only_if_all_of_it_is(load, name):
    rows = load("methods").STUDIES[name].rows
    for title, flags in rows.items():
        assert "published" not in title or set(flags.split()) >= PUBLISHED_PSG
    file = "methods.json" if name == "digits" else f"methods-{name}.json"
    recorded = json.loads((FOLDER / "results" / file).read_text())
    assert {row["method"] for row in recorded["rows"]} <= set(rows)


def test_methods(bench, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "kept"
    wanted = ("--only", "signsgd", "--only", "latent-psg", "--folder", folder)
    wanted += ("--", "--validation", "0.1")
    stdout, stderr, found = bench("methods", *wanted)
    assert [row["method"] for row in found["rows"]] == ["signsgd", "pab-latent-psg"]
    ours = found["rows"][1]
    assert (ours["epochs"], len(ours["runs"])) == (1, 1)
    assert ours["bytes"] < found["rows"][0]["bytes"]
    held = ours["runs"][0]["validation_accuracy"]
    assert "| validation accuracy | test accuracy |" in " ".join(stdout.split())
    assert f"{held:.2%} | {ours['accuracy']:.2%}" in " ".join(stdout.split())
    assert "pab-latent-psg, seed 0" in stderr
    trained = {file.name: file.read_bytes() for file in folder.glob("*.pt")}
    assert len(trained) == 2
    (folder / "5-0.json").unlink()

    _, _, again = bench("methods", *wanted)
    seconds = [row.pop("seconds") for row in (*found["rows"], *again["rows"])]
    assert seconds[0] == seconds[2]
    for row in (*found["rows"], *again["rows"]):
        del row["runs"][0]["seconds"]
    assert again == found
    assert {file.name: file.read_bytes() for file in folder.glob("*.pt")} == trained


def test_without_validation_images_there_is_one_accuracy(load):
    run = {
        "accuracy": 0.5, "bitops": 1e9, "epochs": 1, "bytes": 2048, "seconds": 3.0,
        "survivors": 1024, "weights": 8192,
    }  # fmt: skip
    table = load("methods")._table([{"method": "sgd", **run, "runs": [run]}])
    head, _, row = (" ".join(line.split()) for line in table.splitlines())
    assert head.startswith("| method | accuracy | kept | BitOPs")
    assert row == "| sgd | 50.00% | 12.5% | 1.00 G | 1 | 2.00 | 2.00 | 3 |"


def test_rate_aware(bench, tmp_path_factory):
    picture = tmp_path_factory.mktemp("picture") / "curves.png"
    stdout, stderr, found = bench("rate_aware", "--picture", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "lenet-300-100, seed 0" in stderr
    (network,) = found["networks"]
    check_machine(network["machine"])
    assert network["expected_bytes_error"] < 0.02
    points = {(point["threshold"], point["flip_cost"]): point for point in network["points"]}
    ours, plain = points[1e-4, 3e-4], points[1e-4, 0.0]
    assert ours["flipped"] < 0.5 * plain["flipped"]
    assert ours["bytes"] - ours["sign_bytes"] == pytest.approx(
        plain["bytes"] - plain["sign_bytes"], rel=0.02
    )
    for point in network["points"]:
        assert point["rule"] in stdout
        assert f"{point['bytes']:,.0f}" in stdout
    plain = [p["validation_accuracy"] for p in network["points"] if p["rule"] != "rate-aware Bop"]
    assert network["best_plain"]["validation_accuracy"] == max(plain)
    for point in filter(None, network["smallest_equal"].values()):
        assert point["validation_accuracy"] >= max(plain) - found["tolerance"]


def test_search_speed(timed):
    seconds = {"pabzip float64": [2.0], "pabzip float32": [1.0], "published float64": [6.0]}
    stdout, found, _ = timed("search_speed", seconds, "--json", "--threads", 1)
    assert json.loads(stdout) == found
    ours = {"pabzip float64", "pabzip float32"}
    assert set(found["seconds"]) == {*ours, "published float64", "published float32"}
    assert (found["published_over_ours"], found["published_over_fast"]) == (3.0, 6.0)
    assert all(found["mask_shared"][name] == 1.0 for name in (*ours, "published float64"))
    assert found["survivors_shared"]["published float32"] > 0.9


def test_shared_masks_are_counted(load):
    one = {"a": torch.tensor([True, True, False, False]), "b": torch.tensor([True])}
    other = {"a": torch.tensor([True, False, True, False]), "b": torch.tensor([True])}
    assert load("search_speed")._shared(one, other) == (3 / 5, 2 / 3)


def test_forms_hold_the_codes(load):
    module = load("codec_size")
    rng = np.random.default_rng(0)
    codes = {name: rng.integers(-1, 2, shape).astype(np.int8) for name, shape in
             (("a", (7, 11)), ("b", (3,)))}  # fmt: skip
    flat = np.concatenate([held.reshape(-1) for held in codes.values()])
    found = module.forms(codes)
    assert np.array_equal(unpack_codes(np.frombuffer(found["2-bit"], np.uint8), 80), flat)
    digits = np.frombuffer(found["base-3"], np.uint8)[:, None] // 3 ** np.arange(5) % 3
    assert np.array_equal(np.array([0, 1, -1])[digits.reshape(-1)[:80]], flat)
    assert len(found["base-3"]) == 16
    survivors = np.count_nonzero(flat)
    bits = np.unpackbits(np.frombuffer(found["bitmap"], np.uint8))
    assert np.array_equal(bits[:80], flat != 0)
    assert np.array_equal(bits[80 : 80 + survivors], flat[flat != 0] < 0)
    assert len(found["bitmap"]) == 10 + -(-survivors // 8)


def test_compressors_are_real(load):
    compressors = load("codec_size").COMPRESSORS
    data = bytes(range(256)) * 20
    undo = {
        "zstd -19 --long": zstandard.ZstdDecompressor(max_window_size=2**27).decompress,
        "xz -9e": lzma.decompress,
        "brotli 11": brotli.decompress,
    }
    for name, compress in compressors.items():
        assert len(compress(data)) < 600
        assert undo[name](compress(data)) == data


def test_entropies(load):
    module = load("codec_size")
    assert module.entropy(5, 10) == 10
    assert module.entropy(0, 10) == module.entropy(10, 10) == 0
    codes = {"a": np.array([0, 1, 0, -1], np.int8), "b": np.zeros(9, np.int8)}
    assert module.mask_entropy(codes) == 4 / 8
    assert module.sign_entropy(codes) == 2 / 8


def test_runs_take_turns_and_threads_are_put_back(load):
    shared = load("_shared")
    order = []
    found = shared.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3  # the first turn warms up
    assert set(found) == {"a", "b"}
    clock = iter([9.0, 9.0, 1.0, 4.0, 3.0, 6.0]).__next__
    both = {"a": int, "b": int}
    found = shared.interleaved(both, 2, clock=lambda run: clock())
    assert found == {"a": 2.0, "b": 5.0}
    before = torch.get_num_threads()
    with shared.torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(ZeroDivisionError), shared.torch_threads(before + 1):
        _ = 1 / 0
    assert torch.get_num_threads() == before


def test_the_table_is_markdown_and_aligned(load):
    shared = load("_shared")
    lines = shared.markdown(["what", "n"], [["a", "1"], ["long name", "1,000"]]).splitlines()
    assert lines[0] == "| what      |     n |"
    assert lines[1] == "| --------- | ----: |"
    assert lines[3] == "| long name | 1,000 |"
    assert [shared.times(x) for x in (2.5, 0.01234, 5e-6)] == ["2.5 s", "12.3 ms", "5 µs"]

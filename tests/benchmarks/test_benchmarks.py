"""Each benchmark runs on something tiny and says what it promises; no time is ever judged."""

from __future__ import annotations

import importlib.util
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import brotli
import numpy as np
import pytest
import torch
import zstandard

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
        assert [file.name for file in tmp_path.iterdir()] == [f"{name}-quick.json"]
        text = (tmp_path / f"{name}-quick.json").read_text(encoding="utf-8")
        for place in (tmp_path, cache, FOLDER.parent, Path.home()):
            assert str(place) + os.sep not in text + done.stdout
        return done.stdout, done.stderr, json.loads(text)

    return run


def load(name):
    """Import one of the benchmarks' shared modules."""
    spec = importlib.util.spec_from_file_location(f"benchmarks{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_machine(found):
    assert found["cpu"]
    assert found["cores"] >= 1
    assert found["versions"]["numpy"] == np.__version__
    assert len(found["date"]) == len("2026-01-01")


def test_codec_size(bench, cache):
    stdout, stderr, found = bench("codec_size", "--cache", cache)
    check_machine(found["machine"])
    assert "SynFlow 0.1" in stderr
    for word in ("huffman", "context", "auto", "zstd -19 --long", "xz -9e", "brotli 11", "order-0"):
        assert word in stdout
    assert {row["kind"] for row in found["cases"]} == {"SynFlow", "magnitude", "random"}
    for row in found["cases"]:
        ours, limits = row["coders"], row["limits"]
        assert row["case"] in stdout
        assert ours["auto"] <= min(ours["huffman"], ours["context"])
        assert ours["huffman"] == pytest.approx((row["weights"] + row["survivors"]) / 8, abs=40)
        best = min(size for forms in row["peers"].values() for size in forms.values())
        assert row["ratios"]["best peer / auto"] == pytest.approx(best / ours["auto"])
        assert set(row["peers"]) == {"zstd -19 --long", "xz -9e", "brotli 11"}
        if row["flips"] == 0.5:
            assert limits["signs"] == pytest.approx(row["survivors"] / 8, rel=0.01)
        else:
            assert limits["signs"] < 0.6 * row["survivors"] / 8
            assert "our mask + signs" in limits
    assert [file.name for file in cache.iterdir()] == [
        "synflow-resnet20-w4-keep0.1-iterations5-seed3.npz"
    ]

    stdout, _, again = bench("codec_size", "--cache", cache, "--json", "--keep-ratio", 0.1)
    assert json.loads(stdout) == again
    assert again["cases"] == found["cases"]


def test_bitops_table(bench, cache):
    stdout, stderr, found = bench("bitops_table", "--cache", cache)
    check_machine(found["machine"])
    assert "resnet18" in stderr
    assert {case["method"] for case in found["cases"]} == {
        "dense-sgd", "edge-popup", "pab-bop", "pab-bop-psg"
    }  # fmt: skip
    for case in found["cases"]:
        assert case["ratio"] == case["ours"] / case["paper"]
        assert f"{case['ours'] / 1e12:.3f}" in stdout


def test_codec_speed(bench, cache):
    stdout, stderr, found = bench("codec_speed", "--cache", cache)
    check_machine(found["machine"])
    assert "load" in stderr
    rows = {(row["what"], row["threads"]): row["seconds"] for row in found["rows"]}
    assert set(rows) >= {
        ("pack", 2), ("load", 1), ("load", 2), ("one tensor", 1), ("unpack, cold process", 2),
    }  # fmt: skip
    peers = {"kaiming_normal_", "torch.load", "safetensors", "safetensors + zstd"}
    assert set(rows["load", 2]) == {"pabzip", *peers}
    assert all(word in stdout for word in peers)
    assert all(seconds > 0 for row in rows.values() for seconds in row.values())
    for row in found["rows"]:
        ours = row["seconds"]["pabzip"]
        for name, ratio in row["ratios"].items():
            assert ratio == pytest.approx(ours / row["seconds"][name.removeprefix("pabzip / ")])
    assert set(found["bytes"]) == {"pabzip", "torch.load", "safetensors", "safetensors + zstd"}
    assert found["bytes"]["pabzip"] < found["bytes"]["safetensors + zstd"]


def test_regenerate(bench):
    stdout, stderr, found = bench("regenerate", "--elements", 5000)
    check_machine(found["machine"])
    assert "threads" in stderr
    assert found["elements"] == 5000
    assert "regenerate / torch" in stdout
    drawn = {(row["distribution"], row["threads"]) for row in found["rows"]}
    assert drawn == {(name, n) for name in ("normal", "uniform", "signed_constant") for n in (1, 2)}
    for row in found["rows"]:
        assert set(row["seconds"]) == {"weights", "regenerate", "torch"}
        rate = row["weights_per_second"]["weights"]
        assert rate == pytest.approx(5000 / row["seconds"]["weights"])


def test_train_speed(bench):
    stdout, stderr, found = bench("train_speed", "--json", "--threads", 1)
    check_machine(found["machine"])
    assert json.loads(stdout) == found
    assert "training steps" in stderr
    assert set(found["seconds"]) == set(found["fastest"]) == {
        "dense SGD", "Bop", "Bop with PSG", "Bop with PSG as published"
    }  # fmt: skip
    for name in ("psg_over_dense", "bop_over_dense", "published_over_dense"):
        assert found[name] > 0


def test_methods(bench, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "kept"
    wanted = ("--only", "signsgd", "--only", "latent-psg", "--folder", folder)
    stdout, stderr, found = bench("methods", *wanted)
    check_machine(found["machine"])
    assert [row["method"] for row in found["rows"]] == ["signsgd", "pab-latent-psg"]
    ours = found["rows"][1]
    assert (ours["epochs"], len(ours["runs"])) == (1, 1)
    assert ours["bytes"] < found["rows"][0]["bytes"]
    assert f"{ours['accuracy']:.2%}" in stdout
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
    least = network["best_plain"]["test_accuracy"] - found["tolerance"]
    for point in filter(None, network["smallest_equal"].values()):
        assert point["test_accuracy"] >= least


def test_search_speed(bench):
    stdout, stderr, found = bench("search_speed", "--json", "--threads", 1)
    check_machine(found["machine"])
    assert json.loads(stdout) == found
    assert "published float32" in stderr
    ours = {"pabzip float64", "pabzip float32"}
    assert set(found["seconds"]) == {*ours, "published float64", "published float32"}
    assert all(found["mask_shared"][name] == 1.0 for name in (*ours, "published float64"))
    assert found["survivors_shared"]["published float32"] > 0.9
    assert found["published_over_fast"] > 0


def test_forms_hold_the_codes():
    module = load("_compressors")
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


def test_compressors_are_real():
    compressors = load("_compressors").COMPRESSORS
    data = bytes(range(256)) * 20
    undo = {
        "zstd -19 --long": zstandard.ZstdDecompressor(max_window_size=2**27).decompress,
        "xz -9e": lzma.decompress,
        "brotli 11": brotli.decompress,
    }
    for name, compress in compressors.items():
        assert len(compress(data)) < 600
        assert undo[name](compress(data)) == data


def test_entropies():
    module = load("_compressors")
    assert module.entropy(5, 10) == 10
    assert module.entropy(0, 10) == module.entropy(10, 10) == 0
    codes = {"a": np.array([0, 1, 0, -1], np.int8), "b": np.zeros(9, np.int8)}
    assert module.mask_entropy(codes) == 4 / 8
    assert module.sign_entropy(codes) == 2 / 8


def test_runs_take_turns_and_threads_are_put_back():
    shared = load("_shared")
    order = []
    found = shared.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3  # the first turn warms up
    assert set(found) == {"a", "b"}
    before = torch.get_num_threads()
    with shared.torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(ZeroDivisionError), shared.torch_threads(before + 1):
        _ = 1 / 0
    assert torch.get_num_threads() == before


def test_the_table_is_markdown_and_aligned():
    shared = load("_shared")
    lines = shared.markdown(["what", "n"], [["a", "1"], ["long name", "1,000"]]).splitlines()
    assert lines[0] == "| what      |     n |"
    assert lines[1] == "| --------- | ----: |"
    assert lines[3] == "| long name | 1,000 |"
    assert [shared.times(x) for x in (2.5, 0.01234, 5e-6)] == ["2.5 s", "12.3 ms", "5 µs"]

"""``pabzip unpack --shard-size``: shards and their index, whole or not at all."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import safetensors.numpy

import pabzip

NAMES = ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
         "model-00003-of-00003.safetensors"]  # fmt: skip
INDEX = "model.safetensors.index.json"


@pytest.fixture
def ticket(tmp_path, monkeypatch):
    """Five tensors of 4 kB, of which two fit a shard of 10 kB."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(1000).astype(np.float32) for name in "dbeca"}
    pabzip.pack(arrays, "model.pabz")
    return arrays


def unpack(run, *flags):
    return run("unpack", "model.pabz", "--shard-size", "10kB", *flags)


def test_shards_hold_every_tensor_once(run, ticket, tmp_path):
    result = unpack(run, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["shards"] == 3
    assert found["bytes"] == sum((tmp_path / name).stat().st_size for name in NAMES)
    assert sorted(os.listdir()) == sorted([*NAMES, INDEX, "model.pabz"])
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"] == {"total_size": 20_000}
    assert index["weight_map"] == dict(
        zip("abcde", [NAMES[2], NAMES[0], NAMES[1], NAMES[0], NAMES[1]], strict=True)
    )
    for name, file in index["weight_map"].items():
        held = safetensors.numpy.load_file(file)
        assert held[name].tobytes() == ticket[name].tobytes()
    assert run("pack", INDEX, "-o", "again.pabz").exit_code == 0
    assert run("pack", ".", "-o", "folder.pabz").exit_code == 0
    again = pabzip.load_arrays("again.pabz", verify=True)
    assert {name: array.tobytes() for name, array in again.items()} == {
        name: array.tobytes() for name, array in ticket.items()
    }


def test_one_shard_is_a_file_without_an_index(run, ticket):
    result = run("unpack", "model.pabz", "--shard-size", "1GB")
    assert result.exit_code == 0, result.stderr
    assert sorted(os.listdir()) == ["model.pabz", "model.safetensors"]


def test_existing_files_need_force(run, ticket, tmp_path):
    for name in (NAMES[1], INDEX):
        (tmp_path / name).write_bytes(b"old")
        result = unpack(run)
        assert result.exit_code == 1
        assert f"{name}: exists already" in result.stderr
        (tmp_path / name).unlink()
    assert unpack(run).exit_code == 0
    assert unpack(run, "-f").exit_code == 0
    (tmp_path / "model.safetensors").write_bytes(b"other")
    result = unpack(run, "-f")
    assert result.exit_code == 1
    assert "would be read in place of the shards" in result.stderr


def test_a_failure_leaves_the_old_set(run, ticket, tmp_path, monkeypatch):
    assert unpack(run).exit_code == 0
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir()}
    changed = {name: array + 1 for name, array in ticket.items()}
    pabzip.pack(changed, "model.pabz")
    before["model.pabz"] = (tmp_path / "model.pabz").read_bytes()
    real, calls = pabzip.Ticket.exact, []

    def fail(self, name, **options):
        calls.append(name)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        return real(self, name, **options)

    monkeypatch.setattr(pabzip.Ticket, "exact", fail)
    assert unpack(run, "-f").exit_code == 1
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir()} == before


def test_the_index_is_gone_before_the_first_shard_changes_and_back_last(
    run, ticket, tmp_path, monkeypatch
):
    assert unpack(run).exit_code == 0
    real, seen = os.replace, []

    def watch(source, target):
        seen.append((os.path.basename(target), os.path.exists(INDEX)))
        real(source, target)

    monkeypatch.setattr(os, "replace", watch)
    assert unpack(run, "-f").exit_code == 0
    assert sorted(seen[:3]) == [(name, False) for name in NAMES]
    assert seen[3:] == [(INDEX, False)]


@pytest.mark.parametrize(
    "flags", [("-o", "a.npz"), ("-o", "-"), ("--format", "pt"), ("--shard-size", "0")]
)
def test_only_safetensors_files_have_shards(run, ticket, flags):
    result = run("unpack", "model.pabz", "--shard-size", "10kB", *flags)
    assert result.exit_code == 2
    assert "--shard-size: expected a size above 0" in result.stderr


def test_too_many_shards_are_refused(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pabzip.pack({f"t{n}": np.ones(2) for n in range(501)}, "model.pabz")
    result = run("unpack", "model.pabz", "--shard-size", "16")
    assert result.exit_code == 1
    assert "expected at most 500 shards, found 501 of 16 bytes each" in result.stderr

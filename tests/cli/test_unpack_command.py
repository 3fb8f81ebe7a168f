"""``pabzip unpack``: every format, equal to the file to the bit."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

import pabzip


def test_unpack_writes_safetensors_by_default(project, run):
    result = run("unpack", "model.pabz")
    assert result.exit_code == 0, result.stderr
    assert "model.safetensors" in project.files()
    expected = pabzip.load_file(project.ticket)
    found = safetensors.torch.load_file(project.folder / "model.safetensors")
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_safetensors_say_that_they_hold_torch_weights(project, run):
    assert run("unpack", "model.pabz").exit_code == 0
    with safetensors.safe_open(project.folder / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}


def test_unpack_npz(project, run):
    result = run("unpack", "model.pabz", "-o", "out.npz")
    assert result.exit_code == 0, result.stderr
    expected = pabzip.load_arrays(project.ticket)
    with np.load(project.folder / "out.npz", allow_pickle=False) as found:
        assert set(found.files) == set(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)
            assert found[name].dtype == value.dtype


def test_unpack_pt(project, run):
    result = run("unpack", "model.pabz", "-o", "out.pt")
    assert result.exit_code == 0, result.stderr
    found = torch.load(project.folder / "out.pt", weights_only=True)
    expected = pabzip.load_file(project.ticket)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("suffix", ["pth", "bin"])
def test_other_suffixes_of_a_state_dict(project, run, suffix):
    result = run("unpack", "model.pabz", "-o", f"out.{suffix}", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["format"] == "pt"
    found = torch.load(project.folder / f"out.{suffix}", weights_only=True)
    expected = pabzip.load_file(project.ticket)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "pt"])
def test_unpack_twice_gives_the_same_bytes(project, run, suffix):
    for name in ("one", "two"):
        assert run("unpack", "model.pabz", "-o", f"{name}.{suffix}").exit_code == 0
    first, second = ((project.folder / f"{n}.{suffix}").read_bytes() for n in ("one", "two"))
    if suffix == "pt":  # torch writes the file's own name into the archive
        first, second = len(first), len(second)
    assert first == second


MIXED = {
    "scalar": ("int64", np.array(3, np.int64)),
    "half": ("float16", np.array([0.5, 2.0, -1.0], np.float16)),
    "brain": ("bfloat16", np.array([[0x3F80, 0xC000]], np.uint16)),
    "flags": ("bool", np.array([True, False, True])),
    "bytes": ("uint8", np.arange(5, dtype=np.uint8)),
    "double": ("float64", np.array([1e300, -0.0])),
}


@pytest.fixture
def mixed(tmp_path, monkeypatch):
    """A ticket with dense tensors of many types, of lengths that upset alignment."""
    monkeypatch.chdir(tmp_path)
    from pabzip.seeds import InitSpec

    codes = np.array([[1, 0, -1], [0, 0, 1]], np.int8)
    tensors = [pabzip.SeededTensor("weight", InitSpec("normal", 0.5, 0), codes)]
    tensors += [pabzip.DenseTensor(name, v, dtype, dtype) for name, (dtype, v) in MIXED.items()]
    pabzip.Ticket(seed=1, tensors=tensors).save(tmp_path / "mixed.pabz")
    return tmp_path


def test_safetensors_keeps_every_type(mixed, run):
    assert run("unpack", "mixed.pabz").exit_code == 0
    found = safetensors.torch.load_file(mixed / "mixed.safetensors")
    for name, (dtype, values) in MIXED.items():
        assert str(found[name].dtype) == f"torch.{dtype}", name
        assert tuple(found[name].shape) == values.shape
        if dtype == "bfloat16":
            np.testing.assert_array_equal(found[name].view(torch.int16).numpy().view("u2"), values)
        else:
            np.testing.assert_array_equal(found[name].numpy(), values)


def test_safetensors_tensors_are_aligned(mixed, run):
    assert run("unpack", "mixed.pabz").exit_code == 0
    data = (mixed / "mixed.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    sizes = {"F64": 8, "I64": 8, "F32": 4, "F16": 2, "BF16": 2, "BOOL": 1, "U8": 1}
    assert length % 8 == 0
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % sizes[entry["dtype"]] == 0, name


def test_npz_widens_bfloat16_exactly(mixed, run):
    assert run("unpack", "mixed.pabz", "-o", "mixed.npz").exit_code == 0
    with np.load(mixed / "mixed.npz") as found:
        assert found["brain"].dtype == np.float32
        np.testing.assert_array_equal(found["brain"], [[1.0, -2.0]])


def test_pt_keeps_bfloat16(mixed, run):
    assert run("unpack", "mixed.pabz", "-o", "mixed.pt").exit_code == 0
    found = torch.load(mixed / "mixed.pt", weights_only=True)
    assert found["brain"].dtype == torch.bfloat16
    assert found["brain"].tolist() == [[1.0, -2.0]]


def test_unpack_through_stdin_and_stdout(project, run):
    assert run("unpack", "model.pabz").exit_code == 0
    piped = run("unpack", "-", stdin=project.ticket.read_bytes())
    assert piped.exit_code == 0, piped.stderr
    assert piped.stdout_bytes == (project.folder / "model.safetensors").read_bytes()
    npz = run("unpack", "model.pabz", "-o", "-", "--format", "npz")
    with np.load(io.BytesIO(npz.stdout_bytes)) as found:
        assert set(found.files) == set(pabzip.load_arrays(project.ticket))


def test_unpack_json(project, run):
    result = run("unpack", "model.pabz", "--json")
    found = json.loads(result.stdout)
    assert found["output"] == "model.safetensors"
    assert found["bytes"] == (project.folder / "model.safetensors").stat().st_size


def test_unpack_unknown_suffix_is_a_usage_error(project, run):
    result = run("unpack", "model.pabz", "-o", "model.h5")
    assert result.exit_code == 2
    assert ".safetensors, .npz, .pt" in result.stderr


def test_format_names_the_default_output(project, run):
    assert run("unpack", "model.pabz", "--format", "npz").exit_code == 0
    assert "model.npz" in project.files()


def test_verbose_names_the_tensors_on_stderr(project, run):
    result = run("unpack", "model.pabz", "-v", "--json")
    json.loads(result.stdout)
    assert all(name in result.stderr for name in pabzip.open(project.ticket).names)


def test_threads_give_the_same_bytes(project, run):
    for threads in (1, 2):
        out = f"{threads}.safetensors"
        assert run("unpack", "model.pabz", "-o", out, "--threads", threads).exit_code == 0
    assert (project.folder / "1.safetensors").read_bytes() == (
        project.folder / "2.safetensors"
    ).read_bytes()

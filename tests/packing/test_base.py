"""A base in any form: the same tensors are the same base, and a damaged file is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import pabzip
from pabzip.errors import BaseFileError, CheckpointError
from pabzip.packing.base import open_base


def state(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(20, 40, generator=generator).to(dtype),
        "b.weight": torch.randn(8, 3, 5, generator=generator).to(dtype),
        "b.scalar": torch.tensor(3),
        "unused": torch.ones(4),
    }


def tuned(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    made = state(dtype)
    del made["unused"]
    made["a.weight"] = made["a.weight"] + (0.01 * made["a.weight"].float().sign()).to(dtype)
    return made


def forms(folder: Path, base: dict[str, torch.Tensor]) -> dict[str, object]:
    """The base in every form that serves."""
    reverse = dict(reversed(base.items()))
    save_file(reverse, folder / "base.safetensors")
    shards = {"one": ["b.weight", "unused"], "two": ["a.weight", "b.scalar"]}
    for shard, names in shards.items():
        save_file({name: base[name] for name in names}, folder / f"{shard}.safetensors")
    places = {name: f"{shard}.safetensors" for shard, names in shards.items() for name in names}
    (folder / "base.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    np.savez(folder / "base.npz", **{name: one.float().numpy() if one.dtype == torch.bfloat16
                                     else one.numpy() for name, one in base.items()})  # fmt: skip
    torch.save(base, folder / "base.pt")
    pabzip.pack(base, folder / "base.pabz", base={})
    return {
        "safetensors": folder / "base.safetensors",
        "shards": folder / "base.safetensors.index.json",
        "npz": folder / "base.npz",
        "pt": str(folder / "base.pt"),
        "pabz": folder / "base.pabz",
        "tensors": dict(base),
        "ticket": pabzip.open(folder / "base.pabz"),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_form_is_the_same_base(tmp_path: Path, dtype: torch.dtype) -> None:
    files, found = forms(tmp_path, state(dtype)), tuned(dtype)
    packed = {}
    for form, base in files.items():
        file = io.BytesIO()
        pabzip.pack(found, file, base=base)  # type: ignore[arg-type]
        packed[form] = file.getvalue()
    assert len(set(packed.values())) == 1
    for form, base in files.items():
        loaded = pabzip.load_file(packed["npz"], base=base, verify=True)  # type: ignore[arg-type]
        assert all(torch.equal(loaded[name], value) for name, value in found.items()), form
        assert loaded["a.weight"].dtype == dtype


def test_packing_reads_tensors_of_every_form_without_a_seed(tmp_path: Path) -> None:
    files = forms(tmp_path, tuned() | {"unused": torch.ones(4)})
    for form in ("safetensors", "shards", "npz", "pt"):
        file = io.BytesIO()
        pabzip.pack(files[form], file, base=state())  # type: ignore[arg-type]
        loaded = pabzip.load_file(file.getvalue(), base=state(), verify=True)
        assert all(torch.equal(loaded[name], value) for name, value in tuned().items()), form


def test_a_base_that_is_itself_changes_of_another(tmp_path: Path) -> None:
    pabzip.pack(tuned(), tmp_path / "first.pabz", base=state())
    twice = dict(tuned())
    twice["b.weight"] = twice["b.weight"] * 1.0001
    with pabzip.open(tmp_path / "first.pabz", base=state()) as first:
        pabzip.pack(twice, tmp_path / "second.pabz", base=first)
        loaded = pabzip.load_file(tmp_path / "second.pabz", base=first, verify=True)
    assert all(torch.equal(loaded[name], value) for name, value in twice.items())
    with pytest.raises(BaseFileError, match="base is itself a file of changes; unpack it first"):
        pabzip.load_file(tmp_path / "second.pabz", base=tmp_path / "first.pabz")


def packed() -> bytes:
    file = io.BytesIO()
    pabzip.pack(tuned(), file, base=state())
    return file.getvalue()


def test_without_the_base_all_but_its_tensors_can_be_had() -> None:
    file = packed()
    with pabzip.open(file) as ticket:
        info = ticket.info()
        assert len(info.base) == 64  # type: ignore[arg-type]
        assert {row["change"] for row in info.tensors} == {"steps", "equal"}
        with pytest.raises(
            BaseFileError,
            match=rf"base: expected the one that the file was packed on, with SHA-256 {info.base}, "
            r"found none; give it with base=\.\.\. \(on the command line --base FILE\)",
        ):
            ticket.weight("b.weight")
        with pytest.raises(BaseFileError, match="found none"):
            ticket.save(io.BytesIO())
    with pytest.raises(BaseFileError, match="found none"):
        pabzip.load_arrays(file)


def test_another_base_is_refused_with_both_digests() -> None:
    file = packed()
    other = state()
    other["b.scalar"] = torch.tensor(4)  # of what the tensor asked for does not need
    with pabzip.open(file, base=other) as ticket:
        expected = ticket.info().base
        with pytest.raises(
            BaseFileError,
            match=f"base: expected SHA-256 {expected} of the 3 tensors that the file changes, "
            "found [0-9a-f]{64}; give the base that it was packed on",
        ):
            ticket.weight("a.weight")
        with pytest.raises(BaseFileError, match="expected SHA-256"):
            ticket.check_base()
    for wrong, found in (
        ({**other, "a.weight": other["a.weight"].half()}, r"found float16 \[20, 40\]"),
        ({**other, "a.weight": other["a.weight"].T}, r"found float32 \[40, 20\]"),
        ({"b.weight": other["b.weight"]}, "found none"),
    ):
        with pytest.raises(
            BaseFileError,
            match=rf"base: tensor 'a.weight': expected float32 \[20, 40\], {found}; give the base "
            f"that the file was packed on, with SHA-256 {expected}",
        ):
            pabzip.load_arrays(file, base=wrong)


def test_a_base_of_no_known_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="x.bin: expected safetensors, .*found something el"):
        open_base(tmp_path / "x.bin")
    with pytest.raises(FileNotFoundError):
        open_base(tmp_path / "missing.safetensors")
    with pytest.raises(BaseFileError, match="base: expected a path, tensors by name"):
        open_base(7)  # type: ignore[arg-type]
    with pytest.raises(BaseFileError, match="base: a: expected a tensor, found int"):
        open_base({"a": 7})


class Checkpoint:
    """What describes its tensors by name, and reads one at a time."""

    def __init__(self, state: dict[str, torch.Tensor]):
        self.state, self.closed = state, False
        self.tensors = {
            name: SimpleNamespace(dtype=str(value.dtype).removeprefix("torch."))
            for name, value in state.items()
        }

    def read(self, name: str) -> np.ndarray:
        return self.state[name].numpy()

    def close(self) -> None:
        self.closed = True


def test_an_open_checkpoint_is_a_base() -> None:
    held = Checkpoint(state())
    with pabzip.open(packed(), base=held) as ticket:  # type: ignore[arg-type]
        ticket.verify()
        assert not held.closed
    assert held.closed
    with pytest.raises(BaseFileError, match="found none"):
        pabzip.load_arrays(packed(), base=Checkpoint({}))  # type: ignore[arg-type]

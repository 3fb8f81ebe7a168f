"""Checkpoints of every form go through a .pabz file bit for bit; damaged ones are refused."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from click.testing import CliRunner

import pabzip
from pabzip.cli import main
from pabzip.errors import CheckpointError, PackError
from pabzip.packing.safetensors_files import split, write_safetensors
from pabzip.packing.sources import Described

SIGNS = np.random.default_rng(0).integers(-1, 2, (8, 32)).astype(np.float32)


def make() -> dict[str, torch.Tensor]:
    """Ternary, tied, and dense tensors of several types."""
    generator = torch.Generator().manual_seed(0)
    return {
        "body.weight": torch.from_numpy(SIGNS * np.float32(0.3) + np.float32(0)),
        "head.weight": torch.randn(9, 8, generator=generator).bfloat16(),
        "head.again": torch.randn(9, 8, generator=torch.Generator().manual_seed(0)).bfloat16(),
        "norm": torch.linspace(-1, 1, 8, dtype=torch.float64),
        "half": torch.arange(6, dtype=torch.float16).reshape(2, 3),
        "steps": torch.tensor(12),
        "flags": torch.tensor([True, False]),
        "turned": torch.arange(12, dtype=torch.int32).reshape(3, 4).T.contiguous(),
    }


def shards(folder: Path, state: dict[str, torch.Tensor], suffix: str) -> Path:
    """Write a checkpoint in two files and an index, as Hugging Face does."""
    folder.mkdir(exist_ok=True)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    files = [f"{stem}-0000{n}-of-00002.{suffix}" for n in (1, 2)]
    weight_map = {name: files[n % 2] for n, name in enumerate(state)}
    for file in files:
        part = {name: state[name] for name in state if weight_map[name] == file}
        if suffix == "safetensors":
            safetensors.torch.save_file(part, folder / file, {"format": "pt"})
        else:
            torch.save(part, folder / file)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def as_safetensors(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    safetensors.torch.save_file(state, folder / "m.safetensors", {"format": "pt"})
    return folder / "m.safetensors"


def as_torch(content: Callable[[Any], Any], **options: Any) -> Callable[..., Path]:
    def write(folder: Path, state: dict[str, torch.Tensor]) -> Path:
        torch.save(content(state), folder / "m.bin", **options)
        return folder / "m.bin"

    return write


FORMS: dict[str, Callable[..., Any]] = {
    "safetensors": as_safetensors,
    "folder": lambda folder, state: as_safetensors(folder, state).parent,
    "index": lambda folder, state: shards(folder / "in", state, "safetensors"),
    "folder of shards": lambda folder, state: shards(folder / "in", state, "safetensors").parent,
    "torch index": lambda folder, state: shards(folder / "in", state, "bin"),
    "state dict": as_torch(lambda state: state),
    "before 1.6": as_torch(lambda state: state, _use_new_zipfile_serialization=False),
    "model": as_torch(lambda state: {"model": state, "epoch": 3}),
    "state_dict": as_torch(lambda state: {"state_dict": state, "optimizer": {"lr": 0.1}}),
    "DataParallel": as_torch(lambda state: {f"module.{name}": v for name, v in state.items()}),
    "stream": lambda folder, state: io.BytesIO(as_safetensors(folder, state).read_bytes()),
    "tensors": lambda _folder, state: state,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_comes_back_bit_for_bit(form: str, tmp_path: Path) -> None:
    state = make()
    info = pabzip.pack(FORMS[form](tmp_path, state), tmp_path / "m.pabz")
    found = pabzip.load_file(tmp_path / "m.pabz", verify=True)
    assert set(found) == set(state)
    for name, value in state.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name
    kinds = {row["name"]: row["kind"] for row in info.tensors}
    assert kinds["body.weight"] not in ("dense", "tied")  # recognized as ternary
    assert sorted([kinds["head.weight"], kinds["head.again"]]) == ["dense", "tied"]
    assert kinds["half"] == "dense"


def test_numpy_arrays_and_archives_need_no_torch(tmp_path: Path) -> None:
    script = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
import numpy as np, pabzip
from safetensors.numpy import save_file
from pabzip.cli import main
signs = np.random.default_rng(0).integers(-1, 2, (8, 32)).astype(np.float32)
arrays = {"w": signs * np.float32(0.5) + np.float32(0), "b": np.arange(3.0), "f": np.ones((2, 3))}
arrays["f"] = np.asfortranarray(arrays["f"])
np.savez_compressed("a.npz", **arrays)
save_file(arrays, "b.safetensors")
pabzip.pack("a.npz", "a.pabz")
pabzip.pack("b.safetensors", "b.pabz")
pabzip.pack(arrays, "c.pabz")
for name in "abc":
    found = pabzip.load_arrays(f"{name}.pabz", verify=True)
    assert all(found[key].tobytes() == value.tobytes() for key, value in arrays.items()), name
for command in ("unpack a.pabz --shard-size 600", "pack a.safetensors.index.json -o d.pabz"):
    try:
        main(command.split())
    except SystemExit as done:
        assert not done.code, command
assert set(pabzip.load_arrays("d.pabz")) == set(arrays)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120)


@pytest.mark.parametrize(
    "kept",
    [
        {"format": "pt", "license": "mit", "note": "ä"},
        {"format": "tf", "note": "ä"},
        {"format": "mlx"},
        {"format": "pt"},
    ],
)
def test_metadata_of_safetensors_come_back(kept: dict[str, str], tmp_path: Path) -> None:
    safetensors.torch.save_file({"w": torch.ones(3)}, tmp_path / "m.safetensors", kept)
    pabzip.pack(tmp_path / "m.safetensors", tmp_path / "m.pabz")
    metadata = pabzip.open(tmp_path / "m.pabz").metadata
    assert metadata.get("safetensors.note") == kept.get("note")
    assert ("safetensors.format" in metadata) == (kept["format"] != "pt")
    out = tmp_path / "out.safetensors"
    result = CliRunner().invoke(main, ["unpack", str(tmp_path / "m.pabz"), "-o", str(out)])
    assert result.exit_code == 0, result.stderr
    with safetensors.safe_open(out, framework="np") as file:
        assert file.metadata() == kept


def test_the_library_writes_the_same_bytes() -> None:
    names = {
        "é\"\\": np.arange(6, dtype=np.int64), "b": np.ones((2, 2), np.float16), "z": np.int8([1]),
        "a": np.ones((), np.float32), "c": np.zeros(3, np.bool_), "d": np.float32([1, 2]),
        "e": np.arange(3, dtype=np.uint8), "f": np.int32([7]), "g": np.int16([7]),
        "h": np.float64([0.5]),
    }  # fmt: skip
    file = io.BytesIO()
    described = {name: Described(one.dtype.name, one.shape) for name, one in names.items()}
    write_safetensors(described, iter(names.values()), file)
    assert file.getvalue() == safetensors.numpy.save(names, {"format": "pt"})


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float8_e4m3fn, "float8_e4m3fn"),
        (torch.complex64, "complex64"),
        (torch.uint32, "uint32"),
    ],
)
@pytest.mark.parametrize("form", ["safetensors", "state dict"])
def test_types_that_no_file_holds_are_named(
    dtype: torch.dtype, name: str, form: str, tmp_path: Path
) -> None:
    source = FORMS[form](tmp_path, {"ok": torch.ones(2), "odd": torch.zeros(4).to(dtype)})
    (tmp_path / "old.pabz").write_bytes(b"old")
    with pytest.raises(
        PackError, match=rf"odd: expected one of float64, .* found (torch\.)?{name}\b"
    ):
        pabzip.pack(source, tmp_path / "old.pabz")
    assert (tmp_path / "old.pabz").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (torch.eye(3).to_sparse(), "found torch.sparse_coo"),
        (torch.ones(2, device="meta"), "on the meta device"),
        (torch.ones(1).expand(1 << 27), "in a storage that holds fewer"),
        ("text", "found str"),
    ],
)
def test_what_is_no_tensor_with_values_is_refused(value: Any, found: str) -> None:
    with pytest.raises(PackError, match=f"odd: expected a .*tensor.*{found}"):
        pabzip.pack({"odd": value}, io.BytesIO())


def refused(source: Path, match: str) -> None:
    target = source.parent / "out.pabz"
    with pytest.raises(CheckpointError, match=match):
        pabzip.pack(source, target)
    assert not target.exists()
    assert not [name for name in os.listdir(source.parent) if name.endswith("tmp")]


def rewritten(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def row(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any) -> Any:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (rewritten({"a": row()}, b"1234", length=2**39), "expected a safetensors header of 2 to"),
        (rewritten({"a": row()}, b"123"), "expected .* bytes, found"),
        (rewritten({"a": row()}, b"12345"), "expected .* bytes, found"),
        (rewritten({"a": row(), "b": row()}, b"1234"), "'b': expected its elements to begin at"),
        (rewritten({"a": row(offsets=[4, 8])}, b"12345678"), "begin at byte 0, found 4"),
        (rewritten({"a": row(shape=[2])}, b"1234"), "'a': expected 8 bytes of elements, found 4"),
        (rewritten({"a": row(shape=[-1])}, b"1234"), "'a': expected a shape"),
        (rewritten({"a": row(shape=[True])}, b"1234"), "'a': expected a shape"),
        (rewritten({"a": row(shape=[2**62, 2**62], offsets=[0, 0])}), "bytes of elements"),
        (rewritten({"a": row(dtype="F31")}, b"1234"), "'a': expected a known dtype, found 'F31'"),
        (rewritten({"a": row(extra=1)}, b"1234"), "'a': expected dtype, shape and data_offsets"),
        (rewritten(b'{"a":1,"a":2}'), "expected each key once"),
        (rewritten(b"{" * 50), "levels of nesting"),
        (rewritten({"__metadata__": {"a": 1}}), "expected texts as metadata"),
    ],
)
def test_damaged_safetensors_are_refused(data: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(data)
    refused(tmp_path / "m.safetensors", match)


@pytest.mark.parametrize("form", ["safetensors", "state dict", "npz"])
def test_a_cut_file_is_refused_wherever_it_is_cut(form: str, tmp_path: Path) -> None:
    if form == "npz":
        np.savez(tmp_path / "m.npz", a=np.arange(100.0), b=np.ones(3))
        source = tmp_path / "m.npz"
    else:
        source = FORMS[form](tmp_path, {"a": torch.arange(100.0), "b": torch.ones(3)})
    data = source.read_bytes()
    for size in {0, 1, 8, 20, len(data) // 2, len(data) - 1}:
        source.write_bytes(data[:size])
        refused(source, "expected")


def test_a_flipped_bit_in_an_archive_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", a=np.arange(100.0))
    data = bytearray((tmp_path / "m.npz").read_bytes())
    data[400] ^= 1
    (tmp_path / "m.npz").write_bytes(data)
    refused(tmp_path / "m.npz", "Bad CRC-32 for file 'a.npy'")
    np.savez(tmp_path / "m.npz", a=np.arange(100_000.0))
    data = bytearray((tmp_path / "m.npz").read_bytes())
    data[400_000] ^= 1
    (tmp_path / "m.npz").write_bytes(data)
    refused(tmp_path / "m.npz", "a: expected an array, found damaged data")


class Touch:
    def __init__(self, path: str):
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def test_arrays_of_objects_are_never_unpickled(tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    np.savez(tmp_path / "m.npz", a=np.array([Touch(str(trap))], dtype=object))
    refused(tmp_path / "m.npz", "a: expected an array of numbers, found one of Python objects")
    assert not trap.exists()
    torch.save({"state_dict": Touch(str(trap))}, tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "asks to run code")
    assert not trap.exists()


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("a.npy", b"no array")
    refused(tmp_path / "m.npz", "found a damaged one")
    (tmp_path / "m.bin").write_bytes(b"GGML and more bytes")
    refused(tmp_path / "m.bin", "expected safetensors, .npz, .*it begins with 47 47 4d 4c")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m, _: m.update(more="model-0.safetensors"), "expected the shard 'model-0.safe"),
        (lambda m, _: m.update(steps="../other.safetensors"), "'steps': expected the name of a"),
        (lambda m, _: m.update(steps="/etc/passwd"), "'steps': expected the name of a"),
        (lambda m, _: m.update(steps="..\\other"), "'steps': expected the name of a"),
        (lambda m, _: m.update(steps=7), "'steps': expected the name of a"),
        (lambda m, _: m.pop("steps"), "found 'steps', which is not in it"),
        (
            lambda m, _: m.update(more=m["steps"]),
            "expected 'more' in the shard .* found it without",
        ),
        (lambda m, f: m.update(steps=f[0] if m["steps"] == f[1] else f[1]), "'steps'"),
        (lambda m, _: m.clear(), "with a weight_map"),
    ],
)
def test_a_wrong_index_is_refused(change: Any, match: str, tmp_path: Path) -> None:
    index = shards(tmp_path, make(), "safetensors")
    content = json.loads(index.read_text())
    weight_map = content["weight_map"]
    change(weight_map, sorted(set(weight_map.values())))
    index.write_text(json.dumps(content))
    refused(index, match)


def test_a_name_in_two_shards_is_refused(tmp_path: Path) -> None:
    index = shards(tmp_path, make(), "safetensors")
    for path in tmp_path.glob("*.safetensors"):
        held = safetensors.torch.load_file(path)
        safetensors.torch.save_file({**held, "steps": torch.tensor(1)}, path)
    refused(index, "found 'steps', which the index puts in")


def test_a_folder_must_hold_one_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no index of shards"):
        pabzip.pack(tmp_path, tmp_path / "m.pabz")
    shards(tmp_path, make(), "safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(PackError, match="expected one checkpoint in the folder"):
        pabzip.pack(tmp_path, tmp_path / "m.pabz")


def test_several_tables_of_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(2)}, "module": {"w": torch.ones(3)}}, tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "expected one table of tensors, found model and module")


def test_shards_are_split_as_hugging_face_does() -> None:
    sizes = {"a": 4, "b": 30, "c": 4, "d": 8, "e": 2}
    tensors = {name: Described("uint8", (size,)) for name, size in sizes.items()}
    assert split(tensors, 10) == [["b"], ["a", "c"], ["d", "e"]]
    assert split(tensors, 1000) == [list(sizes)]


MEMORY = """
import json, resource, struct, sys
import numpy as np
count, size = 24, 8 << 20
if sys.argv[1] == "make":
    header, end = {}, 0
    for n in range(count):
        span = [end, end + size]
        header[f"t{n:02d}"] = {"dtype": "BF16", "shape": [size // 2], "data_offsets": span}
        end += size
    text = json.dumps(header).encode()
    with open("m.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for n in range(count):  # exponents of trained weights, mantissas of noise
            rng = np.random.default_rng(n)
            bits = np.full(size // 2, 0x3F00, np.uint16)
            bits[: 1 << 18] |= rng.integers(0, 256, 1 << 18, dtype=np.uint16)
            file.write(bits.tobytes())
    sys.exit()
import pabzip.ticket, pabzip.packing.pack, pabzip.packing.unpack
from pabzip.cli import main
from pabzip.formats import dense_adaptive
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    main(sys.argv[1:])
except SystemExit as done:
    assert not done.code
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
print("grown", grown, file=sys.stderr)
sys.exit(grown > 10 * (size >> 20))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="bytes of ru_maxrss differ elsewhere")
def test_memory_is_that_of_the_largest_tensor(tmp_path: Path) -> None:
    """24 tensors of 8 MiB each; 10 of them at once would be too many."""

    def run(*arguments: str) -> None:
        command = [sys.executable, "-c", MEMORY, *arguments]
        done = subprocess.run(command, cwd=tmp_path, timeout=300, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    run("make")
    run("pack", "m.safetensors", "-q")
    run("verify", "m.pabz", "-q")
    run("unpack", "m.pabz", "-o", "out.safetensors", "-q")
    run("unpack", "m.pabz", "--shard-size", "50MiB", "-o", "parts.safetensors", "-q")
    first, second = (
        safetensors.safe_open(tmp_path / f"{name}.safetensors", framework="pt")
        for name in ("m", "out")
    )
    for name in first.keys():  # noqa: SIM118
        assert torch.equal(first.get_tensor(name), second.get_tensor(name))

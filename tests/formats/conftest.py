"""A second writer and reader of the container, from SPEC.md alone, to craft bad files with.

It knows nothing of the package's own modules, checks nothing, and signs whatever it is given.
"""

from __future__ import annotations

import importlib.util
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pabzip.seeds import InitSpec
from pabzip.ticket import DenseTensor, SeededTensor, Ticket

MAGIC = bytes.fromhex("8950 41425A 0D0A1A")


def deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    return stream.compress(data) + stream.flush()


def crc(data: bytes) -> bytes:
    return struct.pack("<I", zlib.crc32(data))


@dataclass
class Parts:
    """The parts of a file, each of which a test may replace before signing."""

    fields: dict[str, Any]
    payloads: list[bytes]
    text: bytes | None = None  # instead of the fields
    stored: bytes | None = None  # instead of the deflated text
    version: int = 1
    reserved: int = 0
    size: int | None = None
    length: int | None = None
    extra: bytes = field(default=b"")

    def sign(self) -> bytes:
        """Return a file with every checksum right."""
        text = self.text
        if text is None:
            text = json.dumps(self.fields, separators=(",", ":"), sort_keys=True).encode()
        stored = deflate(text) if self.stored is None else self.stored
        fixed = struct.pack(
            "<HHII",
            self.version,
            self.reserved,
            len(stored) if self.length is None else self.length,
            len(text) if self.size is None else self.size,
        )
        sections = b"".join(payload + crc(payload) for payload in self.payloads)
        return MAGIC + fixed + crc(fixed + stored) + stored + sections + self.extra


def split(file: bytes) -> Parts:
    """Take a good file apart."""
    assert file[:8] == MAGIC
    version, reserved, length, size = struct.unpack("<HHII", file[8:20])
    stored = file[24 : 24 + length]
    assert crc(file[8:20] + stored) == file[20:24]
    text = zlib.decompress(stored, -15)
    assert len(text) == size
    fields = json.loads(text)
    lengths = [fields["side"]] if "side" in fields else []
    lengths += [row[7] for row in fields["tensors"] if len(row) >= 8]
    lengths += [row[2] for row in fields.get("dense", [])]
    place, payloads = 24 + length, []
    for size in lengths:
        payloads.append(file[place : place + size])
        assert crc(payloads[-1]) == file[place + size : place + size + 4]
        place += size + 4
    assert place == len(file)
    return Parts(fields, payloads, version=version, reserved=reserved)


def make_small_ticket(**changes: Any) -> Ticket:
    """Two seeded tensors, and dense ones of several types with a large one between."""
    rng = np.random.default_rng(5)
    codes = rng.choice(np.array([0, 0, 0, 1, -1], dtype=np.int8), size=(4, 3, 3, 3))
    arguments: dict[str, Any] = {
        "seed": 2**63 + 11,
        "arch": "custom",
        "arch_options": {"width": 4},
        "metadata": {"note": "ünïcode", "accuracy": 0.75, "epochs": 3, "best": True, "none": None},
        "tensors": [
            SeededTensor("conv.weight", InitSpec("normal", 0.25, 0), codes),
            DenseTensor("bn.weight", np.ones(4, np.float32), "float32", "float32"),
            DenseTensor("bn.running_var", np.full(4, 0.5, np.float32), "float32", "float32"),
            DenseTensor("bn.num_batches_tracked", np.array(7, np.int64), "int64", "int64"),
            SeededTensor("fc.weight", InitSpec("uniform", 0.5, 1), np.ones((2, 5), np.int8)),
            DenseTensor("fc.bias", np.array([0.5, -2.0], np.float32), "float32", "float32"),
        ],
    }
    return Ticket(**(arguments | changes))


def saved(ticket: Ticket, **options: Any) -> bytes:
    """Return the bytes of a ticket's file."""
    import io

    stream = io.BytesIO()
    ticket.save(stream, **({"coder": "huffman"} | options))
    return stream.getvalue()


def read_everything(file: bytes) -> dict[str, Any]:
    """Read all of a file, with the digest."""
    with Ticket.open(file) as ticket:
        ticket.verify()
        return ticket.arrays()


@pytest.fixture(scope="session")
def small_ticket() -> Ticket:
    return make_small_ticket()


@pytest.fixture(scope="session")
def make_ticket() -> Callable[..., Ticket]:
    return make_small_ticket


@pytest.fixture(scope="session")
def small_file(small_ticket: Ticket) -> bytes:
    return saved(small_ticket)


@pytest.fixture
def parts(small_file: bytes) -> Parts:
    """The small file taken apart, to change and sign again."""
    return split(small_file)


@pytest.fixture(scope="session")
def take_apart() -> Callable[[bytes], Parts]:
    return split


PlainDecoder = Callable[[list[list[Any]], bytes], dict[str, bytes]]
"""Returns the bytes of each tensor of a dense section, from its header rows and payload."""


@pytest.fixture(scope="session")
def plain_dense() -> PlainDecoder:
    """The decoder of ``adaptive`` sections in plain Python."""
    found: PlainDecoder = beside("plain_dense").decode
    return found


@pytest.fixture(scope="session")
def plain_planes() -> PlainDecoder:
    """The decoder of ``planes`` sections in plain Python."""
    found: PlainDecoder = beside("plain_planes").decode
    return found


@pytest.fixture(scope="session")
def plain_ternary() -> Any:
    """The module ``plain_ternary``: a decoder of ternary tensors in plain Python."""
    return beside("plain_ternary")


def beside(name: str) -> Any:
    """Import a module of this folder."""
    path = Path(__file__).with_name(f"{name}.py")
    described = importlib.util.spec_from_file_location(f"pabzip_{name}", path)
    assert described is not None
    assert described.loader is not None
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def save() -> Callable[..., bytes]:
    return saved


@pytest.fixture(scope="session")
def read() -> Callable[[bytes], dict[str, Any]]:
    return read_everything

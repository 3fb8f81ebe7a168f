"""What the tests of the ``context`` coder share: codes of every structure, and both decoders."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pabzip.formats.context import Context
from pabzip.formats.seeded import SeededEntry, SeededTensor
from pabzip.seeds import InitSpec, magnitudes

SEED = 2**63 + 29
PLAIN_DECODER = Path(__file__).with_name("plain_decoder.py")

STRUCTURES = ("random", "magnitude", "synflow", "empty", "all empty", "all active")
SIGNS = ("kept", "flipped", "random", "few flips")


def mask_of(
    structure: str, shape: tuple[int, ...], spec: InitSpec, keep: float, rng: np.random.Generator
) -> np.ndarray:
    """A mask of a kind that searches find: which weights survive."""
    count = int(np.prod(shape))
    scores = np.log2(magnitudes(SEED, spec, 0, count).astype(float)).reshape(shape)
    if structure == "random":
        scores = rng.random(shape)
    if structure in ("synflow", "empty"):
        for axis, size in enumerate(shape):
            factors = rng.normal(0, 0.7, size)
            scores = scores + factors.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    mask = np.zeros(shape, dtype=bool)
    kept = {"all empty": 0, "all active": count}.get(structure, round(keep * count))
    mask.reshape(-1)[np.argsort(-scores.reshape(-1), kind="stable")[:kept]] = True
    if structure == "empty":
        mask[rng.random(shape[0]) < 0.4] = False
        if len(shape) > 1:
            mask[:, rng.random(shape[1]) < 0.4] = False
    return mask


def codes_of(mask: np.ndarray, signs: str, rng: np.random.Generator) -> np.ndarray:
    """Codes of a mask: survivors kept or flipped."""
    share = {"kept": 0.0, "flipped": 1.0, "random": 0.5, "few flips": 0.05}[signs]
    return (mask * np.where(rng.random(mask.shape) < share, -1, 1)).astype(np.int8)


def tensor(
    name: str,
    shape: tuple[int, ...],
    *,
    distribution: str = "normal",
    stream: int = 0,
    structure: str = "random",
    keep: float = 0.3,
    signs: str = "random",
) -> SeededTensor:
    """One tensor, a function of its arguments alone."""
    spec = InitSpec(distribution, 0.125, stream)
    rng = np.random.default_rng([stream, round(1000 * keep), *shape])
    mask = mask_of(structure, shape, spec, keep, rng)
    return SeededTensor(name, spec, codes_of(mask, signs, rng))


@dataclass
class Encoded:
    """What the coder makes of tensors, and how to decode it."""

    tensors: Sequence[SeededTensor]
    payloads: list[bytes]
    side: bytes

    @property
    def entries(self) -> list[SeededEntry]:
        return [
            SeededEntry(one.name, one.codes.shape, one.spec, int(np.count_nonzero(one.codes)))
            for one in self.tensors
        ]

    @property
    def size(self) -> int:
        return sum(map(len, self.payloads)) + len(self.side)

    def decode(self) -> list[np.ndarray]:
        """Decode with the package."""
        decoder = Context().decoder(SEED, self.entries, self.side)
        found = []
        for entry, payload in zip(self.entries, self.payloads, strict=True):
            out = np.zeros(entry.count, dtype=np.int8)
            for task in decoder.codes(entry, payload, out):
                task()
            found.append(out.reshape(entry.shape))
        return found

    def decode_plainly(self, plain: ModuleType) -> list[np.ndarray]:
        """Decode with the decoder of plain_decoder.py."""
        told = plain.read_side(self.side, [(one.shape, one.survivors) for one in self.entries])
        return [
            np.array(plain.decode(one, payload, SEED, entry.spec), np.int8).reshape(entry.shape)
            for one, payload, entry in zip(told, self.payloads, self.entries, strict=True)
        ]

    def modes(self) -> list[int]:
        """The mask mode of each tensor."""
        decoder: Any = Context().decoder(SEED, self.entries, self.side)
        return [int(decoder.descriptions[one.name].mask) for one in self.tensors]


def encoded(tensors: Sequence[SeededTensor]) -> Encoded:
    """Encode tensors of one file."""
    return Encoded(tensors, *Context().encode(SEED, tensors))


@pytest.fixture(scope="session")
def make() -> Callable[..., SeededTensor]:
    return tensor


@pytest.fixture(scope="session")
def encode() -> Callable[[Sequence[SeededTensor]], Encoded]:
    return encoded


@pytest.fixture(scope="session")
def seed() -> int:
    return SEED


@pytest.fixture(scope="session")
def plain() -> ModuleType:
    """The decoder that was written from SPEC.md."""
    described = importlib.util.spec_from_file_location("pabzip_plain_decoder", PLAIN_DECODER)
    assert described is not None
    assert described.loader is not None
    module = importlib.util.module_from_spec(described)
    sys.modules[described.name] = module  # dataclasses look their module up
    described.loader.exec_module(module)
    return module

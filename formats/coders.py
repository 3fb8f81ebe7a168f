"""The choice among the registered coders: by name, or the smallest for each tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pabzip.errors import PackError, shown
from pabzip.formats.checks import check_name_of
from pabzip.formats.coder import Coder, OnTensor
from pabzip.formats.seeded import SeededTensor
from pabzip.registry import CODERS

AUTO = "auto"
"""The writer's choice of the smallest coder for each tensor."""


@dataclass(frozen=True, slots=True)
class CodedTensors:
    """The codes of a file's seeded tensors as bytes.

    Attributes:
        coders: name of the coder of each tensor.
        payloads: one per tensor.
        side: the side stream; empty for none.
    """

    coders: tuple[str, ...]
    payloads: tuple[bytes, ...]
    side: bytes


def coder_named(name: object, place: str) -> Coder:
    """Return a coder by the name that a file gives; its module is imported with its first use.

    Raises:
        FormatError: this version has no such coder.
    """
    check_name_of("coder", name, CODERS, place)
    return _coder(str(name))


def shares_side(name: str) -> bool:
    """Return whether a coder reads and writes the side stream."""
    return bool(CODERS.facts(name).get("shares_side", False))


def _coder(name: str) -> Coder:
    """Return a coder by a name that is registered."""
    coder: Coder = CODERS.get(name)()
    return coder


def encode_codes(
    seed: int,
    tensors: Sequence[SeededTensor],
    coder: str = AUTO,
    on_tensor: OnTensor | None = None,
) -> CodedTensors:
    """Encode the codes of all seeded tensors of a file.

    Args:
        seed: the ticket's seed.
        tensors: the seeded tensors, in the order of the file.
        coder: a registered name for every tensor, or ``"auto"``.
        on_tensor: called with the name of each tensor that is done, once, from any thread.

    Raises:
        PackError: no such coder.
    """
    if coder != AUTO and coder not in CODERS:
        raise PackError(
            f"coder: expected {AUTO} or one of {', '.join(CODERS)}, found {shown(coder)}"
        )
    if coder != AUTO:
        payloads, side = _coder(coder).encode(seed, tensors, on_tensor)
        return CodedTensors((coder,) * len(tensors), tuple(payloads), side)
    return _smallest(seed, tensors, on_tensor)


def _smallest(
    seed: int, tensors: Sequence[SeededTensor], on_tensor: OnTensor | None
) -> CodedTensors:
    """Take the smallest payload of each tensor, and the side stream of those that need it.

    A side stream that costs more than its coder saves leaves the file to the other coders.
    """
    last = CODERS.names[-1]  # whose tensors are counted: all before it are quick
    tried = {
        name: _coder(name).encode(seed, tensors, on_tensor if name == last else None)
        for name in CODERS
    }
    alone = [name for name in CODERS if not shares_side(name)]
    plain = _pick(tried, alone, len(tensors))
    best = _pick(tried, list(CODERS), len(tensors))
    for name in set(best.coders) - set(alone):
        chosen = [at for at, coder in enumerate(best.coders) if coder == name]
        if len(chosen) == len(tensors):
            best = CodedTensors(best.coders, best.payloads, tried[name][1])
            break
        again, side = _coder(name).encode(seed, [tensors[at] for at in chosen])
        payloads = list(best.payloads)
        for at, payload in zip(chosen, again, strict=True):
            payloads[at] = payload
        best = CodedTensors(best.coders, tuple(payloads), side)
    return min(plain, best, key=_size)


def _pick(tried: Mapping[str, tuple[list[bytes], bytes]], names: list[str], n: int) -> CodedTensors:
    """Return the smallest payload of each of ``n`` tensors among the coders ``names``."""
    coders = tuple(min(names, key=lambda name: len(tried[name][0][at])) for at in range(n))
    return CodedTensors(coders, tuple(tried[name][0][at] for at, name in enumerate(coders)), b"")


def _size(coded: CodedTensors) -> int:
    """Return the bytes of all payloads and the side stream."""
    return sum(map(len, coded.payloads)) + len(coded.side)

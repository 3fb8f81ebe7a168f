"""What every coder of codes does, and the choice among them: by name, or the smallest.

This is the seam between the coders, which `pabzip.registry.CODERS` knows, and the container.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import PackError, shown
from pabzip.formats.limits import check_name_of
from pabzip.formats.seeded import SeededEntry, SeededTensor
from pabzip.registry import CODERS
from pabzip.seeds.generation import thread_count

Payload = bytes | memoryview

OnTensor = Callable[[str], None]
"""Called with the name of each tensor that is encoded, for progress bars."""

Task = Callable[[], None]
"""A piece of work that is independent of all others and may run on any thread."""


class Decoder(Protocol):
    """Decodes any tensor that one coder holds in one file.

    Both methods return work instead of doing it, so that a caller can spread the work of several
    tensors over threads. They, or the work itself, raise `FormatError` for a payload that is not
    exactly the codes of its entry, and may be called from several threads.
    """

    def codes(self, entry: SeededEntry, payload: Payload, out: NDArray[np.int8]) -> list[Task]:
        """Return the work that writes codes to ``out``: flat, all zeros but for the marks.

        The marks of `pabzip.seeds.frozen` stand where the seed freezes the mask; the payload has
        no codes of those places, and they are left as they are.
        """

    def weights(self, entry: SeededEntry, payload: Payload, out: NDArray[np.float32]) -> list[Task]:
        """Return the work that writes weights to ``out``: flat, all zeros.

        They are, to the bit, what `pabzip.seeds.regenerate` makes of the codes. A tensor whose
        mask the seed freezes in part is never asked for.
        """


@dataclass(frozen=True, slots=True)
class Coded:
    """A seeded tensor as a file has it.

    Attributes:
        entry: what the header says of it.
        payload: its section, checksum checked.
        decoder: of its coder, for this file.
    """

    entry: SeededEntry
    payload: Payload
    decoder: Decoder


class Spent(NamedTuple):
    """Bytes that one tensor's codes take.

    Attributes:
        mask: which weights survive.
        factors: what predicts that: the tensor's part of the side stream.
        signs: of the survivors.
    """

    mask: int
    factors: int
    signs: int

    @classmethod
    def of(cls, length: int, *, sign_bits: float, factors: int = 0) -> Spent:
        """Give signs their bits in whole bytes, and the mask the rest of ``length`` bytes."""
        signs = min(length, round(sign_bits / 8))
        return cls(length - signs, factors, signs)


class Coder(Protocol):
    """What turns codes into bytes and back.

    A coder is a class of no arguments, registered under the name that headers call it by:
    ``@register_coder("huffman")``. One that keeps what several tensors share in the file's side
    stream says so: ``@register_coder("context", shares_side=True)``. Its module is imported to
    read a header, so it must be light: compiled code is imported where it is used.

    A payload or side stream that is damaged, or cannot hold the codes, raises `FormatError`. A
    coder is given the seed and the init specs, because what they determine (the magnitudes) may
    predict the mask.
    """

    def check_length(self, entry: SeededEntry, length: int) -> None:
        """Check that ``length`` payload bytes can hold the entry's codes."""

    def encode(
        self, seed: int, tensors: Sequence[SeededTensor], on_tensor: OnTensor | None = None
    ) -> tuple[list[bytes], bytes]:
        """Return one payload per tensor, and the side stream (empty where nothing is shared).

        ``on_tensor`` is called with the name of each tensor that is done, from any thread.
        """

    def decoder(self, seed: int, entries: Sequence[SeededEntry], side: bytes) -> Decoder:
        """Prepare to decode any of ``entries``: all those of the file with this coder, in order."""

    def breakdown(self, tensors: Sequence[tuple[SeededEntry, int]], side: bytes) -> list[Spent]:
        """Return what the bytes of each tensor are spent on.

        ``tensors`` are all those of the file with this coder, in order, each with the bytes of its
        payload. Those of the side stream, which is empty for none, count as factors.
        """


def run_tasks(tasks: Sequence[Task], threads: int | None) -> None:
    """Run independent work, on up to ``threads`` threads that live for this call only.

    The first error that a task raises is raised here. None takes every CPU that the process may
    use; SeedError says that ``threads`` is not a positive integer.
    """
    workers = min(thread_count(threads), len(tasks))
    if workers <= 1:
        for task in tasks:
            task()
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="pabzip-decode") as pool:
        list(pool.map(lambda task: task(), tasks))


AUTO = "auto"
"""The writer's choice of the smallest coder for each tensor."""


class CodedTensors(NamedTuple):
    """The codes of a file's seeded tensors as bytes.

    Attributes:
        coders: name of the coder of each tensor.
        payloads: one per tensor.
        side: the side stream; empty for none.
    """

    coders: tuple[str, ...]
    payloads: tuple[bytes, ...]
    side: bytes

    @property
    def size(self) -> int:
        """Bytes of all payloads and the side stream."""
        return sum(map(len, self.payloads)) + len(self.side)


def coder_named(name: object, place: str) -> Coder:
    """Return a coder by the name that a file gives; its module is imported with its first use."""
    check_name_of("coder", name, CODERS, place)
    return _coder(str(name))


def shares_side(name: str) -> bool:
    """Return whether a coder reads and writes the side stream."""
    return bool(CODERS.facts(name).get("shares_side", False))


def _coder(name: str) -> Coder:
    """Return a coder by a name that is registered."""
    coder: Coder = CODERS.get(name)()
    return coder


def check_coder(coder: str) -> None:
    """Refuse a name that is neither ``"auto"`` nor a coder's, with a PackError."""
    if coder != AUTO and coder not in CODERS:
        raise PackError(
            f"coder: expected {AUTO} or one of {', '.join(CODERS)}, found {shown(coder)}"
        )


def encode_codes(
    seed: int,
    tensors: Sequence[SeededTensor],
    coder: str = AUTO,
    on_tensor: OnTensor | None = None,
) -> CodedTensors:
    """Encode the codes of all seeded tensors of a file, in its order, by one coder or ``"auto"``.

    ``on_tensor`` is called with the name of each tensor that is done, once, from any thread.

    Raises:
        PackError: no such coder.
    """
    check_coder(coder)
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
    return min(plain, best, key=lambda coded: coded.size)


def _pick(tried: Mapping[str, tuple[list[bytes], bytes]], names: list[str], n: int) -> CodedTensors:
    """Return the smallest payload of each of ``n`` tensors among the coders ``names``."""
    coders = tuple(min(names, key=lambda name: len(tried[name][0][at])) for at in range(n))
    return CodedTensors(coders, tuple(tried[name][0][at] for at, name in enumerate(coders)), b"")

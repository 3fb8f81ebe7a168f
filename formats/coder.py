"""What every coder of codes does: the seam between the coders and the container."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pabzip.formats.seeded import SeededEntry, SeededTensor
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
        """Return the work that writes codes to ``out``: flat, all zeros."""

    def weights(self, entry: SeededEntry, payload: Payload, out: NDArray[np.float32]) -> list[Task]:
        """Return the work that writes weights to ``out``: flat, all zeros.

        They are, to the bit, what `pabzip.seeds.regenerate` makes of the codes.
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

    A coder is given the seed and the init specs, because what they determine (the magnitudes) may
    predict the mask.
    """

    def check_length(self, entry: SeededEntry, length: int) -> None:
        """Check that ``length`` payload bytes can hold the entry's codes.

        Raises:
            FormatError: they cannot.
        """

    def encode(
        self,
        seed: int,
        tensors: Sequence[SeededTensor],
        on_tensor: OnTensor | None = None,
    ) -> tuple[list[bytes], bytes]:
        """Return one payload per tensor, and the side stream (empty where nothing is shared).

        ``on_tensor`` is called with the name of each tensor that is done, from any thread.
        """

    def decoder(self, seed: int, entries: Sequence[SeededEntry], side: bytes) -> Decoder:
        """Prepare to decode any of ``entries``: all those of the file with this coder, in order.

        Raises:
            FormatError: the side stream is damaged.
        """

    def breakdown(self, tensors: Sequence[tuple[SeededEntry, int]], side: bytes) -> list[Spent]:
        """Return what the bytes of each tensor are spent on.

        Args:
            tensors: all those of the file with this coder, in order, with the bytes of the
                payload of each.
            side: the side stream, whose bytes count as factors; empty for none.

        Raises:
            FormatError: the side stream is damaged.
        """


def run_tasks(tasks: Sequence[Task], threads: int | None) -> None:
    """Run independent work, on up to ``threads`` threads that live for this call only.

    Args:
        tasks: what to run; the first error that one raises is raised here.
        threads: 1 or more; None takes every CPU that the process may use.

    Raises:
        SeedError: ``threads`` is not a positive integer.
    """
    workers = min(thread_count(threads), len(tasks))
    if workers <= 1:
        for task in tasks:
            task()
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="pabzip-decode") as pool:
        list(pool.map(lambda task: task(), tasks))

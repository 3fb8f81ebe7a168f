"""Frozen masks: which weights the seed prunes or keeps for good, so that files need not say.

A fraction of each weight tensor, drawn from the seed, is pruned or kept for good and is never
learned; a file holds the codes of the other places alone. Which places is a function of seed,
stream and fractions by integer arithmetic, so every machine agrees.

Source: Otsuka et al. 2025, "Partially Frozen Random Networks Contain Compact Strong Lottery
Tickets" (TMLR), whose word for keeping is locking. Deviation: there, each tensor has exact counts
of frozen places, by a random permutation; here each place is drawn by itself, so that any range of
a tensor can be drawn alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import SeedError
from pabzip.seeds.generation import magnitudes
from pabzip.seeds.spec import InitSpec

WHOLE = 1 << 16
"""Fractions count in 65,536ths."""

PRUNED, KEPT = 2, 3
"""The marks of places that are pruned or kept for good; no code has these values."""

SPLITS = ("proportional", "even")
"""How a frozen part falls into pruned and kept: see `Frozen.for_keep_ratio`."""

_STREAM_BIT = 1 << 28  # turned in a weight's stream, this gives the stream of its frozen places


@dataclass(frozen=True, slots=True)
class Frozen:
    """How much of a mask is fixed by the seed.

    Attributes:
        pruned: of 65,536 places, how many are pruned for good, on average.
        kept: how many are kept for good, with the sign that the seed gave.

    Raises:
        SeedError: not integers from 0 to 65,536, or a sum above that.
    """

    pruned: int
    kept: int

    def __post_init__(self) -> None:
        for name, value in (("pruned", self.pruned), ("kept", self.kept)):
            if type(value) is not int or not 0 <= value <= WHOLE:
                raise SeedError(
                    f"frozen: {name}: expected an integer from 0 to {WHOLE}, found {value!r}; "
                    "Frozen.of takes fractions"
                )
        if self.pruned + self.kept > WHOLE:
            raise SeedError(
                f"frozen: expected pruned and kept to be at most {WHOLE} together, found "
                f"{self.pruned} and {self.kept}"
            )

    @classmethod
    def of(cls, pruned: float, kept: float) -> Frozen:
        """Return the fractions, each of 0 to 1 and rounded down to 65,536ths.

        Raises:
            SeedError: one is out of range, or the two are above 1 together.
        """
        for name, value in (("pruned", pruned), ("kept", kept)):
            if not 0.0 <= value <= 1.0:
                raise SeedError(f"frozen: {name}: expected a fraction of 0 to 1, found {value!r}")
        return cls(int(WHOLE * pruned), int(WHOLE * kept))

    @classmethod
    def for_keep_ratio(cls, ratio: float, keep_ratio: float, split: str = "proportional") -> Frozen:
        """Return how to freeze a fraction of a mask that keeps ``keep_ratio`` of its weights.

        ``"proportional"``: what is learned keeps ``keep_ratio`` of its places, too, so a file
        takes ``1 - ratio`` of the bytes of a free mask. ``"even"``: what is learned keeps half of
        its places, or as near to that as ``keep_ratio`` allows, so the learned part has the most
        masks to choose from, and takes the most bytes.

        Args:
            ratio: the fraction to freeze, 0 to 1.
            keep_ratio: the fraction of the whole mask that is kept, 0 to 1.
            split: one of `SPLITS`.

        Raises:
            SeedError: a value out of range.

        Source: for ``"even"`` the published code of Otsuka et al. (``initialize_params`` with a
        mask to start from).
        """
        for name, value in (("ratio", ratio), ("keep_ratio", keep_ratio)):
            if not 0.0 <= value <= 1.0:
                raise SeedError(f"frozen: {name}: expected a fraction of 0 to 1, found {value!r}")
        if split not in SPLITS:
            raise SeedError(f"frozen: split: expected one of {', '.join(SPLITS)}, found {split!r}")
        if split == "proportional":
            return cls.of(ratio * (1.0 - keep_ratio), ratio * keep_ratio)
        learned = 1.0 - ratio
        learned_kept = min(learned / 2, keep_ratio)
        learned_pruned = min(learned - learned_kept, 1.0 - keep_ratio)
        learned_kept = min(learned - learned_pruned, keep_ratio)
        pruned, kept = 1.0 - keep_ratio - learned_pruned, keep_ratio - learned_kept
        return cls.of(max(pruned, 0.0), max(kept, 0.0))

    def marks(
        self,
        seed: int,
        stream: int,
        start: int,
        stop: int,
        *,
        backend: str = "numba",
        threads: int | None = None,
    ) -> NDArray[np.int8]:
        """Return what becomes of places ``start`` to ``stop`` of a weight, in row-major order.

        With v the 32 bits that the weight's stream, its bit 28 turned, draws for a place of a
        uniform tensor, and f = v div 65,536: pruned where f < ``pruned``, kept where
        f < ``pruned + kept``, else learned.

        Args:
            seed: of the ticket.
            stream: of the weight.
            start: the first place.
            stop: the one after the last.
            backend: of `pabzip.seeds.magnitudes`; every backend gives the same bits.
            threads: likewise.

        Returns:
            int8, flat: 0 for a learned place, or `PRUNED` or `KEPT`.

        Source: formats/SPEC.md, section "Frozen places".
        """
        spec = InitSpec("uniform", 1.0, stream ^ _STREAM_BIT)
        drawn = magnitudes(seed, spec, start, stop, backend=backend, threads=threads)
        parts = drawn >> np.uint32(16)
        found = np.zeros(len(parts), dtype=np.int8)
        found[parts < self.pruned + self.kept] = KEPT
        found[parts < self.pruned] = PRUNED
        return found

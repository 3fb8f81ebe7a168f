"""What a PSG layer is told."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pabzip.errors import RecipeError

BEHAVIOURS = ("all", "correct", "remove")
"""What becomes of small approximate weight gradients; see `PsgConfig`."""


@dataclass(frozen=True, slots=True)
class PsgConfig:
    """Bit-widths and thresholds of predictive sign gradients.

    Attributes:
        input_bits: bits of the layer's inputs in the backward pass, 2 to 32; 32 means exact.
        weight_bits: bits of the weights, likewise.
        gradient_bits: bits of the output gradients, likewise. The one that matters most: below 8
            training fails (Table 5).
        threshold: weight gradients of a smaller magnitude than this are small. Too high and most
            gradients are removed or, with ``"correct"``, paid for twice; zero is ``"all"``.
        behaviour: ``"all"`` keeps small gradients as they are, ``"correct"`` replaces them by
            exact ones (a further product of full precision), ``"remove"`` sets them to zero, the
            choice of the paper.
        adaptive: whether ``threshold`` is relative to the largest magnitude in each layer's
            approximate weight gradient, as the paper says. The published command line in fact
            passes an absolute one; False does that.

    Raises:
        RecipeError: a value out of range.

    Source: Peek-a-Boo, Sections 3.3 and 4.4, Table 5; Wang et al. 2019 (E2-Train).
    """

    input_bits: int = 8
    weight_bits: int = 8
    gradient_bits: int = 16
    threshold: float = 1e-7
    behaviour: str = "remove"
    adaptive: bool = True

    def __post_init__(self) -> None:
        for name in ("input_bits", "weight_bits", "gradient_bits"):
            bits = getattr(self, name)
            if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 32:
                raise RecipeError(f"PSG: {name}: expected an integer from 2 to 32, found {bits!r}")
        if not 0.0 <= self.threshold < math.inf:
            raise RecipeError(
                f"PSG: threshold: expected zero or more, and finite, found {self.threshold!r}"
            )
        if self.behaviour not in BEHAVIOURS:
            raise RecipeError(
                f"PSG: behaviour: expected one of {', '.join(BEHAVIOURS)}, found {self.behaviour!r}"
            )

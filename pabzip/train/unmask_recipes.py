"""The parts of a recipe that say how signs are learned: Bop, latent signs, and cheap gradients."""

from __future__ import annotations

from dataclasses import dataclass

from pabzip.seeds.spec import MAX_SCALE, MIN_SCALE
from pabzip.train.validation import check_boolean, check_choice, check_integer, check_number

STARTS = ("first-gradient", "zero")
BEHAVIOURS = ("remove", "all", "correct")


@dataclass(frozen=True, slots=True)
class BopRecipe:
    """How Bop learns signs; used by ``pab-bop`` and ``pab-bop-psg``.

    Attributes:
        adaptivity_rate: weight of the new gradient in the moving average, above 0, at most 1. Too
            high and single batches flip signs; too low and nothing ever flips.
        threshold: a sign flips where the moving average reaches this magnitude and agrees with the
            weight, 0 or more. Too high freezes the signs; too low makes them flicker.
        start: the moving average begins at the ``"first-gradient"`` (the published code) or at
            ``"zero"``.
        decay_every: epochs between decays of the adaptivity rate, 1 or more.
        decay_ratio: factor of each decay, above 0, at most 1 (1 never decays).
        flip_cost: the loss that a bit of the packed file is worth, 0 or more; 0 is the paper's
            rule. A flip that does not lower the loss by that much for each bit that it adds is not
            made, or taken back. Best with a start of ``"zero"``.

    Raises:
        RecipeError: a value out of range.

    Source: Peek-a-Boo, Appendix A, equations 5 and 6, and Section 4.1 for the defaults.
    """

    adaptivity_rate: float = 1e-3
    threshold: float = 1e-6
    start: str = "first-gradient"
    decay_every: int = 45
    decay_ratio: float = 0.15
    flip_cost: float = 0.0

    def __post_init__(self) -> None:
        check_number("bop.adaptivity_rate", self.adaptivity_rate, above=0, most=1)
        check_number("bop.threshold", self.threshold, least=0)
        check_choice("bop.start", self.start, STARTS)
        check_integer("bop.decay_every", self.decay_every, 1)
        check_number("bop.decay_ratio", self.decay_ratio, above=0, most=1)
        check_number("bop.flip_cost", self.flip_cost, least=0)


@dataclass(frozen=True, slots=True)
class LatentRecipe:
    """How latent weights learn signs; used by ``pab-latent`` and ``pab-latent-psg``.

    The learning rate falls by `SgdRecipe.milestones` and `SgdRecipe.decay`.

    Attributes:
        learning_rate: of the latent weights, 0 or more. What decides is its size next to
            ``start``: the larger, the sooner a sign flips, and flips back.
        momentum: at least 0, below 1.
        weight_decay: 0 or more; pulls latent weights towards a flip.
        start: latent weights begin between 0 and this, on the side of the seed's sign; from 2^-64
            to 2^64.

    Raises:
        RecipeError: a value out of range.

    Source: Ivan & Florian 2020, Sections 2 and 3 (``start`` of 0.1); Peek-a-Boo, Section 4.1
    (rate 0.1). Momentum and weight decay are those of the published code of Peek-a-Boo.
    """

    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    start: float = 0.1

    def __post_init__(self) -> None:
        check_number("latent.learning_rate", self.learning_rate, least=0)
        check_number("latent.momentum", self.momentum, least=0, below=1)
        check_number("latent.weight_decay", self.weight_decay, least=0)
        check_number("latent.start", self.start, least=MIN_SCALE, most=MAX_SCALE)


@dataclass(frozen=True, slots=True)
class PsgRecipe:
    """Low-precision gradients (predictive sign gradient), used by the methods ``pab-*-psg``.

    Attributes:
        input_bits: bits of a layer's inputs in the backward pass, 2 to 32.
        weight_bits: bits of its weights, 2 to 32.
        gradient_bits: bits of its output gradients, 2 to 32. The most sensitive of the three.
        threshold: weight gradients of a smaller magnitude are not trusted, 0 or more.
        adaptive: whether ``threshold`` is relative to the largest magnitude of each layer's
            gradient (the paper) or absolute (the published command).
        behaviour: what becomes of those: ``"remove"`` (zero), ``"all"`` (kept as they are) or
            ``"correct"`` (replaced by the precise ones).

    Raises:
        RecipeError: a value out of range.

    Source: Peek-a-Boo, Section 3.3 and Table 5 (bit widths); the published command for the
    threshold.
    """

    input_bits: int = 8
    weight_bits: int = 8
    gradient_bits: int = 16
    threshold: float = 1e-7
    adaptive: bool = True
    behaviour: str = "remove"

    def __post_init__(self) -> None:
        check_integer("psg.input_bits", self.input_bits, 2, 32)
        check_integer("psg.weight_bits", self.weight_bits, 2, 32)
        check_integer("psg.gradient_bits", self.gradient_bits, 2, 32)
        check_number("psg.threshold", self.threshold, least=0)
        check_boolean("psg.adaptive", self.adaptive)
        check_choice("psg.behaviour", self.behaviour, BEHAVIOURS)

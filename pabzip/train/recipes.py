"""Recipes: everything that decides how a ticket is trained, as frozen, checked dataclasses.

A recipe is plain data. It can be written to TOML or JSON, travels in the checkpoint, and the same
recipe on the same machine gives the same network bit for bit on a CPU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pabzip.errors import RecipeError
from pabzip.models import names
from pabzip.seeds import SCHEMES
from pabzip.train.validation import (
    check_boolean,
    check_choice,
    check_integer,
    check_milestones,
    check_number,
    check_text,
)

CLASSIFIERS = ("dense", "seeded")
METHODS = ("pab-bop", "pab-bop-psg")
STARTS = ("first-gradient", "zero")
BEHAVIOURS = ("remove", "all", "correct")

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
_IMPORTABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True, slots=True)
class SearchRecipe:
    """How the mask is searched (SynFlow).

    Attributes:
        iterations: pruning steps of the exponential schedule, 1 or more. Few iterations prune much
            at once and risk layer collapse; 100 is the published number.

    Raises:
        RecipeError: a value out of range.

    Source: Tanaka et al. 2020; Peek-a-Boo, Section 4.1 (100 iterations).
    """

    iterations: int = 100

    def __post_init__(self) -> None:
        check_integer("search.iterations", self.iterations, 1)


@dataclass(frozen=True, slots=True)
class BopRecipe:
    """How the signs of the seeded weights are learned (Bop).

    Attributes:
        adaptivity_rate: weight of the new gradient in the moving average, above 0, at most 1. Too
            high and single batches flip signs; too low and nothing ever flips.
        threshold: a sign flips where the moving average reaches this magnitude and agrees with the
            weight, 0 or more. Too high freezes the signs; too low makes them flicker.
        start: the moving average begins at the ``"first-gradient"`` (the published code) or at
            ``"zero"``.
        decay_every: epochs between decays of the adaptivity rate, 1 or more.
        decay_ratio: factor of each decay, above 0, at most 1 (1 never decays).

    Raises:
        RecipeError: a value out of range.

    Source: Peek-a-Boo, Appendix A, equations 5 and 6, and Section 4.1 for the defaults.
    """

    adaptivity_rate: float = 1e-3
    threshold: float = 1e-6
    start: str = "first-gradient"
    decay_every: int = 45
    decay_ratio: float = 0.15

    def __post_init__(self) -> None:
        check_number("bop.adaptivity_rate", self.adaptivity_rate, above=0, most=1)
        check_number("bop.threshold", self.threshold, least=0)
        check_choice("bop.start", self.start, STARTS)
        check_integer("bop.decay_every", self.decay_every, 1)
        check_number("bop.decay_ratio", self.decay_ratio, above=0, most=1)


@dataclass(frozen=True, slots=True)
class PsgRecipe:
    """Low-precision gradients (predictive sign gradient), used by the method ``pab-bop-psg``.

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


@dataclass(frozen=True, slots=True)
class SgdRecipe:
    """How the dense parameters train: biases, batch norm and a dense classifier.

    Attributes:
        learning_rate: 0 or more (0 leaves them as they were drawn).
        momentum: at least 0, below 1.
        weight_decay: 0 or more, on all dense parameters.
        milestones: epochs after which the learning rate is multiplied by ``decay``.
        decay: above 0, at most 1.

    Raises:
        RecipeError: a value out of range.

    Source: Peek-a-Boo, Section 4.1 (rate 0.1, decayed by 0.1 at epochs 80 and 120). Momentum and
    weight decay are not in the paper; the defaults are the field's usual ones.
    """

    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    milestones: tuple[int, ...] = (80, 120)
    decay: float = 0.1

    def __post_init__(self) -> None:
        check_number("sgd.learning_rate", self.learning_rate, least=0)
        check_number("sgd.momentum", self.momentum, least=0, below=1)
        check_number("sgd.weight_decay", self.weight_decay, least=0)
        check_milestones("sgd.milestones", self.milestones)
        check_number("sgd.decay", self.decay, above=0, most=1)


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training run: what is trained, on what, and how.

    Attributes:
        arch: a registered architecture, or ``"module:callable"`` of your own.
        arch_options: options of the architecture, such as ``{"width": 32}``; the number of
            classes, the channels and the image size follow the data unless they are given here.
        data: name of the dataset.
        data_root: folder of the dataset; None takes the loader's default.
        augment: random crops and mirrored images, where the dataset has them.
        seed: ``0 <= seed < 2**64``; decides the weights, the order of the samples, all of it.
        scheme: init scheme of the seeded weights.
        classifier: ``"dense"`` leaves the classifier (the last Linear) of a convolutional network
            to SGD, ``"seeded"`` draws it from the seed too. A network of Linear layers alone is
            seeded throughout either way.
        method: ``"pab-bop"`` or ``"pab-bop-psg"``.
        keep_ratio: fraction of the seeded weights that survive, above 0, at most 1.
        epochs: 1 or more.
        batch_size: samples a step, 1 or more.
        device: ``"auto"`` (CUDA where there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
        search: see `SearchRecipe`.
        bop: see `BopRecipe`.
        psg: see `PsgRecipe`.
        sgd: see `SgdRecipe`.

    Raises:
        RecipeError: a value out of range; the message names the key, the value and the choices.

    Source: Peek-a-Boo, Algorithm 1 and Section 4.1.
    """

    arch: str = "lenet-300-100"
    arch_options: Mapping[str, Any] = field(default_factory=dict)
    data: str = "digits"
    data_root: str | None = None
    augment: bool = False
    seed: int = 0
    scheme: str = "kaiming_normal"
    classifier: str = "dense"
    method: str = "pab-bop"
    keep_ratio: float = 0.1
    epochs: int = 20
    batch_size: int = 64
    device: str = "auto"
    search: SearchRecipe = SearchRecipe()
    bop: BopRecipe = BopRecipe()
    psg: PsgRecipe = PsgRecipe()
    sgd: SgdRecipe = SgdRecipe()

    def __post_init__(self) -> None:
        _check_architecture(self.arch)
        _check_options(self.arch_options)
        check_text("data", self.data)
        if self.data_root is not None:
            check_text("data_root", self.data_root)
        check_boolean("augment", self.augment)
        check_integer("seed", self.seed, 0, 2**64 - 1)
        check_choice("scheme", self.scheme, SCHEMES)
        check_choice("classifier", self.classifier, CLASSIFIERS)
        check_choice("method", self.method, METHODS)
        check_number("keep_ratio", self.keep_ratio, above=0, most=1)
        check_integer("epochs", self.epochs, 1)
        check_integer("batch_size", self.batch_size, 1)
        if not isinstance(self.device, str) or not _DEVICE.fullmatch(self.device):
            raise RecipeError(
                f"device: expected auto, cpu, cuda or cuda:<number>, found {self.device!r}"
            )

    @property
    def own_architecture(self) -> bool:
        """Whether ``arch`` is the caller's own ``module:callable``."""
        return ":" in self.arch


def _check_architecture(arch: object) -> None:
    """Refuse what is neither registered nor of the form ``module:callable``."""
    if isinstance(arch, str) and (arch in names() or _IMPORTABLE.fullmatch(arch)):
        return
    raise RecipeError(
        f"arch: expected one of {', '.join(names())}, or your own module:callable, found {arch!r}"
    )


def _check_options(options: object) -> None:
    """Refuse options that are not names with plain values."""
    if not isinstance(options, Mapping):
        raise RecipeError(f"arch_options: expected a table of options, found {options!r}")
    for name, value in options.items():
        if not isinstance(name, str) or not isinstance(value, bool | int | float | str):
            raise RecipeError(
                f"arch_options.{name}: expected a text, a number, true or false, found {value!r}"
            )

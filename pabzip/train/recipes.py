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
from pabzip.train.methods import METHODS, method_of
from pabzip.train.search_recipe import SearchRecipe
from pabzip.train.sgd_recipes import SgdRecipe, SignSgdRecipe
from pabzip.train.unmask_recipes import BopRecipe, LatentRecipe, PsgRecipe
from pabzip.train.validation import (
    check_boolean,
    check_choice,
    check_integer,
    check_number,
    check_text,
)

__all__ = [
    "CLASSIFIERS",
    "PRECISIONS",
    "BopRecipe",
    "LatentRecipe",
    "PsgRecipe",
    "Recipe",
    "SearchRecipe",
    "SgdRecipe",
    "SignSgdRecipe",
]

CLASSIFIERS = ("dense", "seeded")
PRECISIONS = ("float32", "bfloat16", "float16")

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
_IMPORTABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training run: what is trained, on what, and how.

    Attributes:
        arch: a registered architecture, or ``"module:callable"`` of your own.
        arch_options: options of the architecture, such as ``{"width": 32}``; the number of
            classes, the channels and the image size follow the data unless they are given here.
        data: name of the dataset (see `pabzip.data.load`), or the path of a folder of images.
        data_root: folder of the dataset; None takes the loader's default.
        augment: random crops and, where they fit the dataset, mirrored images.
        seed: ``0 <= seed < 2**64``; decides the weights, the order of the samples, all of it.
        scheme: init scheme of the seeded weights.
        classifier: ``"dense"`` leaves the classifier (the last Linear) of a convolutional network
            to SGD, ``"seeded"`` draws it from the seed too. A network of Linear layers alone is
            seeded throughout either way.
        method: how it is trained, one of `pabzip.train.methods.METHODS`.
        keep_ratio: fraction of the seeded weights that survive, above 0, at most 1. Not used by
            ``dense-sgd``; ``dense-sgd-short`` takes it for the cost that it is cut to.
        epochs: 1 or more.
        batch_size: samples a step, 1 or more.
        shards: parts that a batch is computed in, a power of two, at most ``batch_size``: batch
            norm sees one part at a time, as it does where several processes train together. Their
            number must divide ``shards``, and each such number gives the same bits. 0 is one for
            each process, 1 without torchrun.
        drop_ratio: fraction of the steps that are left out, at random (stochastic mini-batch
            dropping), at least 0, below 1.
        precision: of the products of the forward and backward pass: ``"float32"``, or
            ``"bfloat16"`` or ``"float16"`` by autocast. Weights and their updates stay float32. On
            CUDA, float32 follows torch's own switches, by which convolutions use TF32.
        channels_last: whether images and convolutions lie in memory channel by channel
            (False) or pixel by pixel (True), which some devices compute faster.
        device: ``"auto"`` (CUDA where there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
        search: see `SearchRecipe`.
        bop: see `BopRecipe`.
        latent: see `LatentRecipe`.
        psg: see `PsgRecipe`.
        sgd: see `SgdRecipe`.
        signsgd: see `SignSgdRecipe`.

    Raises:
        RecipeError: a value out of range; the message names the key, the value and the choices.

    Source: Peek-a-Boo, Algorithm 1 and Sections 4.1 and 4.2 (``drop_ratio``).
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
    shards: int = 0
    drop_ratio: float = 0.0
    precision: str = "float32"
    channels_last: bool = False
    device: str = "auto"
    search: SearchRecipe = field(default_factory=SearchRecipe)
    bop: BopRecipe = field(default_factory=BopRecipe)
    latent: LatentRecipe = field(default_factory=LatentRecipe)
    psg: PsgRecipe = field(default_factory=PsgRecipe)
    sgd: SgdRecipe = field(default_factory=SgdRecipe)
    signsgd: SignSgdRecipe = field(default_factory=SignSgdRecipe)

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
        check_integer("shards", self.shards, 0, self.batch_size)
        if self.shards & (self.shards - 1):
            raise RecipeError(
                f"shards: expected a power of two, such as 2, 4 or 8, found {self.shards}"
            )
        check_number("drop_ratio", self.drop_ratio, least=0, below=1)
        check_choice("precision", self.precision, PRECISIONS)
        check_boolean("channels_last", self.channels_last)
        if not isinstance(self.device, str) or not _DEVICE.fullmatch(self.device):
            raise RecipeError(
                f"device: expected auto, cpu, cuda or cuda:<number>, found {self.device!r}"
            )
        if method_of(self).masked and self.search.epoch >= self.epochs:
            raise RecipeError(
                f"search.epoch: expected less than the {self.epochs} epochs of the run, found "
                f"{self.search.epoch}; what the last search leaves has to be trained"
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

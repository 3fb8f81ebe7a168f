"""The training methods of the paper's tables: what each one trains, and on what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pabzip.train.recipes import Recipe


@dataclass(frozen=True, slots=True)
class Method:
    """One method.

    Every method draws the network from the recipe's seed and runs the same loop.

    Attributes:
        name: as recipes and the command line call it.
        rule: what moves the weights that the seed drew: ``"bop"`` and ``"latent"`` flip signs,
            ``"sgd"`` and ``"signsgd"`` move magnitudes too.
        masked: whether a search prunes the network; otherwise it stays dense.
        psg: whether gradients are predictive ones (`pabzip.unmask.apply_psg`).
        short: whether the epochs are cut to the bit operations of ``pab-bop-psg``.
    """

    name: str
    rule: str
    masked: bool = True
    psg: bool = False
    short: bool = False

    @property
    def seeded(self) -> bool:
        """Whether the trained weights still are plus or minus their seed's magnitudes.

        Otherwise the checkpoint names no seeded weight and a file stores them as dense tensors.
        """
        return self.rule in ("bop", "latent")


_ALL = (
    Method("pab-bop", "bop"),
    Method("pab-bop-psg", "bop", psg=True),
    Method("pab-latent", "latent"),
    Method("pab-latent-psg", "latent", psg=True),
    Method("sgd", "sgd"),
    Method("signsgd", "signsgd"),
    Method("dense-sgd", "sgd", masked=False),
    Method("dense-sgd-short", "sgd", masked=False, short=True),
)
_BY_NAME = {method.name: method for method in _ALL}

METHODS = tuple(_BY_NAME)
"""The names of all methods, in the order of the paper's argument."""


def method_of(recipe: Recipe) -> Method:
    """Return the method that a recipe names.

    Source: Peek-a-Boo, Section 4.1 ("Comparison Methods").
    """
    return _BY_NAME[recipe.method]

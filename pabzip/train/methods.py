"""The training methods: how each moves the weights that the seed drew, and its settings.

A method is a function that builds the optimizer of these weights and the schedule of its rate::

    class LionRecipe(Section, table="lion"):
        lr: float = setting(1e-4, "Learning rate.", ge=0)

    @register_method("lion", uses=("lion",), seeded=False)
    def lion(net, recipe):
        optimizer = Lion(seeded_parameters(net).values(), recipe.section(LionRecipe).lr)
        return optimizer, MilestoneDecay(optimizer, recipe.sgd.milestones, recipe.sgd.decay)

Nothing here imports torch before a run begins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BeforeValidator, model_validator

from pabzip.errors import RecipeError
from pabzip.registry import constant, register_method
from pabzip.seeds.spec import MAX_SCALE, MIN_SCALE
from pabzip.train.settings import Section, Settings, setting

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from pabzip.supermask.scores import Schedule


_Section = TypeVar("_Section", bound=Section)


def _milestones(value: Any) -> Any:
    """Take a list as the tuple that it stands for; refuse epochs that do not increase from 1."""
    epochs = tuple(value) if isinstance(value, list) else value
    if isinstance(epochs, tuple) and all(type(epoch) is int and epoch >= 1 for epoch in epochs):
        if any(first >= second for first, second in pairwise(epochs)):
            raise ValueError(value)
        return epochs
    raise ValueError(value)


class SgdRecipe(Section, table="sgd"):
    """How the dense parameters train: biases, batch norm and a dense classifier.

    The methods ``sgd``, ``dense-sgd`` and ``dense-sgd-short`` train every weight so, and the
    learning rates of ``latent`` and ``signsgd`` fall at the same milestones.

    Source: Peek-a-Boo, Section 4.1 (rate 0.1, decayed by 0.1 at epochs 80 and 120). Momentum and
    weight decay are not in the paper; the defaults are those of its published code.
    """

    lr: float = setting(0.1, "Learning rate of SGD; 0 leaves its parameters as drawn.", ge=0)
    momentum: float = setting(0.9, "Momentum of SGD.", ge=0, lt=1)
    weight_decay: float = setting(5e-4, "Weight decay, on all parameters that SGD trains.", ge=0)
    milestones: Annotated[tuple[int, ...], BeforeValidator(_milestones)] = setting(
        (80, 120),
        "Epochs after which learning rates are multiplied by sgd.decay.",
        expected="increasing whole numbers of 1 or more, such as [80, 120]",
    )
    decay: float = setting(0.1, "Factor of the learning rates at each milestone.", gt=0, le=1)
    schedule: str = setting(
        "milestones",
        "How SGD's own learning rate falls: at the milestones, or along a cosine to 0.",
        choices=("milestones", "cosine"),
    )


class SignSgdRecipe(Section, table="signsgd"):
    """How the method ``signsgd`` moves the weights that the seed drew; the others train by SGD.

    Source: Bernstein et al. 2018, Algorithms 1 and 2; Peek-a-Boo, Section 4.1 (rate 0.01).
    """

    lr: float = setting(0.01, "How far SignSGD moves every weight in a step.", ge=0)
    momentum: float = setting(
        0.0, "Momentum of the gradient before its sign is taken; above 0 it is Signum.", ge=0, lt=1
    )
    weight_decay: float = setting(
        5e-4, "Times the learning rate: fraction that a weight loses in a step.", ge=0
    )


class BopRecipe(Section, table="bop"):
    """How Bop learns signs.

    Too high an adaptivity rate and single batches flip signs; too low and nothing ever flips. Too
    high a threshold freezes the signs; too low a one makes them flicker.

    Source: Peek-a-Boo, Appendix A, equations 5 and 6, and Section 4.1 for the defaults. A
    ``flip_cost`` of 0 is the paper's rule.
    """

    adaptivity_rate: float = setting(
        1e-3,
        "Weight of a new gradient in Bop's moving average.",
        gt=0,
        le=1,
    )
    threshold: float = setting(1e-6, "Size of Bop's moving average that flips a sign.", ge=0)
    start: str = setting(
        "first-gradient",
        "Where Bop's moving average begins; first-gradient is the published code's.",
        choices=lambda: constant("pabzip.unmask", "bop", "STARTS"),
    )
    decay_every: int = setting(45, "Epochs between decays of the adaptivity rate.", ge=1)
    first_decay: int | None = setting(
        None, "Epochs before the first decay; bop.decay_every if left out.", ge=1
    )
    decay_ratio: float = setting(0.15, "Factor of each such decay; 1 never decays.", gt=0, le=1)
    flip_cost: float = setting(
        0.0,
        "Loss decrease required for each extra bit of the file; best with bop.start = zero.",
        ge=0,
    )


class LatentRecipe(Section, table="latent"):
    """How latent weights learn signs.

    What decides is the size of the learning rate next to ``start``: the larger, the sooner a sign
    flips, and flips back.

    Source: Ivan & Florian 2020, Sections 2 and 3 (``start`` of 0.1); Peek-a-Boo, Section 4.1
    (rate 0.1). Momentum and weight decay are those of the published code of Peek-a-Boo.
    """

    lr: float = setting(0.1, "Learning rate of the latent weights.", ge=0)
    momentum: float = setting(0.9, "Momentum of the latent weights.", ge=0, lt=1)
    weight_decay: float = setting(5e-4, "Pulls latent weights towards a flip.", ge=0)
    start: float = setting(
        0.1,
        "Latent weights begin between 0 and this, on the side of the seed's sign.",
        ge=MIN_SCALE,
        le=MAX_SCALE,
    )


class PsgRecipe(Section, table="psg"):
    """Low-precision gradients (predictive sign gradient), used by the methods ``pab-*-psg``.

    Source: Peek-a-Boo, Section 3.3 and Table 5 (bit widths); the published CIFAR command for the
    threshold, which is relative there as in the paper. The published code hands on exact input
    gradients and has its own quantizer.
    """

    input_bits: int = setting(8, "Bits of a layer's inputs in the backward pass.", ge=2, le=32)
    weight_bits: int = setting(8, "Bits of a layer's weights in the backward pass.", ge=2, le=32)
    gradient_bits: int = setting(
        16, "Bits of a layer's output gradients, the most sensitive.", ge=2, le=32
    )
    threshold: float = setting(
        1e-7, "Weight gradients below this are handled as psg.behavior says.", ge=0
    )
    adaptive: bool = setting(
        True, "Whether psg.threshold is relative to the largest gradient of each layer."
    )
    behavior: str = setting(
        "remove",
        "Gradients below psg.threshold: set to zero, all kept, or replaced by precise ones.",
        choices=lambda: constant("pabzip.unmask", "psg_functions", "BEHAVIORS"),
    )
    input_gradient: str = setting(
        "quantized",
        "Gradient that a layer hands on: of quantized operands (the paper's text) or exact (its"
        " code).",
        choices=lambda: constant("pabzip.unmask", "psg_functions", "INPUT_GRADIENTS"),
    )
    quantizer: str = setting(
        "symmetric",
        "How tensors are rounded to few bits: ours, or that of the published code.",
        choices=lambda: constant("pabzip.unmask", "psg_functions", "QUANTIZERS"),
    )


class ImpRecipe(Section, table="imp"):
    """Iterative magnitude pruning: train, prune the smallest weights, rewind, and train again.

    The rounds come before the ``epochs`` of the recipe, which train what is left in the end. "Cold"
    rewinds to the weights as drawn, so that seed and mask are the ticket; "warm" to those after a
    few epochs. "Short" rounds last a few epochs, "long" ones as many as a whole training.

    Source: Frankle & Carbin 2019; Rare Gems, Appendix B, and its published code (20 % a round;
    short and long are rounds of 8 and 160 epochs of ResNet-20); Renda et al. 2020 for
    ``rewind = "rate"``.
    """

    rounds: int = setting(
        4, "Rounds of training; each then prunes by the same factor, the last to keep_ratio.", ge=1
    )
    round_epochs: int = setting(2, "Epochs of each round.", ge=1)
    rewind: str = setting(
        "weights",
        "What goes back after pruning: all weights and the learning rate, or the rate alone.",
        choices=("weights", "rate"),
    )
    rewind_epoch: int = setting(
        0, "Epoch of the first round that weights go back to; 0 is as drawn.", ge=0
    )

    @model_validator(mode="after")
    def _consistent(self) -> ImpRecipe:
        """Refuse an epoch that no first round reaches, or that nothing goes back to."""
        if self.rewind == "rate" and self.rewind_epoch:
            raise RecipeError(
                "imp.rewind_epoch: expected 0 with imp.rewind = rate, where no weights go back, "
                f"found {self.rewind_epoch}; leave it out, or set imp.rewind = weights"
            )
        if self.rewind_epoch >= self.round_epochs:
            raise RecipeError(
                f"imp.rewind_epoch: expected less than imp.round_epochs = {self.round_epochs}, "
                f"found {self.rewind_epoch}"
            )
        return self


class MethodSections(Settings):
    """The tables of these methods, which `pabzip.train.Recipe` inherits."""

    bop: BopRecipe = BopRecipe()
    imp: ImpRecipe = ImpRecipe()
    latent: LatentRecipe = LatentRecipe()
    psg: PsgRecipe = PsgRecipe()
    sgd: SgdRecipe = SgdRecipe()
    signsgd: SignSgdRecipe = SignSgdRecipe()

    def section(self, kind: type[_Section]) -> _Section:
        """Return the table that ``kind`` declares, such as one of a user's package."""
        found = getattr(self, kind.table, None)
        return found if isinstance(found, kind) else kind()


@dataclass(frozen=True, slots=True)
class Method:
    """One method. Every method draws the network from the recipe's seed and runs the same loop.

    Attributes:
        name: as recipes and the command line call it.
        uses: tables of settings of its own.
        masked: whether a search, or magnitude pruning in rounds, finds a mask to train on; not so
            for score methods, which learn theirs, and for dense ones.
        psg: whether gradients are predictive ones (`pabzip.unmask.apply_psg`).
        short: whether the epochs are cut to the bit operations of ``pab-bop-psg``.
        seeded: whether the trained weights still are plus or minus their seed's magnitudes;
            otherwise the checkpoint names no seeded weight and a file stores them as dense tensors.
        scores: whether it learns which weights to keep, by scores (`pabzip.supermask`).
        rounds: whether it prunes in rounds of training, by magnitude, in place of a search.
    """

    name: str
    uses: tuple[str, ...] = ()
    masked: bool = True
    psg: bool = False
    short: bool = False
    seeded: bool = True
    scores: bool = False
    rounds: bool = False

    @property
    def reads(self) -> frozenset[str]:
        """The tables, and settings outside of tables, that matter to it and not to all methods."""
        searched = (self.masked and not self.rounds) or self.short
        search = ("search", "keep_ratio") if searched else ()
        psg = ("psg",) if self.psg or self.short else ()
        return frozenset((*self.uses, *search, *psg))


class MilestoneDecay:
    """Multiplies the learning rate of every group by ``decay`` after each epoch in ``milestones``.

    As torch's ``MultiStepLR``, but its state is one plain number, the finished epochs; the rate
    itself travels with the optimizer.

    Args:
        optimizer: one whose groups hold ``"lr"``.
        milestones: epochs, counted from 1.
        decay: the factor.

    Source: Peek-a-Boo, Section 4.1 (0.1 at epochs 80 and 120).
    """

    def __init__(self, optimizer: Optimizer, milestones: tuple[int, ...], decay: float):
        self.optimizer = optimizer
        self.milestones = frozenset(milestones)
        self.decay = decay
        self.epoch = 0

    def step(self) -> None:
        """Count one finished epoch, and decay if it is a milestone."""
        self.epoch += 1
        if self.epoch in self.milestones:
            for group in self.optimizer.param_groups:
                group["lr"] *= self.decay

    def state_dict(self) -> dict[str, Any]:
        """Return the number of finished epochs, as ``{"epoch": int}``."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count of `state_dict`; the optimizer's own state is restored apart."""
        self.epoch = int(state_dict["epoch"])


def falling_rate(
    optimizer: Optimizer, schedule: str, sgd: SgdRecipe, epochs: int
) -> Schedule | None:
    """Return what lowers an optimizer's learning rate: along a cosine, at milestones, or nothing.

    Args:
        optimizer: one whose groups hold ``"lr"``.
        schedule: ``"cosine"`` (to 0 after the last epoch), ``"milestones"`` or ``"constant"``.
        sgd: has the milestones and the factor.
        epochs: of the run.
    """
    from torch.optim.lr_scheduler import CosineAnnealingLR

    if schedule == "cosine":
        return CosineAnnealingLR(optimizer, epochs)
    if schedule == "milestones":
        return MilestoneDecay(optimizer, sgd.milestones, sgd.decay)
    return None


Build = Callable[["nn.Module", MethodSections], "tuple[Optimizer, Schedule] | None"]
"""What a method registers: it takes a network, drawn from its seed, and a recipe, and returns the
optimizer of the weights that the seed drew and its schedule; None leaves them to SGD."""


@register_method("pab-bop", uses=("bop",))
@register_method("pab-bop-psg", uses=("bop",), psg=True)
def bop(net: nn.Module, recipe: MethodSections) -> tuple[Optimizer, Schedule]:
    """Flip signs by a moving average of their gradients."""
    from pabzip.unmask import AdaptivityDecay, Bop

    own = recipe.bop
    optimizer = Bop(net, own.adaptivity_rate, own.threshold, own.start, own.flip_cost)
    return optimizer, AdaptivityDecay(optimizer, own.decay_every, own.decay_ratio, own.first_decay)


@register_method("pab-latent", uses=("latent",))
@register_method("pab-latent-psg", uses=("latent",), psg=True)
def latent(net: nn.Module, recipe: MethodSections) -> tuple[Optimizer, Schedule]:
    """Flip signs by latent weights, which move by SGD."""
    from pabzip.unmask import LatentSigns

    own = recipe.latent
    optimizer = LatentSigns(net, own.lr, own.momentum, own.weight_decay, own.start)
    return optimizer, MilestoneDecay(optimizer, recipe.sgd.milestones, recipe.sgd.decay)


@register_method("signsgd", uses=("signsgd",), seeded=False)
def signsgd(net: nn.Module, recipe: MethodSections) -> tuple[Optimizer, Schedule]:
    """Move every weight by the same step, against the sign of its gradient."""
    from pabzip.init import seeded_parameters
    from pabzip.unmask import SignSgd

    own = recipe.signsgd
    weights = seeded_parameters(net).values()
    optimizer = SignSgd(weights, own.lr, own.momentum, own.weight_decay)
    return optimizer, MilestoneDecay(optimizer, recipe.sgd.milestones, recipe.sgd.decay)


@register_method("imp", uses=("imp", "keep_ratio"), seeded=False, rounds=True)
@register_method("sgd", seeded=False)
@register_method("dense-sgd", seeded=False, masked=False)
@register_method("dense-sgd-short", seeded=False, masked=False, short=True)
def sgd(net: nn.Module, recipe: MethodSections) -> None:
    """Move every weight by SGD, magnitudes too."""

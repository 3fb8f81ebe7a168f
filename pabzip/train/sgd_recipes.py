"""The parts of a recipe that say how magnitudes train: SGD, and SignSGD."""

from __future__ import annotations

from dataclasses import dataclass

from pabzip.train.validation import check_milestones, check_number


@dataclass(frozen=True, slots=True)
class SgdRecipe:
    """How the dense parameters train: biases, batch norm and a dense classifier.

    The methods ``sgd``, ``dense-sgd`` and ``dense-sgd-short`` train every weight so, and the
    learning rates of ``latent`` and ``signsgd`` fall at the same milestones.

    Attributes:
        learning_rate: 0 or more (0 leaves them as they were drawn).
        momentum: at least 0, below 1.
        weight_decay: 0 or more, on all parameters that SGD trains.
        milestones: epochs after which the learning rate is multiplied by ``decay``.
        decay: above 0, at most 1.

    Raises:
        RecipeError: a value out of range.

    Source: Peek-a-Boo, Section 4.1 (rate 0.1, decayed by 0.1 at epochs 80 and 120). Momentum and
    weight decay are not in the paper; the defaults are those of its published code.
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
class SignSgdRecipe:
    """How the method ``signsgd`` moves the weights that the seed drew.

    The learning rate falls by `SgdRecipe.milestones` and `SgdRecipe.decay`; all other parameters
    train by SGD.

    Attributes:
        learning_rate: how far every weight moves in a step, 0 or more.
        momentum: of the gradient before its sign is taken, at least 0, below 1; 0 is SignSGD,
            above it is Signum.
        weight_decay: 0 or more; times the learning rate, the fraction a weight loses in a step.

    Raises:
        RecipeError: a value out of range.

    Source: Bernstein et al. 2018, Algorithms 1 and 2; Peek-a-Boo, Section 4.1 (rate 0.01).
    """

    learning_rate: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        check_number("signsgd.learning_rate", self.learning_rate, least=0)
        check_number("signsgd.momentum", self.momentum, least=0, below=1)
        check_number("signsgd.weight_decay", self.weight_decay, least=0)

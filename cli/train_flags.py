"""The flags of ``pabzip train`` that set values of a recipe, one a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from pabzip.seeds import SCHEMES
from pabzip.train.recipes import BEHAVIOURS, CLASSIFIERS, METHODS, STARTS

Command = TypeVar("Command", bound=Callable[..., Any])


def milestones(text: str) -> tuple[int, ...]:
    """Read epochs, comma-separated: ``80,120``; their order and range are the recipe's to check.

    Raises:
        click.BadParameter: they are none.
    """
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not a list of epochs; expected such as 80,120"
        ) from None


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag.

    Attributes:
        name: as typed; ``--on/--off`` for a value that is true or false.
        key: the recipe's key, dotted for those in a table.
        type: of the value, as click takes it; None for one that is true or false.
        help: what the value does.
    """

    name: str
    key: str
    type: Any
    help: str

    @property
    def parameter(self) -> str:
        """The name under which click hands the value over."""
        return f"recipe_{self.key.replace('.', '__')}"


FLAGS = (
    Flag("--data", "data", click.STRING, "Dataset: digits (embedded), cifar10 or cifar100."),
    Flag("--data-root", "data_root", click.STRING, "Folder that holds the dataset."),
    Flag("--augment/--no-augment", "augment", None, "Crop and mirror training images."),
    Flag("--seed", "seed", click.INT, "Decides all of the run; 0 to 2^64 - 1."),
    Flag("--scheme", "scheme", click.Choice(SCHEMES), "How seeded weights are drawn."),
    Flag(
        "--classifier",
        "classifier",
        click.Choice(CLASSIFIERS),
        "The last Linear layer of a convolutional network: trained, or drawn from the seed too.",
    ),
    Flag("--method", "method", click.Choice(METHODS), "How signs are learned."),
    Flag("--keep-ratio", "keep_ratio", click.FLOAT, "Fraction of the weights that survive."),
    Flag("--epochs", "epochs", click.INT, "Passes over the training images."),
    Flag("--batch-size", "batch_size", click.INT, "Images a step."),
    Flag("--device", "device", click.STRING, "auto, cpu, cuda, cuda:<number> or mps."),
    Flag("--search-iterations", "search.iterations", click.INT, "Steps of SynFlow's schedule."),
    Flag("--adaptivity-rate", "bop.adaptivity_rate", click.FLOAT, "Bop: weight of a gradient."),
    Flag("--threshold", "bop.threshold", click.FLOAT, "Bop: average that flips a sign."),
    Flag("--bop-start", "bop.start", click.Choice(STARTS), "Bop: where the average begins."),
    Flag("--bop-decay-every", "bop.decay_every", click.INT, "Bop: epochs between decays."),
    Flag("--bop-decay-ratio", "bop.decay_ratio", click.FLOAT, "Bop: factor of each decay."),
    Flag("--psg-input-bits", "psg.input_bits", click.INT, "PSG: bits of a layer's inputs."),
    Flag("--psg-weight-bits", "psg.weight_bits", click.INT, "PSG: bits of the weights."),
    Flag("--psg-gradient-bits", "psg.gradient_bits", click.INT, "PSG: bits of the gradients."),
    Flag("--psg-threshold", "psg.threshold", click.FLOAT, "PSG: smaller is not trusted."),
    Flag(
        "--psg-adaptive/--psg-absolute",
        "psg.adaptive",
        None,
        "PSG: the threshold is relative to each layer's largest gradient, or absolute.",
    ),
    Flag(
        "--psg-behaviour",
        "psg.behaviour",
        click.Choice(BEHAVIOURS),
        "PSG: what becomes of gradients below the threshold.",
    ),
    Flag("--learning-rate", "sgd.learning_rate", click.FLOAT, "SGD: of the dense parameters."),
    Flag("--momentum", "sgd.momentum", click.FLOAT, "SGD: momentum."),
    Flag("--weight-decay", "sgd.weight_decay", click.FLOAT, "SGD: weight decay."),
    Flag("--milestones", "sgd.milestones", milestones, "SGD: epochs after which it decays."),
    Flag("--learning-rate-decay", "sgd.decay", click.FLOAT, "SGD: factor of each decay."),
)
"""Every value of a recipe but the architecture and its options, which are flags of their own."""


def recipe_flags(command: Command) -> Command:
    """Add `FLAGS`; the command receives them as keyword arguments that `overrides` reads."""
    for flag in reversed(FLAGS):
        names = (flag.name, flag.parameter)
        command = click.option(*names, type=flag.type, default=None, help=flag.help)(command)
    return command


def overrides(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that were given as the nested table that a recipe takes."""
    table: dict[str, Any] = {}
    for flag in FLAGS:
        value = values[flag.parameter]
        if value is None:
            continue
        section, _, key = flag.key.rpartition(".")
        (table.setdefault(section, {}) if section else table)[key] = value
    return table

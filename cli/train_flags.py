"""The flags of ``pabzip train`` that set values of a recipe, one a value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from pabzip.seeds import SCHEMES
from pabzip.train.methods import METHODS, method_of
from pabzip.train.recipes import CLASSIFIERS, PRECISIONS, Recipe
from pabzip.train.search_recipe import SCHEDULES, SCOPES, SEARCH_PRECISIONS, SEARCHES
from pabzip.train.unmask_recipes import BEHAVIOURS, STARTS

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


def ratios(text: str) -> dict[str, float]:
    """Read numbers by name, comma-separated: ``conv1.weight=0.5,fc.weight=0.1``.

    Raises:
        click.BadParameter: they are none, or a name comes twice.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, sign, number = part.strip().rpartition("=")
        try:
            value = float(number)
        except ValueError:
            sign = ""
        if not sign or not name or name in found:
            raise click.BadParameter(
                f"{text!r} is not a list of different names with a number each; expected such as "
                "conv1.weight=0.5,fc.weight=0.1"
            )
        found[name] = value
    return found


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
    Flag(
        "--data",
        "data",
        click.STRING,
        "Dataset, such as digits (embedded) or cifar10, or a folder.",
    ),
    Flag("--data-root", "data_root", click.STRING, "Folder that holds the dataset."),
    Flag(
        "--augment/--no-augment",
        "augment",
        None,
        "Crop training images, and mirror them where that fits.",
    ),
    Flag("--seed", "seed", click.INT, "Decides all of the run; 0 to 2^64 - 1."),
    Flag("--scheme", "scheme", click.Choice(SCHEMES), "How seeded weights are drawn."),
    Flag(
        "--classifier",
        "classifier",
        click.Choice(CLASSIFIERS),
        "The last Linear layer of a convolutional network: trained, or drawn from the seed too.",
    ),
    Flag("--method", "method", click.Choice(METHODS), "What is trained, and how."),
    Flag("--keep-ratio", "keep_ratio", click.FLOAT, "Fraction of the weights that survive."),
    Flag("--epochs", "epochs", click.INT, "Passes over the training images."),
    Flag("--batch-size", "batch_size", click.INT, "Images a step."),
    Flag("--shards", "shards", click.INT, "Parts of a batch; 0: one for each process."),
    Flag("--device", "device", click.STRING, "auto, cpu, cuda or cuda:<number>."),
    Flag("--drop-ratio", "drop_ratio", click.FLOAT, "Fraction of the steps that are left out."),
    Flag("--precision", "precision", click.Choice(PRECISIONS), "Of forward and backward."),
    Flag(
        "--channels-last/--channels-first",
        "channels_last",
        None,
        "How images and convolutions lie in memory.",
    ),
    Flag("--search-method", "search.method", click.Choice(SEARCHES), "Search: scores weights."),
    Flag(
        "--search-iterations",
        "search.iterations",
        click.INT,
        "Search: steps of the schedule; 100 with SynFlow, else 1.",
    ),
    Flag(
        "--search-schedule",
        "search.schedule",
        click.Choice(SCHEDULES),
        "Search: how the kept fraction falls over the steps.",
    ),
    Flag(
        "--search-scope",
        "search.scope",
        click.Choice(SCOPES),
        "Search: one threshold for all weights, or one a layer.",
    ),
    Flag("--search-epoch", "search.epoch", click.INT, "Search: epoch after which the last is."),
    Flag("--search-shots", "search.shots", click.INT, "Search: how many, over these epochs."),
    Flag(
        "--search-precision",
        "search.precision",
        click.Choice(SEARCH_PRECISIONS),
        "Search: in which SynFlow computes.",
    ),
    Flag("--search-samples", "search.samples", click.INT, "Search: images for snip and grasp."),
    Flag(
        "--search-ratios",
        "search.ratios",
        ratios,
        "Search: what layerwise-random keeps, such as conv1.weight=0.5,fc.weight=0.1.",
    ),
    Flag("--adaptivity-rate", "bop.adaptivity_rate", click.FLOAT, "Bop: weight of a gradient."),
    Flag("--threshold", "bop.threshold", click.FLOAT, "Bop: average that flips a sign."),
    Flag("--bop-start", "bop.start", click.Choice(STARTS), "Bop: where the average begins."),
    Flag("--bop-decay-every", "bop.decay_every", click.INT, "Bop: epochs between decays."),
    Flag("--bop-decay-ratio", "bop.decay_ratio", click.FLOAT, "Bop: factor of each decay."),
    Flag("--flip-cost", "bop.flip_cost", click.FLOAT, "Bop: threshold a bit of the file."),
    Flag("--latent-learning-rate", "latent.learning_rate", click.FLOAT, "Latent: step size."),
    Flag("--latent-momentum", "latent.momentum", click.FLOAT, "Latent: momentum."),
    Flag("--latent-weight-decay", "latent.weight_decay", click.FLOAT, "Latent: weight decay."),
    Flag("--latent-start", "latent.start", click.FLOAT, "Latent: weights begin below this."),
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
    Flag("--learning-rate", "sgd.learning_rate", click.FLOAT, "SGD: step size."),
    Flag("--momentum", "sgd.momentum", click.FLOAT, "SGD: momentum."),
    Flag("--weight-decay", "sgd.weight_decay", click.FLOAT, "SGD: weight decay."),
    Flag("--milestones", "sgd.milestones", milestones, "Epochs after which step sizes decay."),
    Flag("--learning-rate-decay", "sgd.decay", click.FLOAT, "Factor of each such decay."),
    Flag("--signsgd-learning-rate", "signsgd.learning_rate", click.FLOAT, "SignSGD: step size."),
    Flag("--signsgd-momentum", "signsgd.momentum", click.FLOAT, "SignSGD: momentum."),
    Flag("--signsgd-weight-decay", "signsgd.weight_decay", click.FLOAT, "SignSGD: weight decay."),
)
"""Every value of a recipe but the architecture and its options, which are flags of their own."""


def recipe_flags(command: Command) -> Command:
    """Add `FLAGS`; the command receives them as keyword arguments that `overrides` reads."""
    return some_recipe_flags(flag.key for flag in FLAGS)(command)


def some_recipe_flags(keys: Iterable[str]) -> Callable[[Command], Command]:
    """Add the flags of some of the recipe's keys, for a command that heeds no others."""
    wanted = set(keys)

    def add(command: Command) -> Command:
        for flag in reversed(FLAGS):
            if flag.key in wanted:
                names = (flag.name, flag.parameter)
                option = click.option(*names, type=flag.type, default=None, help=flag.help)
                command = option(command)
        return command

    return add


def overrides(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that were given as the nested table that a recipe takes."""
    table: dict[str, Any] = {}
    for flag in FLAGS:
        value = values.get(flag.parameter)
        if value is None:
            continue
        section, _, key = flag.key.rpartition(".")
        (table.setdefault(section, {}) if section else table)[key] = value
    return table


def unheeded(values: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Return the names of the flags that were given and that the recipe's method does not use."""
    method = method_of(recipe)
    searches = method.masked or method.short
    heeded = {
        "bop": method.rule == "bop",
        "latent": method.rule == "latent",
        "signsgd": method.rule == "signsgd",
        "psg": method.psg or method.short,
        "search": searches,
        "keep_ratio": searches,
    }
    return [
        flag.name
        for flag in FLAGS
        if values.get(flag.parameter) is not None and not heeded.get(flag.key.split(".")[0], True)
    ]

"""`pabzip train`: search and unmask a ticket, write its checkpoint."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pabzip._optional import require
from pabzip.cli._files import STANDARD, check_output, is_stream
from pabzip.cli._options import (
    arch_options_option,
    output_option,
    parse_options,
    reporting,
    search_bar,
)
from pabzip.cli._output import Reporter, one_line, short, to_json, write_text
from pabzip.formats.registry import ARCHITECTURES
from pabzip.seeds import SCHEMES
from pabzip.train.callbacks import Callback
from pabzip.train.config import (
    BEHAVIORS,
    CLASSIFIERS,
    METHODS,
    PRECISIONS,
    SCHEDULES,
    SCOPES,
    SEARCH_PRECISIONS,
    SEARCHES,
    STARTS,
    Recipe,
    method_of,
)
from pabzip.train.recipes import find_recipe
from pabzip.train.results import StepCosts
from pabzip.train.resume import progress_path

if TYPE_CHECKING:
    from pabzip.train.config import Recipe


class CostRemark(Callback):
    """Writes a line before the first step and after each later search.

    Args:
        layers: add a line for each layer.
    """

    def __init__(self, *, layers: bool):
        self._layers = layers

    def on_costs(self, costs: StepCosts) -> None:
        """Write the line, past a progress bar if there is one."""
        from tqdm import tqdm

        lines = [
            f"pabzip: from epoch {costs.epoch} on {costs.survivors:,} of {costs.weights:,} weights "
            f"train, at {short(costs.bitops)} bit operations a step and sample"
        ]
        if self._layers:
            lines += [
                f"  {layer.name}: {short(layer.total)}, {layer.kept:.2%} kept"
                for layer in costs.layers
            ]
        tqdm.write("\n".join(lines), file=sys.stderr)


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
        "--psg-behavior",
        "psg.behavior",
        click.Choice(BEHAVIORS),
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


Command = TypeVar("Command", bound=Callable[..., Any])

_SAVE_EVERY = "10min"

_OPTIONS = (
    click.option("--log", metavar="FILE.jsonl", help="Write one JSON object an epoch."),
    click.option("--curves", metavar="FILE.png", help="Draw loss, accuracy, flips and bytes."),
    click.option("--tensorboard", metavar="DIR", help="Write event files for TensorBoard."),
    click.option(
        "--save-every",
        metavar="WHEN",
        help="Save the state beside the output: 10min, 500steps, 1epoch, several with commas, or "
        f"never. [{_SAVE_EVERY}]",
    ),
    click.option(
        "--search-only", is_flag=True, help="Write the ticket that the search finds, untrained."
    ),
    click.option("--ticket", metavar="FILE.pt", help="Train such a ticket instead of searching."),
    click.option("--resume", is_flag=True, help="Continue from the saved state, if there is one."),
)


def run_flags(command: Command) -> Command:
    """Add the flags; the command receives them as keyword arguments that `RunFlags` holds."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class RunFlags:
    """The flags' values.

    Attributes:
        output: path of the checkpoint.
        log: path of the JSON log, or None.
        curves: path of the picture, or None.
        tensorboard: folder of the event files, or None.
        save_every: how often the state is saved, or None for the default.
        resume: continue an earlier run.
        search_only: do not train.
        ticket: path of a ticket that was found before, or None.
    """

    output: str
    log: str | None
    curves: str | None
    tensorboard: str | None
    save_every: str | None
    resume: bool
    search_only: bool
    ticket: str | None

    def check(self, *, force: bool, inputs: list[str]) -> None:
        """Refuse outputs before training, not after it.

        Raises:
            OSError: an output is in the way, or an unfinished run's state.
            click.UsageError: an output is ``-``.
        """
        if STANDARD in (self.output, self.log, self.curves, self.tensorboard):
            raise click.UsageError("a training run writes files; name them, '-' will not do")
        if self.curves is not None and not self.curves.lower().endswith(".png"):
            raise click.UsageError(
                f"--curves: expected a name that ends in .png, found {self.curves!r}; the picture "
                "is a PNG"
            )
        if self.search_only:
            self._check_search_only()
        if self.ticket is not None:
            inputs = [*inputs, self.ticket]
        check_output(self.output, force=force, inputs=inputs)
        taken = [*inputs, self.output]
        state = progress_path(self.output)
        continued = self.resume and os.path.lexists(state)
        for extra in (self.log, self.curves):
            if extra is not None:
                check_output(extra, force=force or continued, inputs=taken)
                taken.append(extra)
        if os.path.lexists(state) and not (self.resume or force):
            raise FileExistsError(
                errno.EEXIST,
                "holds the state of an unfinished run; continue it with --resume, or discard it "
                "with -f/--force",
                state,
            )

    def _check_search_only(self) -> None:
        """Refuse flags that a search would not heed."""
        given = {
            "--log": self.log,
            "--curves": self.curves,
            "--tensorboard": self.tensorboard,
            "--save-every": self.save_every,
            "--ticket": self.ticket,
            "--resume": self.resume or None,
        }
        for flag, value in given.items():
            if value is not None:
                raise click.UsageError(f"{flag} is for training, which --search-only leaves out")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise click.UsageError(
                "--search-only is for one process; run it without torchrun, then train by torchrun "
                "with --ticket"
            )

    def saving(self) -> str | None:
        """Return how often to save; None for never, which is the default for a device or pipe."""
        if self.save_every is None:
            return None if is_stream(self.output) else _SAVE_EVERY
        return None if self.save_every == "never" else self.save_every

    def callbacks(self, reporter: Reporter) -> list[Callback]:
        """Return those that were asked for."""
        from pabzip.cli.train import CostRemark
        from pabzip.train.callbacks import Curves, ProgressBar, TensorBoard

        found: list[Callback] = [ProgressBar()] if reporter.progress else []
        if reporter.progress or (reporter.verbose and not reporter.quiet):
            found.append(CostRemark(layers=reporter.verbose > 0))
        if self.tensorboard is not None:
            found.append(TensorBoard(self.tensorboard))
        if self.curves is not None:
            found.append(Curves(self.curves))
        return found

    @contextmanager
    def told(self, reporter: Reporter) -> Iterator[None]:
        """Show warnings as one line each, and after Ctrl-C how to continue."""
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_: remark(reporter, str(message))
            try:
                yield
            except KeyboardInterrupt:
                state = progress_path(self.output)
                if os.path.lexists(state):
                    remark(reporter, f"the last state is kept in {state}; --resume continues it")
                raise


def first_process() -> bool:
    """Whether this process is the one of torchrun's that reports, or the only one."""
    return "WORLD_SIZE" not in os.environ or os.environ.get("RANK", "0") == "0"


def remark(reporter: Reporter, text: str) -> None:
    """Write a remark to stderr, unless quiet was asked for."""
    if not reporter.quiet and first_process():
        write_text(f"pabzip: {one_line(text)}\n", to_stderr=True)


def show_recipes(reporter: Reporter) -> None:
    """Write name and meaning of every published recipe."""
    from rich.table import Table

    from pabzip.train.recipes import published_recipes

    found = published_recipes()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it repeats")
    for recipe in found:
        table.add_row(recipe.name, recipe.about)
    values = [{"name": recipe.name, "about": recipe.about} for recipe in found]
    reporter.result({"recipes": values}, table, "Run one with: pabzip train --recipe NAME")


_NAMES = ", ".join(name for name in ARCHITECTURES if name != "custom")


@click.command("train")
@click.option(
    "--recipe",
    "recipe_file",
    metavar="NAME|FILE.toml",
    help="A recipe; flags win over it, and what neither names follows the defaults.",
)
@click.option("--list-recipes", is_flag=True, help="List the recipes that come with pabzip.")
@click.option("--arch", metavar="NAME", help=f"One of {_NAMES}, or your own module:callable.")
@arch_options_option
@recipe_flags
@click.option("--download", is_flag=True, help="Fetch the dataset where it is missing.")
@run_flags
@output_option("model.pt", stdout=False)
@reporting
def command(
    recipe_file: str | None,
    list_recipes: bool,
    arch: str | None,
    arch_options: tuple[str, ...],
    download: bool,
    log: str | None,
    curves: str | None,
    tensorboard: str | None,
    save_every: str | None,
    resume: bool,
    search_only: bool,
    ticket: str | None,
    output: str | None,
    force: bool,
    reporter: Reporter,
    **flags: Any,
) -> None:
    """Train a ticket: draw weights from a seed, search a mask, learn the signs.

    Without flags it trains a small network on the embedded handwritten digits in well under a
    minute. Writes a checkpoint (model.pt) that `pabzip pack` turns into a .pabz file. A long run
    saves its state beside it; after a crash, --resume continues as if nothing had happened. Over
    several GPUs: torchrun --nproc-per-node 4 -m -- pabzip.cli train.
    """
    if list_recipes:
        show_recipes(reporter)
        return
    if recipe_file is not None:
        recipe_file = os.fspath(find_recipe(recipe_file))
    target = output or ("found.pt" if search_only else "model.pt")
    run = RunFlags(target, log, curves, tensorboard, save_every, resume, search_only, ticket)
    run.check(force=force, inputs=[] if recipe_file is None else [recipe_file])
    options = parse_options(arch_options)
    from pabzip.train.config import read_recipe, to_dict

    recipe = read_recipe(
        recipe_file, {"arch": arch, "arch_options": options or None, **overrides(flags)}
    )
    for name in unheeded(flags, recipe):
        remark(reporter, f"{name}: method {recipe.method} has no use for it")
    reporter.detail(f"recipe: {to_json(to_dict(recipe))}")
    require("torch", extra="train", purpose="pabzip train")
    if search_only:
        with run.told(reporter):
            _search(recipe, target, download, reporter)
        return
    from pabzip.train.trainer import train

    with run.told(reporter):
        result = train(
            recipe,
            output=target,
            log=log,
            callbacks=run.callbacks(reporter),
            download=download,
            ticket=ticket,
            save_every=run.saving(),
            resume=resume,
        )
    if not first_process():
        return
    reporter.result(
        result.to_dict(),
        f"{target}: test accuracy {result.test_accuracy:.2%}, {result.arch} on {result.data}, "
        f"{result.epochs} epochs in {result.seconds:.1f} s; {result.survivors:,} of "
        f"{result.weights:,} weights survive, {result.flipped:.1%} of them with a flipped sign",
    )


def _search(recipe: Recipe, target: str, download: bool, reporter: Reporter) -> None:
    """Find a ticket and write it, untrained."""
    from pabzip.train.pruning import find_ticket

    with search_bar(reporter) as on_iteration:
        found = find_ticket(recipe, output=target, download=download, on_iteration=on_iteration)
    reporter.result(
        found.to_dict(),
        f"{target}: {found.survivors:,} of {found.weights:,} weights survive, found by "
        f"{found.search} in {found.seconds:.1f} s; train them with --ticket {target}",
    )

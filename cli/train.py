"""`pabzip train`: search and unmask a ticket, write its checkpoint."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pabzip._optional import require
from pabzip.cli._files import STANDARD, check_output, is_stream
from pabzip.cli._options import output_option, reporting, search_bar
from pabzip.cli._output import Reporter, short, to_json
from pabzip.cli._settings import (
    MORE,
    GroupedCommand,
    first_process,
    given,
    grouped,
    import_packages,
    remark,
    remark_unused,
    settings_options,
    show_settings,
)
from pabzip.registry import CALLBACKS
from pabzip.train.callbacks import Callback, build_callback, parse_callback
from pabzip.train.config import to_dict
from pabzip.train.recipes import find_recipe, published_recipes, read_recipe, recipe_file

if TYPE_CHECKING:
    from pabzip.train.config import Recipe
    from pabzip.train.results import StepCosts

Command = TypeVar("Command", bound=Callable[..., Any])

_RUN, _OUTPUT = "The run", "Output and help"
_SAVE_EVERY = "10min"
_EXAMPLES = """\
\b
Examples:
  pabzip train
  pabzip train --data cifar10 --download -o resnet18.pt
  pabzip train --recipe table1-resnet18-pab-bop-psg --data-root ~/data --device cuda
  pabzip train --method pab-latent --epochs 20 --set latent.lr=0.05 --set sgd.milestones=[10,15]
  pabzip train --arch mynets:Tiny --set arch_options.width=32
"""


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


def callback_options(command: Command) -> Command:
    """Add ``--callback`` and the short forms of those that pabzip registers, such as ``--log``.

    The command receives what was typed, which `requested` reads.
    """
    options = [
        grouped(
            _OUTPUT,
            facts["flag"],
            _parameter(name),
            metavar=facts["metavar"],
            help=facts["help"],
        )
        for name, facts in ((name, CALLBACKS.facts(name)) for name in CALLBACKS)
        if "flag" in facts
    ]
    names = ", ".join(CALLBACKS)
    options.append(
        grouped(
            _OUTPUT,
            "--callback",
            "named",
            metavar="NAME[=ARGUMENT]",
            multiple=True,
            help=f"Have a callback called: {names}, or one of --import; repeatable.",
        )
    )
    for option in reversed(options):
        command = option(command)
    return command


def requested(
    typed: Mapping[str, Any], named: Sequence[str]
) -> tuple[tuple[str, str, str | None], ...]:
    """Return the callbacks that were asked for: the flag that was typed, the name, the argument.

    Args:
        typed: texts by parameter of the flag; others are ignored.
        named: of ``--callback``.

    Raises:
        RecipeError: no such callback, or an argument that is missing or does not fit.
    """
    found = []
    for name in CALLBACKS:
        if typed.get(_parameter(name)) is not None:
            flag = CALLBACKS.facts(name)["flag"]
            found.append((flag, *parse_callback(f"{name}={typed[_parameter(name)]}", flag)))
    return (*found, *(("--callback", *parse_callback(text)) for text in named))


def _parameter(name: str) -> str:
    """Return the name under which click hands a callback's argument over."""
    return f"callback_{name.replace('-', '_')}"


@dataclass(frozen=True, slots=True)
class RunFlags:
    """The flags' values.

    Attributes:
        output: path of the checkpoint.
        requested: the callbacks that were asked for, as `requested` returns them.
        save_every: how often the state is saved, or None for the default.
        resume: continue an earlier run.
        search_only: do not train.
        ticket: path of a ticket that was found before, or None.
    """

    output: str
    requested: tuple[tuple[str, str, str | None], ...]
    save_every: str | None
    resume: bool
    search_only: bool
    ticket: str | None

    def check(self, *, force: bool, inputs: list[str]) -> None:
        """Refuse outputs before training, not after it.

        Raises:
            OSError: an output is in the way, or an unfinished run's state.
            click.UsageError: an output is ``-``, or flags contradict each other.
        """
        from pabzip.train.resume import progress_path

        if STANDARD in (self.output, *(argument for _, _, argument in self.requested)):
            raise click.UsageError("a training run writes files; name them, '-' will not do")
        if self.search_only:
            self._check_search_only()
        if self.ticket is not None:
            inputs = [*inputs, self.ticket]
        check_output(self.output, force=force, inputs=inputs)
        taken = [*inputs, self.output]
        state = progress_path(self.output)
        continued = self.resume and os.path.lexists(state)
        for _, name, argument in self.requested:
            if argument is not None and CALLBACKS.facts(name).get("writes") == "file":
                check_output(argument, force=force or continued, inputs=taken)
                taken.append(argument)
        if os.path.lexists(state) and not (self.resume or force):
            raise FileExistsError(
                errno.EEXIST,
                "holds the state of an unfinished run; continue it with --resume, or discard it "
                "with -f/--force",
                state,
            )

    def _check_search_only(self) -> None:
        """Refuse flags that a search alone has no use for."""
        unusable = {
            **{flag: name for flag, name, _ in self.requested},
            "--save-every": self.save_every,
            "--ticket": self.ticket,
            "--resume": self.resume or None,
        }
        for flag, value in unusable.items():
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
        """Return those that were asked for, and on a terminal the progress bar."""
        found = [build_callback("progress")] if reporter.progress else []
        if reporter.progress or (reporter.verbose and not reporter.quiet):
            found.append(CostRemark(layers=reporter.verbose > 0))
        return [*found, *(build_callback(name, argument) for _, name, argument in self.requested)]

    @contextmanager
    def remarks(self, reporter: Reporter) -> Iterator[None]:
        """Show warnings as one line each, and after Ctrl-C how to continue."""
        from pabzip.train.resume import progress_path

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


def show_recipes(reporter: Reporter) -> None:
    """Write name and meaning of every published recipe."""
    from rich.table import Table

    found = published_recipes()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it repeats")
    for recipe in found:
        table.add_row(recipe.name, recipe.about)
    values = [{"name": recipe.name, "about": recipe.about} for recipe in found]
    reporter.result({"recipes": values}, table, "Run one with: pabzip train --recipe NAME")


@click.command("train", cls=GroupedCommand, epilog=_EXAMPLES)
@settings_options()
@grouped(
    MORE,
    "--recipe",
    "recipe_name",
    metavar="NAME|FILE.toml",
    help="Start from a recipe: one of --list-recipes, or a file of yours (FILE.toml#ROW for one of "
    "its rows). Flags win over it.",
)
@grouped(MORE, "--list-recipes", is_flag=True, help="List the recipes that come with pabzip.")
@grouped(
    MORE, "--list-settings", is_flag=True, help="List all settings, with the values they have."
)
@grouped(_RUN, "--download", is_flag=True, help="Fetch the dataset where it is missing.")
@grouped(
    _RUN, "--search-only", is_flag=True, help="Write the ticket that the search finds, untrained."
)
@grouped(_RUN, "--ticket", metavar="FILE.pt", help="Train such a ticket instead of searching.")
@grouped(
    _RUN,
    "--save-every",
    metavar="WHEN",
    help="Save the state beside the output: 10min, 500steps, 1epoch, several with commas, or "
    f"never. [{_SAVE_EVERY}]",
)
@grouped(_RUN, "--resume", is_flag=True, help="Continue from the saved state, if there is one.")
@output_option("model.pt", stdout=False)
@callback_options
@reporting
def command(
    assignments: tuple[str, ...],
    packages: tuple[str, ...],
    recipe_name: str | None,
    list_recipes: bool,
    list_settings: bool,
    download: bool,
    named: tuple[str, ...],
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
    import_packages(packages)
    path = None if recipe_name is None else find_recipe(recipe_name)
    values, keys = given(flags, assignments)
    recipe = read_recipe(path, values)
    if list_settings:
        show_settings(reporter, recipe)
        return
    require("torch", extra="train", purpose="pabzip train")
    target = output or ("found.pt" if search_only else "model.pt")
    callbacks = requested(flags, named)
    run = RunFlags(target, callbacks, save_every, resume, search_only, ticket)
    run.check(force=force, inputs=[] if path is None else [recipe_file(path)])
    remark_unused(reporter, recipe, keys)
    reporter.detail(f"recipe: {to_json(to_dict(recipe))}")
    if search_only:
        with run.remarks(reporter):
            _search(recipe, target, download, reporter)
        return
    from pabzip.train.trainer import train

    with run.remarks(reporter):
        result = train(
            recipe,
            output=target,
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

"""`pabzip train`: search and unmask a ticket, write its checkpoint."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from pabzip._optional import require
from pabzip.cli._files import STANDARD, check_output, is_stream
from pabzip.cli._options import output_option, reporting, search_bar
from pabzip.cli._output import Reporter, plain_table, short, to_json
from pabzip.cli._settings import (
    MORE,
    GroupedCommand,
    first_process,
    given,
    grouped,
    import_packages,
    recipe_option,
    remark,
    settings_options,
    show_settings,
)
from pabzip.registry import CALLBACKS
from pabzip.train.callbacks import Callback, build_callback, parse_callback
from pabzip.train.config import to_dict, unused
from pabzip.train.recipes import find_recipe, published_recipes, read_recipe, recipe_file

if TYPE_CHECKING:
    from pabzip.train.config import Recipe
    from pabzip.train.results import StepCosts

_RUN = "The run"
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


def show_recipes(reporter: Reporter) -> None:
    """Write name and meaning of every published recipe."""
    found = published_recipes()
    table = plain_table()
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it repeats")
    for recipe in found:
        table.add_row(recipe.name, recipe.about)
    values = [{"name": recipe.name, "about": recipe.about} for recipe in found]
    reporter.result({"recipes": values}, table, "Run one with: pabzip train --recipe NAME")


def _callback_help() -> str:
    """Return the help of ``--callback``: what pabzip registers, and what each does."""
    lines = ["Have a callback called, one of these or of --import; repeatable."]
    for name in CALLBACKS:
        facts = CALLBACKS.facts(name)
        argument = f"={facts['metavar']}" if "metavar" in facts else ""
        lines.append(f"{name}{argument}: {facts['help']}")
    return " ".join(lines)


@click.command("train", cls=GroupedCommand, epilog=_EXAMPLES)
@settings_options()
@recipe_option(
    "Start from a recipe: one of --list-recipes, or a file of yours (FILE.toml#ROW for one of its "
    "rows). Flags win over it."
)
@grouped(MORE, "--list-recipes", is_flag=True, help="List the recipes that come with pabzip.")
@grouped(
    MORE, "--list-settings", is_flag=True, help="List all settings, with the values they have."
)
@grouped(_RUN, "--download", is_flag=True, help="Fetch the dataset where it is missing.")
@grouped(
    _RUN, "--search-only", is_flag=True, help="Write the ticket that the search finds, untrained."
)
@grouped(
    _RUN,
    "--ticket",
    metavar="FILE.pt",
    help="Train such a ticket, or one of a score method, in the network that it was found in.",
)
@grouped(
    _RUN,
    "--save-every",
    metavar="WHEN",
    help="Save the state beside the output: 10min, 500steps, 1epoch, several with commas, or "
    f"never. [{_SAVE_EVERY}]",
)
@grouped(_RUN, "--resume", is_flag=True, help="Continue from the saved state, if there is one.")
@output_option("model.pt", stdout=False)
@click.option(
    "--log",
    metavar="FILE.jsonl",
    help="Write one JSON object an epoch; short for --callback json-log=FILE.jsonl.",
)
@click.option(
    "--callback",
    "named",
    metavar="NAME[=ARGUMENT]",
    multiple=True,
    help=_callback_help(),
)
@reporting
def command(
    assignments: tuple[str, ...],
    packages: tuple[str, ...],
    recipe_name: str | None,
    list_recipes: bool,
    list_settings: bool,
    download: bool,
    search_only: bool,
    ticket: str | None,
    save_every: str | None,
    resume: bool,
    output: str | None,
    force: bool,
    log: str | None,
    named: tuple[str, ...],
    reporter: Reporter,
    **flags: Any,
) -> None:
    """Train a ticket: draw weights from a seed, search a mask, learn the signs.

    Without flags it trains a small network on the embedded handwritten digits in a minute or
    two. Writes a checkpoint (model.pt) that `pabzip pack` turns into a .pabz file. A long run
    saves its state beside it; after a crash, --resume continues as if nothing had happened. Over
    several GPUs: torchrun --nproc-per-node 4 -m -- pabzip.cli train.
    """
    if list_recipes:
        show_recipes(reporter)
        return
    import_packages(packages)
    path = None if recipe_name is None else find_recipe(recipe_name)
    values, keys = given(flags, assignments)
    if ticket is not None and path is None and not search_only and os.path.exists(ticket):
        values = _after_ticket(ticket, values)
    recipe = read_recipe(path, values)
    if list_settings:
        show_settings(reporter, recipe)
        return
    require("torch", extra="train", purpose="pabzip train")
    target = output or ("found.pt" if search_only else "model.pt")
    callbacks = [parse_callback(text) for text in named]
    if log is not None:
        callbacks.insert(0, parse_callback(f"json-log={log}", "--log"))
    if search_only:
        typed = {"--log": log, "--callback": named, "--save-every": save_every}
        _check_search_only({**typed, "--ticket": ticket, "--resume": resume})
    inputs = [] if path is None else [recipe_file(path)]
    if ticket is not None:
        inputs.append(ticket)
    _check_outputs(target, callbacks, inputs, resume=resume, force=force)
    for key, what in unused(recipe, keys).items():
        remark(reporter, f"{key}: {what} has no use for it")
    reporter.detail(f"recipe: {to_json(to_dict(recipe))}")
    if search_only:
        with _remarks(target, reporter):
            _search(recipe, target, download, reporter)
        return
    if save_every is None:
        save_every = "never" if is_stream(target) else _SAVE_EVERY
    from pabzip.train.run import train

    with _remarks(target, reporter):
        result = train(
            recipe,
            output=target,
            callbacks=[*_shown(reporter), *(build_callback(*each) for each in callbacks)],
            download=download,
            ticket=ticket,
            save_every=None if save_every == "never" else save_every,
            resume=resume,
        )
    if not first_process():
        return
    measured = f"test accuracy {result.test_accuracy:.2%}"
    if result.validation_accuracy is not None:
        measured += f", validation accuracy {result.validation_accuracy:.2%}"
    reporter.result(
        result.to_dict(),
        f"{target}: {measured}, {result.arch} on {result.data}, "
        f"{result.epochs} epochs in {result.seconds:.1f} s; {result.survivors:,} of "
        f"{result.weights:,} weights survive, {result.flipped:.1%} of them with a flipped sign",
    )


def _after_ticket(ticket: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return what was typed, over the settings that the ticket was found by."""
    require("torch", extra="train", purpose="pabzip train")
    from pabzip.train.pruning import ticket_settings

    found = ticket_settings(ticket)
    if values.get("arch") not in (None, found.get("arch")):
        found.pop("arch_options", None)
    for key, value in values.items():
        own = found.get(key)
        found[key] = {**own, **value} if isinstance(own, Mapping) else value
    return found


def _check_search_only(typed: Mapping[str, object]) -> None:
    """Refuse flags that a search alone has no use for, and several processes."""
    for flag, value in typed.items():
        if value not in (None, False, ()):
            raise click.UsageError(f"{flag} is for training, which --search-only leaves out")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise click.UsageError(
            "--search-only is for one process; run it without torchrun, then train by torchrun "
            "with --ticket"
        )


def _check_outputs(
    target: str,
    callbacks: Sequence[tuple[str, str | None]],
    inputs: Sequence[str],
    *,
    resume: bool,
    force: bool,
) -> None:
    """Refuse outputs that are in the way, and an unfinished run's state, before training."""
    from pabzip.train.resume import progress_path

    if STANDARD in (target, *(argument for _, argument in callbacks)):
        raise click.UsageError("a training run writes files; name them, '-' will not do")
    check_output(target, force=force, inputs=inputs)
    taken = [*inputs, target]
    state = progress_path(target)
    unfinished = os.path.lexists(state)
    for name, argument in callbacks:
        if argument is not None and CALLBACKS.facts(name).get("writes") == "file":
            check_output(argument, force=force or (resume and unfinished), inputs=taken)
            taken.append(argument)
    if unfinished and not (resume or force):
        raise FileExistsError(
            errno.EEXIST,
            "holds the state of an unfinished run; continue it with --resume, or discard it with "
            "-f/--force",
            state,
        )


def _shown(reporter: Reporter) -> list[Callback]:
    """Return the callbacks that show how a run goes on: the progress bar is for a terminal."""
    shown = [build_callback("progress")] if reporter.progress else []
    if reporter.progress or (reporter.verbose and not reporter.quiet):
        shown.append(CostRemark(layers=reporter.verbose > 0))
    return shown


@contextmanager
def _remarks(target: str, reporter: Reporter) -> Iterator[None]:
    """Show warnings as one line each, and after Ctrl-C how to continue."""
    from pabzip.train.resume import progress_path

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: remark(reporter, str(message))
        try:
            yield
        except KeyboardInterrupt:
            state = progress_path(target)
            if os.path.lexists(state):
                remark(reporter, f"the last state is kept in {state}; --resume continues it")
            raise


def _search(recipe: Recipe, target: str, download: bool, reporter: Reporter) -> None:
    """Find a ticket and write it, untrained."""
    from pabzip.train.run import find_ticket

    with search_bar(reporter) as on_iteration:
        found = find_ticket(recipe, output=target, download=download, on_iteration=on_iteration)
    reporter.result(
        found.to_dict(),
        f"{target}: {found.survivors:,} of {found.weights:,} weights survive, found by "
        f"{found.search} in {found.seconds:.1f} s; train them with --ticket {target}",
    )

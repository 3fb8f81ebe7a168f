"""``pabzip train``: search and unmask a ticket, write its checkpoint."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from pabzip._optional import require
from pabzip.cli.architectures import parse_options
from pabzip.cli.options import arch_options_option, output_option, reporting
from pabzip.cli.output import Reporter, to_json
from pabzip.cli.recipe_list import show_recipes
from pabzip.cli.search_bar import search_bar
from pabzip.cli.train_flags import overrides, recipe_flags, unheeded
from pabzip.cli.train_run import RunFlags, first_process, remark, run_flags
from pabzip.formats.registry import ARCHITECTURES
from pabzip.train.published import find_recipe

if TYPE_CHECKING:
    from pabzip.train.recipes import Recipe

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
    from pabzip.train.toml import read_recipe, to_dict

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
    from pabzip.train.loop import train

    with run.told(reporter):
        result = train(
            recipe,
            output=target,
            log=log,
            observers=run.observers(reporter),
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
    from pabzip.train.found_tickets import find_ticket

    with search_bar(reporter) as on_iteration:
        found = find_ticket(recipe, output=target, download=download, on_iteration=on_iteration)
    reporter.result(
        found.to_dict(),
        f"{target}: {found.survivors:,} of {found.weights:,} weights survive, found by "
        f"{found.search} in {found.seconds:.1f} s; train them with --ticket {target}",
    )

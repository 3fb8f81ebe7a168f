"""``pabzip train``: search and unmask a ticket, write its checkpoint."""

from __future__ import annotations

import os
from typing import Any

import click

from pabzip._optional import require
from pabzip.cli.architectures import parse_options
from pabzip.cli.files import STANDARD, check_output
from pabzip.cli.options import arch_options_option, output_option, reporting
from pabzip.cli.output import Reporter, to_json
from pabzip.cli.recipe_list import show_recipes
from pabzip.cli.train_flags import overrides, recipe_flags
from pabzip.formats.registry import ARCHITECTURES
from pabzip.train.published import find_recipe

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
@click.option("--log", metavar="FILE.jsonl", help="Write one JSON object an epoch.")
@output_option("model.pt", stdout=False)
@reporting
def command(
    recipe_file: str | None,
    list_recipes: bool,
    arch: str | None,
    arch_options: tuple[str, ...],
    download: bool,
    log: str | None,
    output: str | None,
    force: bool,
    reporter: Reporter,
    **flags: Any,
) -> None:
    """Train a ticket: draw weights from a seed, search a mask, learn the signs.

    Without flags it trains a small network on the embedded handwritten digits in well under a
    minute. Writes a checkpoint (model.pt) that `pabzip pack` turns into a .pabz file.
    """
    if list_recipes:
        show_recipes(reporter)
        return
    if recipe_file is not None:
        recipe_file = os.fspath(find_recipe(recipe_file))
    target = output or "model.pt"
    _check_files(target, log, recipe_file, force=force)
    options = parse_options(arch_options)
    from pabzip.train.toml import read_recipe, to_dict

    recipe = read_recipe(
        recipe_file, {"arch": arch, "arch_options": options or None, **overrides(flags)}
    )
    reporter.detail(f"recipe: {to_json(to_dict(recipe))}")
    require("torch", extra="train", purpose="pabzip train")
    from pabzip.train.loop import train
    from pabzip.train.observers import ProgressBar

    observers = [ProgressBar()] if reporter.progress else []
    result = train(recipe, output=target, log=log, observers=observers, download=download)
    reporter.result(
        result.to_dict(),
        f"{target}: test accuracy {result.test_accuracy:.2%}, {result.arch} on {result.data}, "
        f"{result.epochs} epochs in {result.seconds:.1f} s; {result.survivors:,} of "
        f"{result.weights:,} weights survive, {result.flipped:.1%} of them with a flipped sign",
    )


def _check_files(target: str, log: str | None, recipe: str | None, *, force: bool) -> None:
    """Refuse outputs before training, not after it."""
    if STANDARD in (target, log):
        raise click.UsageError("a training run writes files; name them, '-' will not do")
    inputs = [] if recipe is None else [recipe]
    check_output(target, force=force, inputs=inputs)
    if log is not None:
        check_output(log, force=force, inputs=[*inputs, target])

"""`pabzip bench`: what a method costs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from pabzip._optional import require
from pabzip.cli._options import arch_options_option, parse_options, reporting, search_bar
from pabzip.cli._output import Reporter, printable, short
from pabzip.cli.train import overrides, some_recipe_flags
from pabzip.formats.registry import ARCHITECTURES
from pabzip.train.recipes import find_recipe

if TYPE_CHECKING:
    from rich.table import Table

    from pabzip.train.config import Recipe
    from pabzip.train.cost import Estimate


def about(values: dict[str, Any]) -> str:
    """Return the line above the tables."""
    bits = values["bits"]
    return (
        f"{values['arch']} on {values['data']}: {values['survivors']:,} of {values['weights']:,} "
        f"weights survive; predictive gradients of {bits['input']}, {bits['weight']} and "
        f"{bits['gradient']} bits (inputs, weights, output gradients)"
    )


def footnote(values: dict[str, Any]) -> str:
    """Return the lines below the tables."""
    note = (
        "Bit operations of one training step of one sample. A step of dense-sgd-short costs what "
        "one of dense-sgd does; it takes fewer."
    )
    if not values["search_epoch"]:
        return note
    return (
        f"{note}\nThe recipe's last search (of {values['search_shots']}) follows epoch "
        f"{values['search_epoch']}: counted is a step after it, on a mask found in one go at "
        "initialization."
    )


def method_table(values: dict[str, Any]) -> Table:
    """Return one row a method, for people."""
    table = _table("method", "operations", "of dense-sgd")
    dense = values["methods"]["dense-sgd"]
    for name, operations in values["methods"].items():
        table.add_row(name, short(operations), f"{operations / dense:.1%}")
    return table


def layer_table(values: dict[str, Any]) -> Table:
    """Return one row a layer, for people: dense, pruned, and with predictive gradients."""
    table = _table(
        "layer", "MACs", "kept", "dense-sgd", "pab-bop", "pab-bop-psg",
        "= forward", "+ input gradient", "+ weight gradient",
    )  # fmt: skip
    for layer in values["layers"]:
        operations = layer["operations"]
        totals = [sum(operations[name].values()) for name in ("dense-sgd", "pab-bop")]
        psg = operations["pab-bop-psg"]
        table.add_row(
            printable(layer["name"]),
            short(layer["macs"]),
            f"{layer['kept']:.2%}",
            *(short(each) for each in (*totals, sum(psg.values()), *psg.values())),
        )
    return table


def _table(first: str, *others: str) -> Table:
    """Return an empty table: a column of text and columns of numbers."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(first, overflow="fold")
    for title in others:
        table.add_column(title, justify="right", no_wrap=True)
    return table


_NAMES = ", ".join(name for name in ARCHITECTURES if name != "custom")
_ARCH, _DATA, _ITERATIONS = "resnet18", "cifar10", 20
_KEYS = (
    "data", "seed", "scheme", "classifier", "keep_ratio", "drop_ratio", "search.iterations",
    "search.schedule", "search.scope", "search.precision", "psg.input_bits", "psg.weight_bits",
    "psg.gradient_bits",
)  # fmt: skip
_PRODUCTS = ("forward", "input_gradient", "weight_gradient")


@click.command("bitops")
@click.option(
    "--recipe",
    "recipe_file",
    metavar="NAME|FILE.toml",
    help="A recipe, as for `pabzip train`; flags win over it, and it has its own iterations.",
)
@click.option(
    "--arch", metavar="NAME", help=f"One of {_NAMES}, or your own module:callable. [{_ARCH}]"
)
@arch_options_option
@some_recipe_flags(_KEYS)
@reporting
def bitops(
    recipe_file: str | None,
    arch: str | None,
    arch_options: tuple[str, ...],
    reporter: Reporter,
    **flags: Any,
) -> None:
    """Count the bit operations of one training step of one sample.

    Draws the network, searches its mask by SynFlow and counts multiply-accumulates times the bits
    of their operands: forward, input gradient and weight gradient of every layer. Needs no data on
    disk; --data [cifar10] says what the network must fit. The search takes the time: unless told
    otherwise it has 20 iterations, whose count is within 0.5 % of that of the published 100.
    A recipe that searches later, or in several shots, is counted by the mask of its last search,
    found in one go at initialization.
    """
    from pabzip.train.config import read_recipe

    given = {"arch": arch, "arch_options": parse_options(arch_options) or None, **overrides(flags)}
    if recipe_file is None:
        search = {"iterations": _ITERATIONS, **given.get("search", {})}
        given = {"data": _DATA, **given, "arch": arch or _ARCH, "search": search}
    path = None if recipe_file is None else os.fspath(find_recipe(recipe_file))
    recipe = read_recipe(path, given)
    require("torch", extra="train", purpose="pabzip bench bitops")
    from pabzip.train.cost import estimate_costs

    with search_bar(reporter) as on_iteration:
        estimate = estimate_costs(recipe, on_iteration=on_iteration)
    values = _values(recipe, estimate)
    if reporter.json or reporter.quiet:
        reporter.result(values)
    else:
        reporter.result(
            values,
            about(values),
            "",
            method_table(values),
            "",
            layer_table(values),
            footnote(values),
        )


def _values(recipe: Recipe, estimate: Estimate) -> dict[str, Any]:
    """Return the result as JSON values; operations are whole numbers."""
    layers: list[dict[str, Any]] = [
        {"name": cost.name, "macs": cost.macs, "kept": cost.kept, "masked": cost.masked}
        for cost in estimate.layers["pab-bop"]
    ]
    for at, layer in enumerate(layers):
        layer["operations"] = {
            method: {product: round(getattr(costs[at], product)) for product in _PRODUCTS}
            for method, costs in estimate.layers.items()
        }
    return {
        "arch": recipe.arch,
        "arch_options": dict(recipe.arch_options),
        "data": recipe.data,
        "keep_ratio": recipe.keep_ratio,
        "drop_ratio": recipe.drop_ratio,
        "classifier": recipe.classifier,
        "search_iterations": recipe.search.rounds,
        "search_epoch": recipe.search.epoch,
        "search_shots": recipe.search.shots,
        "seed": recipe.seed,
        "bits": {
            "input": recipe.psg.input_bits,
            "weight": recipe.psg.weight_bits,
            "gradient": recipe.psg.gradient_bits,
        },
        "weights": estimate.weights,
        "survivors": estimate.survivors,
        "methods": {name: round(total) for name, total in estimate.totals.items()},
        "layers": layers,
    }


@click.group("bench")
def command() -> None:
    """Measure what a method costs, without data on disk."""


command.add_command(bitops)

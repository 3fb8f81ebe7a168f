"""`pabzip bench`: what a method costs, and whether a ticket is worth its search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pabzip._optional import require
from pabzip.cli._options import reporting, search_bar
from pabzip.cli._output import Reporter, plain_table, printable, short
from pabzip.cli._settings import (
    GroupedCommand,
    given,
    import_packages,
    recipe_option,
    remark,
    settings_options,
)
from pabzip.train.recipes import find_recipe, read_recipe

if TYPE_CHECKING:
    from rich.table import Table

    from pabzip.train.config import Recipe
    from pabzip.train.pruning import Estimate
    from pabzip.train.sanity import SanityResult


def show(reporter: Reporter, values: dict[str, Any]) -> None:
    """Write the count: by method, by layer, and what it says."""
    bits, dense = values["bits"], values["methods"]["dense-sgd"]
    methods = _table("method", "operations", "of dense-sgd")
    for name, operations in values["methods"].items():
        methods.add_row(name, short(operations), f"{operations / dense:.1%}")
    note = (
        "Bit operations of one training step of one sample. A step of dense-sgd-short costs what "
        "one of dense-sgd does; it takes fewer."
    )
    if values["search_epoch"]:
        note += (
            f"\nThe recipe's last search (of {values['search_shots']}) follows epoch "
            f"{values['search_epoch']}: counted is a step after it, on a mask found in one go at "
            "initialization."
        )
    reporter.result(
        values,
        f"{values['arch']} on {values['data']}: {values['survivors']:,} of {values['weights']:,} "
        f"weights survive; predictive gradients of {bits['input']}, {bits['weight']} and "
        f"{bits['gradient']} bits (inputs, weights, output gradients)",
        "",
        methods,
        "",
        layer_table(values),
        note,
    )


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
    table = plain_table()
    table.add_column(first, overflow="fold")
    for title in others:
        table.add_column(title, justify="right", no_wrap=True)
    return table


_ARCH, _DATA, _ITERATIONS = "resnet18", "cifar10", 20
_KEYS = (
    "arch", "arch_options", "data", "seed", "scheme", "classifier", "keep_ratio", "drop_ratio",
    "search.iterations", "search.schedule", "search.scope", "search.precision", "psg.input_bits",
    "psg.weight_bits", "psg.gradient_bits", "psg.input_gradient",
)  # fmt: skip
_PRODUCTS = ("forward", "input_gradient", "weight_gradient")


@click.command("bitops", cls=GroupedCommand)
@settings_options(_KEYS.__contains__)
@recipe_option("A recipe, as for `pabzip train`; flags win over it, and it has its own iterations.")
@reporting
def bitops(
    assignments: tuple[str, ...],
    packages: tuple[str, ...],
    recipe_name: str | None,
    reporter: Reporter,
    **flags: Any,
) -> None:
    """Count the bit operations of one training step of one sample.

    Draws the network, searches its mask by SynFlow and counts multiply-accumulates times the bits
    of their operands: forward, input gradient and weight gradient of every layer. Needs no data on
    disk; --data [cifar10] says what the network must fit, --arch [resnet18] which it is. The search
    takes the time: unless --set search.iterations says otherwise it has 20, whose count is within
    0.5 % of that of the published 100.
    A recipe that searches later, or in several shots, is counted by the mask of its last search,
    found in one go at initialization.
    """
    import_packages(packages)
    values, keys = given(flags, assignments)
    if recipe_name is None:
        search = {"iterations": _ITERATIONS, **values.get("search", {})}
        values = {"data": _DATA, "arch": _ARCH, **values, "search": search}
    recipe = read_recipe(None if recipe_name is None else find_recipe(recipe_name), values)
    for key in keys:
        if key not in _KEYS:
            remark(reporter, f"{key}: the count does not depend on it")
    require("torch", extra="train", purpose="pabzip bench bitops")
    from pabzip.train.pruning import estimate_costs

    with search_bar(reporter) as on_iteration:
        estimate = estimate_costs(recipe, on_iteration=on_iteration)
    show(reporter, _values(recipe, estimate))


def _values(recipe: Recipe, estimate: Estimate) -> dict[str, Any]:
    """Return the result as JSON values; operations are whole numbers."""
    from pabzip.train.pruning import planned_searches

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
        "search_epoch": max((planned.epoch for planned in planned_searches(recipe)), default=0),
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


@click.command("sanity", cls=GroupedCommand)
@click.argument("tickets", metavar="TICKET.pt...", nargs=-1, required=True)
@settings_options(lambda key: key not in ("seed", "keep_ratio"))
@click.option(
    "--draws",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Shuffles, and other seeds, for each ticket.",
)
@reporting
def sanity(
    tickets: tuple[str, ...],
    assignments: tuple[str, ...],
    packages: tuple[str, ...],
    draws: int,
    reporter: Reporter,
    **flags: Any,
) -> None:
    """Check that a ticket trains better than others with as many weights in each layer.

    Trains each TICKET, which a score method, --search-only or imp has found, and three others made
    of it: its mask and flips shuffled within each layer, the same over the weights of another seed,
    and the mask of the lowest scores, where there are scores. Each trains by the recipe that the
    ticket was found by, with the method sgd unless --method says otherwise; flags win. A check is
    passed if the accuracy drops by more than twice the standard error of the difference. Give
    several tickets, found by different seeds, or --draws for a sharper answer.
    """
    import_packages(packages)
    values, _ = given(flags, assignments)
    require("torch", extra="train", purpose="pabzip bench sanity")
    from tqdm import tqdm

    from pabzip.train.sanity import sanity_checks

    with tqdm(desc="training", unit="run", leave=False, disable=not reporter.progress) as bar:

        def on_run(name: str, accuracy: float, run: int, runs: int) -> None:
            bar.total = runs
            bar.update(run - bar.n)
            reporter.detail(f"{run} of {runs}: {name}, {accuracy:.2%}")

        found = sanity_checks(tickets, values, draws=draws, on_run=on_run)
    reporter.result(found.to_dict(), *_sanity_lines(found))


def _sanity_lines(found: SanityResult) -> list[Any]:
    """Return the result for people."""
    table = _table("what is trained", "runs", "accuracy", "deviation", "drop", "needed", "passed")
    for row in found.rows:
        table.add_row(
            row.name,
            str(len(row.accuracies)),
            f"{row.mean:.2%}",
            "" if row.deviation is None else f"{100 * row.deviation:.2f}",
            "" if row.passed is None else f"{100 * row.drop:.2f}",
            "" if row.passed is None else f"{100 * row.margin:.2f}",
            "" if row.passed is None else "yes" if row.passed else "no",
        )
    failed = [row.name for row in found.rows if row.passed is False]
    verdict = "Every sanity check is passed: it takes this mask over these weights."
    if failed:
        verdict = (
            f"Not passed: {', '.join(failed)}. What trains as well is as good a ticket, found "
            "without this search."
        )
    remarks = map(printable, found.remarks)
    return [f"{found.method}, {found.epochs} epochs each", "", table, "", verdict, *remarks]


@click.group("bench")
def command() -> None:
    """Measure what a method costs, and whether a ticket is worth its search."""


command.add_command(bitops)
command.add_command(sanity)

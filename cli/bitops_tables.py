"""How commands show bit operations to people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pabzip.cli.output import printable

if TYPE_CHECKING:
    from rich.table import Table


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
        "initialisation."
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


def short(operations: float) -> str:
    """Return a number of operations for people: ``1.71 T``."""
    for unit, each in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if operations >= each:
            value = operations / each
            digits = 2 if value < 10 else 1 if value < 100 else 0
            return f"{value:,.{digits}f} {unit}"
    return f"{operations:g}"


def _table(first: str, *others: str) -> Table:
    """Return an empty table: a column of text and columns of numbers."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(first, overflow="fold")
    for title in others:
        table.add_column(title, justify="right", no_wrap=True)
    return table

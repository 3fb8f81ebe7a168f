"""``pabzip train --list-recipes``: the recipes that come with pabzip."""

from __future__ import annotations

from pabzip.cli.output import Reporter


def show_recipes(reporter: Reporter) -> None:
    """Write name and meaning of every published recipe."""
    from rich.table import Table

    from pabzip.train.published import published_recipes

    found = published_recipes()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it repeats")
    for recipe in found:
        table.add_row(recipe.name, recipe.about)
    values = [{"name": recipe.name, "about": recipe.about} for recipe in found]
    reporter.result({"recipes": values}, table, "Run one with: pabzip train --recipe NAME")

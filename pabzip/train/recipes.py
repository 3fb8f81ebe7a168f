"""Recipes as TOML files, of one run or of many, and those of the paper that come with pabzip.

A file of many runs holds the settings that they share, and a table of rows::

    data = "cifar10"

    [rows.small]
    about = "a line for --list-recipes"
    arch = "resnet20"

`pabzip train --recipe file.toml#small` runs one of them.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pabzip.errors import RecipeError
from pabzip.train.config import Recipe, Table, default_recipe, merge, refuse_import

_PACKAGE = "pabzip.recipes"
_SUFFIX = ".toml"


@dataclass(frozen=True, slots=True)
class PublishedRecipe:
    """One recipe that comes with pabzip.

    Attributes:
        name: as ``pabzip train --recipe`` takes it, such as ``table1-resnet18-pab-bop-psg``.
        about: one line: table, row, and what the paper reports for it.
        path: the file and the row in it, as `read_recipe` takes them.
    """

    name: str
    about: str
    path: str


def published_recipes() -> list[PublishedRecipe]:
    """Return all recipes that come with pabzip, file by file, each in the order of its table.

    Source: Peek-a-Boo, Tables 1 to 5 and Section 4.3, without its rows for edge-popup; Rare Gems,
    Tables 3, 4, 8 to 13 and 15; Multi-Prize Tickets, Tables 1 to 3 and 8, and its figures; Ivan &
    Florian 2020, Table 1.
    """
    found = []
    # A package with compiled parts is never run from an archive, so these are files on disk.
    folder = Path(str(resources.files(_PACKAGE)))
    for file in sorted(folder.glob(f"*{_SUFFIX}")):
        for name, row in _read_toml(file)["rows"].items():
            found.append(PublishedRecipe(name, row["about"], f"{file}#{name}"))
    return found


def find_recipe(given: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Return the path of the recipe that ``--recipe`` names, as `read_recipe` takes it.

    Args:
        given: a path, which wins where it exists, or a name from `published_recipes`.

    Raises:
        RecipeError: there is neither; the message gives the nearest published names.
    """
    name = os.fspath(given)
    # What looks like a path is one, even where nothing is: opening it says so.
    file = recipe_file(name)
    if os.path.exists(file) or os.path.dirname(file) or file.endswith(_SUFFIX):
        return given
    known = {recipe.name: recipe.path for recipe in published_recipes()}
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
        raise RecipeError(
            f"--recipe: expected a TOML file or a recipe that comes with pabzip, found {name!r}; "
            f"the nearest are {', '.join(nearest)} (pabzip train --list-recipes prints all)"
        )
    return known[name]


def recipe_file(path: str | os.PathLike[str]) -> str:
    """Return the file that a path of a recipe names, without the row."""
    name = os.fspath(path)
    return name if os.path.exists(name) else name.partition("#")[0]


def read_recipe(path: str | os.PathLike[str] | None, overrides: Table | None = None) -> Recipe:
    """Read a recipe from a TOML file, with flags on top.

    Whatever neither the file nor the flags name follows the defaults of their architecture, data
    and method (`pabzip.train.default_recipe`). Values are checked together, so a flag may set right
    what the file alone would contradict.

    Args:
        path: the TOML file, with ``#`` and the name of a row for one of many; or None for the
            defaults alone. Keys are those of `Recipe`, whose tables are TOML's.
        overrides: as for `merge`; they win over the file.

    Raises:
        RecipeError: the file is no TOML, has no such row, holds an unknown key or a value out of
            range, or names ``module:callable`` as its architecture: a file never decides what is
            imported.
        OSError: the file cannot be read.
    """
    values = {} if path is None else _read_row(path)
    flags = overrides or {}
    chosen = {key: flags.get(key) or values.get(key) for key in ("arch", "data", "method")}
    for key, value in chosen.items():
        if value is not None and not isinstance(value, str):
            raise RecipeError(f"{key}: expected a text, found {value!r}")
    try:
        refuse_import(values)
        return merge(default_recipe(**chosen), _laid_over(values, flags))
    except RecipeError as error:
        if path is None:
            raise
        read_recipe(None, flags)  # raises where the flags alone are at fault
        raise RecipeError(f"{os.fspath(path)}: {error}") from error


def _read_row(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the values of one run: the whole file's, or a row's with those that all rows share."""
    file = recipe_file(path)
    row = os.fspath(path)[len(file) + 1 :]
    values = _read_toml(file)
    rows = values.pop("rows", None)
    if rows is not None:
        if not isinstance(rows, Mapping) or not isinstance(rows.get(row), Mapping):
            listed = ", ".join(rows) if isinstance(rows, Mapping) else repr(rows)
            wanted = f"found {row!r}" if row else f"found none; write {file}#NAME"
            raise RecipeError(f"{file}: expected the name of a row ({listed}), {wanted}")
        values = _laid_over(values, rows[row])
        values.pop("about", None)
    elif row:
        raise RecipeError(
            f"{file}: expected a table of rows, found a recipe of one run; leave out #{row}"
        )
    return values


def _read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Parse a file; a syntax error names the file and the place."""
    with open(path, "rb") as file:
        try:
            return tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(f"{os.fspath(path)}: expected a TOML file: {error}") from error


def _laid_over(values: Table, flags: Table) -> dict[str, Any]:
    """Return a file's values with the flags on top, table by table.

    Options of an architecture that the flags replace by another go with it.
    """
    laid = dict(values)
    if flags.get("arch") not in (None, values.get("arch")):
        laid.pop("arch_options", None)
    for key, flag in flags.items():
        under = laid.get(key)
        if isinstance(flag, Mapping) and isinstance(under, Mapping):
            laid[key] = _laid_over(under, flag)
        elif flag is not None:
            laid[key] = flag
    return laid

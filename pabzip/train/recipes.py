"""Where recipes come from: the defaults, TOML files of one run or of many, and those of papers.

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
from pabzip.registry import DATASETS
from pabzip.train.config import Recipe, Table, merge, method_of, refuse_import
from pabzip.train.methods import BopRecipe, SgdRecipe
from pabzip.train.score_settings import GemMinerRecipe

_PACKAGE = "pabzip.recipes"
_SUFFIX = ".toml"


def default_recipe(
    arch: str | None = None, data: str | None = None, method: str | None = None
) -> Recipe:
    """Return the default recipe for an architecture, a dataset and a method.

    On the embedded digits a run of the default architecture (ResNet-20 of half the usual width)
    takes about half a minute on two cores and ends between 96 and 99 % of the test images, by
    method and seed. On everything else the schedule is the paper's for CIFAR: 200 epochs, batches
    of 128, augmented where the dataset can be.

    Args:
        arch: an architecture; None takes a small one for the digits and ResNet-18 otherwise.
        data: a dataset; None takes the embedded digits.
        method: a training method; None takes ``pab-bop``.

    Raises:
        RecipeError: ``arch`` or ``method`` is unknown.

    Source: Peek-a-Boo, Section 4.1, for CIFAR; the digits' own values were found by search: with
    so few steps the paper's adaptivity rate of 1e-3 hardly moves a sign, and at ten times that a
    threshold of 1e-6 lets signs flicker on single batches; SGD, SignSGD and latent signs take the
    paper's rates, latent signs a third decay; Gem-Miner a tenfold rate and a penalty, without
    which it ends at 62 % on LeNet-300-100 with a twentieth of the weights, in place of 96 %. The
    batch size of 128 is not in the paper.
    """
    data, method = data or "digits", method or "pab-bop"
    if data != "digits":
        return Recipe(
            arch=arch or "resnet18",
            data=data,
            method=method,
            # A name that is not registered is the path of a folder of images.
            augment=data not in DATASETS or DATASETS.facts(data).get("augmented", False),
            epochs=200,
            batch_size=128,
        )
    arch = arch or "resnet20"
    recipe = Recipe(
        arch=arch,
        arch_options={"width": 8} if arch == "resnet20" else {},
        data=data,
        method=method,
        epochs=40,
        batch_size=32,
        bop=BopRecipe(adaptivity_rate=1e-2, threshold=1e-4, decay_every=10, decay_ratio=0.15),
        sgd=SgdRecipe(milestones=(16, 24)),
        gem_miner=GemMinerRecipe(lr=1.0, penalty=1e-4),
    )
    if "latent" in method_of(recipe).uses:
        # Found on one seed: a third decay took its runs from 89 to 96 %; why was not looked into.
        return recipe.replace(sgd=SgdRecipe(milestones=(16, 24, 32)))
    return recipe


@dataclass(frozen=True, slots=True)
class PublishedRecipe:
    """One recipe that comes with pabzip: its name, as ``--recipe`` takes it, and its ``path``.

    That is the file and the row in it, as `read_recipe` takes them. ``about`` is one line: paper,
    table, row, and what the paper reports for it.
    """

    name: str
    about: str
    path: str


def published_recipes() -> list[PublishedRecipe]:
    """Return all recipes that come with pabzip, file by file, each in the order of its table.

    Source: Peek-a-Boo, Tables 1 to 5 and Section 4.3, without its rows for edge-popup; Rare Gems,
    Tables 3, 4, 8 to 13 and 15; Multi-Prize Tickets, Tables 1 to 3 and 8, and its figures; Ivan &
    Florian 2020, Table 1 and Figures 3 and 4.
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

    ``given`` is a path, which wins where it exists, or a name from `published_recipes`.
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

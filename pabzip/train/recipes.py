"""The recipes that come with pabzip: one for every row of the paper's tables but edge-popup's."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pabzip.errors import RecipeError

_PACKAGE = "pabzip.recipes"
_SUFFIX = ".toml"


@dataclass(frozen=True, slots=True)
class PublishedRecipe:
    """One recipe that comes with pabzip.

    Attributes:
        name: as ``pabzip train --recipe`` takes it, such as ``table1-resnet18-pab-bop-psg``.
        about: one line: table, row, and what the paper reports for it.
    """

    name: str
    about: str


def published_recipes() -> list[PublishedRecipe]:
    """Return all recipes that come with pabzip, in the order of their names.

    Source: Peek-a-Boo, Tables 1 to 5 and Section 4.3. Rows for edge-popup are not among them: it
    finds hidden subnetworks, which have no signs to unmask.
    """
    return [PublishedRecipe(name, _about(path)) for name, path in sorted(_paths().items())]


def find_recipe(given: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Return the path of the recipe that ``--recipe`` names.

    Args:
        given: a path, which wins where it exists, or a name from `published_recipes`.

    Raises:
        RecipeError: there is neither; the message gives the nearest published names.
    """
    name = os.fspath(given)
    # What looks like a path is one, even where nothing is: opening it says so.
    if os.path.exists(name) or os.path.dirname(name) or name.endswith(_SUFFIX):
        return given
    known = _paths()
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
        raise RecipeError(
            f"--recipe: expected a TOML file or a recipe that comes with pabzip, found {name!r}; "
            f"the nearest are {', '.join(nearest)} (pabzip train --list-recipes prints all)"
        )
    return known[name]


def _paths() -> dict[str, Path]:
    """Return the files of the published recipes by name."""
    # A package with compiled parts is never run from an archive, so these are files on disk.
    folder = Path(str(resources.files(_PACKAGE)))
    return {path.name.removesuffix(_SUFFIX): path for path in folder.glob(f"*{_SUFFIX}")}


def _about(path: Path) -> str:
    """Return the first line of a recipe, which is a comment that says what it is."""
    with path.open(encoding="utf-8") as lines:
        return lines.readline().lstrip("#").strip()

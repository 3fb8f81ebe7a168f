"""Whether a run may continue an earlier one, and what may differ."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from pabzip.errors import RecipeError
from pabzip.train.recipes import Recipe
from pabzip.train.search_recipe import settled
from pabzip.train.toml import to_dict

_ELSEWHERE = ("device", "data_root")
"""Keys that say where a run happens, not what it does."""


def surroundings(device: torch.device) -> dict[str, Any]:
    """Return what decides the last bits of a result besides the recipe."""
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "device": device.type,
    }


def comparable(recipe: Recipe) -> dict[str, Any]:
    """Return what a recipe does, by dotted key, without where it does it."""
    values = _values(to_dict(recipe))
    return {key: value for key, value in values.items() if key not in _ELSEWHERE}


def check_resumption(
    saved: Mapping[str, Any], recipe: Recipe, device: torch.device, place: str
) -> None:
    """Refuse to continue with another recipe; warn of other surroundings.

    Args:
        saved: what `ProgressFile.read` returned.
        recipe: the present one.
        device: the present one.
        place: the file's name, for messages.

    Raises:
        RecipeError: the recipes differ; the message shows each difference.
    """
    before, now = _values(saved["recipe"]), comparable(recipe)
    differences = [
        f"{key} = {before.get(key)!r} then and {now.get(key)!r} now"
        for key in sorted({*before, *now} - set(_ELSEWHERE))
        if before.get(key) != now.get(key)
    ]
    if differences:
        raise RecipeError(
            f"{place}: expected the recipe that the run was begun with, found another: "
            f"{'; '.join(differences)}. Continue with the old values, or begin again without "
            "--resume"
        )
    for key, value in surroundings(device).items():
        if saved[key] != value:
            warnings.warn(
                f"{place}: {key} was {saved[key]} when the state was saved and is {value} now; "
                "the run goes on, but its last bits may differ from an uninterrupted one's",
                stacklevel=2,
            )


def _values(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values by dotted key; a number of iterations left out is the published one."""
    search = recipe.get("search")
    return _flat({**recipe, "search": settled(search)} if isinstance(search, Mapping) else recipe)


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one with dotted keys."""
    values: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            values |= _flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values

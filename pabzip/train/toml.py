"""Recipes as plain tables: from TOML and flags, and back to what JSON can hold."""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pabzip.errors import RecipeError
from pabzip.train.defaults import default_recipe
from pabzip.train.recipes import Recipe

Table = Mapping[str, Any]
_Part = TypeVar("_Part")


def read_recipe(path: str | os.PathLike[str] | None, overrides: Table | None = None) -> Recipe:
    """Read a recipe from a TOML file, with flags on top.

    Whatever neither the file nor the flags name follows the defaults of their architecture, data
    and method (`pabzip.train.default_recipe`). Values are checked together, so a flag may set right
    what the file alone would contradict.

    Args:
        path: the TOML file, or None for the defaults alone. Keys are those of `Recipe`;
            ``[search]``, ``[search.ratios]``, ``[bop]``, ``[latent]``, ``[psg]``, ``[sgd]``,
            ``[signsgd]`` and ``[arch_options]`` are tables.
        overrides: as for `merge`; they win over the file.

    Raises:
        RecipeError: the file is no TOML, holds an unknown key or a value out of range, or names
            ``module:callable`` as its architecture: a file never decides what is imported.
        OSError: the file cannot be read.
    """
    values = {} if path is None else _read_toml(path)
    flags = overrides or {}
    chosen = {key: flags.get(key) or values.get(key) for key in ("arch", "data", "method")}
    for key, value in chosen.items():
        if value is not None and not isinstance(value, str):
            raise RecipeError(f"{key}: expected a text, found {value!r}")
    try:
        return merge(default_recipe(**chosen), _laid_over(values, flags))
    except RecipeError as error:
        if path is None:
            raise
        read_recipe(None, flags)  # raises where the flags alone are at fault
        raise RecipeError(f"{os.fspath(path)}: {error}") from error


def merge(recipe: Recipe, overrides: Table) -> Recipe:
    """Return ``recipe`` with some values replaced, all of it checked again.

    Args:
        recipe: stays as it is.
        overrides: new values, nested as the recipe is, such as
            ``{"epochs": 5, "bop": {"threshold": 0.0}}``. A None stands for a flag that was not
            given and changes nothing.

    Raises:
        RecipeError: an unknown key (the message gives the nearest valid one) or a value out of
            range.
    """
    return _merge(recipe, overrides, "")


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return ``recipe`` as nested plain values that JSON and a checkpoint can hold.

    TOML can hold them but for None, for which it has no word.
    """
    return {key: _plain(value) for key, value in dataclasses.asdict(recipe).items()}


def from_dict(values: Table, *, allow_import: bool = False) -> Recipe:
    """Rebuild a recipe from `to_dict`; missing keys take the defaults of `Recipe`.

    Args:
        values: nested plain values.
        allow_import: accept ``module:callable`` as the architecture. Only for values that the
            caller wrote, never for a file's.

    Raises:
        RecipeError: an unknown key, a value out of range, or a ``module:callable``.
    """
    if not allow_import:
        _refuse_import(values)
    return merge(Recipe(), values)


def _read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Parse the file; a syntax error names the file and the place."""
    with open(path, "rb") as file:
        try:
            values = tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(f"{os.fspath(path)}: expected a TOML file: {error}") from error
    try:
        _refuse_import(values)
    except RecipeError as error:
        raise RecipeError(f"{os.fspath(path)}: {error}") from error
    return values


def _refuse_import(values: Table) -> None:
    """Refuse an architecture that would have to be imported."""
    arch = values.get("arch")
    if isinstance(arch, str) and ":" in arch:
        raise RecipeError(
            f"arch: expected a registered architecture, found {arch!r}; nothing is imported "
            "because a file says so: give your own with --arch on the command line"
        )


def _laid_over(values: Table, flags: Table) -> dict[str, Any]:
    """Return the file's values with the flags on top, table by table.

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


def _merge(base: _Part, values: Table, prefix: str) -> _Part:
    """Replace the values of one dataclass, level by level."""
    known = {field.name for field in dataclasses.fields(base)}  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise RecipeError(
                f"{prefix}{key}: expected a key of a recipe, found an unknown one; "
                f"did you mean {_nearest(f'{prefix}{key}')}?"
            )
        if value is None:
            continue
        current = getattr(base, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise RecipeError(f"{prefix}{key}: expected a table, found {value!r}")
            value = _merge(current, value, f"{prefix}{key}.")
        elif isinstance(current, tuple) and isinstance(value, list):
            value = tuple(value)
        elif isinstance(current, float) and type(value) is int and abs(value) <= 2**53:
            value = float(value)
        changes[key] = value
    return dataclasses.replace(base, **changes)  # type: ignore[type-var]


def _nearest(key: str) -> str:
    """Return the valid key closest to ``key``: in its own table, by its last part, or at all."""
    keys = list(_keys(Recipe(), ""))
    table, _, last = key.rpartition(".")
    own = [valid for valid in keys if valid.rpartition(".")[0] == table]
    close = difflib.get_close_matches(key, own, n=1, cutoff=0.8)
    same = [valid for valid in keys if valid.rpartition(".")[2] == last]
    return (close or same or difflib.get_close_matches(key, keys, n=1, cutoff=0.0))[0]


def _keys(part: Any, prefix: str) -> Iterator[str]:
    """Yield the valid keys, dotted."""
    for field in dataclasses.fields(part):
        yield f"{prefix}{field.name}"
        value = getattr(part, field.name)
        if dataclasses.is_dataclass(value):
            yield from _keys(value, f"{prefix}{field.name}.")


def _plain(value: Any) -> Any:
    """Turn tuples into lists, at every level."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value

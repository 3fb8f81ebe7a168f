"""Options of the settings of a run, derived from their declarations; for `train` and `bench`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pabzip.cli._output import Reporter, one_line, plain_table, write_text
from pabzip.errors import PabzError, RecipeError
from pabzip.train.config import Recipe, all_settings
from pabzip.train.settings import Setting, unknown

if TYPE_CHECKING:
    from rich.table import Table

Command = TypeVar("Command", bound=Callable[..., Any])

MORE = "Recipes and other settings"
"""What ``--recipe``, ``--set`` and their like stand under."""

_REST = "Output and help"


class GroupedCommand(click.Command):
    """A command whose help lists its options under headings, in the order of their declaration."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, those without a heading at the end."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(parameter, "heading", _REST), []).append(record)
        groups[_REST] = groups.pop(_REST)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


class GroupedOption(click.Option):
    """An option of a `GroupedCommand` that stands under a heading."""

    def __init__(self, *names: Any, heading: str, **others: Any):
        super().__init__(*names, **others)
        self.heading = heading


def grouped(heading: str, *names: str, **others: Any) -> Callable[[Command], Command]:
    """Return a decorator that adds a `GroupedOption`."""
    return click.option(*names, cls=GroupedOption, heading=heading, **others)


def recipe_option(text: str) -> Callable[[Command], Command]:
    """Return a decorator that adds ``--recipe`` with a help text."""
    return grouped(MORE, "--recipe", "recipe_name", metavar="NAME|FILE.toml", help=text)


def settings_options(
    used: Callable[[str], bool] = lambda key: True,
) -> Callable[[Command], Command]:
    """Return a decorator that adds the flags of settings, ``--set`` and ``--import``.

    The command receives what was typed, which `given` reads. ``used`` says whether the command
    heeds the setting of a dotted key.
    """

    def add(command: Command) -> Command:
        options = [
            grouped(
                "Settings",
                declared.flag,
                _parameter(declared),
                metavar=_metavar(declared),
                help=_help(declared),
            )
            for declared in all_settings()
            if declared.flag is not None and used(declared.key)
        ]
        options += [
            grouped(
                MORE,
                "--set",
                "assignments",
                metavar="NAME=VALUE",
                multiple=True,
                help="Any setting, such as search.method=snip or sgd.lr=0.05; repeatable.",
            ),
            grouped(
                MORE,
                "--import",
                "packages",
                metavar="PACKAGE",
                multiple=True,
                help="Import a package of yours, which may register methods, searches, datasets, "
                "networks and callbacks; repeatable.",
            ),
        ]
        for option in reversed(options):
            command = option(command)
        return command

    return add


def given(typed: Mapping[str, Any], assignments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return what flags and ``--set`` say, as the nested table that a recipe takes, and its keys.

    Args:
        typed: texts by parameter of the flag; others are ignored.
        assignments: of ``--set``; the last one of a setting wins.
    """
    table: dict[str, Any] = {}
    declared = {setting.key: setting for setting in all_settings()}
    texts: dict[str, Any] = {
        key: typed.get(_parameter(setting)) for key, setting in declared.items()
    }
    flagged = [key for key, text in texts.items() if text is not None]
    for key in flagged:
        _put(table, key.split("."), declared[key].parse(texts[key]))
    keys = dict.fromkeys(flagged)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name = name.strip()
        if not equals or not name:
            raise click.UsageError(
                f"--set: expected NAME=VALUE, such as bop.threshold=1e-6, found {assignment!r}"
            )
        if name in flagged:
            raise click.UsageError(f"{name} is given twice, by {declared[name].flag} and by --set")
        setting, path = _named(name, declared)
        _put(table, path, setting.parse(text))
        keys[setting.key] = None
    return table, list(keys)


def _named(name: str, declared: Mapping[str, Setting]) -> tuple[Setting, list[str]]:
    """Return the setting that ``--set`` names, and the way to it in the nested table."""
    if name in declared:
        return declared[name], name.split(".")
    for key, setting in declared.items():
        entry = name.removeprefix(f"{key}.")
        if setting.is_table and entry != name:
            return setting, [*key.split("."), entry.strip('"')]  # the entry's name may have dots
    raise unknown(name, declared)


def _put(table: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Put a value into nested tables."""
    for name in path[:-1]:
        table = table.setdefault(name, {})
    table[path[-1]] = value


def _parameter(setting: Setting) -> str:
    """Return the name under which click hands a flag's text over."""
    return f"setting_{setting.key.replace('.', '__')}"


def _metavar(setting: Setting) -> str:
    """Return what stands for the value in the help."""
    if setting.choices:
        return "NAME"
    words = {"a whole": "N", "a number": "X"}
    return words.get(" ".join(setting.expected.split()[:2]), setting.key.upper())


def _help(setting: Setting) -> str:
    """Return the help of a flag; it lists the choices."""
    if not setting.choices:
        return setting.help
    return f"{setting.help.rstrip('.')}: {', '.join(setting.choices)}."


def import_packages(names: Iterable[str]) -> None:
    """Import packages of the user's, from the Python path or else the current folder."""
    for name in names:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            importlib.import_module(name)
        except PabzError:
            raise
        except Exception as error:
            if isinstance(error, ModuleNotFoundError) and error.name == name:
                raise RecipeError(
                    f"--import: expected a package on the Python path or in the current folder, "
                    f"found none called {name!r}; install it, or run from the folder that holds it"
                ) from error
            raise RecipeError(
                f"--import {name}: expected a package that can be imported, found "
                f"{type(error).__name__}: {error}"
            ) from error


def show_settings(reporter: Reporter, recipe: Recipe) -> None:
    """Write every setting, with its value in a recipe."""
    values = recipe.model_dump(mode="json")
    rows = []
    for setting in all_settings():
        table, _, name = setting.key.rpartition(".")
        rows.append(
            {
                "name": setting.key,
                "value": values[table][name] if table else values[name],
                "expected": setting.expected,
                "choices": list(setting.choices),
                "flag": setting.flag,
                "help": setting.help,
            }
        )
    reporter.result(
        {"settings": rows},
        _settings_table(rows),
        "",
        "Change one by its flag, or by --set NAME=VALUE. Values are those of this command line: "
        "defaults follow --arch, --data, --method and --recipe.",
    )


def _settings_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return one row a setting, for people, with a line above each table."""
    table = plain_table()
    for title in ("setting", "value", "flag"):
        table.add_column(title, no_wrap=True)
    table.add_column("what it does, and the values it takes")
    section = ""
    for row in rows:
        if row["name"].rpartition(".")[0] != section:
            section = row["name"].rpartition(".")[0]
            table.add_section()
            table.add_row()
        table.add_row(
            row["name"], _shown(row["value"]), row["flag"], f"{row['help']} ({row['expected']})"
        )
    return table


def _shown(value: Any) -> str:
    """Return a value as ``--set`` takes it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        inner = ", ".join(f"{name}={_shown(entry)}" for name, entry in value.items())
        return f"{{{inner}}}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def first_process() -> bool:
    """Whether this process is the one of torchrun's that reports, or the only one."""
    return "WORLD_SIZE" not in os.environ or os.environ.get("RANK", "0") == "0"


def remark(reporter: Reporter, text: str) -> None:
    """Write a remark to stderr, unless quiet was asked for."""
    if not reporter.quiet and first_process():
        write_text(f"pabzip: {one_line(text)}\n", to_stderr=True)

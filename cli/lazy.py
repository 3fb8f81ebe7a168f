"""A group of commands that are imported when they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click


class LazyGroup(click.Group):
    """A group that imports a subcommand on use, from a module of its own.

    Args:
        summaries: one line for each subcommand, by name, in the order of the help.
        prefix: what stands before a subcommand's name in that of its module in ``pabzip.cli``.
        **extra: as for `click.Group`.
    """

    def __init__(self, *, summaries: Mapping[str, str], prefix: str = "", **extra: Any):
        super().__init__(**extra)
        self._summaries = summaries
        self._prefix = prefix

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the subcommands in the order of the help."""
        return list(self._summaries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the subcommand's module and return its ``command``; None for an unknown name."""
        if cmd_name not in self._summaries:
            return None
        module = importlib.import_module(f"pabzip.cli.{self._prefix}{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self._summaries.items()))

"""``pabzip bench``: measurements that need no checkpoint."""

from __future__ import annotations

import click

from pabzip.cli.lazy import LazyGroup

_COMMANDS = {"bitops": "Count the operations of one training step, by method and layer."}


@click.group("bench", cls=LazyGroup, summaries=_COMMANDS, prefix="bench_")
def command() -> None:
    """Measure what a method costs, without data on disk."""

"""A progress bar for a search, where a command does no more than search."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pabzip.cli.output import Reporter


@contextmanager
def search_bar(reporter: Reporter) -> Iterator[Callable[[int, int], None] | None]:
    """Draw a bar on a terminal; yield what a search calls after each round, or None elsewhere."""
    if not reporter.progress:
        yield None
        return
    from tqdm import tqdm

    with tqdm(desc="search", unit="step", leave=False) as bar:

        def advance(iteration: int, iterations: int) -> None:
            bar.total = iterations
            bar.update(iteration - bar.n)

        yield advance

"""Read image files, several at once, a little ahead of their use."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from pabzip.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_MOST_WORKERS = 16


def default_workers() -> int:
    """Return how many threads decode: one a core that this process may use, at most 16."""
    return min(len(os.sched_getaffinity(0)), _MOST_WORKERS)


def open_image(path: str) -> Image:
    """Read an image of any kind that Pillow knows, in red, green and blue.

    Raises:
        DataError: the file is missing, damaged or no image; names it.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    # Pillow promises no kinds: damaged files show as any of these.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: expected an image, found {type(error).__name__}: {error}; "
            "remove the file or fetch it again"
        ) from error


def read_ahead(
    load: Callable[[_Item], _Result],
    groups: Iterable[Sequence[_Item]],
    *,
    ahead: int,
    workers: int,
) -> Iterator[list[_Result]]:
    """Yield the results of each group in order, with threads at work on the next groups.

    No more than ``ahead`` groups are held besides the one that the caller has, so memory stays
    flat. The threads end with the iterator, also when it is dropped half-way.

    Args:
        load: what turns one item into its result, on any thread.
        groups: the items, drawn as they are needed.
        ahead: groups under way, 1 or more.
        workers: number of threads, 1 or more.

    Yields:
        The results of one group.

    Raises:
        DataError: or whatever else ``load`` raises, in the place of the group that holds the item.
    """
    remaining = iter(groups)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="pabzip-decode")
    try:
        waiting: deque[list[Future[_Result]]] = deque()
        for group in islice(remaining, ahead):
            waiting.append([pool.submit(load, item) for item in group])
        while waiting:
            done = [future.result() for future in waiting.popleft()]
            for group in islice(remaining, 1):
                waiting.append([pool.submit(load, item) for item in group])
            yield done
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

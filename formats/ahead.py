"""Make the next tensor on a thread while one is worked on: time is saved, memory is bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Progress = Callable[[str, int], None]
"""Called with what is being done (``"packing"``, ``"encoding"``, ``"verifying"``, ...) and how many
more bytes of the loaded state are done; from any thread, one call at a time."""

AHEAD_BYTES = 256 << 20
"""A tensor that is larger, once loaded, is not made before the one before it is done with."""

_Key = TypeVar("_Key")
_Made = TypeVar("_Made")


def one_ahead(
    keys: Iterable[_Key], make: Callable[[_Key], _Made], size: Callable[[_Key], int]
) -> Iterator[_Made]:
    """Yield what ``make`` makes of each key, in order; the next is made on a thread meanwhile.

    Nothing that was yielded is kept. An error of ``make`` is raised where its value is due.

    Args:
        keys: what is to be made.
        make: makes one; never called twice at a time.
        size: bytes of what a key makes; those above `AHEAD_BYTES` are made when they are due.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="pabzip-ahead") as pool:
        waiting = iter(keys)
        key = next(waiting, None)
        due = None if key is None else pool.submit(make, key)
        while due is not None:
            due.exception()  # waits
            key = next(waiting, None)
            soon = key is not None and size(key) <= AHEAD_BYTES
            following = pool.submit(make, key) if key is not None and soon else None
            made = [due.result()]
            del due
            yield made.pop()
            due = following if following or key is None else pool.submit(make, key)

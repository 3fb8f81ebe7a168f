"""Limits on what a file may declare, before anything of that size is allocated."""

from __future__ import annotations

from pabzip.errors import LimitError
from pabzip.formats.registry import ALWAYS_ALLOWED_BYTES, MAX_EXPANSION


def check_limit(loaded_bytes: int, max_bytes: int | None) -> None:
    """Check the caller's limit on the bytes of the loaded state (see `Contents.loaded_bytes`).

    Raises:
        LimitError: the ticket declares more.
    """
    if max_bytes is not None and loaded_bytes > max_bytes:
        raise LimitError(
            "header",
            f"expected at most {max_bytes} bytes of tensors (max_bytes), found "
            f"{loaded_bytes} declared; raise the limit if you trust the file",
        )


def check_expansion(loaded_bytes: int, file_bytes: int) -> None:
    """Check that a small file does not declare a huge state; for callers who set no limit.

    A tensor with no survivors takes next to no bytes, so sizes alone bound nothing.

    Raises:
        LimitError: the state takes more than `MAX_EXPANSION` times the file, and more than
            `ALWAYS_ALLOWED_BYTES`.
    """
    limit = max(MAX_EXPANSION * file_bytes, ALWAYS_ALLOWED_BYTES)
    if loaded_bytes > limit:
        raise LimitError(
            "header",
            f"expected at most {limit} bytes of tensors from a file of {file_bytes} bytes, found "
            f"{loaded_bytes} declared; if you trust the file, allow them with max_bytes",
        )

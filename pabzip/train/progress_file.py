"""The state of an unfinished run, in a file beside its output."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from pabzip.errors import CheckpointError
from pabzip.formats.atomic import open_atomic
from pabzip.train.digest import digest
from pabzip.train.progress_file_name import progress_path

FORMAT = "pabzip-progress"
VERSION = 1

_WAY_OUT = "remove it and begin again without --resume"
_TYPES: dict[str, type] = {
    "pabzip": str, "torch": str, "threads": int, "device": str, "recipe": dict, "tensors": dict,
    "masks": dict, "optimisers": dict, "precision": dict, "meter": dict, "history": list,
    "searches": int, "step": int, "seconds": float, "epoch_seconds": float,
}  # fmt: skip


class ProgressFile:
    """The file ``<output>.progress``: written whole or not at all, removed once the run is over.

    It is what ``torch.save`` makes of plain values and tensors, and is read by torch's safe reader
    alone. A SHA-256 over all of it finds damage that still unpickles.

    Args:
        output: the run's output; the file lies beside it, also where ``output`` is a link.
    """

    def __init__(self, output: str | os.PathLike[str]):
        self.path = progress_path(output)

    def exists(self) -> bool:
        """Whether there is an unfinished run."""
        return os.path.lexists(self.path)

    def write(self, content: Mapping[str, Any]) -> None:
        """Replace the state by ``content``: nested plain values and tensors, these go to the CPU.

        Raises:
            OSError: the file cannot be written; the old one is as it was.
        """
        plain = _on_cpu(dict(content))
        whole = {"format": FORMAT, "version": VERSION, "sha256": digest(plain), "content": plain}
        with open_atomic(self.path) as file:
            torch.save(whole, file)

    def read(self) -> dict[str, Any]:
        """Return the state, tensors on the CPU.

        Raises:
            CheckpointError: the file is damaged, is something else, or is newer than this pabzip.
            OSError: it cannot be opened.
        """
        with open(self.path, "rb") as file:
            try:
                whole = torch.load(file, weights_only=True, map_location="cpu")
            except Exception as error:
                # torch's own message recommends to load without the protection: not repeated.
                raise CheckpointError(
                    f"{self.path}: expected the state of an unfinished run, found a damaged file "
                    f"or none of pabzip's ({type(error).__name__}); {_WAY_OUT}"
                ) from None
        if not isinstance(whole, dict) or whole.get("format") != FORMAT:
            raise CheckpointError(
                f"{self.path}: expected the state of an unfinished run, found something else; "
                f"{_WAY_OUT}"
            )
        if whole.get("version") != VERSION:
            raise CheckpointError(
                f"{self.path}: version: expected {VERSION}, found {whole.get('version')!r}; "
                "continue with the pabzip that began the run"
            )
        content = whole.get("content")
        if not isinstance(content, dict) or whole.get("sha256") != digest(content):
            raise CheckpointError(
                f"{self.path}: expected content with the SHA-256 that was saved with it, found "
                f"another: the file is damaged; {_WAY_OUT}"
            )
        for key, kind in _TYPES.items():
            if not isinstance(content.get(key), kind):
                raise CheckpointError(
                    f"{self.path}: {key}: expected a value, found {type(content.get(key)).__name__}"
                    f"; {_WAY_OUT}"
                )
        return content

    def remove(self) -> None:
        """Remove the file, if there is one."""
        if self.exists():
            os.unlink(self.path)


def _on_cpu(value: Any) -> Any:
    """Return nested values with detached tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _on_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_cpu(item) for item in value)
    return value

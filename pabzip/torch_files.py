"""What ``torch.save`` wrote, read back without ever running code that a file holds."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Mapping
from typing import Any, BinaryIO

import torch

from pabzip.errors import CheckpointError
from pabzip.formats.container import MAGIC

File = str | os.PathLike[str] | BinaryIO

HOW = "save the network with pabzip.save_checkpoint(net, path), or train one with `pabzip train`"
"""The way out for files that are no checkpoint of ours."""

NESTED = ("state_dict", "model_state_dict", "model", "module")
"""The names under which programs keep a state dict in a table of other things."""


def read_torch_file(source: File, *, mapped: bool = False) -> tuple[object, str]:
    """Return what a file holds, unchecked, and its name for messages; no code of it ever runs.

    Args:
        source: a path, or a seekable stream.
        mapped: map the tensors of a file that is given by its path into memory, where it is a zip
            archive.

    Raises:
        CheckpointError: the file is empty, damaged, of another form, or asks to run code.
        OSError: it cannot be opened.
    """
    if not isinstance(source, str | os.PathLike):
        return _unpickle(source, "<stream>"), "<stream>"
    name = os.fspath(source)
    with open(name, "rb") as file:
        return _unpickle(file, name, mapped=mapped), name


def _unpickle(file: BinaryIO, name: str, *, mapped: bool = False) -> object:
    """Return what torch's safe reader makes of a file, on the CPU; nothing is tried without it."""
    head = file.read(max(len(MAGIC), 4))
    if not head:
        raise CheckpointError(f"{name}: expected a checkpoint, found an empty file; {HOW}")
    if head.startswith(MAGIC):
        raise CheckpointError(
            f"{name}: expected a checkpoint, found a .pabz file; read it with pabzip.load or "
            "pabzip.open"
        )
    file.seek(0)
    try:
        if mapped and head.startswith(b"PK"):
            return torch.load(name, weights_only=True, map_location="cpu", mmap=True)
        return torch.load(file, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        # torch's own message recommends to load without the protection: only what the file wanted
        # to import is repeated of it.
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        culprit = f" ({wanted[1]})" if wanted else ""
        raise CheckpointError(
            f"{name}: expected plain values and tensors, found a file that is no checkpoint or "
            f"that asks to run code{culprit}; it was not run. Do not load it by other "
            f"means unless you trust its author; {HOW}"
        ) from None
    except Exception as error:
        found = "a zip archive that holds none" if head.startswith(b"PK") else "something else"
        raise CheckpointError(
            f"{name}: expected a checkpoint, found {found} or a damaged file "
            f"({type(error).__name__}); {HOW}"
        ) from error


def table_of_tensors(content: Mapping[Any, Any], name: str) -> Mapping[Any, Any] | None:
    """Return the one table of tensors that this is or holds by a name of `NESTED`; None without.

    Raises:
        CheckpointError: there are several; ``name`` is the file's.
    """
    if _holds_tensors(content):
        return content
    found = [key for key in NESTED if _holds_tensors(content.get(key))]
    if len(found) > 1:
        raise CheckpointError(
            f"{name}: expected one table of tensors, found {' and '.join(found)}; save the one "
            "that is meant alone"
        )
    return content[found[0]] if found else None


def _holds_tensors(content: object) -> bool:
    """Return whether a table holds tensors, and nothing but them and extra state of modules."""
    if not isinstance(content, Mapping):
        return False
    plain = [isinstance(value, torch.Tensor) for value in content.values()]
    return any(plain) and all(
        is_tensor or str(name).endswith("_extra_state")
        for is_tensor, name in zip(plain, content, strict=True)
    )


def describe(content: object) -> str:
    """Say what a file holds instead of a checkpoint."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    tensors = sum(isinstance(value, torch.Tensor) for value in content.values())
    if tensors and tensors == len(content):
        return f"a bare state dict of {tensors} tensors, without the seed that drew them"
    listed = ", ".join(repr(key) for key in list(content)[:6])
    return f"a table with the keys {listed or 'none'}"

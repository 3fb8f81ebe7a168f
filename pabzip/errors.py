"""Every error that pabzip raises on purpose, from one base class.

A message says where, what was expected, what was found, and the way out. The command line turns
each class into one exit code (see ``pabzip.cli._output``); nothing else decides exit codes.
"""

from __future__ import annotations

import os
from typing import Any


class PabzError(Exception):
    """The base of all of pabzip's own errors."""


class FormatError(PabzError):
    """A ``.pabz`` file (or stream) is damaged, hostile, or of a kind that cannot be read.

    Args:
        place: the part of the file at fault, such as ``"header"`` or ``"tensor 'conv1.weight'"``.
        problem: what was expected, what was found, and the way out.
        file: the file's name, where it is known.

    Reading a bad file raises this class (or its subclass `LimitError`) and nothing else.
    """

    def __init__(self, place: str, problem: str, *, file: str | os.PathLike[str] | None = None):
        self.place = place
        self.problem = problem
        self.file = None if file is None else os.fspath(file)
        super().__init__(place, problem, self.file)

    def __str__(self) -> str:
        start = "" if self.file is None else f"{self.file}: "
        return f"{start}{self.place}: {self.problem}"

    def in_file(self, file: str | os.PathLike[str]) -> FormatError:
        """Return the same error with the file's name, for a caller that knows it."""
        return type(self)(self.place, self.problem, file=file)


class LimitError(FormatError):
    """A file declares more than the caller's ``max_bytes`` allows; nothing was allocated for it."""


class BaseFileError(PabzError):
    """A file of changes was read without its base, or on another base than it was packed on."""


class SeedError(PabzError):
    """A seed, init spec or scheme is out of range, or a network has none where one is needed."""


class PackError(PabzError):
    """A network cannot be written as a ticket; the message names the tensor and the count."""


class SearchError(PabzError):
    """A search found no usable mask: layer collapse, overflowing scores, a keep ratio missed."""


class ArchitectureError(PabzError):
    """An architecture is unknown, or a network does not fit the ticket that is loaded into it."""


class DataError(PabzError):
    """A dataset is unknown, missing on disk, or not in the form that was expected."""


class RecipeError(PabzError):
    """A recipe, from TOML or flags, holds an unknown key or a value out of range."""


class CheckpointError(PabzError):
    """A checkpoint cannot be read: not a checkpoint of ours, unsafe, or damaged."""


class TrainingError(PabzError):
    """Training cannot go on: a loss or gradient that is not finite."""


class ExportError(PabzError):
    """A network cannot be exported, or the exported model does not agree with it."""


class MissingDependencyError(PabzError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


def shown(value: Any) -> str:
    """Return what was found, for a message: short, and with control characters escaped.

    Args:
        value: of any type; it may come from a hostile file.
    """
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, str | int | float | None):
        text = ascii(value)
    else:  # a list or object is not walked
        kind, sized = type(value).__name__, isinstance(value, list | tuple | dict)
        text = f"a {kind} of {len(value)}" if sized else f"a {kind}"
    return text if len(text) <= 80 else f"{text[:77]}..."

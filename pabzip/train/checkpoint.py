"""Checkpoints: a network on its way, with its seed, its recipe and its results.

A checkpoint is what ``torch.save`` writes for a dictionary of plain values and tensors, nothing
else, so it is always read with ``weights_only=True``: no checkpoint, whoever wrote it, runs code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import nn

from pabzip.errors import ArchitectureError, CheckpointError
from pabzip.formats.atomic import open_atomic
from pabzip.init import Seeding, attach_seeding, seeding
from pabzip.models import build
from pabzip.seeds import InitSpec
from pabzip.train.checkpoint_content import (
    FORMAT,
    VERSION,
    check_content,
    check_state,
    is_state,
    read_content,
)
from pabzip.train.recipes import Recipe
from pabzip.train.results import TrainResult
from pabzip.train.toml import to_dict
from pabzip.wrappers import unwrap

_TOLD = ("data", "method", "keep_ratio", "epochs", "test_accuracy")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, all of it checked.

    Attributes:
        arch: name of a registered architecture, or ``"custom"``.
        arch_options: its options, plain values.
        state_dict: tensors on the CPU by name, without a ``module.`` prefix.
        seeding: the seed, and the init spec of each seeded weight.
        recipe: the recipe as plain values (`pabzip.train.to_dict`), or None.
        results: the results as plain values, or None.
    """

    arch: str
    arch_options: Mapping[str, Any]
    state_dict: Mapping[str, torch.Tensor]
    seeding: Seeding
    recipe: Mapping[str, Any] | None
    results: Mapping[str, Any] | None

    @property
    def seed(self) -> int:
        """The seed."""
        return self.seeding.seed

    @property
    def init(self) -> Mapping[str, InitSpec]:
        """The init spec of each seeded weight, by name."""
        return self.seeding.specs

    def metadata(self) -> dict[str, str | int | float | bool | None]:
        """Return what a packed file should tell about its origin, as flat plain values.

        Of data that was named by the path of a folder it tells ``"folder"``: a file that travels
        has no business with the paths of the machine that wrote it.
        """
        results = self.results or {}
        told = {
            key: results[key] for key in _TOLD if isinstance(results.get(key), str | int | float)
        }
        if os.sep in str(told.get("data", "")):
            told["data"] = "folder"
        return told


def save_checkpoint(
    net: nn.Module,
    target: str | os.PathLike[str] | BinaryIO,
    *,
    recipe: Recipe | Mapping[str, Any] | None = None,
    results: TrainResult | Mapping[str, Any] | None = None,
) -> None:
    """Write ``net`` as a checkpoint; an existing file is replaced only by a complete one.

    Args:
        net: a network drawn by `pabzip.init_`, on any device; wrappers (``DataParallel``,
            ``DistributedDataParallel``, ``torch.compile``) are understood.
        target: path of the file, usually ``model.pt``, or a binary stream.
        recipe: how it was trained, a `Recipe` or plain values.
        results: how well, a `TrainResult` (all of it that is the same each time) or plain values.

    Raises:
        SeedError: ``net`` has no record of its seed.
        CheckpointError: the state holds something that is no tensor, or recipe or results hold
            something that is no plain value.
        OSError: the file cannot be written.
    """
    net = unwrap(net)
    record = seeding(net)
    arch, options = getattr(net, "pabzip_arch", ("custom", {}))
    if isinstance(recipe, Recipe):
        recipe = to_dict(recipe)
    if isinstance(results, TrainResult):
        results = results.lasting()
    state = net.state_dict()
    extra = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if extra:
        raise CheckpointError(
            f"{extra[0]}: expected a tensor in the network's state, found "
            f"{type(state[extra[0]]).__name__}; keep extra state outside the state_dict"
        )
    content = {
        "format": FORMAT,
        "version": VERSION,
        "arch": arch,
        "arch_options": _plain("arch_options", options),
        "state_dict": {name: value.detach().cpu().contiguous() for name, value in state.items()},
        # Readers in other languages take integers of 64 bits with a sign.
        "seed": record.seed if record.seed < 2**63 else str(record.seed),
        "init": {
            name: {
                "distribution": spec.distribution,
                "scale": float(spec.scale),
                "stream": int(spec.stream),
            }
            for name, spec in record.specs.items()
        },
        "recipe": _plain("recipe", recipe),
        "results": _plain("results", results),
    }
    if isinstance(target, str | os.PathLike):
        with open_atomic(target) as file:
            torch.save(content, file)
    else:
        torch.save(content, target)


def load_checkpoint(source: str | os.PathLike[str] | BinaryIO) -> Checkpoint:
    """Read a checkpoint, onto the CPU, and never run code that it holds.

    Args:
        source: a file that `save_checkpoint` wrote, on whatever device, or a seekable stream of
            its bytes.

    Raises:
        CheckpointError: the file is no checkpoint of ours, is damaged, is newer than this pabzip,
            or asks to run code; the message says what was found and how to make a checkpoint.
        OSError: the file cannot be opened.
    """
    return _checked(*_read(source))


def load_state(
    source: str | os.PathLike[str] | BinaryIO,
) -> Checkpoint | dict[str, torch.Tensor]:
    """Read a checkpoint, or tensors by name without a seed, and never run code.

    Args:
        source: as for `load_checkpoint`, or a file that ``torch.save`` made of a ``state_dict()``.

    Raises:
        CheckpointError: the file is neither, is damaged, or asks to run code.
        OSError: the file cannot be opened.
    """
    content, name = _read(source)
    return check_state(content, name) if is_state(content) else _checked(content, name)


def _checked(content: object, name: str) -> Checkpoint:
    """Return a checkpoint of what its file holds."""
    return Checkpoint(**check_content(content, name))


def _read(source: str | os.PathLike[str] | BinaryIO) -> tuple[object, str]:
    """Return what a file holds, unchecked, and its name for messages."""
    if not isinstance(source, str | os.PathLike):
        return read_content(source, "<stream>"), "<stream>"
    name = os.fspath(source)
    with open(name, "rb") as file:
        return read_content(file, name), name


def network_from_checkpoint(checkpoint: Checkpoint, net: nn.Module | None = None) -> nn.Module:
    """Build the network of a checkpoint, load its state and put its seed on record.

    Args:
        checkpoint: from `load_checkpoint`.
        net: your own network, for a checkpoint of a custom architecture; by default the registered
            architecture is built.

    Returns:
        The network on the CPU (``net`` itself where it is given, on its own device), in evaluation
        mode, ready to be evaluated or packed.

    Raises:
        ArchitectureError: the architecture is custom and ``net`` is not given, or names or shapes
            do not fit.
    """
    if net is None:
        if checkpoint.arch == "custom":
            raise ArchitectureError(
                "this checkpoint is of a custom architecture, expected a registered one; build the "
                "network yourself and pass it as net= (on the command line: --arch module:callable)"
            )
        net = build(checkpoint.arch, checkpoint.arch_options)
    inner = unwrap(net)
    try:
        inner.load_state_dict(dict(checkpoint.state_dict), strict=True)
    except RuntimeError as error:
        raise ArchitectureError(
            f"the checkpoint does not fit {type(inner).__name__}: {' '.join(str(error).split())}; "
            "build the network with the options it was trained with"
        ) from error
    attach_seeding(inner, checkpoint.seeding)
    return net.eval()


def _plain(what: str, values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return a copy of nested plain values; refuse what a safe reader could not take back."""
    try:
        copied: dict[str, Any] | None = json.loads(json.dumps(values))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{what}: expected texts, numbers, lists and tables alone: {error}"
        ) from error
    return copied

"""From a ``.pabz`` file to what an export needs: the network, its input shape, its origin."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pabzip._optional import require
from pabzip.errors import ArchitectureError, ExportError
from pabzip.ticket import Ticket

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Source:
    """A ticket, ready for export.

    Attributes:
        net: the network with the ticket's weights.
        input_shape: ``(C, H, W)`` of one image.
        metadata: ``pabzip.seed``, ``pabzip.arch``, ``pabzip.arch_options`` (JSON),
            ``pabzip.sha256`` (of the ticket's regenerated state) and, where the ticket names the
            dataset it was trained on, ``pabzip.data``, all as text.
    """

    net: nn.Module
    input_shape: tuple[int, ...]
    metadata: Mapping[str, str]


def read_source(
    file: str | os.PathLike[str] | bytes,
    *,
    net: nn.Module | None = None,
    input_shape: Sequence[int] | None = None,
    max_bytes: int | None = None,
) -> Source:
    """Load a ticket for export.

    Args:
        file: a path, or the bytes of a ``.pabz`` file.
        net: a network to load the ticket into; a copy is used. None builds the registered
            architecture that the file names.
        input_shape: ``(C, H, W)``; None takes it from the registry.
        max_bytes: refuse a file whose tensors take more than this many bytes once regenerated.

    Raises:
        FormatError: the file is damaged or not a ticket.
        ArchitectureError: a custom architecture without ``net``, or a ``net`` that does not fit.
        ExportError: a custom architecture without ``input_shape``.
        MissingDependencyError: torch is not installed.
    """
    require("torch", extra="torch", purpose="exporting a ticket")
    from pabzip.models import input_shape as registered_shape
    from pabzip.runtime.torch_module import load, load_into

    name = "the ticket" if isinstance(file, bytes) else os.fspath(file)
    with Ticket.open(file, max_bytes=max_bytes) as ticket:
        arch, arch_options = ticket.arch, ticket.arch_options
        metadata = _metadata(ticket)
    if arch == "custom":
        if net is None:
            raise ArchitectureError(
                f"{name}: expected a registered architecture, found a custom one; pass net= with "
                "the network that was packed"
            )
        if input_shape is None:
            raise ExportError(
                f"{name}: expected input_shape=(C, H, W) for a custom architecture, found none; "
                "pass the shape of one image"
            )
    if net is None:
        loaded = load(file, max_bytes=max_bytes)
    else:
        loaded = load_into(copy.deepcopy(net), file, max_bytes=max_bytes)
    shape = registered_shape(arch, arch_options) if input_shape is None else tuple(input_shape)
    return Source(loaded, shape, metadata)


def _metadata(ticket: Ticket) -> dict[str, str]:
    """Return a ticket's origin and metadata as properties of an ONNX model, which hold text."""
    own = {
        f"pabzip.{key}": value if isinstance(value, str) else json.dumps(value)
        for key, value in ticket.metadata.items()
    }
    return own | {
        "pabzip.seed": str(ticket.seed),
        "pabzip.arch": ticket.arch,
        "pabzip.arch_options": json.dumps(ticket.arch_options, sort_keys=True),
        "pabzip.sha256": ticket.info()["sha256"],
    }

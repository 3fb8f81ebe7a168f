"""Write checked ONNX files, from networks and from tickets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO

from pabzip.errors import ExportError
from pabzip.export.build import BuiltModel, ExportReport, build_onnx
from pabzip.export.source import read_source
from pabzip.formats.atomic import open_atomic

if TYPE_CHECKING:
    from typing import Unpack

    from torch import nn

    from pabzip.export.build import OnnxOptions

Target = str | os.PathLike[str] | BinaryIO
"""Where a file goes: a path, written atomically, or an open binary stream."""


def export_onnx(
    net: nn.Module,
    target: Target,
    *,
    input_shape: Sequence[int],
    metadata: Mapping[str, str] | None = None,
    **options: Unpack[OnnxOptions],
) -> ExportReport:
    """Write a network as one dense ONNX file, once it agrees with torch.

    The file holds no external data, no source paths and no stack traces; the same network gives
    the same bytes.

    Args:
        net: takes images ``(N, C, H, W)`` and returns logits ``(N, classes)``; left as it is.
        target: a path, replaced only when all is well, or an open binary stream.
        input_shape: ``(C, H, W)`` of one image.
        metadata: properties to write into the model.
        options: ``opset``, ``float16``, ``dynamic_batch``, ``tolerance`` and ``samples`` of
            `pabzip.export.build_onnx`.

    Returns:
        The size, and how well the model agrees with torch.

    Raises:
        ExportError: the network cannot be exported, or the model disagrees with torch. No file
            is left; an old one is intact.
        MissingDependencyError: torch or a package of the extra ``onnx`` is not installed.
        OSError: the file cannot be written.
    """
    return _write(build_onnx(net, input_shape=input_shape, metadata=metadata, **options), target)


def export_ticket(
    source: str | os.PathLike[str] | bytes,
    target: Target,
    *,
    net: nn.Module | None = None,
    input_shape: Sequence[int] | None = None,
    max_bytes: int | None = None,
    **options: Unpack[OnnxOptions],
) -> ExportReport:
    """Write a ``.pabz`` file as one dense ONNX file that remembers which ticket it came from.

    The model's properties hold ``pabzip.seed``, ``pabzip.arch``, ``pabzip.arch_options`` (JSON),
    ``pabzip.sha256`` and, where the ticket names its dataset, ``pabzip.data``.

    Args:
        source: a path, or the bytes of a ``.pabz`` file.
        target: as for `export_onnx`; not the source itself.
        net: a network to load the ticket into, for a custom architecture; a copy is used.
        input_shape: ``(C, H, W)`` of one image; None takes it from the registry.
        max_bytes: refuse a file whose tensors take more than this many bytes once regenerated.
        options: as for `export_onnx`.

    Returns:
        The size, and how well the model agrees with torch.

    Raises:
        FormatError: the file is damaged or not a ticket.
        ArchitectureError: a custom architecture without ``net``, or a ``net`` that does not fit.
        ExportError: as for `export_onnx`; also a target that is the source, or a custom
            architecture without ``input_shape``.
        MissingDependencyError: torch or a package of the extra ``onnx`` is not installed.
        OSError: a file cannot be read or written.
    """
    if isinstance(source, str | os.PathLike) and isinstance(target, str | os.PathLike):
        _refuse_same(source, target)
    found = read_source(source, net=net, input_shape=input_shape, max_bytes=max_bytes)
    built = build_onnx(found.net, input_shape=found.input_shape, metadata=found.metadata, **options)
    return _write(built, target)


def _write(built: BuiltModel, target: Target) -> ExportReport:
    """Write a checked model, atomically where the target is a path."""
    if isinstance(target, str | os.PathLike):
        with open_atomic(target) as stream:
            stream.write(built.data)
    else:
        target.write(built.data)
    return built.report


def _refuse_same(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Refuse to write a model over the ticket that it comes from, by any of its names."""
    if os.path.exists(target) and os.path.samefile(source, target):
        raise ExportError(
            f"{os.fspath(target)}: expected a target other than the ticket, found the same file "
            f"as {os.fspath(source)}; choose another name"
        )

"""Export a network or a ticket to ONNX: write a checked model, or open it."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO

from pabzip._optional import require
from pabzip.errors import ArchitectureError, ExportError
from pabzip.export.build import BuiltModel, ExportReport, OnnxOptions, build_onnx
from pabzip.formats.atomic import open_atomic
from pabzip.runtime.onnx_session import Provider, session_maker
from pabzip.ticket import Ticket

if TYPE_CHECKING:
    from typing import Unpack

    from onnxruntime import InferenceSession
    from torch import nn

    from pabzip.packing.base import BaseSource


Target = str | os.PathLike[str] | BinaryIO
"""Where a file goes: a path, written atomically, or an open binary stream."""


def export_onnx(
    net: nn.Module,
    target: Target,
    *,
    input_shape: Sequence[int] | None = None,
    metadata: Mapping[str, str] | None = None,
    **options: Unpack[OnnxOptions],
) -> ExportReport:
    """Write a network as one dense ONNX file, once it agrees with torch.

    The file holds no external data, no source paths and no stack traces; the same network gives
    the same bytes.

    Args:
        net: takes images ``(N, C, H, W)`` and returns logits ``(N, classes)``, or is any network
            with ``example_inputs``; left as it is.
        target: a path, replaced only when all is well, or an open binary stream.
        input_shape: ``(C, H, W)`` of one image; this or ``example_inputs``.
        metadata: properties to write into the model.
        options: ``opset``, ``float16``, ``dynamic_batch``, ``tolerance``, ``samples``,
            ``example_inputs``, ``input_names``, ``output_names``, ``output`` and ``dynamic_axes``
            of `build_onnx`.

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
    base: BaseSource | None = None,
    **options: Unpack[OnnxOptions],
) -> ExportReport:
    """Write a ``.pabz`` file as one dense ONNX file that remembers which ticket it came from.

    The model's properties hold ``pabzip.seed``, ``pabzip.arch``, ``pabzip.arch_options`` (JSON),
    ``pabzip.sha256`` and, where the ticket names its dataset, ``pabzip.data``.

    Args:
        source: a path, or the bytes of a ``.pabz`` file.
        target: as for `export_onnx`; not the source itself.
        net: a network to load the ticket into, for a custom architecture; a copy is used. None
            builds the registered architecture that the file names.
        input_shape: ``(C, H, W)`` of one image; None takes it from the registry. A custom
            architecture needs it, or ``example_inputs`` among the options.
        max_bytes: refuse a file whose tensors take more than this many bytes once regenerated.
        base: for a file of changes, what it was packed on, as for `pabzip.open`.
        options: as for `export_onnx`.

    Returns:
        The size, and how well the model agrees with torch.

    Raises:
        FormatError: the file is damaged or not a ticket.
        BaseFileError: as for `pabzip.open`.
        ArchitectureError: a custom architecture without ``net``, or a ``net`` that does not fit.
        ExportError: as for `export_onnx`; also a target that is the source, or a custom
            architecture without ``input_shape`` and ``example_inputs``.
        MissingDependencyError: torch or a package of the extra ``onnx`` is not installed.
        OSError: a file cannot be read or written.
    """
    if (
        isinstance(source, str | os.PathLike)
        and isinstance(target, str | os.PathLike)
        and os.path.exists(target)
        and os.path.samefile(source, target)
    ):
        raise ExportError(
            f"{os.fspath(target)}: expected a target other than the ticket, found the same file "
            f"as {os.fspath(source)}; choose another name"
        )
    return _write(_build_ticket(source, net, input_shape, max_bytes, base, options), target)


def load_session(
    source: str | os.PathLike[str] | bytes,
    *,
    providers: Sequence[Provider] | None = None,
    net: nn.Module | None = None,
    input_shape: Sequence[int] | None = None,
    max_bytes: int | None = None,
    base: BaseSource | None = None,
    **options: Unpack[OnnxOptions],
) -> InferenceSession:
    """Build an ONNX Runtime session from a ``.pabz`` file, in memory; no file is written.

    The graph is the one that `export_ticket` would write, and is checked against
    torch in the same way before the session is handed out. Needs torch, onnx and onnxscript; to
    deploy without them, export once and use `open_onnx`.

    Args:
        source: a path, or the bytes of a ``.pabz`` file.
        providers: execution providers in order of preference; None takes the CPU.
        net: as for `export_ticket`.
        input_shape: as for `export_ticket`.
        max_bytes: as for `export_ticket`.
        base: as for `export_ticket`.
        options: as for `export_onnx`.

    Returns:
        A session with the float32 input ``"images"`` (batch, C, H, W) and the float32 output
        ``"logits"`` (batch, classes); by ``example_inputs``, with those of `build_onnx`.

    Raises:
        FormatError, BaseFileError, ArchitectureError, ExportError: as for `export_ticket`.
        MissingDependencyError: a package of the extra ``onnx``, or a provider, is not there.
    """
    create = session_maker(providers)
    return create(_build_ticket(source, net, input_shape, max_bytes, base, options).data)


def _build_ticket(
    source: str | os.PathLike[str] | bytes,
    net: nn.Module | None,
    input_shape: Sequence[int] | None,
    max_bytes: int | None,
    base: BaseSource | None,
    options: OnnxOptions,
) -> BuiltModel:
    """Build the checked model of a ticket; arguments and errors as for `export_ticket`."""
    require("torch", extra="torch", purpose="exporting a ticket")
    from pabzip.models import input_shape as registered_shape
    from pabzip.runtime.loaders import load, load_into

    name = "the ticket" if isinstance(source, bytes) else os.fspath(source)
    with Ticket.open(source, max_bytes=max_bytes) as ticket:
        arch, arch_options = ticket.arch, ticket.arch_options
        metadata = _metadata(ticket)
    by_example = options.get("example_inputs") is not None
    if arch == "custom":
        if net is None:
            raise ArchitectureError(
                f"{name}: expected a registered architecture, found a custom one; pass net= with "
                "the network that was packed"
            )
        if input_shape is None and not by_example:
            raise ExportError(
                f"{name}: expected input_shape=(C, H, W) for a custom architecture, found none; "
                "pass the shape of one image, or example_inputs="
            )
    if net is None:
        loaded = load(source, max_bytes=max_bytes, base=base)
    else:
        loaded = load_into(copy.deepcopy(net), source, max_bytes=max_bytes, base=base)
    if input_shape is None and not by_example:
        input_shape = registered_shape(arch, arch_options)
    return build_onnx(loaded, input_shape=input_shape, metadata=metadata, **options)


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


def _write(built: BuiltModel, target: Target) -> ExportReport:
    """Write a checked model, atomically where the target is a path."""
    if isinstance(target, str | os.PathLike):
        with open_atomic(target) as stream:
            stream.write(built.data)
    else:
        target.write(built.data)
    return built.report

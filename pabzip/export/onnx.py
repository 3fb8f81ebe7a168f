"""Export a network or a ticket to ONNX: build a checked model in memory, then write or open it."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, TypedDict

from pabzip._optional import require
from pabzip.errors import ArchitectureError, ExportError
from pabzip.export.graph import checked_opset, serialize, trace
from pabzip.export.parity import (
    FLOAT16_TOLERANCE,
    TOLERANCE,
    check_batches,
    check_parity,
    reference_logits,
)
from pabzip.formats.atomic import open_atomic
from pabzip.runtime.onnx_session import Provider, session_logits, session_maker
from pabzip.ticket import Ticket
from pabzip.wrappers import check_whole, unwrap

if TYPE_CHECKING:
    from typing import Unpack

    from onnxruntime import InferenceSession
    from torch import nn


class OnnxOptions(TypedDict, total=False):
    """The options that every way to an ONNX model takes; see `build_onnx` for each."""

    opset: int | None
    float16: bool
    dynamic_batch: bool
    tolerance: float | None
    samples: Any


@dataclass(frozen=True)
class ExportReport:
    """What an export made, and how well it agrees with torch.

    Attributes:
        bytes: size of the model.
        opset: version of the ONNX operator set.
        precision: ``"float32"`` or ``"float16"``; inputs and outputs are float32 in both.
        dynamic_batch: the batch is open; otherwise it is 1.
        input_shape: ``(C, H, W)`` of one image.
        samples: images that torch and ONNX Runtime were compared on.
        difference: largest difference of a logit, relative to the largest logit.
        tolerance: largest difference that was allowed.
    """

    bytes: int
    opset: int
    precision: str
    dynamic_batch: bool
    input_shape: tuple[int, ...]
    samples: int
    difference: float
    tolerance: float


@dataclass(frozen=True)
class BuiltModel:
    """A serialized ONNX model and its report.

    Attributes:
        data: the bytes of an ``.onnx`` file.
        report: how it was made and checked.
    """

    data: bytes
    report: ExportReport


def build_onnx(
    net: nn.Module,
    *,
    input_shape: Sequence[int],
    opset: int | None = None,
    float16: bool = False,
    dynamic_batch: bool = True,
    tolerance: float | None = None,
    samples: Any = None,
    metadata: Mapping[str, str] | None = None,
) -> BuiltModel:
    """Build the dense ONNX model of a network, and compare it with torch in ONNX Runtime.

    The work is done on a copy in float32, on the CPU, in evaluation mode: the network itself, its
    device, dtype and modes, the random state and the warning filters are left as they are.

    Args:
        net: takes images ``(N, C, H, W)``, normalized as in training, and returns logits
            ``(N, classes)``.
        input_shape: ``(C, H, W)`` of one image.
        opset: 18 to 23; None takes 18, which the most runtimes read.
        float16: store and compute in float16, half the size. The input and the output stay
            float32, so a caller need not know.
        dynamic_batch: leave the batch open, as the dimension ``"batch"``; False fixes it at 1.
        tolerance: largest difference of a logit between ONNX Runtime (CPU) and torch, relative to
            the largest logit; None takes 1e-4, or 1e-2 for float16. Classes must be the same
            except for ties, see `pabzip.export.parity.check_parity`.
        samples: images ``(N, C, H, W)`` to compare on; None draws eight from a fixed seed.
        metadata: properties to write into the model.

    Returns:
        The model, whose input is ``"images"`` and output ``"logits"``, and a report.

    Raises:
        ExportError: an option is out of range, the network cannot be copied, traced or
            translated, the model is too large for one file, or it disagrees with torch.
        MissingDependencyError: torch or a package of the extra ``onnx`` is not installed.
    """
    require("torch", extra="torch", purpose="exporting to ONNX")
    import torch

    opset = checked_opset(opset)
    shape = _checked_shape(input_shape)
    allowed = _checked_tolerance(tolerance, float16=float16)
    batches = check_batches(shape, samples, dynamic_batch=dynamic_batch)
    # Autocast of the caller would leak into both the trace and the reference.
    with torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False):
        twin = _copy(net)
        expected = reference_logits(twin, batches)
        model = trace(twin, shape, opset=opset, dynamic_batch=dynamic_batch)
    if float16:
        from pabzip.export.half import check_range, to_float16

        to_float16(model)
        data = serialize(model, metadata or {})
        check_range(data, batches)
    else:
        data = serialize(model, metadata or {})
    difference = check_parity(
        session_logits(session_maker()(data)), batches, expected, tolerance=allowed, float16=float16
    )
    report = ExportReport(
        bytes=len(data),
        opset=opset,
        precision="float16" if float16 else "float32",
        dynamic_batch=dynamic_batch,
        input_shape=shape,
        samples=len(expected),
        difference=difference,
        tolerance=allowed,
    )
    return BuiltModel(data, report)


def _copy(net: nn.Module) -> nn.Module:
    """Return a float32 copy of a network on the CPU, in evaluation mode."""
    import torch

    way = "pack it, load the file into the network without FSDP, and export that"
    check_whole(net, "exporting to ONNX", way, ExportError)
    try:
        twin = copy.deepcopy(unwrap(net))
    except (RuntimeError, TypeError) as error:
        raise ExportError(
            f"{type(net).__name__}: expected a network that can be copied, found: {error}; remove "
            "tensors that are part of a running graph"
        ) from error
    return twin.to("cpu", torch.float32).eval()


def _checked_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    """Refuse a shape that is not that of one image."""
    shape = tuple(input_shape)
    if len(shape) != 3 or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ExportError(
            f"input_shape: expected three positive integers (C, H, W), found {shape}; leave the "
            "batch out"
        )
    return shape


def _checked_tolerance(tolerance: float | None, *, float16: bool) -> float:
    """Return the tolerance, or the default of the precision for None."""
    if tolerance is None:
        return FLOAT16_TOLERANCE if float16 else TOLERANCE
    if not 0 < tolerance < 1:
        raise ExportError(f"tolerance: expected a number between 0 and 1, found {tolerance!r}")
    return float(tolerance)


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
            `build_onnx`.

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
        net: a network to load the ticket into, for a custom architecture; a copy is used. None
            builds the registered architecture that the file names.
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
    return _write(_build_ticket(source, net, input_shape, max_bytes, options), target)


def load_session(
    source: str | os.PathLike[str] | bytes,
    *,
    providers: Sequence[Provider] | None = None,
    net: nn.Module | None = None,
    input_shape: Sequence[int] | None = None,
    max_bytes: int | None = None,
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
        options: as for `export_onnx`.

    Returns:
        A session with the float32 input ``"images"`` (batch, C, H, W) and the float32 output
        ``"logits"`` (batch, classes).

    Raises:
        FormatError, ArchitectureError, ExportError: as for `export_ticket`.
        MissingDependencyError: a package of the extra ``onnx``, or a provider, is not there.
    """
    create = session_maker(providers)
    return create(_build_ticket(source, net, input_shape, max_bytes, options).data)


def _build_ticket(
    source: str | os.PathLike[str] | bytes,
    net: nn.Module | None,
    input_shape: Sequence[int] | None,
    max_bytes: int | None,
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
        loaded = load(source, max_bytes=max_bytes)
    else:
        loaded = load_into(copy.deepcopy(net), source, max_bytes=max_bytes)
    shape = registered_shape(arch, arch_options) if input_shape is None else tuple(input_shape)
    return build_onnx(loaded, input_shape=shape, metadata=metadata, **options)


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

"""Build a checked ONNX model in memory: trace, convert, serialize, compare with torch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from pabzip._optional import require
from pabzip.errors import ExportError
from pabzip.export.graph import checked_opset, serialize, trace
from pabzip.export.half import check_range, to_float16
from pabzip.export.parity import (
    FLOAT16_TOLERANCE,
    TOLERANCE,
    check_batches,
    check_parity,
    reference_logits,
)
from pabzip.init import unwrap
from pabzip.runtime.onnx_session import create_session, session_logits

if TYPE_CHECKING:
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
        to_float16(model)
    data = serialize(model, metadata or {})
    if float16:
        check_range(data, batches)
    difference = check_parity(
        session_logits(create_session(data)), batches, expected, tolerance=allowed, float16=float16
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

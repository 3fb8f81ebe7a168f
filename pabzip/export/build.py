"""Build the ONNX model of a network in memory, checked against torch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from pabzip._optional import require
from pabzip.errors import ExportError
from pabzip.export.graph import INPUT, checked_opset, serialize, trace_images
from pabzip.export.parity import (
    FLOAT16_TOLERANCE,
    TOLERANCE,
    check_batches,
    check_outputs,
    check_parity,
    reference_logits,
)
from pabzip.runtime.onnx_session import session_logits, session_maker
from pabzip.wrappers import check_whole, runnable

if TYPE_CHECKING:
    from torch import nn

    from pabzip.calls import Output
    from pabzip.export.example import Axes


class OnnxOptions(TypedDict, total=False):
    """The options that every way to an ONNX model takes; see `build_onnx` for each."""

    opset: int | None
    float16: bool
    dynamic_batch: bool
    tolerance: float | None
    samples: Any
    example_inputs: Any
    input_names: Sequence[str] | None
    output_names: Sequence[str] | None
    output: Output | None
    dynamic_axes: Axes | None


@dataclass(frozen=True)
class ExportReport:
    """What an export made, and how well it agrees with torch.

    Attributes:
        bytes: size of the model.
        opset: version of the ONNX operator set.
        precision: ``"float32"`` or ``"float16"``; inputs and outputs are float32 in both.
        dynamic_batch: the batch is open; otherwise it is 1, or the example's.
        input_shape: ``(C, H, W)`` of one image; None where ``example_inputs`` were given.
        samples: images that torch and ONNX Runtime were compared on, or calls.
        difference: largest difference of a logit, relative to the largest logit; of several
            outputs, the largest of all.
        tolerance: largest difference that was allowed.
        inputs: shapes by the names of the inputs, open axes by name.
        outputs: names of the outputs.
    """

    bytes: int
    opset: int
    precision: str
    dynamic_batch: bool
    input_shape: tuple[int, ...] | None
    samples: int
    difference: float
    tolerance: float
    inputs: dict[str, list[int | str]]
    outputs: list[str]


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
    input_shape: Sequence[int] | None = None,
    opset: int | None = None,
    float16: bool = False,
    dynamic_batch: bool = True,
    tolerance: float | None = None,
    samples: Any = None,
    metadata: Mapping[str, str] | None = None,
    example_inputs: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    output: Output | None = None,
    dynamic_axes: Axes | None = None,
) -> BuiltModel:
    """Build the dense ONNX model of a network, and compare it with torch in ONNX Runtime.

    The work is done on a copy in float32, on the CPU, in evaluation mode: the network itself, its
    device, dtype and modes, the random state and the warning filters are left as they are.

    A network of images and logits is told by its ``input_shape``: the model's input is
    ``"images"``, its output ``"logits"``. Any other network is told by ``example_inputs``: the
    model has an input for each tensor in them, named as in the network's ``forward`` (tensors
    within an argument as ``"name.key"``), and an output for each tensor that the network returns,
    named by the keys of a mapping or the fields of a dataclass, ``"output.0"`` and so on of a
    tuple, or ``"output"``. Of what is returned, parts that are no tensors (such as a cache) are
    left out; so are arguments without tensors, which are fixed as in the example.

    Args:
        net: takes images ``(N, C, H, W)``, normalized as in training, and returns logits
            ``(N, classes)``; or takes ``example_inputs``.
        input_shape: ``(C, H, W)`` of one image; this or ``example_inputs``.
        opset: 18 to 23; None takes 18, which the most runtimes read.
        float16: store and compute in float16, half the size. The input and the output stay
            float32, so a caller need not know.
        dynamic_batch: leave the batch open, as the dimension ``"batch"``; False fixes it at 1, or
            at the example's. By example, the batch is the first axis of all tensors that are as
            long there as the first one.
        tolerance: largest difference of a logit between ONNX Runtime (CPU) and torch, relative to
            the largest logit; None takes 1e-4, or 1e-2 for float16. Classes must be the same
            except for ties, see `pabzip.export.parity.check_parity`. By example, of each output
            relative to its largest value; outputs that are not floating must be equal.
        samples: images ``(N, C, H, W)`` to compare on; None draws eight from a fixed seed. By
            example, further examples in a list; the example itself, and other sizes of each open
            axis, are compared in any case.
        metadata: properties to write into the model.
        example_inputs: what the network is called with: a tensor, a tuple of positional arguments,
            or a mapping of keyword arguments. Tensors may be nested in tuples, lists and mappings,
            and hold floats (float32 in the model), integers (token ids) or bools. Values such as
            the network was trained on make the better check.
        input_names: names for the inputs, in the order of the tensors.
        output_names: names for the outputs.
        output: from what the network returns to what the model shall: a tensor, or several in a
            mapping, dataclass, tuple or list.
        dynamic_axes: further open axes, ``{"input_ids": {1: "tokens"}}``; axes of one name have
            one size.

    Returns:
        The model and a report.

    Raises:
        ExportError: an option is out of range, the network cannot be copied, traced or
            translated, the model is too large for one file, or it disagrees with torch.
        MissingDependencyError: torch or a package of the extra ``onnx`` is not installed.
    """
    require("torch", extra="torch", purpose="exporting to ONNX")
    import torch

    opset = checked_opset(opset)
    allowed = _checked_tolerance(tolerance, float16=float16)
    if (input_shape is None) == (example_inputs is None):
        found = "neither" if input_shape is None else "both"
        raise ExportError(
            f"{type(net).__name__}: expected input_shape=(C, H, W) for a network of images, or "
            f"example_inputs= for any other, found {found}"
        )
    # Autocast of the caller would leak into both the trace and the reference.
    with torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False):
        if input_shape is not None:
            shape = _checked_shape(input_shape)
            batches = check_batches(shape, samples, dynamic_batch=dynamic_batch)
            twin = _copy(net)
            expected = reference_logits(twin, batches)
            model = trace_images(twin, shape, opset=opset, dynamic_batch=dynamic_batch)
            feeds = [{INPUT: batch} for batch in batches]
        else:
            from pabzip.export.example import Example

            example = Example.of(
                _copy(net), example_inputs, input_names=input_names, output_names=output_names,
                output=output, dynamic_axes=dynamic_axes, dynamic_batch=dynamic_batch,
            )  # fmt: skip
            cases = example.cases(samples)
            model = example.trace(opset)
            feeds = [case.inputs for case in cases]
    if float16:
        from pabzip.export.half import check_range, to_float16

        to_float16(model)
        data = serialize(model, metadata or {})
        check_range(data, feeds)
    else:
        data = serialize(model, metadata or {})
    session = session_maker()(data)
    if input_shape is not None:
        difference = check_parity(
            session_logits(session), batches, expected, tolerance=allowed, float16=float16
        )
    else:
        difference = check_outputs(session, cases, tolerance=allowed, float16=float16)
    report = ExportReport(
        bytes=len(data),
        opset=opset,
        precision="float16" if float16 else "float32",
        dynamic_batch=dynamic_batch,
        input_shape=None if input_shape is None else shape,
        samples=len(cases) if input_shape is None else len(expected),
        difference=difference,
        tolerance=allowed,
        inputs={value.name: list(value.shape) for value in session.get_inputs()},
        outputs=[value.name for value in session.get_outputs()],
    )
    return BuiltModel(data, report)


def _copy(net: nn.Module) -> nn.Module:
    """Return a float32 copy of a network on the CPU, in evaluation mode."""
    import torch

    way = "pack it, load the file into the network without FSDP, and export that"
    check_whole(net, "exporting to ONNX", way, ExportError)
    try:
        twin = copy.deepcopy(runnable(net))
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

"""From a torch network to an ONNX graph: tracing, opset, size, serialization."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pabzip._optional import require
from pabzip._version import __version__
from pabzip.errors import ExportError

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor, nn

INPUT = "images"
OUTPUT = "logits"
BATCH = "batch"

DEFAULT_OPSET = 18
"""The oldest opset that torch exports to directly, so that the most runtimes read the file."""

OPSETS = range(18, 24)
"""Opsets that torch writes without a conversion of versions, which may fail or fall back."""

MAX_MODEL_BYTES = 2**31 - 1
"""The largest protocol buffer, hence the largest ONNX model in one file."""

_TRACED_BATCH = 2  # torch.export takes a dimension of 0 or 1 for a constant


def checked_opset(opset: int | None) -> int:
    """Return ``opset``, or the default for None.

    Raises:
        ExportError: it is not one of `OPSETS`.
    """
    if opset is None:
        return DEFAULT_OPSET
    if isinstance(opset, bool) or opset not in OPSETS:
        raise ExportError(
            f"opset: expected {OPSETS[0]} to {OPSETS[-1]}, found {opset!r}; leave it out for "
            f"{DEFAULT_OPSET}"
        )
    return opset


def trace_images(
    net: nn.Module, input_shape: Sequence[int], *, opset: int, dynamic_batch: bool
) -> ir.Model:
    """Trace a network of images and logits, as `trace` does."""
    import torch

    count = _TRACED_BATCH if dynamic_batch else 1
    images = torch.zeros((count, *input_shape), dtype=torch.float32, device="cpu")
    return trace(
        net, (images,), inputs=[INPUT], outputs=[OUTPUT], opset=opset,
        axes=[{0: BATCH} if dynamic_batch else {}],
        dynamic_shapes=({0: torch.export.Dim(BATCH)},) if dynamic_batch else None,
        name=type(net).__name__,
    )  # fmt: skip


def trace(
    net: nn.Module,
    tensors: tuple[Tensor, ...],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    axes: Sequence[Mapping[int, str]],
    dynamic_shapes: tuple[Any, ...] | None,
    opset: int,
    name: str,
) -> ir.Model:
    """Trace a network in evaluation mode into an ONNX graph.

    Batch norms that follow a convolution are folded into it, constants are folded. What the
    exporter notes of the source (stack traces, file names) is removed, so that the same network
    gives the same bytes everywhere.

    Args:
        net: float32 and on the CPU; takes ``tensors`` as positional arguments, and returns tensors.
        tensors: an example, with open axes of size 2 or more.
        inputs: names of the tensors.
        outputs: names of what the network returns.
        axes: the open axes of each tensor, named.
        dynamic_shapes: the same, as torch.export takes them.
        opset: one of `OPSETS`.
        name: of the network, for messages.

    Errors are those of `pabzip.export.build_onnx`.
    """
    for module in ("onnx", "onnx_ir", "onnxscript"):
        require(module, extra="onnx", purpose="exporting to ONNX")
    import torch
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    try:
        # The exporter warns of its own internals; nothing in it is for the caller to act on.
        with warnings.catch_warnings(), _quiet("onnxscript", "onnx_ir"), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                net,
                tensors,
                dynamo=True,
                verbose=False,
                external_data=False,
                input_names=inputs,
                output_names=outputs,
                opset_version=opset,
                dynamic_shapes=dynamic_shapes,
            )
    except torch.onnx.OnnxExporterError as error:
        way_out = "; a network that fixes its batch needs dynamic_batch=False" * any(axes)
        if {BATCH} != {label for named in axes for label in named.values()} != set():
            way_out += ", and one that fixes another axis fewer dynamic_axes"
        raise ExportError(f"{name}: torch.onnx.export failed: {_cause(error)}{way_out}") from error
    assert program is not None  # None only for the exporter that dynamo=True replaces
    model = program.model
    found = model.opset_imports[""]
    if found != opset:
        raise ExportError(
            f"opset: expected {opset}, found that torch {torch.__version__} wrote {found}; "
            f"choose {found} or upgrade torch"
        )
    for value, named in zip(model.graph.inputs, axes, strict=True):
        for axis, label in named.items():
            if value.shape is None or isinstance(value.shape[axis], int):
                raise ExportError(
                    f"{name}: expected an open {label}, axis {axis} of {value.name!r}, found that "
                    "the network fixes it (as len(images) in its forward does; images.shape[0] "
                    "does not); export with dynamic_batch=False, or fewer dynamic_axes"
                )
    ClearMetadataAndDocStringPass()(model)
    results = [value for node in model.graph.all_nodes() for value in node.outputs]
    for graph in (model.graph, *model.graph.subgraphs()):
        results += [*graph.inputs, *graph.initializers.values()]
    for value in results:
        value.metadata_props.clear()
    return model


def serialize(model: ir.Model, metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a model, signed as pabzip's, with ``metadata`` in its properties.

    Raises:
        ExportError: the model does not fit one file.
    """
    import onnx_ir as ir

    model.producer_name, model.producer_version = "pabzip", __version__
    model.metadata_props.update(metadata)
    weights = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    if weights <= MAX_MODEL_BYTES:
        proto = ir.to_proto(model)
        size = proto.ByteSize()
        if size <= MAX_MODEL_BYTES:
            return bytes(proto.SerializeToString(deterministic=True))
    raise ExportError(
        f"expected a model of at most {MAX_MODEL_BYTES:,} bytes, the limit of one ONNX file, found "
        f"{weights:,} bytes of weights; export with float16=True, or ship the .pabz file"
    )


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Let some loggers tell of errors alone; put their levels back after it."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _cause(error: BaseException) -> str:
    """Return the first line, or what it announces too, of the error that started a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])

"""From a torch network to an ONNX graph: tracing, opset, size, serialization."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pabzip._optional import require
from pabzip._version import __version__
from pabzip.errors import ExportError

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

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


def trace(
    net: nn.Module, input_shape: Sequence[int], *, opset: int, dynamic_batch: bool
) -> ir.Model:
    """Trace a network in evaluation mode into an ONNX graph.

    Batch norms that follow a convolution are folded into it, constants are folded. What the
    exporter notes of the source (stack traces, file names) is removed, so that the same network
    gives the same bytes everywhere.

    Arguments, input, output and errors are those of `pabzip.export.build_onnx`; ``net`` is float32
    and on the CPU.
    """
    for module in ("onnx", "onnx_ir", "onnxscript"):
        require(module, extra="onnx", purpose="exporting to ONNX")
    import torch
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    images = torch.zeros(
        (_TRACED_BATCH if dynamic_batch else 1, *input_shape), dtype=torch.float32, device="cpu"
    )
    try:
        # The exporter warns of its own internals; nothing in it is for the caller to act on.
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                net,
                (images,),
                dynamo=True,
                verbose=False,
                external_data=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=opset,
                dynamic_shapes=({0: torch.export.Dim(BATCH)},) if dynamic_batch else None,
            )
    except torch.onnx.OnnxExporterError as error:
        way_out = "; a network that fixes its batch needs dynamic_batch=False" * dynamic_batch
        raise ExportError(
            f"{type(net).__name__}: torch.onnx.export failed: {_cause(error)}{way_out}"
        ) from error
    assert program is not None  # None only for the exporter that dynamo=True replaces
    model = program.model
    found = model.opset_imports[""]
    if found != opset:
        raise ExportError(
            f"opset: expected {opset}, found that torch {torch.__version__} wrote {found}; "
            f"choose {found} or upgrade torch"
        )
    batch = model.graph.inputs[0].shape
    if dynamic_batch and (batch is None or isinstance(batch[0], int)):
        raise ExportError(
            f"{type(net).__name__}: expected an open batch, found that the network fixes it (as "
            "len(images) in its forward does; images.shape[0] does not); export with "
            "dynamic_batch=False"
        )
    ClearMetadataAndDocStringPass()(model)
    graph = model.graph
    results = [value for node in graph for value in node.outputs]
    for value in (*graph.inputs, *graph.initializers.values(), *results):
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


def _cause(error: BaseException) -> str:
    """Return the first line of the error that started a chain, without the exporter's banners."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

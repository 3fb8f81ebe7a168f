"""Convert ONNX graphs to float16, and check them for overflow.

Importing this module imports onnx. The graph is converted, not the network: batch norms have then
been folded into the convolutions in float32, so each weight is rounded once, and small variances do
not underflow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from pabzip.errors import ExportError
from pabzip.runtime.onnx_session import session_maker

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def check_range(model: bytes, batches: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Refuse a float16 model in which a value between two operators overflows.

    ONNX Runtime computes much of a float16 graph in float32 on the CPU, and so gets right logits
    where a GPU would get infinity. Made an output, each value is rounded to float16 and shows.

    Raises:
        ExportError: a value is infinite or NaN; the message names the first one.
    """
    proto = onnx.load_from_string(model)
    produced = {name for node in proto.graph.node for name in node.output}
    halves = [
        value
        for value in proto.graph.value_info
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16 and value.name in produced
    ]
    proto.graph.output.extend(halves)
    names = [value.name for value in halves]
    session = session_maker()(proto.SerializeToString())
    for batch in batches:
        for name, found in zip(names, session.run(names, batch), strict=True):
            beyond = found.size - int(np.count_nonzero(np.isfinite(found)))
            if beyond:
                raise ExportError(
                    f"{name}: expected values within float16's +-65504, found {beyond} of "
                    f"{found.size} beyond it on the inputs of the check; export with float16=False"
                )


def to_float16(model: ir.Model) -> None:
    """Make a traced float32 graph without subgraphs compute in float16, in place.

    Every float32 constant is rounded to nearest even, every float32 value in between becomes
    float16. A cast follows each input and precedes each output; an operator's input that the ONNX
    standard fixes to float32 (such as the scales of ``Resize``) keeps float32.

    Raises:
        ExportError: a constant overflows float16, or an operator cannot be converted.
    """
    LiftConstantsToInitializersPass(lift_all_constants=True)(model)
    graph, opset = model.graph, model.opset_imports[""]
    nodes = list(graph)
    for constant in graph.initializers.values():
        uses = constant.uses()
        if constant.dtype == FLOAT and any(_takes_half(use.node, use.idx, opset) for use in uses):
            _round_constant(constant)
    for node in nodes:
        _convert_attributes(node)
        for result in node.outputs:
            if result.dtype == FLOAT:
                result.dtype = HALF
    for node in nodes:
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype == HALF and not _takes_half(node, index, opset):
                cast = _cast(value, FLOAT)
                graph.insert_before(node, cast)
                node.replace_input_with(index, cast.outputs[0])
    _cast_ends(graph)


def _takes_half(node: ir.Node, index: int, opset: int) -> bool:
    """Return whether the ONNX standard lets a node's input be float16."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError as error:
        raise ExportError(
            f"{node.name}: expected an operator of the ONNX standard, found "
            f"{node.domain}::{node.op_type}; export with float16=False"
        ) from error
    formal = schema.inputs[min(index, len(schema.inputs) - 1)]  # the last may be variadic
    return "tensor(float16)" in formal.types


def _round_constant(value: ir.Value) -> None:
    """Round one float32 constant to float16; a finite number must stay finite.

    The largest float32 numbers stand for infinity, in masks; they become float16's largest.
    """
    assert value.const_value is not None
    exact = value.const_value.numpy()
    ends = np.abs(exact) == np.finfo(np.float32).max
    exact = np.where(ends, np.copysign(np.float32(np.finfo(np.float16).max), exact), exact)
    with np.errstate(over="ignore"):
        rounded = exact.astype(np.float16)
    overflowed = int(np.count_nonzero(np.isfinite(exact) & ~np.isfinite(rounded)))
    if overflowed:
        raise ExportError(
            f"{value.name}: expected values within float16's +-65504, found {overflowed} beyond "
            "it; export with float16=False"
        )
    value.const_value = ir.tensor(rounded, name=value.name)
    value.dtype = HALF


def _convert_attributes(node: ir.Node) -> None:
    """Turn attributes that ask for float32 results into float16: casts and constant fills."""
    for key, attribute in list(node.attributes.items()):
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            raise ExportError(
                f"{node.name}: expected a graph without control flow, found {node.op_type}; "
                "export with float16=False"
            )
        # "to" is Cast's, "dtype" that of EyeLike and the like: both hold a data type's number.
        if key in ("to", "dtype") and attribute.value == FLOAT:
            node.attributes[key] = ir.AttrInt64(key, int(HALF))
        if attribute.type == ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            if tensor.dtype == FLOAT:
                half = ir.tensor(tensor.numpy().astype(np.float16))
                node.attributes[key] = ir.AttrTensor(key, half)


def _cast_ends(graph: ir.Graph) -> None:
    """Cast the graph's float32 inputs to float16, and its results back to float32."""
    first = next(iter(graph))
    for value in graph.inputs:
        if value.dtype == FLOAT:
            uses = list(value.uses())
            cast = _cast(value, HALF)
            graph.insert_before(first, cast)
            for use in uses:
                use.node.replace_input_with(use.idx, cast.outputs[0])
    for index, value in enumerate(graph.outputs):
        if value.dtype == HALF:
            name = value.name
            value.name = f"{name}_float16"
            cast = _cast(value, FLOAT)
            cast.outputs[0].name = name
            graph.append(cast)
            graph.outputs[index] = cast.outputs[0]


def _cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    """Return a node that casts ``value``; its output has the same shape."""
    name = f"{value.name}_{'float16' if dtype == HALF else 'float32'}"
    output = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape)
    return ir.Node(
        "", "Cast", [value], [ir.AttrInt64("to", int(dtype))], outputs=[output], name=f"cast_{name}"
    )

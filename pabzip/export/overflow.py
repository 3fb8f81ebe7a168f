"""Find values of a float16 model that overflow on the way, where its logits may not show them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pabzip.errors import ExportError
from pabzip.export.graph import INPUT
from pabzip.runtime.onnx_session import create_session


def check_range(model: bytes, batches: Sequence[np.ndarray]) -> None:
    """Refuse a float16 model in which a value between two operators overflows.

    ONNX Runtime computes much of a float16 graph in float32 on the CPU, and so gets right logits
    where a GPU would get infinity. Made an output, each value is rounded to float16 and shows.

    Args:
        model: a serialised float16 model, as `pabzip.export.half` makes it.
        batches: float32 images ``(N, C, H, W)`` to run it on.

    Raises:
        ExportError: a value is infinite or NaN; the message names the first one.
    """
    import onnx

    proto = onnx.load_from_string(model)
    produced = {name for node in proto.graph.node for name in node.output}
    halves = [
        value
        for value in proto.graph.value_info
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16 and value.name in produced
    ]
    proto.graph.output.extend(halves)
    names = [value.name for value in halves]
    session = create_session(proto.SerializeToString())
    for batch in batches:
        for name, found in zip(names, session.run(names, {INPUT: batch}), strict=True):
            beyond = found.size - int(np.count_nonzero(np.isfinite(found)))
            if beyond:
                raise ExportError(
                    f"{name}: expected values within float16's +-65504, found {beyond} of "
                    f"{found.size} beyond it on the images of the check; export with float16=False"
                )

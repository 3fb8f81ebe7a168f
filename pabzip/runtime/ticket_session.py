"""Run tickets in ONNX Runtime, with no file in between."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pabzip.export.build import build_onnx
from pabzip.export.source import read_source
from pabzip.runtime.onnx_session import Provider, session_maker

if TYPE_CHECKING:
    from typing import Unpack

    from onnxruntime import InferenceSession
    from torch import nn

    from pabzip.export.build import OnnxOptions


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

    The graph is the one that `pabzip.export.export_ticket` would write, and is checked against
    torch in the same way before the session is handed out. Needs torch, onnx and onnxscript; to
    deploy without them, export once and use `open_onnx`.

    Args:
        source: a path, or the bytes of a ``.pabz`` file.
        providers: execution providers in order of preference; None takes the CPU.
        net: a network to load the ticket into, for a custom architecture; a copy is used.
        input_shape: ``(C, H, W)`` of one image; None takes it from the registry.
        max_bytes: refuse a file whose tensors take more than this many bytes once regenerated.
        options: ``opset``, ``float16``, ``dynamic_batch``, ``tolerance`` and ``samples`` of
            `pabzip.export.build_onnx`.

    Returns:
        A session with the float32 input ``"images"`` (batch, C, H, W) and the float32 output
        ``"logits"`` (batch, classes).

    Raises:
        FormatError: the file is damaged or not a ticket.
        ArchitectureError: a custom architecture without ``net``, or a ``net`` that does not fit.
        ExportError: the graph cannot be built, or does not agree with torch.
        MissingDependencyError: a package of the extra ``onnx``, or a provider, is not there.
    """
    create = session_maker(providers)
    found = read_source(source, net=net, input_shape=input_shape, max_bytes=max_bytes)
    built = build_onnx(found.net, input_shape=found.input_shape, metadata=found.metadata, **options)
    return create(built.data)

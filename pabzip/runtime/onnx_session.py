"""Run ONNX models in ONNX Runtime: sessions, and logits from them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from pabzip._optional import require
from pabzip.errors import ExportError, MissingDependencyError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Provider = str | tuple[str, Mapping[str, Any]]
"""An execution provider of ONNX Runtime, by name, or name and options."""

_DEFAULT_PROVIDERS: tuple[Provider, ...] = ("CPUExecutionProvider",)
_LOG_ERRORS_ONLY = 3


def open_onnx(
    source: str | os.PathLike[str] | bytes, *, providers: Sequence[Provider] | None = None
) -> InferenceSession:
    """Open an exported ONNX file; only onnxruntime is needed.

    Args:
        source: a path, or the bytes of a model. The model must be self-contained: it is read
            into memory, and no other file that it may name is opened.
        providers: execution providers in order of preference; None takes the CPU.

    Returns:
        The session.

    Raises:
        ExportError: ONNX Runtime cannot read the model.
        MissingDependencyError: onnxruntime, or a provider, is not there.
        OSError: the file cannot be read.
    """
    create = session_maker(providers)
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    try:
        return create(data)
    except ExportError as error:
        if isinstance(source, bytes):
            raise
        raise ExportError(f"{os.fspath(source)}: {error}") from error


def session_logits(session: InferenceSession) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from images to logits that runs ``session``.

    Args:
        session: one of `pabzip.load_session` or `open_onnx`.

    Returns:
        A function of one array ``(N, C, H, W)``, converted to float32, that returns float32
        logits ``(N, classes)``. A model with a fixed batch is run as often as needed; ``N`` must
        then be a multiple of it. The function raises ExportError for images of another shape.

    Raises:
        ExportError: the model takes more than one input, or no float32; run it by ``session.run``.
    """
    image, *others = session.get_inputs()
    name, shape = image.name, list(image.shape)
    if others or image.type != "tensor(float)":
        found = ", ".join(f"{value.name} {value.type}" for value in session.get_inputs())
        raise ExportError(
            f"expected a model of images, with one float32 input, found {found}; call session.run "
            "with arrays by these names"
        )

    def logits(images: np.ndarray) -> np.ndarray:
        batch = np.ascontiguousarray(images, dtype=np.float32)
        if list(batch.shape[1:]) != shape[1:]:
            raise ExportError(
                f"input {name!r}: expected images of shape {['N', *shape[1:]]}, found "
                f"{list(batch.shape)}; resize them, or export with their input_shape"
            )
        if not isinstance(shape[0], int):
            return np.asarray(session.run(None, {name: batch})[0])
        if len(batch) == 0 or len(batch) % shape[0]:
            raise ExportError(
                f"input {name!r}: expected a multiple of the fixed batch of {shape[0]}, found "
                f"{len(batch)} images; export with dynamic_batch=True"
            )
        parts = np.split(batch, len(batch) // shape[0])
        return np.concatenate([session.run(None, {name: part})[0] for part in parts])

    return logits


def session_maker(
    providers: Sequence[Provider] | None = None,
) -> Callable[[bytes], InferenceSession]:
    """Return what makes a session of a serialized model, which logs errors alone.

    Runtime and providers are checked now, before any work.

    Raises:
        MissingDependencyError: onnxruntime, or a provider, is not there. What is returned raises
            ExportError for a model that ONNX Runtime cannot read.
    """
    runtime = _onnxruntime()
    chosen = _checked_providers(runtime, providers)

    def create(model: bytes) -> InferenceSession:
        settings = runtime.SessionOptions()
        settings.log_severity_level = _LOG_ERRORS_ONLY
        try:
            return runtime.InferenceSession(model, settings, providers=chosen)
        except Exception as error:  # ONNX Runtime's errors share no base class of their own
            raise ExportError(
                f"expected a model that ONNX Runtime {runtime.__version__} can open, found: "
                f"{error}; export it again, or upgrade onnxruntime"
            ) from error

    return create


def _checked_providers(runtime: ModuleType, providers: Sequence[Provider] | None) -> list[Provider]:
    """Refuse providers that ONNX Runtime would only warn about, and then leave out."""
    chosen = list(_DEFAULT_PROVIDERS if providers is None else providers)
    available = runtime.get_available_providers()
    for provider in chosen:
        name = provider if isinstance(provider, str) else provider[0]
        if name not in available:
            raise MissingDependencyError(
                f"providers: expected some of {', '.join(available)}, found {name!r}; for CUDA "
                "replace onnxruntime by its GPU build: pip uninstall onnxruntime, then "
                "pip install 'pabzip[onnx-gpu]'"
            )
    return chosen


def _onnxruntime() -> ModuleType:
    """Import onnxruntime, unless two builds of it share one folder and break each other."""
    if _installed("onnxruntime") and _installed("onnxruntime-gpu"):
        raise MissingDependencyError(
            "onnxruntime: expected one build, found both onnxruntime and onnxruntime-gpu, which "
            "overwrite each other's files; run: pip uninstall onnxruntime onnxruntime-gpu, then "
            "pip install 'pabzip[onnx]' (CPU) or pip install 'pabzip[onnx-gpu]' (CUDA)"
        )
    return require("onnxruntime", extra="onnx", purpose="running an ONNX model")


def _installed(distribution: str) -> bool:
    """Return whether a distribution is installed, without importing it."""
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True

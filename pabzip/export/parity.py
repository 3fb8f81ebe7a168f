"""Check that an exported model computes what its network computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pabzip.errors import ExportError
from pabzip.seeds import InitSpec, weights

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from torch import nn

TOLERANCE = 1e-4
"""Largest difference of float32 logits, relative to the largest logit of the check."""

FLOAT16_TOLERANCE = 1e-2
"""The same for float16, whose values carry 11 bits: a few dozen roundings of 2**-11 each."""

_TIE_ROUNDINGS = 16
_DRAWN_BATCHES = (1, 2, 5)
_SAMPLES_PER_BATCH = 64
_SEED = 0
_STREAM = 0


def check_batches(
    input_shape: Sequence[int], samples: Any = None, *, dynamic_batch: bool = True
) -> list[np.ndarray]:
    """Return the batches of images to check on.

    They are float32, and the first is of one image; without ``dynamic_batch`` all are. Without
    ``samples`` they are standard normal images from pabzip's own generator, always the same ones.

    Raises:
        ExportError: ``samples`` are not images of ``input_shape``.
    """
    shape = tuple(input_shape)
    if samples is None:
        sizes = _DRAWN_BATCHES
        spec = InitSpec("normal", 1.0, _STREAM)
        drawn = weights(_SEED, spec, 0, sum(sizes) * int(np.prod(shape)))
        images = drawn.reshape(-1, *shape)
        ends = np.cumsum(sizes)[:-1].tolist()
    else:
        if hasattr(samples, "detach"):  # a tensor on any device
            samples = samples.detach().cpu().float().numpy()
        images = np.ascontiguousarray(samples, dtype=np.float32)
        if images.shape[1:] != shape or len(images) == 0:
            raise ExportError(
                f"samples: expected at least one image of shape {list(shape)}, found an array of "
                f"shape {list(images.shape)}; pass (N, C, H, W) images that fit input_shape"
            )
        ends = [1, *range(1 + _SAMPLES_PER_BATCH, len(images), _SAMPLES_PER_BATCH)]
    if not dynamic_batch:
        ends = list(range(1, len(images)))
    return [batch for batch in np.split(images, ends) if len(batch)]


def reference_logits(net: nn.Module, batches: Sequence[np.ndarray]) -> np.ndarray:
    """Return torch's float32 logits ``(N, classes)`` of all batches.

    Raises:
        ExportError: the network refuses the images, or does not return finite logits.
    """
    import torch

    name = type(net).__name__
    parts = []
    for batch in batches:
        try:
            with torch.no_grad():
                found = net(torch.from_numpy(batch))
        except (RuntimeError, ValueError, TypeError) as error:
            raise ExportError(
                f"{name}: expected a network that takes images of shape {['N', *batch.shape[1:]]}, "
                f"found: {str(error).splitlines()[0]}; check input_shape"
            ) from error
        if not isinstance(found, torch.Tensor) or found.ndim != 2 or len(found) != len(batch):
            shape = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise ExportError(
                f"{name}: expected one tensor of logits [{len(batch)}, classes], found {shape}; "
                "export a network that returns its logits alone"
            )
        parts.append(found.to(torch.float32).numpy())
    logits = np.concatenate(parts)
    if not np.isfinite(logits).all():
        raise ExportError(
            f"{name}: expected finite logits, found NaN or infinity from torch itself on the "
            "images of the check; pass samples= of the kind the network was trained on"
        )
    return logits


def check_parity(
    run: Callable[[np.ndarray], np.ndarray],
    batches: Sequence[np.ndarray],
    expected: np.ndarray,
    *,
    tolerance: float,
    float16: bool = False,
) -> float:
    """Compare a model with the logits that torch gave.

    Logits may differ by ``tolerance`` times the largest absolute logit. Classes must be the same,
    except where torch's own logits of the two classes are a tie: within 16 roundings of the
    precision (2**-24 or 2**-11, relative to the largest logit).

    ``run`` goes from images ``(N, C, H, W)`` to logits ``(N, classes)``; ``expected`` are torch's
    of all ``batches``, finite. Returns the largest difference, relative to the largest logit.

    Raises:
        ExportError: they differ by more; the message names the largest difference.
    """
    found = np.concatenate([run(batch) for batch in batches])
    if found.shape != expected.shape:
        raise ExportError(
            f"parity: expected logits of shape {list(expected.shape)}, found {list(found.shape)} "
            "from ONNX Runtime; nothing was written"
        )
    # A network whose logits are all zero must be matched exactly.
    largest = float(np.abs(expected).max()) or 1.0
    differences = np.abs(found.astype(np.float64) - expected)
    differences[np.isnan(differences)] = np.inf
    image, label = np.unravel_index(int(differences.argmax()), differences.shape)
    relative = float(differences[image, label]) / largest
    if not relative <= tolerance:
        raise ExportError(
            f"parity: expected logits within {tolerance:g} of torch's, relative to the largest "
            f"({largest:.6g}), found a difference of {relative:.3g} at image {image}, class "
            f"{label} (torch {expected[image, label]:.6g}, ONNX Runtime {found[image, label]:.6g})"
            f"; nothing was written{_way_out(float16)}"
        )
    rows = np.arange(len(expected))
    margins = expected.max(axis=1) - expected[rows, found.argmax(axis=1)]
    ties = _TIE_ROUNDINGS * (2.0**-11 if float16 else 2.0**-24) * largest
    wrong = np.flatnonzero(margins > ties)
    if wrong.size:
        first = int(wrong[0])
        raise ExportError(
            f"parity: expected the same classes as torch, found {wrong.size} of {len(expected)} "
            f"images in another class, image {first} first (torch {int(expected[first].argmax())}, "
            f"ONNX Runtime {int(found[first].argmax())}; largest difference of logits "
            f"{relative:.3g}); nothing was written{_way_out(float16)}"
        )
    return relative


def _way_out(float16: bool) -> str:
    """Return what to try when a model disagrees."""
    if float16:
        return "; export with float16=False"
    return "; a network that branches on its batch needs dynamic_batch=False"


@dataclass(frozen=True)
class Case:
    """One comparison: inputs, and what torch makes of them, arrays by name."""

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def check_outputs(
    session: InferenceSession, cases: Sequence[Case], *, tolerance: float, float16: bool = False
) -> float:
    """Compare a model with what torch gave.

    Floating outputs may differ by ``tolerance`` times the largest absolute value of the output in
    all cases, infinities must be the same; all others must be equal. ``session`` is one of ONNX
    Runtime. Returns the largest difference, relative to the largest value of its output.

    Raises:
        ExportError: they differ by more; the message names output and shapes.
    """
    worst = 0.0
    for name in [value.name for value in session.get_outputs()]:
        pairs = []
        for case in cases:
            found = session.run([name], case.inputs)[0]
            pairs.append((case, case.outputs[name], np.asarray(found)))
        finite = [np.abs(expected[np.isfinite(expected)]) for _, expected, _ in pairs]
        largest = max((float(part.max()) for part in finite if part.size), default=0.0) or 1.0
        for case, expected, found in pairs:
            shapes = ", ".join(f"{key} {list(array.shape)}" for key, array in case.inputs.items())
            if expected.shape != found.shape:
                raise ExportError(
                    f"parity: expected the output {name!r} of shape {list(expected.shape)} for "
                    f"{shapes}, found {list(found.shape)} from ONNX Runtime; nothing was written"
                )
            relative = _difference(expected, found) / largest
            exact = expected.dtype.kind != "f"
            if not relative <= (0.0 if exact else tolerance):
                allowed = "equal to" if exact else f"within {tolerance:g} of"
                hint = "float16=False" if float16 else "fewer open axes, or an output= without it"
                raise ExportError(
                    f"parity: expected the output {name!r} {allowed} torch's, "
                    f"relative to the largest ({largest:.6g}), found a difference of "
                    f"{relative:.3g} for {shapes}; nothing was written, export with {hint}"
                )
            worst = max(worst, relative)
    return worst


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    """Return the largest difference; infinite where one of two is not finite."""
    if expected.size == 0:
        return 0.0
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(expected, found) else np.inf
    with np.errstate(invalid="ignore"):
        differences = np.abs(found.astype(np.float64) - expected)
    differences = np.where(found == expected, 0.0, differences)
    return float(np.where(np.isnan(differences), np.inf, differences).max())

"""Accuracy and loss of a network, a file, or anything else that turns images into logits.

Training and ``pabzip eval`` print the same numbers because they run this code on the same batches,
with weights that lie the same way in memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pabzip.data import AnyImages, ImageFiles, Images, Splits, batches, load
from pabzip.errors import BaseFileError, DataError
from pabzip.packing.base import BaseSource
from pabzip.swap import swapped
from pabzip.train.build import evaluation_mode
from pabzip.train.distributed import bounds
from pabzip.train.results import Results
from pabzip.wrappers import is_sharded, runnable, uncompiled

BATCH_SIZE = 256
"""Images in a batch of `evaluate`."""

Model = nn.Module | Callable[[Tensor], Any]
"""A network, or a function from normalized images ``float32[B, C, H, W]`` to logits
``[B, classes]`` (tensor or array), such as a wrapped ONNX session."""


@dataclass(frozen=True, slots=True)
class Evaluation(Results):
    """What `evaluate` found; the keys of ``pabzip eval --json``.

    Attributes:
        accuracy: fraction of the samples whose largest logit is their label's.
        loss: mean cross-entropy in nats.
        samples: number of images.
    """

    accuracy: float
    loss: float
    samples: int


def evaluate(
    model: Model | str | os.PathLike[str],
    data: AnyImages | Splits | str | Iterable[tuple[Tensor, Tensor]] | None = None,
    *,
    device: torch.device | str | None = None,
    batch_size: int = BATCH_SIZE,
) -> Evaluation:
    """Measure accuracy and loss of a classifier: ``pabzip.evaluate("model.pabz")``.

    A network is measured in evaluation mode, which is undone afterwards, and with its weights
    contiguous, as a loaded file has them, wherever they lie meanwhile. Nothing else of it changes.
    Of a wrapped network the one inside is measured, uncompiled and on one device, as what is
    compiled or split may differ in the last bits; only FSDP, which holds parts of the weights, runs
    as it is, on all ranks.

    Args:
        model: a network; a path of a ticket (``.pabz``), a checkpoint (``.pt``, ``.pth``) or an
            exported model (``.onnx``), whose architecture is a registered one; or a function from
            normalized images ``float32[B, C, H, W]`` to logits ``[B, classes]`` (tensor or array).
        data: images of `pabzip.data`; `Splits`, of which the test set counts; the name of a
            dataset, which must be on disk; or a ``DataLoader`` or other iterable of batches
            ``float32[B, C, H, W]``, normalized, and labels ``int64[B]``. None takes the dataset
            that the file at ``model`` says it was trained on.
        device: where the batches go, and where a file's network is loaded. By default the
            network's own device, or else the CPU.
        batch_size: images at a time, where ``data`` is no batches already. Another size than the
            default may change the last bits of the logits.

    Returns:
        Accuracy as a fraction, mean cross-entropy in nats, and the number of images.

    Raises:
        DataError: ``data`` is empty or missing, or a file of it cannot be read.
        FormatError, CheckpointError, ExportError: ``model`` is a damaged file.
        ArchitectureError: the file is of a custom architecture; build the network, load the file
            into it (`pabzip.load_into`), and pass that.
        OSError: the file cannot be opened.
    """
    if isinstance(model, str | os.PathLike):
        opened = open_model(model, device or "cpu")
        model, data = opened.model, opened.data if data is None else data
    if isinstance(data, str):
        data = load(data)
    if isinstance(data, Splits):
        data = data.test
    if data is None:
        raise DataError(
            "evaluate: expected data to measure on, found none, and no file that names its own; "
            "pass images, a DataLoader or the name of a dataset"
        )
    if isinstance(data, Images | ImageFiles):
        sums = batch_sums(model, data, device=device, batch_size=batch_size)
        return summarized(sums, len(data))
    rows, samples = [], 0
    with _ready(model, device) as (forward, where):
        for inputs, labels in data:
            rows.append(_measure(forward, inputs.to(where), labels.to(where)))
            samples += len(labels)
    if not samples:
        raise DataError("evaluate: expected at least one image, found none")
    return summarized(torch.stack(rows), samples)


def batch_sums(
    model: Model,
    images: AnyImages,
    *,
    device: torch.device | str | None = None,
    batch_size: int = BATCH_SIZE,
    part: tuple[int, int] = (0, 1),
) -> Tensor:
    """Measure the batches of one process; the sums of all of them, added, are those of one alone.

    Nothing waits for the device. ``part`` is the rank of this process and the number of processes;
    all other arguments are those of `evaluate`.

    Returns:
        ``float64[batches, 2]`` on the device: how many images of each batch were classified
        rightly, and their summed loss; zeros for the batches of other processes.
    """
    if len(images) == 0:
        raise DataError("evaluate: expected at least one image, found none")
    count = -(-len(images) // batch_size)
    rank, ranks = part
    mine = range(*bounds(count, ranks, rank))
    with _ready(model, device) as (forward, where):
        sums = torch.zeros(count, 2, dtype=torch.float64, device=where)
        walk = batches(images, batch_size, device=where, start=mine.start)
        for batch, (inputs, labels) in zip(mine, walk, strict=False):
            sums[batch] = _measure(forward, inputs, labels)
    return sums


def summarized(sums: Tensor, samples: int) -> Evaluation:
    """Return what `batch_sums` of all processes, added, tell of ``samples`` images."""
    correct, loss = sums.sum(0).tolist()
    return Evaluation(correct / samples, loss / samples, samples)


@contextmanager
def _ready(
    model: Model, device: torch.device | str | None
) -> Iterator[tuple[Callable[[Tensor], Any], torch.device]]:
    """Yield a function to logits, in evaluation mode and without gradients, and its device."""
    with torch.no_grad():
        if not isinstance(model, nn.Module):
            yield model, torch.device(device or "cpu")
            return
        if not is_sharded(model):
            model = runnable(model)
        own = next((parameter.device for parameter in model.parameters()), "cpu")
        # A convolution adds in another order where its weights lie otherwise. Strides decide, not
        # is_contiguous, for which a kernel of one pixel lies both ways.
        moved = [
            (parameter, parameter.detach().clone(memory_format=torch.contiguous_format))
            for parameter in model.parameters()
            if parameter.stride() != torch.empty(parameter.shape, device="meta").stride()
        ]

        def forward(inputs: Tensor) -> Any:
            with swapped(model, moved):
                return model(inputs)

        with evaluation_mode(model), uncompiled():
            yield forward if moved else model, torch.device(device or own)


def _measure(forward: Callable[[Tensor], Any], inputs: Tensor, labels: Tensor) -> Tensor:
    """Return how many of a batch are classified rightly and their summed loss, float64[2]."""
    logits = torch.as_tensor(forward(inputs), device=labels.device)
    correct = (logits.argmax(1) == labels).sum()
    loss = F.cross_entropy(logits.double(), labels, reduction="sum")
    return torch.stack([correct.double(), loss])


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """What `open_model` read.

    Attributes:
        model: the network, or a function to logits.
        data: the dataset that the file says it was trained on, if it does.
        held_out: fraction of the training images that it says were held out, and the seed that
            chose them, as `pabzip.data.hold_out` takes both; if it does.
    """

    model: Model
    data: str | None
    held_out: tuple[float, int] | None


def open_model(
    source: str | os.PathLike[str] | bytes,
    device: torch.device | str,
    *,
    net: nn.Module | None = None,
    max_bytes: int | None = None,
    base: BaseSource | None = None,
) -> OpenedModel:
    """Read a ticket, a checkpoint (.pt, .pth) or an exported model (.onnx), by its suffix.

    Args:
        source: a path, or the bytes of a ticket.
        device: where a network runs; an exported model runs on the CPU.
        net: takes the weights in place of the network that the file names.
        max_bytes: refuse a ticket that regenerates to more.
        base: what a ticket of changes was packed on, as for `pabzip.open`.

    Raises:
        BaseFileError: as for `pabzip.open`; also a ``base`` for what is no ticket.
    """
    path = Path("" if isinstance(source, bytes) else source)
    suffix = path.suffix.lower()
    told: Mapping[str, object]
    model: Model
    seed: int | None = None
    if base is not None and suffix in (".onnx", ".pt", ".pth"):
        raise BaseFileError(
            f"{path}: expected a ticket of changes (.pabz) beside a base, found a {suffix} file, "
            "which needs none; leave out base (--base)"
        )
    if suffix == ".onnx":
        from pabzip.runtime.onnx_session import open_onnx, session_logits

        session = open_onnx(path)
        logits = session_logits(session)
        model = lambda images: logits(images.cpu().numpy())  # noqa: E731
        told = {"data": session.get_modelmeta().custom_metadata_map.get("pabzip.data")}
    elif suffix in (".pt", ".pth"):
        from pabzip.checkpoint import load_checkpoint, network_from_checkpoint

        checkpoint = load_checkpoint(path)
        model = network_from_checkpoint(checkpoint, net).to(device)
        told, seed = checkpoint.metadata(), checkpoint.seed
    else:
        from pabzip.runtime import loaders
        from pabzip.ticket import Ticket

        with Ticket.open(source, max_bytes=max_bytes) as ticket:
            told, seed = ticket.metadata, ticket.seed
        if net is None:
            model = loaders.load(source, device=device, max_bytes=max_bytes, base=base)
        else:
            loaded = loaders.load_into(net, source, max_bytes=max_bytes, base=base)
            model = loaded.to(device)
    data, fraction = told.get("data"), told.get("validation")
    held_out = None
    if isinstance(fraction, int | float) and fraction and seed is not None:
        held_out = fraction, seed
    return OpenedModel(model, data if isinstance(data, str) and data else None, held_out)

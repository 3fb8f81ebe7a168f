"""A state dict regenerated on a CUDA device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pabzip.formats.context.decoder import ContextDecoder
from pabzip.runtime.cuda_decode import Launched, launch
from pabzip.runtime.decode_tables import CodedTensor, decode_tables
from pabzip.seeds import cuda, pack_codes
from pabzip.seeds.triton_kernels import KINDS
from pabzip.ticket import Ticket, naming

_ALIGNMENT = 16  # bytes: of the widest load that a kernel makes


def send(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[torch.Tensor]:
    """Copy arrays to ``device`` together, by way of page-locked memory where it is a GPU.

    The copy is queued on the device's current stream; nothing is waited for, and the arrays may
    change as soon as this returns.

    Args:
        arrays: of any shapes and of dtypes that torch knows.
        device: where to.

    Returns:
        Flat tensors on ``device``. They share one allocation, which lives as long as any of them:
        clone what is to be kept.
    """
    starts, size = [], 0
    for array in arrays:
        starts.append(size)
        size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    host = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    view = host.numpy()
    for start, array in zip(starts, arrays, strict=True):
        flat = np.ascontiguousarray(array).reshape(-1)
        view[start : start + flat.nbytes] = flat.view(np.uint8)
    sent = host.to(device, non_blocking=True)
    return [
        sent[start : start + array.nbytes].view(_torch_type(array.dtype))
        for start, array in zip(starts, arrays, strict=True)
    ]


def _torch_type(dtype: np.dtype[Any]) -> torch.dtype:
    """Return torch's name of a numpy dtype."""
    return torch.from_numpy(np.empty(0, dtype=dtype)).dtype


State = dict[str, torch.Tensor]


def read_tensors(
    ticket: Ticket,
    names: Iterable[str],
    *,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
) -> State:
    """Make tensors of a ticket on the GPU.

    Tensors of the ``context`` coder travel as the file has them, in one copy, and are decoded by
    the GPU while the host reads the rest. That travels in a second copy: tensors of other coders
    or with scales as packed codes, two bits a weight, and dense ones as they are. The device is
    waited for once, at the end, and only where there are context-coded tensors.

    Args:
        ticket: opened from a file, or in memory.
        names: of its tensors.
        device: a CUDA device (the CPU under Triton's interpreter).
        dtype: floating dtype of all floating tensors; None keeps each tensor's own.

    Returns:
        Tensors by name, each in memory of its own, to the bit those that the CPU makes.

    Raises:
        FormatError: the file is damaged; the message names the tensor.
        KeyError: no tensor of a name.
        SeedError: the device does not run Triton's kernels.
    """
    target = cuda.kernel_device(device)
    names = list(names)
    made = dtype if dtype in cuda.DTYPES else torch.float32  # float64 takes a second step
    state: State = {}
    launched = _start_coded(ticket, names, state, target, made)
    _make_rest(ticket, [name for name in names if name not in state], state, target, made)
    if launched is not None:
        with naming(ticket.file):
            launched.check()
    found = {name: state[name] for name in names}
    if dtype is None:
        return found
    return {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in found.items()
    }


def _start_coded(
    ticket: Ticket, names: Sequence[str], state: State, device: torch.device, made: torch.dtype
) -> Launched | None:
    """Queue the decoding of the context-coded tensors, and add them to ``state``."""
    coded: list[CodedTensor] = []
    for name in names:
        source = ticket.coded(name) if ticket.kind(name) == "seeded" else None
        if source is None or not isinstance(source.decoder, ContextDecoder):
            continue
        if source.entry.scaled:
            continue  # scaled where the weights are float32 still
        spec, told = source.entry.spec, source.decoder.descriptions[source.entry.name]
        weights = torch.zeros(source.entry.shape, dtype=made, device=device)
        kind, out = KINDS[spec.distribution], weights.data_ptr()
        coded.append(CodedTensor(name, spec, kind, told, source.payload, out))
        state[name] = weights
    if not coded:
        return None
    with naming(ticket.file):
        tables = decode_tables(coded)
    return launch(ticket.seed, coded, tables, send(tables.arrays(), device), made)


def _make_rest(
    ticket: Ticket, names: Sequence[str], state: State, device: torch.device, made: torch.dtype
) -> None:
    """Add the tensors to ``state`` that the host decodes."""
    arrays = [
        _dense_values(ticket, name)
        if ticket.kind(name) == "dense"
        else pack_codes(ticket.codes(name))
        for name in names
    ]
    scaled = {name: ticket.scales(name) for name in names if ticket.kind(name) == "seeded"}
    scales = {name: values for name, values in scaled.items() if values is not None}
    received = iter(send([*arrays, *scales.values()], device))
    sent_arrays = [next(received) for _ in names]
    sent_scales = dict(zip(scales, received, strict=True))
    for name, sent in zip(names, sent_arrays, strict=True):
        shape = ticket.shape(name)
        if ticket.kind(name) == "seeded":
            spec = ticket.spec(name)
            exact = torch.float32 if name in sent_scales else made
            drawn = cuda.regenerate(ticket.seed, spec, sent, shape, dtype=exact, device=device)
            if name in sent_scales:
                rows = sent_scales[name].view(-1, *[1] * (len(shape) - 1))
                drawn = (drawn * rows).to(made)
            state[name] = drawn
        else:
            values = sent.view(torch.bfloat16) if ticket.dtype(name) == "bfloat16" else sent
            state[name] = values.view(shape).clone()


def _dense_values(ticket: Ticket, name: str) -> NDArray[Any]:
    """Return the values of a dense tensor, in a dtype that torch knows: bfloat16 as int16."""
    stored = ticket.dense(name)
    values = np.ascontiguousarray(stored.values)
    return values.view(np.int16) if stored.dtype == "bfloat16" else values

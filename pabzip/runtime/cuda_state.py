"""Tensors of a ticket made on a CUDA device, from the bytes of the file.

Of context-coded tensors the compressed payload crosses the bus, and a description of a few numbers
a channel. Codes and magnitudes are never written out; the scratch memory is five bytes an active
weight. The work of all tensors is queued without waiting for the device, and what the kernels found
wrong is read once, at the end.

With ``TRITON_INTERPRET=1`` the same kernels run on the CPU, slowly, and are tested so, to the bit;
they compile for sm_90. They have not been run or timed on a GPU yet, so no speed is claimed;
``tests/runtime/test_triton_decode.py`` checks them and prints timings where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.formats.context.decoder import FINE, PROBLEMS, ContextDecoder
from pabzip.formats.context.geometry import FRACTIONS
from pabzip.formats.context.model import BUCKET_OF
from pabzip.formats.limits import tensor_place
from pabzip.runtime.decode_tables import CHUNK_FIELDS, PIECE, CodedTensor, decode_tables
from pabzip.runtime.triton_decode_kernels import decode_kernel, predict_kernel, write_kernel
from pabzip.seeds import cuda, pack_codes
from pabzip.seeds.cuda import as_int32, table_on
from pabzip.seeds.philox import split_seed
from pabzip.ticket import DenseTensor, Ticket
from pabzip.ticket_tensors import naming

State = dict[str, torch.Tensor]

_ALIGNMENT = 16  # bytes: of the widest load that a kernel makes
_ELEMENTS = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}


def read_tensors(
    ticket: Ticket,
    names: Iterable[str],
    *,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    as_stored: bool = False,
    bitnet_scale: str | None = None,
) -> State:
    """Make tensors of a ticket on the GPU.

    Tensors of the ``context`` coder travel as the file has them, in one copy, and are decoded by
    the GPU while the host reads the rest. That travels in a second copy: tensors of other coders,
    with scales or with frozen masks as packed codes, two bits a weight, and all others as they
    are. The device is waited for once, at the end, and only where there are context-coded tensors.

    Arguments and errors are as for `pabzip.runtime.loaders.tensors`; ``device`` is a CUDA device
    (the CPU under Triton's interpreter), and SeedError says that it does not run Triton's kernels.
    Each tensor is in memory of its own, to the bit the one that the CPU makes.
    """
    target = cuda.kernel_device(device)
    names = list(names)
    made = dtype if dtype in cuda.DTYPES else torch.float32  # float64 takes a second step
    state: State = {}
    check = _start_coded(ticket, names, state, target, made)
    rest = [name for name in names if name not in state]
    held = {
        name: ticket.state_tensor(name, as_stored=as_stored, bitnet_scale=bitnet_scale)
        for name in rest
        if ticket.kind(name) != "seeded"
    }
    _make_rest(ticket, rest, held, state, target, made)
    if check is not None:
        with naming(ticket.file):
            check()
    found = {name: state[name] for name in names}
    if dtype is None:
        return found
    return {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in found.items()
    }


def _start_coded(
    ticket: Ticket, names: Sequence[str], state: State, device: torch.device, made: torch.dtype
) -> Callable[[], None] | None:
    """Queue the decoding of the context-coded tensors, and add them to ``state``."""
    coded: list[CodedTensor] = []
    for name in names:
        source = ticket.coded(name) if ticket.kind(name) == "seeded" else None
        if source is None or not isinstance(source.decoder, ContextDecoder):
            continue
        if source.entry.scaled or source.entry.frozen is not None:
            continue  # scaled where the weights are float32 still; frozen masks are the host's work
        description = source.decoder.descriptions[source.entry.name]
        weights = torch.zeros(source.entry.shape, dtype=made, device=device)
        entry = replace(source.entry, name=name)  # not that of a tied one's target
        coded.append(CodedTensor(entry, description, source.payload, weights.data_ptr()))
        state[name] = weights
    if not coded:
        return None
    with naming(ticket.file):
        return launch(ticket.seed, coded, device, made)


def _make_rest(
    ticket: Ticket,
    names: Sequence[str],
    held: Mapping[str, DenseTensor],
    state: State,
    device: torch.device,
    made: torch.dtype,
) -> None:
    """Add the tensors to ``state`` that the host decodes; of ``held`` those without a seed."""
    arrays = [
        _values(held[name]) if name in held else pack_codes(ticket.codes(name)) for name in names
    ]
    scaled = {name: ticket.scales(name) for name in names if ticket.kind(name) == "seeded"}
    scales = {name: values for name, values in scaled.items() if values is not None}
    received = iter(send([*arrays, *scales.values()], device))
    sent_arrays = [next(received) for _ in names]
    sent_scales = dict(zip(scales, received, strict=True))
    for name, sent in zip(names, sent_arrays, strict=True):
        shape = held[name].shape if name in held else ticket.shape(name)
        if name not in held:
            spec = ticket.spec(name)
            exact = torch.float32 if name in sent_scales else made
            drawn = cuda.regenerate(ticket.seed, spec, sent, shape, dtype=exact, device=device)
            if name in sent_scales:
                rows = sent_scales[name].view(-1, *[1] * (len(shape) - 1))
                drawn = (drawn * rows).to(made)
            state[name] = drawn
        else:
            values = sent.view(torch.bfloat16) if held[name].dtype == "bfloat16" else sent
            state[name] = values.view(shape).clone()


def _values(tensor: DenseTensor) -> NDArray[Any]:
    """Return the values of a tensor, in a dtype that torch knows: bfloat16 as int16."""
    values = np.ascontiguousarray(tensor.values)
    return values.view(np.int16) if tensor.dtype == "bfloat16" else values


def send(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[torch.Tensor]:
    """Copy arrays to ``device`` together, by way of page-locked memory where it is a GPU.

    The copy is queued on the device's current stream; nothing is waited for, and the arrays, whose
    dtypes torch must know, may change as soon as this returns. The tensors are flat and share one
    allocation, which lives as long as any of them: clone what is to be kept.
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


def launch(
    seed: int,
    tensors: Sequence[CodedTensor],
    device: torch.device,
    dtype: torch.dtype,
) -> Callable[[], None]:
    """Queue the decoding of one or more tensors on the current stream of their device.

    Their weights are on ``device``, all of ``dtype``, one of `pabzip.seeds.cuda.DTYPES`; the
    half-precision values are the float32 ones rounded to nearest even. What is returned waits for
    the device, and raises `FormatError` if it could not decode a chunk: what was written for that
    tensor must not be used.
    """
    tables = decode_tables(tensors)
    data, chunks, chunk_of, rows, places, place_offsets, chances = send(tables, device)
    device = data.device  # with its number
    fractions, bucket_of = _constants_on(device)
    key_0, key_1 = (as_int32(word) for word in split_seed(seed))
    pieces = len(tables.chunk_of)

    def scratch(count: int, kind: torch.dtype) -> torch.Tensor:
        """Return memory that the kernels fill."""
        return torch.empty(count, dtype=kind, device=device)

    fates = scratch(pieces * PIECE, torch.uint8)
    entries = scratch(pieces * PIECE, torch.int32)
    listed, certain = scratch(pieces, torch.int32), scratch(pieces, torch.int32)
    before = scratch(pieces, torch.int64)
    statuses = scratch(len(tables.chunks), torch.int32)
    table = table_on(device)
    if pieces:
        with torch.cuda.device_of(data):  # type: ignore[no-untyped-call]
            predict_kernel[(pieces,)](
                chunks, chunk_of, rows, places, place_offsets, chances, table, fractions, bucket_of,
                key_0, key_1, fates, entries, listed, certain,
            )  # fmt: skip
            decode_kernel[(len(tables.chunks),)](
                data, chunks, entries, listed, certain, fates, before, statuses,
                num_warps=1,
            )  # fmt: skip
            write_kernel[(pieces,)](
                data, chunks, chunk_of, rows, places, table, fates, before, key_0, key_1,
                DTYPE=_ELEMENTS[dtype], enable_fp_fusion=False,
            )  # fmt: skip
    of_chunk = tables.chunks[:, CHUNK_FIELDS.index("tensor")].tolist()
    names = [tensors[number].entry.name for number in of_chunk]

    def check() -> None:
        """Wait for the device, and see that every chunk was decoded."""
        found = statuses.cpu().numpy()
        wrong = np.flatnonzero(found != FINE)
        if len(wrong):
            raise FormatError(tensor_place(names[wrong[0]]), PROBLEMS[int(found[wrong[0]])])

    return check


@cache
def _constants_on(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tables of levels and buckets on ``device``: int16 and uint8."""
    return torch.from_numpy(FRACTIONS).to(device), torch.from_numpy(BUCKET_OF).to(device)

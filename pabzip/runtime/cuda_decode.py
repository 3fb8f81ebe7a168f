"""Context-coded tensors on the GPU: from the bytes of the file to weights.

What crosses the bus is the compressed payload and a description of a few numbers a channel. Codes
and magnitudes are never written out; the scratch memory is five bytes an active weight. The work of
all tensors is queued without waiting for the device, and what the kernels found wrong is read
once, at the end.

With ``TRITON_INTERPRET=1`` the same kernels run on the CPU, slowly, and are tested so, to the bit;
they compile for sm_90. They have not been run or timed on a GPU yet, so no speed is claimed;
``tests/runtime/test_triton_decode.py`` checks them and prints timings where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import triton.language as tl

from pabzip.errors import FormatError, shown
from pabzip.formats.context.geometry import FRACTIONS
from pabzip.formats.context.model import BUCKET_OF
from pabzip.formats.context.payload import FINE, PROBLEMS
from pabzip.runtime.decode_tables import CHUNK_FIELDS, PIECE, CodedTensor, DecodeTables
from pabzip.runtime.triton_decode_kernels import decode_kernel, predict_kernel, write_kernel
from pabzip.seeds.cuda import as_int32, table_on
from pabzip.seeds.philox import split_seed

_ELEMENTS = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}


@dataclass(frozen=True, slots=True, eq=False)
class Launched:
    """Decoding that is under way on a device.

    Attributes:
        names: of the tensor of each chunk.
        statuses: int32, of each chunk, on the device.
    """

    names: Sequence[str]
    statuses: torch.Tensor

    def check(self) -> None:
        """Wait for the device, and see that every chunk was decoded.

        Raises:
            FormatError: one was not; the message names its tensor. What was written for it must
                not be used.
        """
        statuses = self.statuses.cpu().numpy()
        wrong = np.flatnonzero(statuses != FINE)
        if len(wrong):
            name, status = self.names[wrong[0]], int(statuses[wrong[0]])
            raise FormatError(f"tensor {shown(name)}", PROBLEMS[status])


def launch(
    seed: int,
    tensors: Sequence[CodedTensor],
    tables: DecodeTables,
    sent: Sequence[torch.Tensor],
    dtype: torch.dtype,
) -> Launched:
    """Queue the decoding of all tensors on the current stream of their device.

    Args:
        seed: the file's seed.
        tensors: whose weights are all of ``dtype``.
        tables: of ``tensors``, as `decode_tables` lays them out.
        sent: ``tables.arrays()`` on the device.
        dtype: one of `pabzip.seeds.cuda.DTYPES`; the half-precision values are the float32 ones
            rounded to nearest even.
    """
    data, chunks, chunk_of, rows, places, place_offsets, chances = sent
    device = data.device
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
    return Launched([tensors[number].name for number in of_chunk], statuses)


@cache
def _constants_on(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tables of levels and buckets on ``device``: int16 and uint8."""
    return torch.from_numpy(FRACTIONS).to(device), torch.from_numpy(BUCKET_OF).to(device)

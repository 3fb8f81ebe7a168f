"""The `huffman` coder: Appendix D of Peek-a-Boo, to the bit.

0 (pruned) is the bit ``0``, +1 (sign kept) is ``10``, -1 (sign flipped) is ``11``: N + K bits for
N weights with K survivors, the first bit in the top bit of the first byte, the last byte padded
with zeros. N and K are in the header, so the payload's length is known exactly before it is read.
This module is light: its compiled loops, and numba with them, are loaded with the first codes.

Source: Peek-a-Boo, Appendix D, Figure 6.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.formats.coder import OnTensor, Payload, Spent, Task
from pabzip.formats.limits import tensor_place
from pabzip.formats.seeded import SeededEntry, SeededTensor
from pabzip.registry import register_coder
from pabzip.seeds import regenerate

_BIG_ENDIAN_WORD = np.dtype(">u8")


def huffman_bytes(count: int, survivors: int) -> int:
    """Return the bytes that ``count`` weights with ``survivors`` survivors take."""
    return (count + survivors + 7) // 8


def encode(codes: NDArray[np.int8]) -> bytes:
    """Return the bits of int8 codes of any shape, all 0, +1 or -1, in row-major order."""
    from pabzip.formats.huffman_kernels import encode_words

    flat = codes.reshape(-1)
    length = huffman_bytes(flat.size, int(np.count_nonzero(flat)))
    words = np.zeros((length + 7) // 8, dtype=np.uint64)
    encode_words(flat, words)
    return words.astype(_BIG_ENDIAN_WORD).tobytes()[:length]


def decode(payload: bytes | memoryview, count: int, survivors: int) -> NDArray[np.int8]:
    """Return the codes of a payload: int8, ``(count,)``, of which ``survivors`` are not 0."""
    from pabzip.formats.huffman_kernels import decode_words

    bits, length = count + survivors, huffman_bytes(count, survivors)
    if len(payload) != length:
        raise FormatError("codes", f"expected {length} bytes, found {len(payload)}")
    padding = 8 * length - bits
    if length and payload[-1] & ((1 << padding) - 1):
        raise FormatError("codes", f"expected {padding} zero bits of padding, found others")
    padded = np.zeros((length + 7) // 8 * 8 + 8, dtype=np.uint8)
    padded[:length] = np.frombuffer(payload, dtype=np.uint8)
    codes = np.zeros(count, dtype=np.int8)
    used = decode_words(padded.view(_BIG_ENDIAN_WORD).astype(np.uint64), bits, codes)
    if used != bits:
        difference = "more" if used < 0 or used > bits else f"{used - count}"
        raise FormatError(
            "codes", f"expected {count} codes with {survivors} survivors, found {difference}"
        )
    return codes


@register_coder("huffman")
class Huffman:
    """`pabzip.formats.coder.Coder` of the paper's code; it shares nothing between tensors."""

    def check_length(self, entry: SeededEntry, length: int) -> None:
        """Check that ``length`` is exactly N + K bits, in bytes."""
        expected = huffman_bytes(entry.learned, entry.learned_survivors)
        if length != expected:
            raise FormatError(
                tensor_place(entry.name),
                f"expected {expected} bytes of codes for {entry.learned} weights and "
                f"{entry.learned_survivors} survivors, found {length}",
            )

    def encode(
        self, seed: int, tensors: Sequence[SeededTensor], on_tensor: OnTensor | None = None
    ) -> tuple[list[bytes], bytes]:
        """Return one payload per tensor, and no side stream."""
        payloads = []
        for tensor in tensors:
            marked = tensor.marked(seed)
            payloads.append(encode(marked if tensor.frozen is None else marked[marked <= 1]))
            if on_tensor is not None:
                on_tensor(tensor.name)
        return payloads, b""

    def decoder(self, seed: int, entries: Sequence[SeededEntry], side: bytes) -> HuffmanDecoder:
        """Return what decodes any of the file's Huffman payloads."""
        return HuffmanDecoder(seed)

    def breakdown(self, tensors: Sequence[tuple[SeededEntry, int]], side: bytes) -> list[Spent]:
        """Split N bits of mask and K bits of signs."""
        return [Spent.of(length, sign_bits=entry.learned_survivors) for entry, length in tensors]


class HuffmanDecoder:
    """`pabzip.formats.coder.Decoder` of the paper's code, for a file of this seed."""

    def __init__(self, seed: int):
        self._seed = seed

    def codes(self, entry: SeededEntry, payload: Payload, out: NDArray[np.int8]) -> list[Task]:
        """Return the work that writes codes to ``out``, in one piece."""

        def task() -> None:
            codes = decode(payload, entry.learned, entry.learned_survivors)
            if entry.frozen is None:
                out[:] = codes
            else:
                out[out == 0] = codes

        return [task]

    def weights(self, entry: SeededEntry, payload: Payload, out: NDArray[np.float32]) -> list[Task]:
        """Return the work that writes weights to ``out``, in one piece."""

        def task() -> None:
            codes = decode(payload, entry.count, entry.survivors)
            regenerate(self._seed, entry.spec, codes, threads=1, out=out)

        return [task]

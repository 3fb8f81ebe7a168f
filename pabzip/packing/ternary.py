"""Recognize ternary tensors in any of the forms that they are published in.

Their weights are 0 and plus or minus one scale: of the tensor, of each row, of each group of
successive weights, or of each column. They come as float32, bfloat16, float16 or int8, or packed in
the layouts of transformers' BitNet and of llama.cpp. Most become a `TernaryTensor`, whatever the
form, bit for bit. A float32 mask with structure (empty channels, say) becomes a `SeededTensor`, for
which the ``context`` coder finds that structure; a count tells before anything is fitted.

Sources: Ternary Weight Networks (Li, Zhang, Liu 2016), Section 2.1 (a scale a filter); BitNet b1.58
(Ma et al. 2024), Section 2 (a scale a matrix); `integrations/bitnet.py` and
`quantizers/quantizer_bitnet.py` of transformers (layout and meaning of ``weight_scale``);
`gguf.quants` (blocks).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import PackError, shown
from pabzip.formats import DENSE_TYPES, SeededTensor, TernaryTensor
from pabzip.formats.ternary_layouts import (
    BLOCK,
    FLOATS,
    INFINITY_BITS,
    LAYOUTS,
    SCALE_SUFFIX,
    packed_size,
)
from pabzip.packing.ternary_scales import LEAST_RUN, find_scales, has_structure
from pabzip.seeds import InitSpec, weights
from pabzip.seeds.generation import over_ranges
from pabzip.seeds.spec import MAX_SCALE, MIN_SCALE

LEAST_WEIGHTS = 64
"""A smaller tensor does not pay for a ternary row in the header."""

SMALL = 1 << 16
"""A float32 tensor of fewer weights is fitted in no time, so its codes go to the coders."""

NO_TERNARY = (
    "expected a ternary tensor, found none among {}: float32, float16, bfloat16 or int8, of two or "
    "more dimensions, each value 0 or plus or minus one scale, of the tensor, a row, a group or a "
    "column; pack the quantized weights, not those that training keeps beside them"
)
"""The message where no tensor is ternary, for the number of tensors."""

_LINEAR_CLASSES = {"bitlinear": "divide", "autobitlinear": "multiply"}

Siblings = Mapping[str, tuple[str, tuple[int, ...]]]
"""Element type and shape of all tensors of a checkpoint, by name."""


@dataclass(slots=True)
class TernaryPacker:
    """Recognizes the ternary tensors of one checkpoint, one after the other.

    A tensor that is asked for again becomes the same.

    Attributes:
        seed: of the ticket, for tensors that become seeded ones.
        taken: streams of the ticket's other seeded tensors.
        negative_zero: ``"keep"``, or ``"drop"`` to store -0.0 in ternary tensors as 0.
        bitnet_scale: ``"divide"`` or ``"multiply"``: what the network does with ``weight_scale`` of
            packed BitNet weights; None if that is not known (`bitnet_scale_of`).
        threads: at most so many; None takes every CPU that the process may use.
        recognized: names of those that were; with the stream of those that became seeded ones.
        negative_zeros: how many weights of each were -0.0, by name, whether or not these are kept.
    """

    seed: int = 0
    taken: Container[int] = ()
    negative_zero: str = "keep"
    bitnet_scale: str | None = None
    threads: int | None = None
    recognized: dict[str, int | None] = field(default_factory=dict)
    negative_zeros: dict[str, int] = field(default_factory=dict)
    _streams: Iterator[int] = field(init=False)

    def __post_init__(self) -> None:
        if self.negative_zero not in ("keep", "drop"):
            raise PackError(
                f"negative_zero: expected 'keep' or 'drop', found {shown(self.negative_zero)}"
            )
        if self.bitnet_scale not in (None, "divide", "multiply"):
            raise PackError(
                "bitnet_scale: expected 'divide' or 'multiply' or None, found "
                f"{shown(self.bitnet_scale)}"
            )
        self._streams = (stream for stream in count() if stream not in self.taken)

    @property
    def dropped(self) -> int:
        """How many weights lost the sign of their zero."""
        return sum(self.negative_zeros.values()) if self.negative_zero == "drop" else 0

    def recognize(
        self,
        name: str,
        values: NDArray[Any],
        dtype: str,
        *,
        siblings: Siblings | None = None,
        layout: str | None = None,
    ) -> SeededTensor | TernaryTensor | None:
        """Return a tensor as codes and scales, if it is ternary.

        Args:
            name: its name in the checkpoint.
            values: its elements; bfloat16 as uint16 bit patterns.
            dtype: torch's name of the element type.
            siblings: what else the checkpoint holds: uint8 is taken as transformers' layout only
                beside a scale called ``name + "_scale"``.
            layout: ``"tq1_0"`` or ``"tq2_0"`` of a tensor of llama.cpp's blocks, uint8.

        Returns:
            The tensor, whose stored elements are ``values`` to the bit (but for -0.0 that is
            dropped); None if it is not ternary, all 0, or too small to gain.
        """
        found: SeededTensor | TernaryTensor | None = None
        if layout is not None:
            found = self._blocks(name, values, layout)
        elif dtype == "uint8":
            found = self._bitnet(name, values, siblings or {})
        elif dtype == "int8":
            found = self._integers(name, values)
        elif dtype in FLOATS:
            found = self._floats(name, values, dtype)
        if found is not None:
            seeded = isinstance(found, SeededTensor)
            self.recognized[name] = found.spec.stream if seeded else None  # type: ignore[union-attr]
        return found

    def _floats(
        self, name: str, values: NDArray[Any], dtype: str
    ) -> SeededTensor | TernaryTensor | None:
        """Recognize floating weights."""
        from pabzip.formats.trits import pack_floats
        from pabzip.packing.ternary_kernels import negative_zeros

        if values.ndim < 2 or values.size == 0:
            return None
        element = DENSE_TYPES[dtype].numpy
        kind = np.dtype(f"<u{element.itemsize}")
        bits = np.ascontiguousarray(values, dtype=element).view(kind).reshape(-1)
        scaled = find_scales(bits, values.shape, threads=self.threads)
        if scaled is None or scaled.sizes.max() >= INFINITY_BITS[dtype]:
            return None
        sign = 1 << (8 * kind.itemsize - 1)
        zeros = _sum_over(lambda a, b: negative_zeros(bits[a:b], sign), bits.size, self.threads)
        kept = zeros and self.negative_zero == "keep"
        scales = scaled.sizes.view(element)
        if dtype == "float32" and not kept:
            seeded = self._seeded(name, bits, values.shape, scales, scaled.run)
            if seeded is not None:
                self._count_zeros(name, zeros)
                return seeded
        if bits.size < LEAST_WEIGHTS:
            return None
        self._count_zeros(name, zeros)
        per_byte = 4 if kept else 5
        packed = np.empty(packed_size(bits.size, per_byte), dtype=np.uint8)

        def work(begin: int, end: int) -> None:
            part = bits[per_byte * begin : per_byte * end]
            pack_floats(part, sign, 1 if kept else 0, per_byte, packed[begin:end])

        over_ranges(work, packed.size, self.threads)
        scaling = "runs" if scaled.run else "columns"
        return TernaryTensor(
            name, values.shape, dtype, packed, scales, "plain", per_byte, scaling, scaled.run
        )

    def _count_zeros(self, name: str, zeros: int) -> None:
        """Keep count of the weights of a recognized tensor that are -0.0."""
        if zeros:
            self.negative_zeros[name] = zeros

    def _seeded(
        self,
        name: str,
        bits: NDArray[np.uint32],
        shape: tuple[int, ...],
        scales: NDArray[np.float32],
        run: int,
    ) -> SeededTensor | None:
        """Return float32 weights as a seeded tensor, where that is made for them and smaller."""
        row = prod(shape[1:])
        whole = run == bits.size
        of_rows = whole or (run and run % row == 0 and row >= LEAST_RUN)
        if not of_rows or not np.all((scales >= MIN_SCALE) & (scales <= MAX_SCALE)):
            return None
        if bits.size >= SMALL and not has_structure(bits, shape):
            return None
        values = bits.view(np.float32)
        stream = self.recognized.get(name)
        if stream is None:
            stream = next(self._streams)
        spec = InitSpec("signed_constant", float(scales[0]) if whole else 1.0, stream)
        drawn = weights(self.seed, spec, 0, bits.size, threads=self.threads)
        codes = (np.sign(values) * np.sign(drawn)).astype(np.int8).reshape(shape)
        if whole:
            return SeededTensor(name, spec, codes)
        used = np.any(codes.reshape(len(codes), -1) != 0, axis=1)
        of_row = np.repeat(scales, run // row)
        return SeededTensor(name, spec, codes, np.where(used, of_row, np.float32(1)))

    def _integers(self, name: str, values: NDArray[np.int8]) -> TernaryTensor | None:
        """Recognize int8 weights of -1, 0 and 1."""
        from pabzip.formats.trits import pack_codes

        codes = np.ascontiguousarray(values).reshape(-1)
        first = codes[:LEAST_WEIGHTS]
        if values.ndim < 2 or codes.size < LEAST_WEIGHTS or np.any((first < -1) | (first > 1)):
            return None
        packed = np.empty(packed_size(codes.size), dtype=np.uint8)
        wrong = _sum_over(
            lambda begin, end: pack_codes(codes[5 * begin : 5 * end], packed[begin:end]),
            packed.size,
            self.threads,
        )
        if wrong or not packed.any():
            return None
        return TernaryTensor(name, values.shape, "int8", packed, None, scaling="none")

    def _bitnet(
        self, name: str, values: NDArray[np.uint8], siblings: Siblings
    ) -> TernaryTensor | None:
        """Recognize transformers' layout: four planes of bit pairs, beside one scale."""
        from pabzip.formats.trits import pack_planes

        dtype, shape = siblings.get(name + SCALE_SUFFIX, ("", ()))
        stored = np.ascontiguousarray(values).reshape(-1)
        if dtype not in FLOATS or prod(shape) != 1 or values.ndim < 1 or stored.size == 0:
            return None
        first = stored[:4096]
        if 4 * stored.size < LEAST_WEIGHTS or np.any(first & (first >> 1) & 0x55):
            return None
        total = 4 * stored.size
        packed = np.empty(packed_size(total), dtype=np.uint8)

        def work(begin: int, end: int) -> int:
            size = min(5 * end, total) - 5 * begin
            return int(pack_planes(stored, 5 * begin, packed[begin:end], size))

        if _sum_over(work, packed.size, self.threads):
            return None
        scaling = self.bitnet_scale or "none"
        return TernaryTensor(name, values.shape, "uint8", packed, None, "bitnet", scaling=scaling)

    def _blocks(self, name: str, values: NDArray[np.uint8], layout: str) -> TernaryTensor | None:
        """Recognize llama.cpp's blocks, whose codes must give the same bytes back."""
        from pabzip.formats.trits import pack_blocks

        size = LAYOUTS[layout].block_bytes
        blocks = np.ascontiguousarray(values).reshape(-1, size)
        packed = np.empty(packed_size(len(blocks) * BLOCK), dtype=np.uint8)
        scales = np.empty(len(blocks), dtype="<u2")

        def work(begin: int, end: int) -> int:
            # Of five blocks, which fill whole bytes.
            first, last = -(-begin // (5 * BLOCK)), -(-end // (5 * BLOCK))
            part, into = slice(5 * first, 5 * last), packed[BLOCK * first : BLOCK * last]
            return int(pack_blocks(blocks[part], layout == "tq1_0", scales[part], into))

        wrong = _sum_over(work, len(blocks) * BLOCK, self.threads)
        if wrong or np.any(scales >= INFINITY_BITS["float16"]):
            return None
        return TernaryTensor(
            name, values.shape, "uint8", packed, scales.view("<f2"), layout, run=BLOCK
        )


def _sum_over(work: Callable[[int, int], int], number: int, threads: int | None) -> int:
    """Return the sum of what ``work`` returns for ranges that cover ``number``, on threads."""
    found: list[Any] = list(over_ranges(work, number, threads))  # type: ignore[arg-type]
    return int(sum(found))


def bitnet_scale_of(checkpoint: str | os.PathLike[str]) -> str | None:
    """Return what a network of transformers does with ``weight_scale``, by its ``config.json``.

    Args:
        checkpoint: path of the folder of the ``config.json``, or of a file in it.

    Returns:
        ``"divide"`` (BitLinear) or ``"multiply"`` (AutoBitLinear); None without such a
        configuration.

    Source: ``BitNetConfig`` of transformers; its default is BitLinear.
    """
    named = os.fspath(checkpoint)
    folder = named if os.path.isdir(named) else os.path.dirname(named)
    path = os.path.join(folder, "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, ValueError):
        return None
    found = config.get("quantization_config") if isinstance(config, dict) else None
    if not isinstance(found, dict) or found.get("quant_method") != "bitnet":
        return None
    linear = found.get("linear_class", "bitlinear")
    return _LINEAR_CLASSES.get(linear) if isinstance(linear, str) else None

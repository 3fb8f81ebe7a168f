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
from math import isqrt, log, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import PackError, shown
from pabzip.formats import DENSE_TYPES, SeededTensor, TernaryTensor
from pabzip.formats.ternary import BLOCK, FLOATS, INFINITY_BITS, LAYOUTS, SCALE_SUFFIX
from pabzip.seeds import InitSpec, weights
from pabzip.seeds.generation import over_ranges
from pabzip.seeds.spec import MAX_SCALE, MIN_SCALE

LEAST_RUN = 16
"""Fewer weights than this do not pay for a scale of their own."""

LEAST_WEIGHTS = 64
"""A smaller tensor does not pay for a ternary row in the header."""

SMALL = 1 << 16
"""A float32 tensor of fewer weights is fitted in no time, so its codes go to the coders."""

STRUCTURE = 0.004
"""Part of a mask's entropy that its rows, columns and places must save to be worth fitting."""

NO_TERNARY = (
    "expected a ternary tensor, found none among {}: float32, float16, bfloat16 or int8, of two or "
    "more dimensions, each value 0 or plus or minus one scale, of the tensor, a row, a group or a "
    "column; pack the quantized weights, not those that training keeps beside them"
)
"""The message where no tensor is ternary, for the number of tensors."""

_SAMPLE = 1 << 24  # weights that are counted, of every so many rows, to find structure

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
        packed = np.empty(-(-bits.size // per_byte), dtype=np.uint8)

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
        packed = np.empty(-(-codes.size // 5), dtype=np.uint8)
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
        packed = np.empty(-(-total // 5), dtype=np.uint8)

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
        packed = np.empty(-(-len(blocks) * BLOCK // 5), dtype=np.uint8)
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


@dataclass(frozen=True, slots=True, eq=False)
class Scales:
    """Scales that make weights ternary.

    Attributes:
        run: successive weights that share one; 0 where each column has one.
        sizes: bit patterns, all above 0; where all weights are 0, that of a neighbor.
    """

    run: int
    sizes: NDArray[Any]


def find_scales(
    bits: NDArray[Any], shape: tuple[int, ...], *, threads: int | None = None
) -> Scales | None:
    """Find the scales of weights that are all 0 or plus or minus one of few.

    Tried in this order, of which the first that fits is taken: one of the tensor; of several rows,
    of a row, and of a group within a row (runs of successive weights, from long to short, of at
    least `LEAST_RUN`); one of each column, along the last dimension.

    Args:
        bits: bit patterns, unsigned, flat.
        shape: of the tensor, two or more dimensions.
        threads: at most so many; None takes every CPU that the process may use.

    Returns:
        None where there are none, or all weights are 0. Infinity and not-a-number count as sizes.
    """
    from pabzip.packing.ternary_kernels import column_sizes, other_size, run_sizes

    sign = 1 << (8 * bits.itemsize - 1)
    first = int(other_size(bits, sign, 0))
    if first < 0:
        return None
    size = int(bits[first]) & (sign - 1)
    differs = int(other_size(bits[: first + (1 << 20)], sign, size))  # a run ends there at last
    if differs < 0:
        fits = over_ranges(lambda a, b: other_size(bits[a:b], sign, size) < 0, bits.size, threads)
        if all(fits):
            return Scales(bits.size, np.full(1, size, bits.dtype))
        differs = int(other_size(bits, sign, size))
    for run in _runs(shape):
        if LEAST_RUN <= run <= differs:
            sizes = np.empty(bits.size // run, dtype=bits.dtype)

            def work(a: int, b: int, run: int = run, sizes: NDArray[Any] = sizes) -> bool:
                return bool(run_sizes(bits[a * run : b * run], sign, run, sizes[a:b]))

            # A few first: what does not fit is told from these.
            if work(0, min(64, sizes.size)) and all(_over_runs(work, sizes.size, run, threads)):
                return Scales(run, _filled(sizes))
    width = shape[-1]
    if bits.size // width >= LEAST_RUN:
        sizes = np.zeros(width, dtype=bits.dtype)
        if column_sizes(bits, sign, sizes):
            return Scales(0, _filled(sizes))
    return None


def _over_runs(work: Any, number: int, run: int, threads: int | None) -> list[Any]:
    """Call ``work`` for ranges of so many runs: `over_ranges`, which goes by single weights."""
    return over_ranges(lambda a, b: work(-(-a // run), -(-b // run)), number * run, threads)


def _runs(shape: tuple[int, ...]) -> list[int]:
    """Return how many successive weights may share a scale, from most to fewest."""
    row = prod(shape[1:])
    of_rows = [row * part for part in _divisors(shape[0]) if part < shape[0]]
    return sorted({*of_rows, *_divisors(row)}, reverse=True)


def _divisors(number: int) -> list[int]:
    """Return all divisors of a number."""
    small = [one for one in range(1, isqrt(number) + 1) if number % one == 0]
    return sorted({*small, *(number // one for one in small)})


def _filled(sizes: NDArray[Any]) -> NDArray[Any]:
    """Give runs without survivors the size of the one before, or the first there is; in place."""
    known = np.flatnonzero(sizes)
    before = np.searchsorted(known, np.arange(sizes.size), side="right") - 1
    return np.asarray(sizes[known[np.maximum(before, 0)]])


def has_structure(bits: NDArray[Any], shape: tuple[int, ...]) -> bool:
    """Return whether rows, columns or places of a mask survive more unequally than by chance.

    Compares the entropy of the mask with what is left of it once the survivors of each row, of each
    column (along the second dimension) and of each place within it are known, less what chance
    alone would give. That is what the ``context`` coder's factors can save.

    Args:
        bits: bit patterns of the weights, unsigned, flat; a mask is where they are not 0.
        shape: of the tensor, two or more dimensions.
    """
    from pabzip.packing.ternary_kernels import count_survivors

    rows, columns, places = shape[0], shape[1], prod(shape[2:])
    step = -(-bits.size // _SAMPLE)
    counted = -(-rows // step)
    survivors = [np.zeros(size, dtype=np.int64) for size in (counted, columns, places)]
    count_survivors(bits, 1 << (8 * bits.itemsize - 1), columns, step, rows, *survivors)
    total = counted * columns * places
    whole = _entropy(survivors[0].sum(), total)
    saved = 0.0
    for found in survivors:
        chance = (found.size - 1) / (2 * log(2))  # mean of the likelihood ratio's chi-squared / 2
        saved += max(0.0, whole - float(_entropy(found, total // found.size).sum()) - chance)
    bits_of_all = whole + float(survivors[0].sum())  # with the signs
    return bool(saved > STRUCTURE * bits_of_all)


def _entropy(found: Any, total: int) -> Any:
    """Return the bits of masks of ``total`` weights with ``found`` survivors each."""
    share = np.asarray(found) / total
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = share * np.log2(share) + (1 - share) * np.log2(1 - share)
    return -total * np.nan_to_num(parts)


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

"""How small and how fast dense tensors become: `planes` against deflate and zstd.

Each case is one large tensor: normal weights of each floating type, ternary weights packed five a
byte, and int8 codes of differences. The compressors get its elements as they lie in memory and as
byte planes; the smaller result counts, and its seconds. The entropy is that of the elements, each
by itself: no coder that ignores order does better. Speeds are of the elements' bytes, on one core
but for `planes`, which is timed with one thread and with several.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import zstandard
from _shared import CLOCKS, Progress, clock_by, finish, interleaved, markdown, parser
from numpy.typing import NDArray

from pabzip.formats import DENSE_TYPES
from pabzip.formats.dense import DenseEntry, to_stored
from pabzip.formats.dense_planes import decode_planes, encode_planes

SEED = 3

Array = NDArray[Any]
Coded = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Case:
    """One tensor: what the table calls it, its type, and how to draw ``count`` elements."""

    title: str
    dtype: str
    draw: Callable[[np.random.Generator, int], Array]


@dataclass(frozen=True, slots=True)
class Compressor:
    """A general compressor. ``slow`` ones are timed once."""

    encode: Coded
    decode: Coded
    slow: bool = False


def _normal(dtype: str) -> Callable[[np.random.Generator, int], Array]:
    """Return what draws normal weights of deviation 0.02, rounded to a floating type."""

    def draw(rng: np.random.Generator, count: int) -> Array:
        values = rng.standard_normal(count) * 0.02
        return values if dtype == "float64" else to_stored(values.astype("<f4"), "float32", dtype)

    return draw


def _ternary(zeros: float) -> Callable[[np.random.Generator, int], Array]:
    """Return what draws bytes of five ternary weights, a share of them zero."""

    def draw(rng: np.random.Generator, count: int) -> Array:
        share = (1 - zeros) / 2
        digits = rng.choice(3, p=[share, zeros, share], size=(count, 5))
        return (digits @ [1, 3, 9, 27, 81]).astype(np.uint8)

    return draw


def _differences(rng: np.random.Generator, count: int) -> Array:
    """Draw ternary differences of which a tenth is not zero."""
    return rng.choice(3, p=[0.05, 0.9, 0.05], size=count).astype(np.int8) - np.int8(1)


CASES = (
    Case("bfloat16, normal", "bfloat16", _normal("bfloat16")),
    Case("float16, normal", "float16", _normal("float16")),
    Case("float32, normal", "float32", _normal("float32")),
    Case("float32, from bfloat16", "float32", lambda rng, count: _widened(rng, count)),
    Case("float64, normal", "float64", _normal("float64")),
    Case("ternary, 42 % zero, five a byte", "uint8", _ternary(0.42)),
    Case("ternary, 90 % zero, five a byte", "uint8", _ternary(0.9)),
    Case("differences, 90 % zero, int8", "int8", _differences),
    Case("normal codes, int8", "int8", lambda rng, n: (rng.standard_normal(n) * 12).astype("i1")),
)


def _widened(rng: np.random.Generator, count: int) -> Array:
    """Draw float32 weights that bfloat16 holds."""
    bits = _normal("bfloat16")(rng, count).astype("<u4") << 16
    return bits.view("<f4")


def _zstd(level: int) -> Compressor:
    """Return zstd at one level."""
    return Compressor(
        zstandard.ZstdCompressor(level).compress,
        zstandard.ZstdDecompressor().decompress,
        slow=level > 9,
    )


COMPRESSORS: Mapping[str, Compressor] = {
    "zstd -3": _zstd(3),
    "zstd -19": _zstd(19),
    "deflate -9": Compressor(lambda data: zlib.compress(data, 9), zlib.decompress, slow=True),
}


def main() -> None:
    """Run the benchmark."""
    line = parser(__doc__)
    line.add_argument("--elements", type=int, default=1 << 22, help="of each tensor")
    line.add_argument("--repeats", type=int, default=7, help="timed runs of what is fast")
    line.add_argument("--threads", type=int, default=2, help="of planes, besides one")
    line.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu where others compute")
    arguments = line.parse_args()
    if arguments.quick:
        arguments.elements, arguments.repeats = min(arguments.elements, 1 << 16), 1
    rows = []
    with Progress(len(CASES)) as progress:
        for case in CASES:
            progress.step(case.title)
            rows.append(_measure(case, arguments))
            progress.done()
    title = "Dense tensors: share of their bytes that is left, and MB/s to encode and decode"
    finish("dense_coding", arguments, title, _table(rows), {"cases": rows}, "zstandard")


def _measure(case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return one case's sizes in bytes, and speeds in bytes a second."""
    values = case.draw(np.random.default_rng(SEED), arguments.elements)
    values = values.astype(DENSE_TYPES[case.dtype].numpy, copy=False)
    entry = DenseEntry("x", values.shape, case.dtype, case.dtype)
    payload = encode_planes([case.dtype], [values])
    runs: dict[str, Callable[[], object]] = {}
    for threads in sorted({1, arguments.threads}):
        runs[f"encode {threads}"] = partial(encode_planes, [case.dtype], [values], threads=threads)
        runs[f"decode {threads}"] = partial(
            decode_planes, [entry], payload, "section", threads=threads
        )
    clock = clock_by(arguments.clock)
    sizes, speeds = {"planes": len(payload)}, {}
    for what, seconds in interleaved(runs, arguments.repeats, clock=clock).items():
        speeds[f"planes, {what}"] = values.nbytes / seconds
    for name, compressor in COMPRESSORS.items():
        forms = [values.tobytes(), values.view(np.uint8).reshape(values.size, -1).T.tobytes()]
        data, coded = min(
            ((form, compressor.encode(form)) for form in forms), key=lambda pair: len(pair[1])
        )
        timed = interleaved(
            {
                "encode": partial(compressor.encode, data),
                "decode": partial(compressor.decode, coded),
            },
            1 if compressor.slow else arguments.repeats,
            clock=clock,
        )
        sizes[name] = len(coded)
        for what, seconds in timed.items():
            speeds[f"{name}, {what}"] = values.nbytes / seconds
    return {
        "case": case.title,
        "elements": values.size,
        "bytes": values.nbytes,
        "entropy": entropy(values),
        "sizes": sizes,
        "speeds": speeds,
    }


def entropy(values: Array) -> float:
    """Return the order-0 entropy of elements, in bytes, by how often each occurs.

    It means little where most occur once: then it is that of the count alone.
    """
    patterns = values.view(f"u{values.itemsize}")
    counts = np.unique(patterns, return_counts=True)[1]
    return float(-(counts * np.log2(counts / values.size)).sum() / 8)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table for people."""
    columns = ["tensor", "planes", "entropy", *COMPRESSORS]
    timed = [name for name in rows[0]["speeds"] if name.startswith("planes")]
    columns += [name.removeprefix("planes, ") for name in timed]
    columns += [f"{name}, {way}" for name in COMPRESSORS for way in ("encode", "decode")]
    cells = []
    for row in rows:
        share = {name: size / row["bytes"] for name, size in row["sizes"].items()}
        wide = row["case"].startswith(("float32, normal", "float64"))
        line = [row["case"], f"{share['planes']:.4f}"]
        line.append("-" if wide else f"{row['entropy'] / row['bytes']:.4f}")
        line += [f"{share[name]:.4f}" for name in COMPRESSORS]
        line += [f"{row['speeds'][name] / 1e6:.0f}" for name in timed]
        for name in COMPRESSORS:
            for way in ("encode", "decode"):
                line.append(f"{row['speeds'][f'{name}, {way}'] / 1e6:.1f}")
        cells.append(line)
    return markdown(columns, cells)


if __name__ == "__main__":
    main()

"""How small codes become: our coders against general compressors, the entropy, and the signs.

Sizes are ``codes_bytes``: masks, signs, factors and tables of all seeded weights. Signs are drawn
at random unless the case says otherwise. The compressors get the same codes in three forms: 2 bits
a weight, five weights a byte (base 3), and a bitmap of the mask followed by the survivors' signs;
the best of the three counts. Order-0 is the entropy of each tensor's mask by its density alone.
"""

from __future__ import annotations

import argparse
import io
import lzma
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import brotli
import numpy as np
import zstandard
from _shared import Progress, finish, kibibytes, markdown, parser
from _tickets import (
    Codes,
    Masks,
    Network,
    magnitude_masks,
    random_masks,
    seeding_of,
    synflow_masks,
    with_signs,
)
from numpy.typing import NDArray

from pabzip import SeededTensor, Ticket
from pabzip.formats import AUTO, CODERS
from pabzip.seeds import pack_codes

FEW_FLIPS = 0.1
"""Share of flipped signs in the case that has few."""

DENSITIES = (0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99)
"""Keep ratios of the random masks."""


def _zstd(data: bytes) -> bytes:
    """Compress by level 19 with long-distance matching, in a window of 128 MiB."""
    parameters = zstandard.ZstdCompressionParameters.from_level(19, window_log=27, enable_ldm=True)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


COMPRESSORS: Mapping[str, Callable[[bytes], bytes]] = {
    "zstd -19 --long": _zstd,
    "xz -9e": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
    "brotli 11": lambda data: bytes(brotli.compress(data, quality=11, lgwin=24)),
}
"""General compressors at their strongest, by name."""


@dataclass(frozen=True, slots=True)
class Case:
    """One set of masks, with signs, of which a share ``flips`` is flipped."""

    kind: str  # "SynFlow", "magnitude" or "random"
    network: Network
    keep_ratio: float
    flips: float = 0.5

    @property
    def title(self) -> str:
        """What the table calls it."""
        signs = "" if self.flips == 0.5 else f", {self.flips:.0%} flipped"
        return f"{self.network}, {self.kind} {self.keep_ratio:g}{signs}"


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__, cache=True).parse_args()
    cases = list(_cases(arguments))
    rows = []
    with Progress(len(cases)) as progress:
        for case in cases:
            if case.kind == "SynFlow":
                masks = synflow_masks(case.network, case.keep_ratio, arguments, progress)
            else:
                find = magnitude_masks if case.kind == "magnitude" else random_masks
                masks = find(case.network, case.keep_ratio)
            rows.append(_measure(case, masks, progress))
            progress.done()
    finish(
        "codec_size", arguments, "Bytes of the codes, in KiB", _table(rows), {"cases": rows},
        "torch", "zstandard", "brotli",
    )  # fmt: skip


def _cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """Yield what is asked for; without ``--arch`` and ``--keep-ratio``, all that was promised."""
    network = Network.of(arguments)
    keep_ratio = arguments.keep_ratio or 0.1
    yield Case("SynFlow", network, keep_ratio)
    if not (arguments.arch or arguments.keep_ratio or arguments.quick):
        yield Case("SynFlow", network, 0.3)
        yield Case("SynFlow", network, 0.05)
        yield Case("SynFlow", Network("resnet50"), 0.1)
    yield Case("SynFlow", network, keep_ratio, FEW_FLIPS)
    yield Case("magnitude", network, keep_ratio)
    for density in (DENSITIES[0], DENSITIES[-1]) if arguments.quick else DENSITIES:
        yield Case("random", network, density)


def _measure(case: Case, masks: Masks, progress: Progress) -> dict[str, Any]:
    """Return one case's sizes in bytes."""
    codes = with_signs(masks, case.flips)
    ours = {}
    for coder in (*CODERS, AUTO):
        progress.step(f"{case.title}: {coder}")
        ours[coder] = _codes_bytes(case.network, codes, coder)
    peers: dict[str, dict[str, int]] = {}
    for name, compress in COMPRESSORS.items():
        progress.step(f"{case.title}: {name}")
        peers[name] = {form: len(compress(data)) for form, data in forms(codes).items()}
    best = min(size for sizes in peers.values() for size in sizes.values())
    survivors = sum(int(mask.sum()) for mask in masks.values())
    signs = sign_entropy(codes)
    limits = {"signs": signs, "order-0 + signs": mask_entropy(codes) + signs}
    if case.flips != 0.5:
        # What coding the signs should reach: the mask as it costs with random signs, plus entropy.
        progress.step(f"{case.title}: the mask alone")
        mask = _codes_bytes(case.network, with_signs(masks), AUTO) - survivors / 8
        limits["our mask + signs"] = mask + signs
    return {
        "case": case.title,
        "kind": case.kind,
        "network": str(case.network),
        "keep_ratio": case.keep_ratio,
        "flips": case.flips,
        "weights": sum(mask.size for mask in masks.values()),
        "survivors": survivors,
        "coders": ours,
        "peers": peers,
        "limits": limits,
        "ratios": {
            "huffman / auto": ours["huffman"] / ours[AUTO],
            "best peer / auto": best / ours[AUTO],
            **{f"auto / {name}": ours[AUTO] / limit for name, limit in limits.items() if limit},
        },
    }


def _codes_bytes(network: Network, codes: Codes, coder: str) -> int:
    """Return what a file of these codes spends on them."""
    seeding, _ = seeding_of(network)
    tensors = [SeededTensor(name, seeding.specs[name], held) for name, held in codes.items()]
    return Ticket(seed=seeding.seed, tensors=tensors).save(io.BytesIO(), coder=coder).codes_bytes


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table for people."""
    coders = list(rows[0]["coders"])
    columns = ["case", *coders, *COMPRESSORS, "order-0 + signs", "signs"]
    columns += ["huffman / auto", "best peer / auto", "auto / order-0", "auto / signs"]
    cells, notes = [], []
    for row in rows:
        limits, ratios = row["limits"], row["ratios"]
        sizes = [row["coders"][coder] for coder in coders]
        sizes += [min(row["peers"][name].values()) for name in COMPRESSORS]
        sizes += [limits["order-0 + signs"], limits["signs"]]
        line = [row["case"], *(kibibytes(size) for size in sizes)]
        for name in ("huffman / auto", "best peer / auto"):
            line.append(f"{ratios[name]:.2f}")
        for name in ("auto / order-0 + signs", "auto / signs"):
            line.append(f"{ratios[name]:.4f}")
        cells.append(line)
        if "our mask + signs" in limits:
            notes.append(
                f"\n{row['case']}: {ratios['auto / our mask + signs']:.4f} times our mask plus the "
                "entropy of the signs.\n"
            )
    return markdown(columns, cells) + "".join(notes)


def forms(codes: Codes) -> dict[str, bytes]:
    """Return all codes of a network, one tensor after the other, in each form."""
    flat = np.concatenate([held.reshape(-1) for held in codes.values()])
    return {
        "2-bit": pack_codes(flat).tobytes(),
        "base-3": _base3(flat),
        "bitmap": np.packbits(flat != 0).tobytes() + np.packbits(flat[flat != 0] < 0).tobytes(),
    }


def mask_entropy(codes: Codes) -> float:
    """Return the bytes of the mask by its density alone, each tensor with its own."""
    return sum(entropy(int(np.count_nonzero(held)), held.size) for held in codes.values()) / 8


def sign_entropy(codes: Codes) -> float:
    """Return the bytes of the survivors' signs by the share that is flipped."""
    survivors = sum(int(np.count_nonzero(held)) for held in codes.values())
    flipped = sum(int(np.count_nonzero(held < 0)) for held in codes.values())
    return entropy(flipped, survivors) / 8


def entropy(ones: int, count: int) -> float:
    """Return the bits of ``count`` independent bits, ``ones`` of which are 1."""
    if ones in (0, count):
        return 0.0
    share = ones / count
    return float(-count * (share * np.log2(share) + (1 - share) * np.log2(1 - share)))


def _base3(codes: NDArray[np.int8]) -> bytes:
    """Return five codes a byte."""
    padded = np.zeros(-(-codes.size // 5) * 5, dtype=np.uint8)
    padded[: codes.size] = codes % 3
    digits = padded.reshape(-1, 5)
    return (digits @ np.array([1, 3, 9, 27, 81], dtype=np.uint8)).astype(np.uint8).tobytes()


if __name__ == "__main__":
    main()

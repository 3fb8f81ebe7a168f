"""How small a fine-tune becomes as changes of its base, against zstd -19 --long.

The base is a network drawn from a seed; fine-tunes are made of it by arithmetic: the top tenth of a
random change as signs times one scale, of the network or of each row (ComPEFT, arXiv 2311.13171),
changes of a few bits, and small random ones. zstd gets the exclusive or of the bits, the difference
of the values rounded to their type, and the fine-tune alone, each as byte planes and as it is; the
smaller counts. What is packed is read back on its base and compared, bit for bit.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import zstandard
from _shared import Progress, finish, kibibytes, markdown, parser
from _tickets import SEED, Network

import pabzip

KEPT = 0.1
"""Share of the weights that a ternary change moves."""

SIZE = 1e-3
"""Standard deviation of a change; the weights' own is about 0.02."""

State = Mapping[str, torch.Tensor]


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__).parse_args()
    network = Network.of(arguments)
    kept = arguments.keep_ratio or KEPT
    rows = []
    cases = [(dtype, what) for dtype in (torch.float32, torch.bfloat16) for what in CHANGES]
    with Progress(len(cases)) as progress:
        for dtype, what in cases:
            title = f"{network}, {str(dtype).removeprefix('torch.')}, {what.format(kept)}"
            progress.step(title)
            rows.append({"case": title, **_measure(network, dtype, CHANGES[what], kept)})
            progress.done()
    columns = ["fine-tune", "pabzip", "xor", "difference", "whole", "float bytes"]
    table = [
        [row["case"], *(kibibytes(row[name]) for name in ("pabzip", *_PEERS, "raw"))]
        for row in rows
    ]
    title = "Bytes of a fine-tune in KiB: as changes of its base, and by zstd -19 --long"
    finish(
        "delta_size", arguments, title, markdown(columns, table), {"cases": rows},
        "torch", "zstandard",
    )  # fmt: skip


def _ternary(weight: torch.Tensor, noise: torch.Tensor, kept: float, *, rows: bool) -> torch.Tensor:
    """Move the weights of the largest changes by one scale."""
    least = noise.abs().flatten().kthvalue(max(1, round((1 - kept) * noise.numel())))[0]
    signs = noise.sign() * (noise.abs() >= least)
    places = tuple(range(1, noise.dim()))
    scale = noise.std(dim=places, keepdim=True) if rows else torch.tensor(SIZE)
    return weight + (scale * signs).to(weight.dtype)


def _bits(weight: torch.Tensor, noise: torch.Tensor, bits: int) -> torch.Tensor:
    """Move weights by whole steps, of which so many bits count, all of one size."""
    most = 2 ** (bits - 1) - 1
    step = torch.tensor(4 * SIZE / most)
    steps = (noise / step).round().clamp(-most, most)
    return (weight.float() + step * steps).to(weight.dtype)


CHANGES: Mapping[str, Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]] = {
    "ternary, {:.0%}": lambda weight, noise, kept: _ternary(weight, noise, kept, rows=False),
    "ternary, {:.0%}, a scale a row": lambda w, noise, kept: _ternary(w, noise, kept, rows=True),
    "4 bits": lambda weight, noise, _kept: _bits(weight, noise, 4),
    "8 bits": lambda weight, noise, _kept: _bits(weight, noise, 8),
    "random": lambda weight, noise, _kept: (weight.float() + noise).to(weight.dtype),
    "random, a hundredth": lambda w, noise, _kept: (w.float() + noise / 100).to(w.dtype),
}
"""What becomes of a weight, given random numbers of the size of a change."""


def _measure(
    network: Network,
    dtype: torch.dtype,
    change: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor],
    kept: float,
) -> dict[str, Any]:
    """Return the sizes of one fine-tune."""
    generator = torch.Generator().manual_seed(SEED)
    state = network.build().state_dict()
    base = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in state.items()
    }
    tuned = {
        name: change(value, torch.randn(value.shape, generator=generator) * SIZE, kept)
        if value.dim() > 1
        else value
        for name, value in base.items()
    }
    file = io.BytesIO()
    report = pabzip.pack(tuned, file, base=base)
    back = pabzip.load_file(file.getvalue(), base=base, verify=True)
    assert all(torch.equal(back[name], value) for name, value in tuned.items())
    changes: dict[str, int] = {}
    for row in report.tensors:
        form = row.get("change", row["kind"])
        changes[form] = changes.get(form, 0) + 1
    peers = {name: _zstd(make(base, tuned)) for name, make in _PEERS.items()}
    return {"pabzip": report.bytes, **peers, "raw": report.float32_bytes, "changes": changes}


def _values(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor's bits as unsigned integers, flat."""
    size = tensor.element_size()
    flat = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return flat.view(f"<u{size}")


_PEERS: Mapping[str, Callable[[State, State], list[np.ndarray]]] = {
    "xor": lambda base, tuned: [_values(base[n]) ^ _values(v) for n, v in tuned.items()],
    "difference": lambda base, tuned: [_values(v - base[n]) for n, v in tuned.items()],
    "whole": lambda _base, tuned: [_values(value) for value in tuned.values()],
}
"""What zstd gets, by the name of the column."""


def _zstd(arrays: list[np.ndarray]) -> int:
    """Return the bytes of arrays, as they are or as byte planes, whichever is smaller."""
    level = zstandard.ZstdCompressionParameters.from_level(19, window_log=27, enable_ldm=True)
    planes = [one.view(np.uint8).reshape(-1, one.itemsize).T.tobytes() for one in arrays]
    return min(
        len(zstandard.ZstdCompressor(compression_params=level).compress(b"".join(data)))
        for data in ([one.tobytes() for one in arrays], planes)
    )


if __name__ == "__main__":
    main()

"""How fast weights come out of a seed, against torch's generators and the memory itself.

On the CPU: `pabzip.seeds.weights` and `regenerate` against torch's ``normal_`` and ``uniform_`` on
as many elements with as many threads. With a CUDA device: `pabzip.seeds.cuda.regenerate` against
``normal_`` there, and against the bandwidth of a plain fill, which is the limit of anything that
writes weights. Codes are drawn at random with the given keep ratio. torch draws no signed
constants; ``uniform_`` stands beside them.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from _shared import (
    Progress,
    finish,
    interleaved,
    markdown,
    parser,
    times,
    torch_threads,
)
from _tickets import SEED, Network, seeding_of
from numpy.typing import NDArray

from pabzip.seeds import DISTRIBUTIONS, InitSpec, pack_codes, regenerate, weights

THREADS = (1, 2)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SCALE = 0.0625
CUDA_ELEMENTS = 2**28  # 1 GiB of float32: far beyond any cache
CUDA_CALLS = 10  # queued in one timing

Run = Callable[[], object]


def main() -> None:
    """Run the benchmark on the CPU and, where there is one, on the GPU."""
    line = parser(__doc__)
    line.add_argument("--elements", type=int, help="weights to draw; on the CPU all of --arch")
    line.add_argument("--repeats", type=int, default=15, help="timed runs of each")
    arguments = line.parse_args()
    if arguments.quick:
        arguments.repeats = 3
    _on_cpu(arguments)
    if torch.cuda.is_available():
        _on_cuda(arguments)


def _on_cpu(arguments: argparse.Namespace) -> None:
    """Measure and report the numba backend."""
    shapes = seeding_of(Network.of(arguments))[1].values()
    count = arguments.elements or sum(map(math.prod, shapes))
    codes = _codes(count, arguments.keep_ratio or 0.1)
    out, target = np.empty(count, np.float32), torch.empty(count)
    rows: list[dict[str, Any]] = []
    with Progress(len(THREADS) * len(DISTRIBUTIONS)) as progress:
        for threads, distribution in itertools.product(THREADS, DISTRIBUTIONS):
            progress.step(f"{distribution}, threads: {threads}")
            spec = InitSpec(distribution, SCALE, 0)
            runs: dict[str, Run] = {
                "weights": functools.partial(
                    weights, SEED, spec, 0, count, threads=threads, out=out
                ),
                "regenerate": functools.partial(
                    regenerate, SEED, spec, codes, threads=threads, out=out
                ),
                "torch": _torch_draw(distribution, target),
            }
            with torch_threads(threads):
                medians = interleaved(runs, arguments.repeats)
            rows.append(
                {
                    "distribution": distribution,
                    "threads": threads,
                    "seconds": medians,
                    "weights_per_second": {name: count / took for name, took in medians.items()},
                    "ratios": {
                        "weights / torch": medians["weights"] / medians["torch"],
                        "regenerate / torch": medians["regenerate"] / medians["torch"],
                    },
                }
            )
            progress.done()
    _report(arguments, count, rows, "threads", "seconds", times)


def _on_cuda(arguments: argparse.Namespace) -> None:
    """Measure and report the Triton backend."""
    from pabzip.seeds import cuda

    count = arguments.elements or (2**22 if arguments.quick else CUDA_ELEMENTS)
    device = torch.device("cuda")
    packed = torch.from_numpy(pack_codes(_codes(count, arguments.keep_ratio or 0.1))).to(device)
    rows: list[dict[str, Any]] = []
    with Progress(len(DTYPES) * len(DISTRIBUTIONS)) as progress:
        for dtype, distribution in itertools.product(DTYPES, DISTRIBUTIONS):
            progress.step(f"{distribution}, {dtype}")
            target = torch.empty(count, dtype=dtype, device=device)
            spec = InitSpec(distribution, SCALE, 0)
            runs: dict[str, Run] = {
                "regenerate": functools.partial(
                    cuda.regenerate, SEED, spec, packed, (count,), dtype=dtype, device=device
                ),
                "torch": _torch_draw(distribution, target),
                "fill": functools.partial(target.fill_, SCALE),
            }
            medians = interleaved(runs, arguments.repeats, clock=_cuda_clock)
            written = count * dtype.itemsize
            rows.append(
                {
                    "distribution": distribution,
                    "dtype": str(dtype).removeprefix("torch."),
                    "seconds": medians,
                    "bytes_per_second": {name: written / took for name, took in medians.items()},
                    "ratios": {
                        "regenerate / torch": medians["regenerate"] / medians["torch"],
                        "of write bandwidth": medians["fill"] / medians["regenerate"],
                    },
                }
            )
            progress.done()
    gpu = torch.cuda.get_device_name()
    _report(
        arguments, count, rows, "dtype", "bytes_per_second",
        lambda value: f"{value / 1e9:,.0f} GB/s", gpu=gpu,
    )  # fmt: skip


def _report(
    arguments: argparse.Namespace,
    count: int,
    rows: Sequence[Mapping[str, Any]],
    setting: str,
    measure: str,
    shown: Callable[[float], str],
    *,
    gpu: str | None = None,
) -> None:
    """Write the file and print the table: a row a setting, its measure by name, the ratios."""
    columns = ["distribution", setting, *rows[0][measure], *rows[0]["ratios"]]
    cells = [
        [
            row["distribution"],
            str(row[setting]),
            *(shown(value) for value in row[measure].values()),
            *(f"{ratio:.2f}" for ratio in row["ratios"].values()),
        ]
        for row in rows
    ]
    title, result = f"Drawing {count:,} weights", {"elements": count, "rows": list(rows)}
    finish("regenerate", arguments, title, markdown(columns, cells), result, "torch", gpu=gpu)


def _cuda_clock(run: Run) -> float:
    """Return the seconds that one call takes on the GPU, from several queued back to back."""
    begin, end = (
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for _ in range(2)
    )
    begin.record()
    for _ in range(CUDA_CALLS):
        run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / CUDA_CALLS


def _torch_draw(distribution: str, target: torch.Tensor) -> Run:
    """Return torch's own drawing into ``target``."""
    if distribution == "normal":
        return functools.partial(target.normal_, 0, SCALE)
    return functools.partial(target.uniform_, -SCALE, SCALE)


def _codes(count: int, keep_ratio: float) -> NDArray[np.int8]:
    """Return random codes."""
    rng = np.random.default_rng(SEED)
    signs = rng.choice(np.array([-1, 1], np.int8), count)
    return signs * (rng.random(count, dtype=np.float32) < keep_ratio)


if __name__ == "__main__":
    main()

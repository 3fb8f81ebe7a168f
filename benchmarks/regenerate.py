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
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _shared import (
    Progress,
    finish,
    heading,
    interleaved,
    machine,
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
    """Run the benchmark."""
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
    progress = Progress(len(THREADS) * len(DISTRIBUTIONS))
    rows: list[dict[str, Any]] = []
    for threads in THREADS:
        for distribution in DISTRIBUTIONS:
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
    progress.close()
    facts = machine("torch")
    names = ("weights", "regenerate", "torch")
    columns = ["distribution", "threads", *names, "weights / torch", "regenerate / torch"]
    cells = [
        [
            row["distribution"],
            str(row["threads"]),
            *(times(row["seconds"][name]) for name in names),
            *(f"{ratio:.2f}" for ratio in row["ratios"].values()),
        ]
        for row in rows
    ]
    table = heading(f"Drawing {count:,} float32 weights", facts) + markdown(columns, cells)
    result = {"machine": facts, "elements": count, "rows": rows}
    finish("regenerate", arguments, result, table)


def _on_cuda(arguments: argparse.Namespace) -> None:
    """Measure and report the Triton backend."""
    from pabzip.seeds import cuda

    count = arguments.elements or (2**22 if arguments.quick else CUDA_ELEMENTS)
    device, gpu = torch.device("cuda"), torch.cuda.get_device_name()
    packed = torch.from_numpy(pack_codes(_codes(count, arguments.keep_ratio or 0.1))).to(device)
    progress = Progress(len(DTYPES) * len(DISTRIBUTIONS))
    rows: list[dict[str, Any]] = []
    for dtype in DTYPES:
        target = torch.empty(count, dtype=dtype, device=device)
        for distribution in DISTRIBUTIONS:
            progress.step(f"{distribution}, {dtype}")
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
    progress.close()
    facts = machine("torch", gpu=gpu)
    names = ("regenerate", "torch", "fill")
    columns = ["distribution", "dtype", *names, "regenerate / torch", "of write bandwidth"]
    cells = [
        [
            row["distribution"],
            row["dtype"],
            *(f"{row['bytes_per_second'][name] / 1e9:,.0f} GB/s" for name in names),
            f"{row['ratios']['regenerate / torch']:.2f}",
            f"{row['ratios']['of write bandwidth']:.1%}",
        ]
        for row in rows
    ]
    table = heading(f"Drawing {count:,} weights", facts) + markdown(columns, cells)
    result = {"machine": facts, "elements": count, "rows": rows}
    finish("regenerate", arguments, result, table, gpu=gpu)


def _cuda_clock(run: Run) -> float:
    """Return the seconds that one call takes on the GPU, from several queued back to back."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
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
    codes: NDArray[np.int8] = rng.integers(0, 2, count, dtype=np.int8)
    codes *= 2
    codes -= 1
    codes *= rng.random(count, dtype=np.float32) < keep_ratio
    return codes


if __name__ == "__main__":
    main()

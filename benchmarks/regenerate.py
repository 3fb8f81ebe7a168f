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
    """Measure the numba backend."""
    shapes = seeding_of(Network.of(arguments))[1].values()
    count = arguments.elements or sum(map(math.prod, shapes))
    codes = _codes(count, arguments.keep_ratio or 0.1)
    out, target = np.empty(count, np.float32), torch.empty(count)

    def runs(spec: InitSpec, threads: int) -> dict[str, Run]:
        own: dict[str, Any] = {"threads": threads, "out": out}
        return {
            "weights": functools.partial(weights, SEED, spec, 0, count, **own),
            "regenerate": functools.partial(regenerate, SEED, spec, codes, **own),
            "torch": _torch_draw(spec, target),
        }

    _measure(arguments, count, THREADS, runs)


def _on_cuda(arguments: argparse.Namespace) -> None:
    """Measure the Triton backend."""
    from pabzip.seeds import cuda

    count = arguments.elements or (2**22 if arguments.quick else CUDA_ELEMENTS)
    device = torch.device("cuda")
    packed = torch.from_numpy(pack_codes(_codes(count, arguments.keep_ratio or 0.1))).to(device)

    def runs(spec: InitSpec, dtype: torch.dtype) -> dict[str, Run]:
        target = torch.empty(count, dtype=dtype, device=device)
        own: dict[str, Any] = {"dtype": dtype, "device": device}
        return {
            "regenerate": functools.partial(cuda.regenerate, SEED, spec, packed, (count,), **own),
            "torch": _torch_draw(spec, target),
            "fill": functools.partial(target.fill_, SCALE),
        }

    _measure(arguments, count, DTYPES, runs, gpu=torch.cuda.get_device_name())


def _measure(
    arguments: argparse.Namespace,
    count: int,
    settings: Sequence[Any],
    runs: Callable[[InitSpec, Any], Mapping[str, Run]],
    *,
    gpu: str | None = None,
) -> None:
    """Time each distribution in each setting, threads or on a GPU dtypes, and report."""
    rows: list[dict[str, Any]] = []
    with Progress(len(settings) * len(DISTRIBUTIONS)) as progress:
        for setting, distribution in itertools.product(settings, DISTRIBUTIONS):
            progress.step(f"{distribution}, {setting if gpu else f'threads: {setting}'}")
            row: dict[str, Any] = {"distribution": distribution}
            if gpu is None:
                row["threads"], threads, clock = setting, setting, None
                speed, size = "weights_per_second", count
            else:
                row["dtype"] = str(setting).removeprefix("torch.")
                threads, clock = torch.get_num_threads(), _cuda_clock
                speed, size = "bytes_per_second", count * setting.itemsize
            with torch_threads(threads):
                each = runs(InitSpec(distribution, SCALE, 0), setting)
                medians = interleaved(each, arguments.repeats, clock=clock)
            own = [name for name in medians if name in ("weights", "regenerate")]
            row["seconds"] = medians
            row[speed] = {name: size / took for name, took in medians.items()}
            row["ratios"] = {f"{name} / torch": medians[name] / medians["torch"] for name in own}
            if "fill" in medians:
                row["ratios"]["of write bandwidth"] = medians["fill"] / medians["regenerate"]
            rows.append(row)
            progress.done()
    columns = [*list(rows[0])[:2], *rows[0]["seconds"], *rows[0]["ratios"]]
    cells = []
    for row in rows:
        shown = [times(took) for took in row["seconds"].values()]
        if gpu is not None:
            shown = [f"{value / 1e9:,.0f} GB/s" for value in row["bytes_per_second"].values()]
        ratios = (f"{ratio:.2f}" for ratio in row["ratios"].values())
        cells.append([*map(str, list(row.values())[:2]), *shown, *ratios])
    title, result = f"Drawing {count:,} weights", {"elements": count, "rows": rows}
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


def _torch_draw(spec: InitSpec, target: torch.Tensor) -> Run:
    """Return torch's own drawing into ``target``."""
    if spec.distribution == "normal":
        return functools.partial(target.normal_, 0, SCALE)
    return functools.partial(target.uniform_, -SCALE, SCALE)


def _codes(count: int, keep_ratio: float) -> NDArray[np.int8]:
    """Return random codes."""
    rng = np.random.default_rng(SEED)
    signs = rng.choice(np.array([-1, 1], np.int8), count)
    return signs * (rng.random(count, dtype=np.float32) < keep_ratio)


if __name__ == "__main__":
    main()

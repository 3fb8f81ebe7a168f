"""How long SynFlow takes, and whether float32 finds the mask of float64.

Four whole searches take turns: ours with scores in float64 and in float32, and the published way
in both. Masks are compared with our float64's: the fraction of all entries that agree, and the
fraction of its survivors that survive there too.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from _published_synflow import published_synflow
from _shared import Progress, finish, heading, machine, markdown, parser, times, torch_threads
from _tickets import Network
from torch import Tensor

import pabzip
from pabzip.search import synflow

Masks = Mapping[str, Tensor]

DTYPES = {"float64": torch.float64, "float32": torch.float32}
OURS, FAST = "pabzip float64", "pabzip float32"
INPUT_SHAPE = (3, 32, 32)


def main() -> None:
    """Run the benchmark."""
    line = parser(__doc__)
    line.add_argument("--iterations", type=int, default=100, help="rounds of a search")
    line.add_argument("--turns", type=int, default=3, help="timed searches of each kind")
    line.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    line.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: the process's own time, for one thread where others compute as well",
    )
    arguments = line.parse_args()
    network = Network.of(arguments)
    keep_ratio = arguments.keep_ratio or 0.1
    if arguments.quick:
        arguments.iterations, arguments.turns = 5, 1
    with torch_threads(arguments.threads):
        seconds, masks = _measure(network, keep_ratio, arguments)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    facts = machine("torch")
    result = {
        "machine": facts,
        "network": str(network),
        "weights": sum(mask.numel() for mask in masks[OURS].values()),
        "keep_ratio": keep_ratio,
        "iterations": arguments.iterations,
        "threads": arguments.threads,
        "turns": arguments.turns,
        "clock": arguments.clock,
        "seconds": medians,
        "fastest": {name: min(taken) for name, taken in seconds.items()},
        "published_over_ours": medians["published float64"] / medians[OURS],
        "published_over_fast": medians["published float64"] / medians[FAST],
        "mask_shared": {name: _entries(masks[OURS], found) for name, found in masks.items()},
        "survivors_shared": {name: _survivors(masks[OURS], found) for name, found in masks.items()},
    }
    what = f"SynFlow, {network}, {arguments.iterations} iterations, {arguments.threads} threads"
    finish("search_speed", arguments, result, f"{heading(what, facts)}{_table(result)}")


def _measure(
    network: Network, keep_ratio: float, arguments: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, Masks]]:
    """Return the seconds of every search, and the mask that each kind finds."""
    kinds = {
        **{f"pabzip {name}": functools.partial(_ours, dtype) for name, dtype in DTYPES.items()},
        **{f"published {name}": functools.partial(_peer, dtype) for name, dtype in DTYPES.items()},
    }
    now = time.process_time if arguments.clock == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    masks: dict[str, Masks] = {}
    progress = Progress(len(kinds) * arguments.turns)
    for find in kinds.values():
        find(network, keep_ratio, 2)  # warms up
    for _ in range(arguments.turns):
        for name, find in kinds.items():
            progress.step(name)
            begin = now()
            masks[name] = find(network, keep_ratio, arguments.iterations)
            seconds[name].append(now() - begin)
            progress.done()
    progress.close()
    return seconds, masks


def _ours(dtype: torch.dtype, network: Network, keep_ratio: float, iterations: int) -> Masks:
    """Search by pabzip."""
    return synflow(
        network.build(), keep_ratio, input_shape=INPUT_SHAPE, iterations=iterations, dtype=dtype
    )


def _peer(dtype: torch.dtype, network: Network, keep_ratio: float, iterations: int) -> Masks:
    """Search as published."""
    net = network.build()
    weights = pabzip.seeded_parameters(net)
    return published_synflow(net, weights, keep_ratio, INPUT_SHAPE, iterations, dtype)


def _entries(one: Masks, other: Masks) -> float:
    """Return the fraction of the entries that agree."""
    same = sum(int((one[name] == other[name]).sum()) for name in one)
    return same / sum(mask.numel() for mask in one.values())


def _survivors(one: Masks, other: Masks) -> float:
    """Return the fraction of the survivors of ``one`` that survive in ``other``."""
    both = sum(int((one[name] & other[name]).sum()) for name in one)
    return both / sum(int(mask.sum()) for mask in one.values())


def _table(result: Mapping[str, Any]) -> str:
    """Return the table for people."""
    rows = [
        [
            name,
            times(took),
            times(result["fastest"][name]),
            f"{result['mask_shared'][name]:.4%}",
            f"{result['survivors_shared'][name]:.4%}",
        ]
        for name, took in result["seconds"].items()
    ]
    return markdown(["search", "median", "fastest", "mask shared", "survivors shared"], rows)


if __name__ == "__main__":
    main()

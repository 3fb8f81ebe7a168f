"""How long SynFlow takes, and whether float32 finds the mask of float64.

Four whole searches take turns: ours with scores in float64 and in float32, and the published way
in both. Masks are compared with our float64's: the fraction of all entries that agree, and the
fraction of its survivors that survive there too.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from _shared import (
    Progress,
    clock_arguments,
    clock_by,
    finish,
    markdown,
    parser,
    times,
    torch_threads,
    turns,
)
from _tickets import SHAPE, Network
from torch import Tensor, nn

import pabzip
from pabzip.search import synflow

Masks = Mapping[str, Tensor]

DTYPES = {"float64": torch.float64, "float32": torch.float32}
OURS, FAST = "pabzip float64", "pabzip float32"


def main() -> None:
    """Run the benchmark."""
    line = parser(__doc__)
    line.add_argument("--iterations", type=int, default=100, help="rounds of a search")
    line.add_argument("--turns", type=int, default=3, help="timed searches of each kind")
    clock_arguments(line)
    arguments = line.parse_args()
    network = Network.of(arguments)
    keep_ratio = arguments.keep_ratio or 0.1
    if arguments.quick:
        arguments.iterations, arguments.turns = 5, 1
    masks: dict[str, Masks] = {}

    def find(name: str, search: Callable[..., Masks], dtype: torch.dtype) -> None:
        masks[name] = search(network.build(), keep_ratio, arguments.iterations, dtype)

    runs = {
        f"{whose} {name}": functools.partial(find, f"{whose} {name}", search, dtype)
        for whose, search in (("pabzip", our_synflow), ("published", published_synflow))
        for name, dtype in DTYPES.items()
    }
    clock = clock_by(arguments.clock)
    with torch_threads(arguments.threads), Progress(arguments.turns + 1) as progress:
        progress.step("all searches in turns")
        seconds = turns(runs, arguments.turns, clock=clock, on_turn=progress.done)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    shared = {name: _shared(masks[OURS], found) for name, found in masks.items()}
    result = {
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
        "mask_shared": {name: entries for name, (entries, _) in shared.items()},
        "survivors_shared": {name: survivors for name, (_, survivors) in shared.items()},
    }
    what = f"SynFlow, {network}, {arguments.iterations} iterations, {arguments.threads} threads"
    finish("search_speed", arguments, what, _table(result), result, "torch")


def our_synflow(
    net: nn.Module, keep_ratio: float, iterations: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Search by pabzip."""
    return synflow(net, keep_ratio, input_shape=SHAPE, iterations=iterations, dtype=dtype)


def published_synflow(
    net: nn.Module, keep_ratio: float, iterations: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Search as published: torch's own gradients, one sort of all scores a round.

    Each round takes the absolute value of all state, the gradient of the summed outputs for an
    input of ones, and puts the signs back; then one threshold over the scores of all weights,
    pruned ones among them, masks what is not above it. Source: Tanaka et al. 2020, Algorithm 1, and
    the structure of the code published with it.
    """
    weights = pabzip.seeded_parameters(net)
    net.eval().to(dtype)
    masks = {name: torch.ones_like(weight) for name, weight in weights.items()}
    ones = torch.ones(1, *SHAPE, dtype=dtype)
    for iteration in range(1, iterations + 1):
        with torch.no_grad():
            for name, weight in weights.items():
                weight.mul_(masks[name])
            signs = {name: torch.sign(value) for name, value in net.state_dict().items()}
            for value in net.state_dict().values():
                value.abs_()
        net(ones).sum().backward()
        scores = {}
        with torch.no_grad():
            for name, weight in weights.items():
                scores[name] = (cast(Tensor, weight.grad) * weight).abs()
            for name, value in net.state_dict().items():
                value.mul_(signs[name])
        net.zero_grad()
        together = torch.cat([score.flatten() for score in scores.values()])
        pruned = int((1.0 - keep_ratio ** (iteration / iterations)) * len(together))
        if pruned:
            threshold = torch.kthvalue(together, pruned).values
            masks = {name: (score > threshold).to(dtype) for name, score in scores.items()}
    return {name: mask.bool() for name, mask in masks.items()}


def _shared(one: Masks, other: Masks) -> tuple[float, float]:
    """Return the fractions of all entries and of the survivors of ``one`` that are so in both."""
    same = sum(int((mask == other[name]).sum()) for name, mask in one.items())
    both = sum(int((mask & other[name]).sum()) for name, mask in one.items())
    survivors = sum(int(mask.sum()) for mask in one.values())
    return same / sum(mask.numel() for mask in one.values()), both / survivors


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

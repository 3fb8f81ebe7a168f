"""How long a training step takes with Bop, with and without PSG, against dense SGD.

One architecture, the same batches, and the calls that the training loop makes: forget the
gradients, forward, loss, backward, look for values that are not finite, step. Four networks take
turns: dense SGD with momentum and weight decay; Bop on the seeded weights and SGD on the rest, on a
ticket that SynFlow finds; the same with PSG; and PSG the published way, with every layer computed
twice in both directions. A ratio is the median over the turns of the ratios within a turn, so that
a slow moment, which hits neighbors alike, does not count.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from _published_psg import apply_published_psg
from _shared import (
    Progress,
    finish,
    heading,
    machine,
    markdown,
    parser,
    times,
    torch_threads,
    turns,
    wall_clock,
)
from torch import Tensor, nn

from pabzip import models
from pabzip.search import apply_masks, synflow
from pabzip.train.build import pick_device, seed_network
from pabzip.train.config import Recipe
from pabzip.train.distributed import ProcessGroup
from pabzip.train.optimizers import Optimizers
from pabzip.train.precision import Precision
from pabzip.train.step import BatchGradients, EpochMetrics, train_step
from pabzip.unmask import PsgConfig, apply_psg

DENSE, BOP, PSG, PUBLISHED = "dense SGD", "Bop", "Bop with PSG", "Bop with PSG as published"
ITERATIONS = 5  # of SynFlow; the time of a step does not depend on how good the ticket is


def main() -> None:
    """Run the benchmark."""
    line = parser(__doc__)
    line.add_argument("--width", type=int, help="width of the network; its own by default")
    line.add_argument("--batch-size", type=int, default=32, help="images a step")
    line.add_argument("--turns", type=int, default=15, help="timed steps of each")
    line.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    line.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: the process's own time, for one thread where others compute as well",
    )
    line.add_argument("--device", default="cpu", help="cpu, cuda or cuda:<number>")
    arguments = line.parse_args()
    arguments.arch = arguments.arch or "resnet18"
    arguments.keep_ratio = arguments.keep_ratio or 0.1
    if arguments.quick:
        arguments.width, arguments.batch_size, arguments.turns = 8, 4, 3
    device = pick_device(arguments.device)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    progress = Progress(arguments.turns + 2)
    with torch_threads(arguments.threads):
        progress.step("searching a ticket")
        steps = _steps(arguments, device)
        progress.done()
        progress.step("training steps")
        seconds = turns(
            steps, arguments.turns, clock=_clock(arguments.clock, device), on_turn=progress.done
        )
    progress.close()
    facts = machine("torch", gpu=gpu)
    result = {
        "machine": facts,
        "arch": arguments.arch,
        "width": arguments.width,
        "batch_size": arguments.batch_size,
        "keep_ratio": arguments.keep_ratio,
        "threads": arguments.threads,
        "turns": arguments.turns,
        "clock": arguments.clock,
        "psg_over_dense": _ratio(seconds, PSG, DENSE),
        "bop_over_dense": _ratio(seconds, BOP, DENSE),
        "published_over_dense": _ratio(seconds, PUBLISHED, DENSE),
        "seconds": {name: statistics.median(taken) for name, taken in seconds.items()},
        "fastest": {name: min(taken) for name, taken in seconds.items()},
    }
    what = f"{arguments.arch}, batch {arguments.batch_size}, {arguments.threads} threads"
    title = heading(f"{what}: one training step", facts)
    finish("train_speed", arguments, result, f"{title}{_table(seconds)}", gpu=gpu)


def _steps(arguments: argparse.Namespace, device: torch.device) -> dict[str, Callable[[], None]]:
    """Return one training step of each kind, each of a network of its own, on the same batches.

    Every turn takes a new batch: one that is learned by heart has gradients so small that
    processors are slow on them.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (arguments.batch_size, 3, 32, 32)
    batches = [
        (
            torch.randn(shape, generator=generator).to(device),
            torch.randint(10, shape[:1], generator=generator).to(device),
        )
        for _ in range(arguments.turns + 1)
    ]
    recipe = Recipe(arch=arguments.arch, keep_ratio=arguments.keep_ratio)
    options = {} if arguments.width is None else {"width": arguments.width}
    masks: dict[str, Tensor] = {}

    def network() -> nn.Module:
        return seed_network(models.build(arguments.arch, options), recipe).to(device)

    def ticket() -> nn.Module:
        net = network()
        if not masks:
            masks.update(synflow(net, recipe.keep_ratio, shape[1:], ITERATIONS))
        apply_masks(net, masks)
        return net

    dense, bop, psg, published = network(), ticket(), ticket(), ticket()
    apply_psg(psg)
    apply_published_psg(published, PsgConfig())
    return {
        DENSE: _step(dense, Optimizers(dense, recipe.replace(method="dense-sgd"), {}), batches),
        BOP: _step(bop, Optimizers(bop, recipe, masks), batches),
        PSG: _step(psg, Optimizers(psg, recipe, masks), batches),
        PUBLISHED: _step(published, Optimizers(published, recipe, masks), batches),
    }


def _step(
    net: nn.Module, optimizers: Optimizers, batches: Sequence[tuple[Tensor, Tensor]]
) -> Callable[[], None]:
    """Return what the training loop does with the next batch; see `pabzip.train.step`."""
    device = batches[0][0].device
    gradients = BatchGradients(net, 0, 1, ProcessGroup(), Precision("float32", False, device))
    metrics = EpochMetrics(1, device)
    walk = enumerate(batches, 1)
    net.train()

    def run() -> None:
        step, batch = next(walk)
        metrics.begin(step)
        train_step(gradients, optimizers, metrics, batch, len(batch[1]), 1, step)

    return run


def _clock(name: str, device: torch.device) -> Callable[[Callable[[], object]], float]:
    """Return a clock; it waits for a GPU to finish before and after."""
    if name == "cpu":
        return _cpu_clock
    if device.type != "cuda":
        return wall_clock

    def clock(run: Callable[[], object]) -> float:
        torch.cuda.synchronize(device)
        return wall_clock(lambda: (run(), torch.cuda.synchronize(device)))

    return clock


def _cpu_clock(run: Callable[[], object]) -> float:
    """Return the seconds that this process computes in one call, on all its threads."""
    begin = time.process_time()
    run()
    return time.process_time() - begin


def _ratio(seconds: Mapping[str, list[float]], one: str, other: str) -> float:
    """Return the median of the ratios within a turn."""
    return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))


def _table(seconds: Mapping[str, list[float]]) -> str:
    """Return the table for people."""
    rows = []
    for name, taken in seconds.items():
        cells = [times(statistics.median(taken)), times(min(taken))]
        rows.append([name, *cells, f"{_ratio(seconds, name, DENSE):.2f}"])
    return markdown(["step", "median", "fastest", "ratio"], rows)


if __name__ == "__main__":
    main()

"""How long a training step takes with Bop, with and without PSG, against dense SGD.

One architecture, the same batches, and the calls that the training loop makes: forget the
gradients, forward, loss, backward, look for values that are not finite, step. Four networks take
turns: dense SGD with momentum and weight decay; Bop on the seeded weights and SGD on the rest, on a
ticket that SynFlow finds; the same with PSG; and PSG the published way, with every output and every
weight gradient computed twice. A ratio is the median over the turns of the ratios within a turn, so
that a slow moment, which hits neighbors alike, does not count.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
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
from torch import Tensor, nn

from pabzip import models
from pabzip.search import apply_masks, synflow
from pabzip.train.build import pick_device, seed_network
from pabzip.train.config import Recipe
from pabzip.train.distributed import ProcessGroup
from pabzip.train.optimizers import Optimizers
from pabzip.train.precision import Precision
from pabzip.train.step import BatchGradients, EpochMetrics, train_step
from pabzip.unmask import PsgConfig, apply_psg, quantize

DENSE, BOP, PSG, PUBLISHED = "dense SGD", "Bop", "Bop with PSG", "Bop with PSG as published"
ITERATIONS = 5  # of SynFlow; the time of a step does not depend on how good the ticket is


def main() -> None:
    """Run the benchmark."""
    line = parser(__doc__)
    line.add_argument("--width", type=int, help="width of the network; its own by default")
    line.add_argument("--batch-size", type=int, default=32, help="images a step")
    line.add_argument("--turns", type=int, default=15, help="timed steps of each")
    clock_arguments(line)
    line.add_argument("--device", default="cpu", help="cpu, cuda or cuda:<number>")
    arguments = line.parse_args()
    arguments.arch = arguments.arch or "resnet18"
    arguments.keep_ratio = arguments.keep_ratio or 0.1
    if arguments.quick:
        arguments.width, arguments.batch_size, arguments.turns = 8, 4, 3
    device = pick_device(arguments.device)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    clock = clock_by(arguments.clock)
    if gpu is not None:
        clock = clock_by(arguments.clock, functools.partial(torch.cuda.synchronize, device))
    with torch_threads(arguments.threads), Progress(arguments.turns + 2) as progress:
        progress.step("searching a ticket")
        steps = _steps(arguments, device)
        progress.done()
        progress.step("training steps")
        seconds = turns(steps, arguments.turns, clock=clock, on_turn=progress.done)
    result = {
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
    title = f"{what}: one training step"
    finish("train_speed", arguments, title, _table(seconds), result, "torch", gpu=gpu)


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
            masks.update(
                synflow(net, recipe.keep_ratio, input_shape=shape[1:], iterations=ITERATIONS)
            )
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


class _Weights(torch.autograd.Function):
    """The weight twice, exact and quantized, whose two gradients come back; one is used.

    Large predicted gradients are kept and small ones removed. That the signs of both gradients are
    compared first, and nothing made of it, is part of the published work.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, config: PsgConfig) -> tuple[Tensor, Tensor]:
        ctx.threshold = config.threshold
        rough = quantize(weight, config.weight_bits, quantizer="published", role="weight")
        return weight.view_as(weight), rough

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        exact, predicted = gradients
        size = predicted.abs()
        kept = predicted * (size >= ctx.threshold * size.max())
        torch.ne(exact.sign(), predicted.sign()).mul(predicted)
        return kept, None


class _Outputs(torch.autograd.Function):
    """The exact output, whose gradient goes to the exact product, and quantized to the other."""

    @staticmethod
    def forward(ctx: Any, exact: Tensor, rough: Tensor, config: PsgConfig) -> Tensor:
        ctx.bits = config.gradient_bits
        return exact.view_as(exact)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        return gradients[0], quantize(gradients[0], ctx.bits, quantizer="published"), None


def apply_published_psg(net: nn.Module, config: PsgConfig) -> None:
    """Let every convolution of ``net`` compute from now on what PSG was published to compute.

    A layer makes an exact and a quantized output and hands on the exact one. Its output gradient
    goes back to both, which makes an exact and a predicted weight gradient; the input gradient is
    the exact one alone, for the quantized input is cut off from those before it. Our form of the
    published quantizer takes fewer passes over memory, so this is the least that the published way
    costs.

    Source: the structure of the code published with Peek-a-Boo.
    """

    def twice(layer: nn.Conv2d, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        convolve = functools.partial(
            F.conv2d, stride=layer.stride, padding=layer.padding, dilation=layer.dilation,
            groups=layer.groups,
        )  # fmt: skip
        rough_input = quantize(inputs, config.input_bits, quantizer="published", role="input")
        exact_weight, rough_weight = _Weights.apply(weight, config)
        exact = convolve(inputs, exact_weight, bias)
        rough = convolve(rough_input, rough_weight)
        output: Tensor = _Outputs.apply(exact, rough, config)
        return output

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            setattr(module, "_conv_forward", MethodType(twice, module))  # noqa: B010


if __name__ == "__main__":
    main()

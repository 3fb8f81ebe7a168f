"""The masks that the benchmarks work on, found once and kept, and tickets made of them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from _shared import Progress
from numpy.typing import NDArray

import pabzip
from pabzip.init import Seeding

if TYPE_CHECKING:
    from torch import nn

SEED = 3
"""Of every network here."""

SHAPE = (3, 32, 32)
"""Of the images that they take."""

Masks = dict[str, NDArray[np.bool_]]
Codes = dict[str, NDArray[np.int8]]


@dataclass(frozen=True, slots=True)
class Network:
    """An architecture for 10 classes, with the options that differ from its own, as pairs."""

    arch: str
    options: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Network:
        """Return the network that is asked for; a small one where a quick run names none."""
        if arguments.arch:
            return cls(arguments.arch)
        return cls("resnet20", (("width", 4),)) if arguments.quick else cls("resnet18")

    def __str__(self) -> str:
        return "-".join([self.arch, *(f"{key}{value:d}" for key, value in self.options)])

    def build(self) -> nn.Module:
        """Return the network, drawn from `SEED`."""
        return pabzip.init_(pabzip.models.build(self.arch, dict(self.options)), SEED)


@cache
def seeding_of(network: Network) -> tuple[Seeding, dict[str, tuple[int, ...]]]:
    """Return how a network's weights are drawn, and their shapes by name."""
    net = network.build()
    shapes = {name: tuple(value.shape) for name, value in pabzip.seeded_parameters(net).items()}
    return pabzip.seeding(net), shapes


def synflow_masks(
    network: Network,
    keep_ratio: float,
    arguments: argparse.Namespace,
    progress: Progress,
    *,
    iterations: int = 100,
) -> Masks:
    """Return the masks that SynFlow finds, from the cache where it holds them.

    ``arguments`` name the cache; a quick run takes 5 iterations.
    """
    iterations = 5 if arguments.quick else iterations
    name = f"synflow-{network}-keep{keep_ratio:g}-iterations{iterations}-seed{SEED}"
    file = arguments.cache / f"{name}.npz"
    if not file.exists():
        found = pabzip.search.synflow(
            network.build(),
            keep_ratio,
            input_shape=SHAPE,
            iterations=iterations,
            on_iteration=lambda at, of: progress.step(
                f"{network}, SynFlow {keep_ratio:g}: {at} of {of}"
            ),
        )
        arguments.cache.mkdir(parents=True, exist_ok=True)
        partial = arguments.cache / f"{name}.{os.getpid()}.npz"
        arrays: dict[str, Any] = {key: mask.numpy() for key, mask in found.items()}
        np.savez_compressed(partial, **arrays)
        partial.replace(file)
    with np.load(file) as held:
        return {key: held[key] for key in held.files}


def magnitude_masks(network: Network, keep_ratio: float) -> Masks:
    """Return the masks that keep the largest weights of the whole network."""
    found = pabzip.search.magnitude(network.build(), keep_ratio, input_shape=SHAPE)
    return {name: mask.numpy() for name, mask in found.items()}


def random_masks(network: Network, keep_ratio: float) -> Masks:
    """Return masks without any structure."""
    _, shapes = seeding_of(network)
    rng = np.random.default_rng(SEED)
    return {name: rng.random(shape) < keep_ratio for name, shape in shapes.items()}


def with_signs(masks: Masks, flips: float = 0.5) -> Codes:
    """Return codes: a share ``flips`` of the survivors, drawn at random, has its sign flipped."""
    rng = np.random.default_rng(SEED + 1)
    return {
        name: np.where(rng.random(mask.shape) < flips, np.int8(-1), np.int8(1)) * mask
        for name, mask in masks.items()
    }


def trained(network: Network, codes: Codes) -> nn.Module:
    """Return a network with these codes, and batch norm as it is after some training.

    Its batch-norm values are drawn about those of a trained network: full mantissas, which is what
    they cost in a file and in time.
    """
    import torch

    net = network.build()
    rng = np.random.default_rng(SEED + 2)
    draws: dict[str, Callable[[int], NDArray[Any]]] = {
        "weight": lambda size: rng.normal(1.0, 0.1, size),
        "bias": lambda size: rng.normal(0.0, 0.1, size),
        "running_mean": lambda size: rng.normal(0.0, 0.5, size),
        "running_var": lambda size: rng.lognormal(0.0, 0.5, size),
        "num_batches_tracked": lambda size: np.array(1000),
    }
    with torch.no_grad():
        for name, weight in pabzip.seeded_parameters(net).items():
            weight.mul_(torch.from_numpy(codes[name])).add_(0.0)  # +0.0 where pruned, never -0.0
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                for key, value in module.state_dict().items():
                    value.copy_(torch.from_numpy(draws[key](module.num_features)))
    return net.eval()

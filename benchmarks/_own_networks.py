"""Networks of torch's own layers for the table in docs/networks.md, and wrappers to put around."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 4


class Recurrent(nn.Module):
    """A recurrent classifier of token ids, by the last step's state."""

    def __init__(self, kind: Callable[..., nn.Module], **options: Any):
        super().__init__()
        self.embedding = nn.Embedding(64, 16)
        self.layers = kind(16, 24, batch_first=True, **options)
        self.head = nn.Linear(24 * (2 if options.get("bidirectional") else 1), CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.layers(self.embedding(ids))
        two_ways = self.head.in_features > 24  # the way back ends at the first step
        logits: Tensor = self.head(states.mean(1) if two_ways else states[:, -1])
        return logits


class FromZeros(nn.Module):
    """An LSTM whose first state the network makes itself, float32 as torch does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.LSTM(16, 24, batch_first=True)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, steps: Tensor) -> Tensor:
        state = torch.zeros(1, len(steps), 24, device=steps.device)
        logits: Tensor = self.head(self.layers(steps, (state, state))[0][:, -1])
        return logits


class Timed(nn.Module):
    """A network that is told a whole number beside its input, as those of diffusion are."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.time = nn.Linear(16, 24), nn.Linear(1, 24)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, values: Tensor, timestep: Tensor) -> Tensor:
        times = self.time(timestep.float()[:, None] / 1000)
        logits: Tensor = self.head((self.body(values) + times).relu())
        return logits


class Attention(nn.Module):
    """`nn.MultiheadAttention` and a classifier of the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, steps: Tensor) -> Tensor:
        mixed, _ = self.attention(steps, steps, steps, need_weights=False)
        logits: Tensor = self.head((steps + mixed).mean(1))
        return logits


class Translator(nn.Module):
    """`nn.Transformer` of two inputs, a source and a target."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(source, target)[:, -1])
        return logits


class Tied(nn.Module):
    """A language model whose output layer shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 16)
        self.layer = nn.Linear(16, 16)
        self.head = nn.Linear(16, 64, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.layer(self.embedding(ids))))[:, -1]
        return logits


class SqueezeExcitation(nn.Module):
    """Two convolutions with squeeze-and-excitation, hard activations and ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU6())
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 8, 1), nn.Hardswish(), nn.Conv2d(8, 16, 1),
            nn.Hardsigmoid(),
        )  # fmt: skip
        self.head = nn.Linear(16, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        seen = self.stem(images)
        logits: Tensor = self.head((seen * self.gate(seen)).mean((2, 3)))
        return logits


def mlp(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), *layers)


def plain() -> nn.Module:
    return mlp(nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, CLASSES))


def lazy() -> nn.Module:
    return mlp(nn.LazyLinear(24), nn.ReLU(), nn.LazyLinear(CLASSES))


def parametrized(change: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return mlp(change(nn.Linear(48, 24)), nn.ReLU(), nn.Linear(24, CLASSES))


def audio() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(1, 8, 9, stride=4), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 16, 9, stride=4),
        nn.GroupNorm(2, 16), nn.SiLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        nn.Linear(16, CLASSES),
    )  # fmt: skip


def volume() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1), nn.InstanceNorm3d(8), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(8, 8, 3), nn.LeakyReLU(), nn.Flatten(), nn.Linear(64, CLASSES),
    )  # fmt: skip


def autoencoder(dimensions: int) -> nn.Module:
    convolution = (nn.Conv1d, nn.Conv2d)[dimensions - 1]
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d)[dimensions - 1]
    return nn.Sequential(
        convolution(1, 8, 3, stride=2, padding=1), nn.ReLU(),
        convolution(8, 4, 3, stride=2, padding=1), nn.Tanh(),
        transposed(4, 8, 4, stride=2, padding=1), nn.ReLU(),
        transposed(8, 1, 4, stride=2, padding=1), nn.Sigmoid(),
    )  # fmt: skip


def compiled(net: nn.Module) -> nn.Module:
    result: Any = torch.compile(net, backend="eager")
    wrapper: nn.Module = result
    return wrapper


def compiled_in_place(net: nn.Module) -> nn.Module:
    net.compile(backend="eager")
    return net


def distributed(net: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(net)


def sharded(net: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(net, mesh=init_device_mesh("cpu", (1,)))
    return net

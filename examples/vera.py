"""Adapters of a few hundred bytes: frozen random matrices that travel as a seed.

    python examples/vera.py [FILE]

A small network reads digits. Adapters then teach it to read them as a negative, dark on light, and
its own weights stay as they are. As in VeRA, each adapted layer adds b * (B (d * (A x))) to its
output: A and B are random, frozen and shared by all layers, and only the vectors d and b are
trained. torch and numpy do not promise the same random numbers to the next version or device, so
such matrices are usually stored with the adapters. `pabzip.randn` does promise it: the file holds
the seed and the vectors, and each layer takes the rows and columns that it needs.

Needs ``pip install 'pabzip[train]'``; takes some seconds. Source: Kopiczko, Blankevoort and Asano,
"VeRA: Vector-based Random Matrix Adaptation" (ICLR 2024).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

import pabzip
from pabzip.data import batches

SEED, RANK, WIDTH = 7, 64, 64
"""Of the frozen matrices: the seed, the rank, and the widest layer's inputs and outputs."""


class Adapted(nn.Module):
    """A frozen linear layer with an adapter: d (RANK,) and b (outputs,) are all that is trained."""

    def __init__(self, layer: nn.Linear, seed: int):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        # Streams 0 and 1 of the seed are A and B; a narrower layer takes a part of them.
        narrow = pabzip.randn((RANK, WIDTH), seed, stream=0, device="cpu") / WIDTH**0.5
        wide = pabzip.randn((layer.out_features, RANK), seed, stream=1, device="cpu") / RANK**0.5
        self.register_buffer("A", narrow[:, : layer.in_features], persistent=False)
        self.register_buffer("B", wide, persistent=False)
        self.d = nn.Parameter(torch.full((RANK,), 0.1))
        self.b = nn.Parameter(torch.zeros(layer.out_features))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return outputs (N, out) of inputs (N, in)."""
        low = self.d * nn.functional.linear(inputs, self.get_buffer("A"))
        adapted: torch.Tensor = self.layer(inputs)
        return adapted + self.b * nn.functional.linear(low, self.get_buffer("B"))


def adapted(base: nn.Sequential, seed: int) -> nn.Sequential:
    """Return the network with an adapter on each linear layer; the layers are the network's own."""
    return nn.Sequential(*(Adapted(m, seed) if isinstance(m, nn.Linear) else m for m in base))


def train(
    net: nn.Module, digits: pabzip.data.AnyImages, epochs: int, lr: float, sign: float
) -> None:
    """Train what is not frozen by Adam, on the images times ``sign``."""
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=lr)
    for epoch in range(epochs):
        for images, labels in batches(digits, 64, shuffle_seed=SEED, epoch=epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(sign * images), labels).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(net: nn.Module, digits: pabzip.data.AnyImages, sign: float) -> float:
    """Return the share of images times ``sign`` that are read right."""
    right = [(net(sign * images).argmax(1) == labels) for images, labels in batches(digits, 256)]
    return float(torch.cat(right).float().mean())


def main(path: Path) -> None:
    """Train a network and its adapters, pack the adapters to ``path``, and load them again."""
    torch.manual_seed(0)  # for the network alone; the adapters need no such thing
    digits = pabzip.data.load("digits")
    base = nn.Sequential(
        nn.Flatten(), nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(),
        nn.Linear(WIDTH, 10),
    )  # fmt: skip
    train(base, digits.train, epochs=10, lr=3e-3, sign=1)
    before, negative = accuracy(base, digits.test, 1), accuracy(base, digits.test, -1)

    # 1. Train the vectors; the network and the random matrices are frozen.
    net = adapted(base, SEED)
    train(net, digits.train, epochs=60, lr=5e-2, sign=-1)
    vectors = {name: p for name, p in net.named_parameters() if p.requires_grad}
    for vector in vectors.values():
        vector.data = vector.data.half().float()  # what the file holds
    after = accuracy(net, digits.test, -1)

    # 2. Pack the seed and the vectors.
    tensors = [
        pabzip.DenseTensor(name, vector.detach().numpy(), "float32", "float16")
        for name, vector in vectors.items()
    ]
    ticket = pabzip.Ticket(seed=SEED, tensors=tensors, metadata={"adapter": "vera", "rank": RANK})
    report = ticket.save(path)

    # 3. Load: draw the matrices again, anywhere, and fill in the vectors.
    with pabzip.open(path) as held:
        again = adapted(base, held.seed)
        again.load_state_dict(pabzip.load_file(path), strict=False)
    assert accuracy(again, digits.test, -1) == after
    print(
        f"{before:.2%} of the test digits, {negative:.2%} of their negatives; with adapters of "
        f"{report.bytes:,} bytes {after:.2%} of these"
    )
    matrices = 4 * RANK * (WIDTH + WIDTH)
    print(f"the random matrices that are not stored: {matrices:,} bytes")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary) / "adapters.pabz")

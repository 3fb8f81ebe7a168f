"""A model and a training loop of your own: pabzip draws, searches and packs, you do the rest.

    python examples/own_model.py [FILE]

Any ``nn.Module`` works, and any loop that changes seeded weights only by flipping their signs.
Needs ``pip install 'pabzip[train]'``; takes some seconds.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

import pabzip
from pabzip.data import batches
from pabzip.train import evaluate
from pabzip.unmask import Bop


class DigitReader(nn.Module):
    """A small convolutional network that pabzip knows nothing about."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Linear(64 * 4, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (N, 10) of images (N, 1, 8, 8)."""
        logits: torch.Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def main(path: Path) -> None:
    """Train, pack to ``path``, and load into a fresh network."""
    torch.manual_seed(0)  # for the biases, which stay dense; the seeded weights need no such thing
    digits = pabzip.data.load("digits")
    net = DigitReader()

    # 1. Draw the convolutions from a seed; the classifier trains as usual and is stored as it is.
    pabzip.init_(net, seed=7, skip=["classifier"])
    # 2. Keep a fifth of them.
    pabzip.search.synflow(net, keep_ratio=0.2, input_shape=(1, 8, 8))
    # 3. Flip signs with Bop; everything else trains by SGD.
    bop = Bop(net, adaptivity_rate=1e-2, threshold=1e-4)
    sgd = torch.optim.SGD(pabzip.dense_parameters(net).values(), lr=0.05, momentum=0.9)
    decay = torch.optim.lr_scheduler.StepLR(bop, 3, gamma=0.5)  # of the adaptivity rate
    for epoch in range(12):
        net.train()
        for images, labels in batches(digits.train, 64, shuffle_seed=7, epoch=epoch):
            bop.zero_grad()
            sgd.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            bop.step()
            sgd.step()
        decay.step()
    trained = evaluate(net, digits.test)

    # 4. Pack. Refused unless every surviving weight is its seed's magnitude, bit for bit.
    report = pabzip.pack(net, path)
    # 5. Load into a network built anew, anywhere.
    loaded = pabzip.load_into(DigitReader(), path).eval()
    assert evaluate(loaded, digits.test) == trained
    print(
        f"{trained.accuracy:.2%} of {trained.samples} test digits from {report['bytes']:,} bytes "
        f"({report['float32_bytes']:,} as float32)"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary) / "digits.pabz")

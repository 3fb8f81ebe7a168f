"""One network in every form that a benchmark compares."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
import zstandard
from torch import nn

import pabzip


class Files:
    """One network in every form that is compared, in a folder of its own.

    Args:
        net: what to write.
        folder: where to.
    """

    def __init__(self, net: nn.Module, folder: Path):
        self.net = net
        self.ticket, self.checkpoint = folder / "model.pabz", folder / "model.pt"
        self.plain, self.compressed = folder / "model.safetensors", folder / "model.zst"
        self.target = folder / "written.safetensors"
        self.info = pabzip.pack(net, self.ticket)
        self.packed = self.ticket.read_bytes()
        state = net.state_dict()
        torch.save(state, self.checkpoint)
        safetensors.torch.save_file(state, self.plain)
        self.compressed.write_bytes(
            zstandard.ZstdCompressor(level=19, threads=-1).compress(self.plain.read_bytes())
        )

    def bytes(self) -> dict[str, int]:
        """Return how many bytes each form takes."""
        files = (self.ticket, self.checkpoint, self.plain, self.compressed)
        names = ("pabzip", "torch.load", "safetensors", "safetensors + zstd")
        return {name: file.stat().st_size for name, file in zip(names, files, strict=True)}

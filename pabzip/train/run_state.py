"""All that changes while a run goes on, to be written down and taken up again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pabzip.train.digest import digest
from pabzip.train.meter import Meter
from pabzip.train.optimisers import Optimisers
from pabzip.train.precision import Precision
from pabzip.train.results import EpochStats


@dataclass
class RunState:
    """Where a run stands. What it draws at random depends on that alone, so there is no more.

    Attributes:
        net: the network.
        masks: bool tensors by name of the seeded weight, True for a survivor; all True before the
            first search.
        optimisers: with their schedules.
        precision: with its loss scale.
        meter: the sums of the epoch that is under way.
        history: the finished epochs.
        step: steps done in the epoch after them, dropped ones included.
        searches: searches done.
    """

    net: nn.Module
    masks: dict[str, torch.Tensor]
    optimisers: Optimisers
    precision: Precision
    meter: Meter
    history: list[EpochStats] = field(default_factory=list)
    step: int = 0
    searches: int = 0

    @property
    def epoch(self) -> int:
        """The epoch that is under way, counted from 1."""
        return len(self.history) + 1

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield parameters and buffers by name, also buffers that no checkpoint holds."""
        yield from self.net.named_parameters()
        yield from self.net.named_buffers()

    def digest(self) -> str:
        """Return a SHA-256 of network and masks."""
        return digest([dict(self.tensors()), self.masks])

    def to_plain(self) -> dict[str, Any]:
        """Return it as nested plain values and tensors, which are the live ones."""
        return {
            "tensors": dict(self.tensors()),
            "masks": self.masks,
            "optimisers": self.optimisers.state_dict(),
            "precision": self.precision.state_dict(),
            "meter": self.meter.state_dict(),
            "history": [stats.to_dict() for stats in self.history],
            "step": self.step,
            "searches": self.searches,
        }

    def take_up(self, plain: Mapping[str, Any]) -> None:
        """Become what `to_plain` was taken of, to the bit.

        Raises:
            ValueError, TypeError, KeyError, IndexError, RuntimeError: it is not the state of such
                a run. What this one is afterwards is undefined.
        """
        tensors = dict(self.tensors())
        with torch.no_grad():
            for mine, saved in ((tensors, plain["tensors"]), (self.masks, plain["masks"])):
                if list(mine) != list(saved):
                    raise ValueError(f"tensors called {', '.join(list(saved)[:3])}, ...")
                for name, tensor in mine.items():
                    _fill(name, tensor, saved[name])
        if plain["searches"]:
            self.optimisers.prune(self.masks)
        self.optimisers.load_state_dict(plain["optimisers"])
        self.precision.load_state_dict(plain["precision"])
        self.history = [EpochStats(**stats) for stats in plain["history"]]
        self.step, self.searches = plain["step"], plain["searches"]
        device = next(iter(self.masks.values())).device
        self.meter = Meter(self.epoch, device)
        self.meter.load_state_dict(plain["meter"])


def _fill(name: str, target: torch.Tensor, value: torch.Tensor) -> None:
    """Copy a saved tensor of the same shape and dtype."""
    if target.shape != value.shape or target.dtype != value.dtype:
        raise ValueError(f"{name} as {value.dtype} of shape {tuple(value.shape)}")
    target.copy_(value)

"""All that changes during a run, and the metrics of the epoch under way."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pabzip.errors import TrainingError
from pabzip.train.callbacks import Progress
from pabzip.train.distributed import digest
from pabzip.train.optimizers import Optimizers
from pabzip.train.precision import Precision
from pabzip.train.results import EpochStats


class Meter:
    """Sums of one epoch, kept on the device until `read`.

    Args:
        epoch: counted from 1.
        device: where the sums live.
    """

    def __init__(self, epoch: int, device: torch.device):
        self._epoch = epoch
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)
        # The first step that went wrong (0: none so far) and its loss.
        self._failure = torch.zeros(2, dtype=torch.float64, device=device)
        self._step = 0
        self._taken = 0
        self._samples = 0

    def begin(self, step: int) -> None:
        """Say which step comes next, counted from 1 in the epoch; it may be dropped."""
        self._step = step

    def check(self, loss: torch.Tensor, gradients: Iterable[torch.Tensor]) -> None:
        """Take note if the loss or a gradient is not finite.

        Args:
            loss: the mean loss of the step, a scalar.
            gradients: those of all parameters.
        """
        largest = _largest(list(gradients))
        loss = loss.detach().double()
        sound = torch.isfinite(loss) & torch.isfinite(largest) | (self._failure[0] > 0)
        here = torch.stack([torch.full_like(loss, self._step), loss])
        self._failure = torch.where(sound, self._failure, here)

    def add(
        self, loss: torch.Tensor, correct: torch.Tensor, samples: int, flips: torch.Tensor
    ) -> None:
        """Add one step.

        Args:
            loss: mean loss of its samples, a scalar.
            correct: how many of them were classified rightly, a scalar.
            samples: how many there were.
            flips: signs flipped, a scalar.
        """
        self._taken += 1
        self._samples += samples
        self._sums += torch.stack(
            [loss.detach().double() * samples, correct.double(), flips.double()]
        )

    def read(self) -> Progress:
        """Wait for the device and return the epoch's numbers so far.

        Raises:
            TrainingError: a loss or gradient was not finite; the message names epoch and step.
        """
        loss, correct, flips, failed, found = torch.cat([self._sums, self._failure]).tolist()
        if failed:
            finite = math.isfinite(found)
            raise TrainingError(
                f"epoch {self._epoch}, step {int(failed)}: expected a finite loss and finite "
                f"gradients, found a loss of {found:g}"
                f"{' with an infinite gradient' if finite else ''}; begin again with a lower "
                "sgd.lr, or use an architecture with batch norm"
            )
        samples, taken = max(self._samples, 1), max(self._taken, 1)
        return Progress(self._epoch, self._step, loss / samples, correct / samples, flips / taken)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums as plain values; read first, so that no failure is kept."""
        return {
            "sums": self._sums.tolist(),
            "step": self._step,
            "taken": self._taken,
            "samples": self._samples,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the sums of `state_dict`, to the bit."""
        self._sums.copy_(torch.tensor(state["sums"], dtype=torch.float64))
        self._step = int(state["step"])
        self._taken = int(state["taken"])
        self._samples = int(state["samples"])


def _largest(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Return the largest magnitude of all, a scalar; not finite if one of them is not."""
    if any(gradient.device.type != "cpu" for gradient in gradients):
        return torch.nn.utils.get_total_norm(gradients, norm_type=torch.inf)
    # On a CPU the norm takes many times as long as the extremes.
    ends = [end for gradient in gradients if gradient.numel() for end in torch.aminmax(gradient)]
    return torch.stack(ends).abs().amax() if ends else torch.zeros(())


@dataclass
class RunState:
    """Where a run stands. What it draws at random depends on that alone, so there is no more.

    Attributes:
        net: the network.
        masks: bool tensors by name of the seeded weight, True for a survivor; all True before the
            first search.
        optimizers: with their schedules.
        precision: with its loss scale.
        meter: the sums of the epoch that is under way.
        history: the finished epochs.
        step: steps done in the epoch after them, dropped ones included.
        searches: searches done.
    """

    net: nn.Module
    masks: dict[str, torch.Tensor]
    optimizers: Optimizers
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
            "optimizers": self.optimizers.state_dict(),
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
            self.optimizers.prune(self.masks)
        self.optimizers.load_state_dict(plain["optimizers"])
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

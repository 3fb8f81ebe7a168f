"""Count what happens in the steps of an epoch without waiting for the device at each of them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from pabzip.errors import TrainingError
from pabzip.train.observers import Progress


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
        self._steps = 0
        self._samples = 0

    def check(self, loss: torch.Tensor, gradients: Iterable[torch.Tensor]) -> None:
        """Take note if the loss or a gradient is not finite; counts the step.

        Args:
            loss: the mean loss of the step, a scalar.
            gradients: those of all parameters.
        """
        self._steps += 1
        largest = torch.nn.utils.get_total_norm(gradients, norm_type=torch.inf)
        loss = loss.detach().double()
        sound = torch.isfinite(loss) & torch.isfinite(largest) | (self._failure[0] > 0)
        here = torch.stack([torch.full_like(loss, self._steps), loss])
        self._failure = torch.where(sound, self._failure, here)

    def add(
        self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, flips: torch.Tensor
    ) -> None:
        """Add one step.

        Args:
            loss: mean loss of its samples, a scalar.
            logits: ``[B, classes]``.
            labels: ``int64[B]``.
            flips: signs flipped, a scalar.
        """
        samples = len(labels)
        self._samples += samples
        correct = (logits.detach().argmax(1) == labels).sum()
        self._sums += torch.stack(
            [loss.detach().double() * samples, correct.double(), flips.double()]
        )

    def read(self) -> Progress:
        """Wait for the device and return the epoch's numbers so far.

        Raises:
            TrainingError: a loss or gradient was not finite; the message names epoch and step.
        """
        loss, correct, flips, step, failed = torch.cat([self._sums, self._failure]).tolist()
        if step:
            finite = math.isfinite(failed)
            found = f"a loss of {failed:g}{' with an infinite gradient' if finite else ''}"
            raise TrainingError(
                f"epoch {self._epoch}, step {int(step)}: expected a finite loss and finite "
                f"gradients, found {found}; nothing was written. Lower sgd.learning_rate, or use "
                "an architecture with batch norm"
            )
        samples, steps = max(self._samples, 1), max(self._steps, 1)
        return Progress(self._epoch, self._steps, loss / samples, correct / samples, flips / steps)

"""What all score methods share: a score for each weight, and a mask that the scores decide."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pabzip.errors import RecipeError
from pabzip.init import attach_seeding, seeded_parameters, seeding
from pabzip.seeds import Frozen
from pabzip.seeds.frozen import KEPT
from pabzip.seeds.spec import fans
from pabzip.selection import oriented
from pabzip.unmask.rule import FlippingRule, check_not_negative, float32_weights, uniform_start
from pabzip.wrappers import unwrap

MakeOptimizer = Callable[[list[Tensor]], Optimizer]
"""Builds the optimizer of the scores, such as ``lambda scores: torch.optim.SGD(scores, 0.1)``."""


def largest(sizes: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return which numbers are the ``count`` largest of all tensors together: bool, by name.

    Equal ones are settled by position, the earlier first, as `pabzip.search` does. Unlike a search,
    which runs once, this runs in every step, and so never waits for the device.
    """
    flat = torch.cat([size.flatten() for size in sizes.values()])
    least = flat.kthvalue(flat.numel() - count + 1).values
    kept, equal = flat > least, flat == least
    kept |= equal & (equal.cumsum(0) <= count - kept.sum())
    parts = kept.split_with_sizes([size.numel() for size in sizes.values()])
    return {
        name: part.view(size.shape) for part, (name, size) in zip(parts, sizes.items(), strict=True)
    }


def check_keep_ratio(rule: str, keep_ratio: float) -> None:
    """Refuse a fraction of weights that cannot be kept.

    Raises:
        RecipeError: names the rule and the value.
    """
    if not 0.0 < keep_ratio <= 1.0:
        raise RecipeError(
            f"{rule}: keep_ratio: expected a number above 0 and at most 1, found {keep_ratio!r}"
        )


class ScoreRule(FlippingRule):
    r"""Learns a score s for each seeded weight, which decides what becomes of the weight.

    A weight is always ``w = w0 * f(s)``: w0 is what the seed drew, which never changes, and the
    factor f is 0 or 1 (or -1, where signs are learned). The gradient of f is taken to be 1 (the
    straight-through estimator), so with gradient g of the weight, each step is::

        d <- g * w0 + gradient of the penalty
        s <- one step of a torch optimizer by d
        w <- w0 * f(s)

    The scores live here and the network holds the weights that it computes with, so any
    ``nn.Module`` can be trained, packed and evaluated at any time; a pruned weight is +0.0.
    It is a torch optimizer whose parameters are the scores: torch's schedulers work on it.

    A subclass says where scores begin (`_begin`) and what they decide (`_factors`).

    Args:
        net: a network drawn from a seed, whose seeded weights are float32. Its weights change at
            once: to what the first scores keep.
        optimizer: builds what moves the scores.
        penalty: lambda, zero or more: the weight of the penalty on the scores in the loss.
        norm: of the penalty: 2 adds ``lambda * sum(s ** 2)`` to the loss, 1 ``lambda * sum(|s|)``.
        frozen: how much of each mask the seed prunes or keeps for good, one for all weights or by
            name of the weight; noted on the network's record, so that files hold the rest alone.
            None goes by what the record has, which is nothing of a network that was just drawn.

    Attributes:
        scores: by name of the weight, of its shape, float32; 0 at frozen places.
        frozen: bool, True where the seed decides, by name of each weight that it decides about.
        epoch: finished epochs, as `end_epoch` counted them.

    Raises:
        RecipeError: a value out of range, or a weight that is not float32.
        SeedError: a network that was not drawn from a seed, or ``frozen`` names no seeded weight.

    Source: Ramanujan et al. 2020 (edge-popup) for scores and estimator; Rare Gems, Section 3, for
    the penalty. Deviation: published codes keep the scores in modules of their own, as parameters;
    here they are beside the network, so that no architecture has to be written for them. For
    ``frozen`` `pabzip.seeds.Frozen`; the weights are not scaled for it.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: MakeOptimizer,
        *,
        penalty: float = 0.0,
        norm: int = 2,
        frozen: Frozen | Mapping[str, Frozen] | None = None,
    ):
        name = type(self).__name__
        check_not_negative(name, penalty=penalty)
        if norm not in (1, 2):
            raise RecipeError(f"{name}: norm: expected 1 or 2, found {norm!r}")
        self.net, self.penalty, self.norm, self.epoch = net, penalty, norm, 0
        self.weights = float32_weights(name, net)
        self.drawn = {key: weight.detach().clone() for key, weight in self.weights.items()}
        self._freeze(frozen)
        self.scores = {key: self._begin(key) for key in self.weights}
        self._still()
        super().__init__(list(self.scores.values()), {})
        self._optimizer = optimizer(list(self.scores.values()))
        self.param_groups = self._optimizer.param_groups
        self.defaults = self._optimizer.defaults  # schedulers that cycle the momentum look there
        self._write()

    @abstractmethod
    def _begin(self, name: str) -> Tensor:
        """Return the first scores of a weight."""

    @abstractmethod
    def _factors(self) -> Mapping[str, Tensor]:
        """Return what the scores make of each weight: 1 kept, 0 pruned, -1 flipped; by name.

        At frozen places any value will do.
        """

    def _gradient(self, name: str, gradient: Tensor) -> Tensor:
        """Return the gradient of a weight's scores, without the penalty's, from the weight's."""
        return gradient * self.drawn[name]

    def _freeze(self, frozen: Frozen | Mapping[str, Frozen] | None) -> None:
        """Put a frozen part of all masks on record, and draw the one that is there."""
        if frozen is not None:
            record = seeding(self.net)
            names = seeded_parameters(self.net)
            each = dict.fromkeys(names, frozen) if isinstance(frozen, Frozen) else frozen
            masks = {name: part for name, part in each.items() if part != Frozen(0, 0)}
            attach_seeding(self.net, replace(record, frozen=masks))
        self.frozen: dict[str, Tensor] = {}
        self._kept_for_good: dict[str, Tensor] = {}
        self._count_kept: dict[str, int] = {}
        self._count_learned: dict[str, int] = {}
        record = seeding(self.net)
        for name, part in record.frozen.items():
            weight = self.weights[name]
            drawn = part.marks(record.seed, record.specs[name].stream, 0, weight.numel())
            marks = torch.from_numpy(drawn).view(weight.shape).to(weight.device)
            self.frozen[name], self._kept_for_good[name] = marks != 0, marks == KEPT
            self._count_kept[name] = int(np.count_nonzero(drawn == KEPT))
            self._count_learned[name] = int(np.count_nonzero(drawn == 0))

    def _still(self) -> None:
        """Keep the scores of frozen places at 0, where no optimizer or penalty moves them."""
        for name, frozen in self.frozen.items():
            self.scores[name].masked_fill_(frozen, 0.0)

    def keep_largest(self, sizes: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
        """Return which learned places survive where ``count`` of all weights of a group do.

        Args:
            sizes: finite floating tensors by name, larger is kept: of one weight tensor or several.
            count: of survivors, those that the seed keeps for good among them; they come first.

        Returns:
            Bool tensors by name, False at frozen places.
        """
        kept = sum(self._count_kept.get(name, 0) for name in sizes)
        learned = sum(self.count_learned(name) for name in sizes)
        count = min(max(count - kept, 0), learned)
        if not count:
            return {name: torch.zeros_like(size, dtype=torch.bool) for name, size in sizes.items()}
        below = {
            name: size.masked_fill(self.frozen[name], -torch.inf) if name in self.frozen else size
            for name, size in sizes.items()
        }
        return largest(below, count)

    def learned_keep_ratio(self, keep_ratio: float) -> float:
        """Return which fraction of the learned places is kept where ``keep_ratio`` of all is."""
        if not self.frozen:
            return keep_ratio
        whole = sum(weight.numel() for weight in self.weights.values())
        learned = sum(self.count_learned(name) for name in self.weights)
        kept = sum(self._count_kept.values())
        return min(max((keep_ratio * whole - kept) / max(learned, 1), 0.0), 1.0)

    def count_learned(self, name: str) -> int:
        """Return how many places of a weight the scores decide about."""
        return self._count_learned.get(name, self.weights[name].numel())

    def _project(self) -> None:
        """Bring the scores back to where they may be; everywhere, unless a subclass says else."""

    def _values(self, name: str) -> Tensor:
        """Return the values of a weight's survivors, before their factors."""
        return self.drawn[name]

    def end_epoch(self) -> None:
        """Count one finished epoch; a subclass may freeze or prune here."""
        self.epoch += 1

    @property
    def masks(self) -> dict[str, Tensor]:
        """Which weights are kept now: bool tensors by name."""
        return {name: weight.detach() != 0 for name, weight in self.weights.items()}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the weights and of the scores."""
        super().zero_grad(set_to_none)
        for weight in self.weights.values():
            weight.grad = None

    def _advance(self) -> None:
        """Move the scores by one step, and write the weights that they now decide."""
        for name, weight in self.weights.items():
            score = self.scores[name]
            if weight.grad is None:
                score.grad = None
                continue
            score.grad = self._gradient(name, weight.grad)
            if self.penalty:
                slope = 2 * score if self.norm == 2 else score.sign()
                score.grad.add_(slope, alpha=self.penalty)
            if name in self.frozen:
                score.grad = score.grad.masked_fill(self.frozen[name], 0.0)
        self._optimizer.step()
        self._project()
        self._still()
        self._write()

    @torch.no_grad()
    def _write(self) -> None:
        """Write the weights, and count how many were kept, pruned or flipped anew."""
        counts = []
        factors = self._factors()
        for name, weight in self.weights.items():
            factor = factors[name]
            if name in self.frozen:
                kept = self._kept_for_good[name].to(factor.dtype)
                factor = torch.where(self.frozen[name], kept, factor)
            value = self._values(name) * factor
            value += 0.0  # a negative weight times 0 is -0.0; pruned weights are +0.0
            counts.append(torch.count_nonzero(value.sign() != weight.sign()))
            weight.copy_(value)
        self._count(counts)

    def uniform(self, name: str, bound: float) -> Tensor:
        """Return numbers of a weight's shape, drawn evenly from -bound to bound by the seed."""
        return uniform_start(self.net, name, self.weights[name], bound)

    def kaiming_uniform(self, name: str) -> Tensor:
        """Return scores as published codes begin: evenly from -1/sqrt(fan_in) to 1/sqrt(fan_in)."""
        module = unwrap(self.net).get_submodule(name.rpartition(".")[0])
        fan_in, _ = fans(oriented(module, self.weights[name].shape))
        return self.uniform(name, fan_in**-0.5)

    def state_dict(self) -> dict[str, Any]:
        """Return scores, epoch and the optimizer's state, as nested plain values and tensors."""
        return {
            "scores": list(self.scores.values()),
            "epoch": self.epoch,
            "optimizer": self._optimizer.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a `state_dict` of the same rule on the same network; weights are written anew."""
        for score, saved in zip(self.scores.values(), state_dict["scores"], strict=True):
            score.copy_(saved)
        self._still()
        self.epoch = int(state_dict["epoch"])
        self._optimizer.load_state_dict(state_dict["optimizer"])
        self.param_groups = self._optimizer.param_groups
        self._write()


class Schedule(Protocol):
    """What lowers a learning rate, such as a scheduler of torch's."""

    def step(self) -> None:
        """Count one finished epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a `state_dict`."""


class ScoreSchedule:
    """Ends the epochs of a score rule: first the rule's own work, then the learning rate's.

    Args:
        rule: whose `ScoreRule.end_epoch` is called.
        rate: a scheduler of torch's on ``rule``; None keeps the learning rate.
    """

    def __init__(self, rule: ScoreRule, rate: Schedule | None = None):
        self._rule, self._rate = rule, rate

    def step(self) -> None:
        """Count one finished epoch."""
        self._rule.end_epoch()
        if self._rate is not None:
            self._rate.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state as plain values; the rule's own is saved with the rule."""
        return {} if self._rate is None else self._rate.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a `state_dict`."""
        if self._rate is not None:
            self._rate.load_state_dict(state_dict)


COUNTS = ("published", "paper")


def fall_epochs(epochs: int, period: int, counts: str = "published") -> range:
    """Return the epochs, counted from 1, after which fewer weights may be left.

    Args:
        epochs: of the whole run.
        period: epochs from one fall to the next, 1 or more; if there is no room for one, the last
            epoch has it.
        counts: ``"published"`` as Rare Gems' code, ``period + 1, 2 * period + 1, ...``, which is
            ``(epochs - 1) // period`` times; ``"paper"`` as its Algorithm 1, the multiples of
            ``period``.
    """
    first = period + 1 if counts == "published" else period
    return range(first, epochs + 1, period) or range(epochs, epochs + 1)


def gradual_keep_ratio(epoch: int, epochs: int, period: int, keep_ratio: float) -> float:
    """Return which fraction of the weights may be left after an epoch, on the way to the last.

    It falls by the same factor at each of `fall_epochs`, from 1 to ``keep_ratio``.

    Args:
        epoch: finished epochs.
        epochs: of the whole run.
        period: epochs from one fall to the next, 1 or more.
        keep_ratio: at the end, above 0, at most 1.

    Source: Rare Gems, Algorithm 1 (the bound ``exp(-c j)``), with the falls of its published code.
    """
    falls = fall_epochs(epochs, period)
    done = sum(fall <= epoch for fall in falls)
    return float(keep_ratio ** (done / len(falls)))

"""One training run from its data to its result, and its state on the way."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from torch import nn

from pabzip import data
from pabzip._version import __version__
from pabzip.data import Splits
from pabzip.errors import CheckpointError, RecipeError, TrainingError
from pabzip.init import seeded_parameters
from pabzip.search import apply_masks, synflow
from pabzip.train.costing import step_costs
from pabzip.train.digest import digest
from pabzip.train.epoch import steps_of, train_epoch
from pabzip.train.evaluation import evaluate
from pabzip.train.expected_bytes import ExpectedBytes
from pabzip.train.gradients import BatchGradients
from pabzip.train.keeper import Keeper
from pabzip.train.meter import Meter
from pabzip.train.methods import method_of
from pabzip.train.network import build_network
from pabzip.train.observers import Observer
from pabzip.train.optimisers import Optimisers
from pabzip.train.precision import Precision
from pabzip.train.recipes import Recipe
from pabzip.train.results import EpochStats, TrainResult
from pabzip.train.resumption import comparable, surroundings
from pabzip.train.shortening import shortened
from pabzip.train.signs import SignRecord
from pabzip.train.toml import to_dict
from pabzip.train.world import World
from pabzip.unmask import PsgConfig, apply_psg

_READ_EVERY = 20


class Run:
    """A run that can be saved after any step and taken up again.

    Where it stands is ``history`` (the finished epochs), ``step`` (steps done in the next one) and
    ``searches`` (how many are done); all else is the network, masks, optimisers and the meter.

    Args:
        recipe: what to do.
        device: where.
        world: the processes that do it together.
        observers: told of everything; none on all but the first process.
        splits: the data; None loads the recipe's.
        download: fetch a dataset that is missing.
        keeper: keeps the state.

    Raises:
        RecipeError: augmentation where the data has none, or shards that do not fit.
        DataError: the dataset is unknown or missing.
        ArchitectureError: the architecture does not fit the data.
    """

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        world: World,
        observers: Sequence[Observer],
        splits: Splits | None,
        download: bool,
        keeper: Keeper,
    ):
        self._begun = self._epoch_begun = perf_counter()
        self.given, self.method = recipe, method_of(recipe)
        self.device = device
        self.world = world
        self.observers = observers
        self.keeper = keeper
        if splits is None:
            splits = data.load(recipe.data, root=recipe.data_root, download=download)
        self.augmentation = splits.augmentation if recipe.augment else None
        if recipe.augment and self.augmentation is None:
            raise RecipeError(
                f"augment: expected false for {splits.name}, which has no augmentation, found true"
            )
        self.train_images = splits.train.to(device)
        self.test_images = splits.test.to(device)
        self.precision = Precision(recipe.precision, recipe.channels_last, device)
        self.net = build_network(recipe, splits).to(device)
        self.precision.arrange(self.net)
        shape = self.input_shape = splits.input_shape
        self.steps = steps_of(len(splits.train), recipe.batch_size, recipe.shards)
        _check_shards(recipe, len(splits.train), world)
        self.weights = seeded_parameters(self.net)
        self.signs = SignRecord(self.weights)
        self.masks = {
            name: torch.ones_like(weight, dtype=torch.bool) for name, weight in self.weights.items()
        }
        if self.method.short:
            recipe = world.from_first(lambda: shortened(recipe, self.net, shape, self._find))
        self.recipe = recipe
        self.optimisers = Optimisers(self.net, recipe, {})
        self.gradients = BatchGradients(self.net, recipe.seed, recipe.shards, world, self.precision)
        self.history: list[EpochStats] = []
        self.step = 0
        self.searches = 0
        self.meter = Meter(1, device)
        self._expected: ExpectedBytes | None = None

    def run(self) -> None:
        """Search, and train all epochs that are left."""
        for observer in self.observers:
            observer.started(self.recipe, self.steps)
        while len(self.history) < self.recipe.epochs:
            self._search()
            self._epoch()

    def result(self, output: str | os.PathLike[str]) -> TrainResult:
        """Return the results of a run that is done; ``output`` is named in them."""
        recipe, last = self.recipe, self.history[-1]
        return TrainResult(
            arch=recipe.arch,
            data=recipe.data,
            method=recipe.method,
            keep_ratio=recipe.keep_ratio if self.method.masked else 1.0,
            epochs=recipe.epochs,
            test_accuracy=last.test_accuracy,
            output=os.fspath(output),
            seconds=perf_counter() - self._begun,
            bitops=sum(
                cost.total
                for cost in step_costs(self.net, self.input_shape, self.masks, self.recipe)
            ),
            test_loss=last.test_loss,
            train_accuracy=last.train_accuracy,
            weights=self.signs.total,
            survivors=sum(int(mask.sum()) for mask in self.masks.values()),
            flipped=last.flipped,
            seed=recipe.seed,
        )

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on, as nested plain values and tensors."""
        now = perf_counter()
        return {
            "pabzip": __version__,
            **surroundings(self.device),
            "recipe": to_dict(self.given),
            "tensors": dict(self._tensors()),
            "masks": self.masks,
            "optimisers": self.optimisers.state_dict(),
            "precision": self.precision.state_dict(),
            "meter": self.meter.state_dict(),
            "history": [stats.to_dict() for stats in self.history],
            "step": self.step,
            "searches": self.searches,
            "seconds": now - self._begun,
            "epoch_seconds": now - self._epoch_begun,
        }

    def take_up(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken, to the bit on a CPU.

        Raises:
            CheckpointError: it is not the state of such a run.
        """
        try:
            tensors = dict(self._tensors())
            if list(tensors) != list(state["tensors"]) or list(self.masks) != list(state["masks"]):
                raise ValueError("other tensors than the network's")
            with torch.no_grad():
                for name, tensor in tensors.items():
                    _fill(tensor, state["tensors"][name])
                for name, mask in self.masks.items():
                    _fill(mask, state["masks"][name])
            if self.method.masked:
                self.optimisers.prune(self.masks)
            self.optimisers.load_state_dict(state["optimisers"])
            self.precision.load_state_dict(state["precision"])
            self.history = [EpochStats(**stats) for stats in state["history"]]
            self.step, self.searches = state["step"], state["searches"]
            self.meter = Meter(len(self.history) + 1, self.device)
            self.meter.load_state_dict(state["meter"])
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.keeper.path}: expected the state of a run with this recipe, found one "
                f"that does not fit it ({error}); remove it and begin again without --resume"
            ) from error
        now = perf_counter()
        self._begun, self._epoch_begun = now - state["seconds"], now - state["epoch_seconds"]
        for observer in self.observers:
            observer.resumed(tuple(self.history), self.step)

    def check_start(self) -> None:
        """Make sure that all processes are about to do the same.

        Raises:
            TrainingError: they are not; the message names the ranks.
        """
        self.world.check_same("the recipe", digest(comparable(self.recipe)))
        self.world.check_same("the number of training images", digest(len(self.train_images)))
        self.check_ranks("the network before the training")

    def check_ranks(self, what: str) -> None:
        """Make sure that all processes have the same network and masks.

        Raises:
            TrainingError: they have not; the message names the ranks.
        """
        if self.world.ranks > 1:
            self.world.check_same(what, digest([dict(self._tensors()), self.masks]))

    def _search(self) -> None:
        """Prune, if a search is due at this point."""
        if not self.method.masked or self.searches or self.history or self.step:
            return
        masks = self.world.from_first(lambda: self._find(self.net, self._searched))
        self.masks = {name: mask.to(self.device) for name, mask in masks.items()}
        apply_masks(self.net, self.masks)
        self.optimisers.prune(self.masks)
        self._expected = None
        self.searches += 1
        self.check_ranks("the ticket after the search")
        self.keeper.save(self.state)

    def _find(
        self, net: nn.Module, on_iteration: Callable[[int, int], None] | None = None
    ) -> dict[str, torch.Tensor]:
        """Prune ``net`` on this process, and return the masks on the CPU."""
        masks = synflow(
            net,
            self.given.keep_ratio,
            self.input_shape,
            self.given.search.iterations,
            on_iteration=on_iteration,
        )
        return {name: mask.cpu() for name, mask in masks.items()}

    def _epoch(self) -> None:
        """Train one epoch or what is left of it, evaluate, and tell the observers."""
        recipe, epoch = self.recipe, len(self.history) + 1
        with self._psg():
            train_epoch(
                self.net,
                self.train_images,
                self.optimisers,
                self.gradients,
                self.meter,
                epoch=epoch,
                seed=recipe.seed,
                batch_size=recipe.batch_size,
                steps=self.steps,
                augmentation=self.augmentation,
                on_step=self._stepped,
                done=self.step,
            )
        self.optimisers.end_epoch()
        self.check_ranks(f"the network after epoch {epoch}")
        trained, tested = self.meter.read(), evaluate(self.net, self.test_images)
        if not math.isfinite(tested.loss):
            raise TrainingError(
                f"epoch {epoch}, step {trained.step}: expected a finite test loss, found "
                f"{tested.loss:g}; lower sgd.learning_rate, or use an architecture with batch norm"
            )
        now = perf_counter()
        stats = EpochStats(
            epoch=epoch,
            epochs=recipe.epochs,
            loss=trained.loss,
            train_accuracy=trained.accuracy,
            test_loss=tested.loss,
            test_accuracy=tested.accuracy,
            flips_per_step=trained.flips_per_step,
            flipped=self.signs.flipped(self.masks),
            seconds=now - self._epoch_begun,
            expected_bytes=self._expected_bytes(),
        )
        self.history.append(stats)
        self.step, self._epoch_begun = 0, now
        self.meter = Meter(epoch + 1, self.device)
        for observer in self.observers:
            observer.epoch_ended(stats)
        if self.keeper.epoch_due():
            self.keeper.save(self.state)

    def _expected_bytes(self) -> float | None:
        """Return the size of the file to come; the first process alone needs to know."""
        if not (self.world.first and self.method.seeded):
            return None
        if self._expected is None:
            self._expected = ExpectedBytes(self.net, self.masks, self.recipe)
        return self._expected.bytes()

    def _stepped(self, step: int) -> None:
        """Read the meter now and then, tell the observers, and save when it is time."""
        self.step = step
        if step % _READ_EVERY == 0 or step == self.steps:
            progress = self.meter.read()
            for observer in self.observers:
                observer.stepped(progress)
        if self.keeper.step_due() and step < self.steps:
            self.meter.read()  # a state with a loss that is not finite is not worth keeping
            self.keeper.save(self.state)

    def _searched(self, iteration: int, iterations: int) -> None:
        """Tell the observers of the search."""
        for observer in self.observers:
            observer.searched(iteration, iterations)

    @contextmanager
    def _psg(self) -> Iterator[None]:
        """Let the layers compute approximate gradients, where the method does so."""
        if not self.method.psg:
            yield
            return
        handle = apply_psg(self.net, PsgConfig(**dataclasses.asdict(self.recipe.psg)))
        try:
            yield
        finally:
            handle.remove()

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield parameters and buffers by name, also buffers that no checkpoint holds."""
        yield from self.net.named_parameters()
        yield from self.net.named_buffers()


def _check_shards(recipe: Recipe, images: int, world: World) -> None:
    """Refuse shards that the processes cannot share out, or that may be empty."""
    if recipe.shards % world.ranks:
        raise RecipeError(
            f"shards: expected a multiple of the {world.ranks} processes, which must be a power of "
            f"two, found {recipe.shards}; set --shards {1 << (world.ranks - 1).bit_length()}, or "
            "start torchrun with --nproc-per-node of 1, 2, 4, ... processes"
        )
    if images < recipe.shards:
        raise RecipeError(
            f"shards: expected at most the {images} training images, found {recipe.shards}"
        )


def _fill(target: torch.Tensor, value: torch.Tensor) -> None:
    """Copy a saved tensor of the same shape and dtype."""
    if target.shape != value.shape or target.dtype != value.dtype:
        raise ValueError(f"a {value.dtype} of shape {tuple(value.shape)}")
    target.copy_(value)

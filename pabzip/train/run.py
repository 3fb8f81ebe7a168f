"""One training run, from its data to its result."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import torch

from pabzip._version import __version__
from pabzip.errors import CheckpointError, TrainingError
from pabzip.init import seeded_parameters
from pabzip.search import apply_masks
from pabzip.train.costing import StepCosts, step_costs
from pabzip.train.digest import digest
from pabzip.train.epoch import steps_of, train_epoch
from pabzip.train.evaluation import Evaluation, batch_sums, summarised
from pabzip.train.expected_bytes import ExpectedBytes
from pabzip.train.gradients import BatchGradients
from pabzip.train.inputs import Inputs, check_data, load_data
from pabzip.train.keeper import Keeper
from pabzip.train.meter import Meter
from pabzip.train.methods import method_of
from pabzip.train.network import build_network
from pabzip.train.observers import Observer, Progress
from pabzip.train.optimisers import Optimisers
from pabzip.train.precision import Precision
from pabzip.train.predictive import predictive_gradients
from pabzip.train.recipes import Recipe
from pabzip.train.results import EpochStats, TrainResult
from pabzip.train.resumption import surroundings
from pabzip.train.run_state import RunState
from pabzip.train.searching import PlannedSearch, planned_searches
from pabzip.train.shortening import shortened
from pabzip.train.signs import SignRecord
from pabzip.train.ticket_finder import TicketFinder
from pabzip.train.toml import to_dict
from pabzip.train.world import World

_READ_EVERY = 20


class Run:
    """A run that can be saved after any step and taken up again.

    Searches happen where `planned_searches` says. Before the first, the whole network trains; from
    then on what each one leaves.

    Args:
        recipe: what to do.
        device: where.
        world: the processes that do it together.
        observers: told of everything; none on all but the first process.
        inputs: data and ticket.
        keeper: keeps the state.

    Raises:
        RecipeError: augmentation where the data has none, shards that do not fit, or a ticket for
            a method that has no use for it.
        DataError: the dataset is unknown or missing.
        ArchitectureError: the architecture does not fit the data.
    """

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        world: World,
        observers: Sequence[Observer],
        inputs: Inputs,
        keeper: Keeper,
    ):
        self._begun = self._epoch_begun = perf_counter()
        self.given, self.method = recipe, method_of(recipe)
        self.device, self.world, self.keeper = device, world, keeper
        self.observers = observers
        splits = load_data(recipe, inputs, world)
        self.splits = dataclasses.replace(
            splits, train=splits.train.to(device), test=splits.test.to(device)
        )
        check_data(recipe, splits, world)
        self._find = TicketFinder(recipe, self.splits, inputs.ticket)
        self.steps = steps_of(len(splits.train), recipe.batch_size, recipe.shards)
        precision = Precision(recipe.precision, recipe.channels_last, device)
        net = build_network(recipe, splits).to(device)
        precision.arrange(net)
        weights = seeded_parameters(net)
        self.signs = SignRecord(weights)
        if self.method.short:
            shape = splits.input_shape
            recipe = world.from_first(lambda: shortened(recipe, net, shape, self._find))
        self.recipe = recipe
        self.state = RunState(
            net=net,
            masks={name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()},
            optimisers=Optimisers(net, recipe, {}),
            precision=precision,
            meter=Meter(1, device),
        )
        self._gradients = BatchGradients(net, recipe.seed, recipe.shards, world, precision)
        self._costs: StepCosts | None = None
        self._expected: ExpectedBytes | None = None

    def run(self) -> None:
        """Search, and train all epochs that are left."""
        for observer in self.observers:
            observer.started(self.recipe, self.steps)
        while self.state.epoch <= self.recipe.epochs:
            self._search_when_due()
            self._epoch()

    def result(self, output: str | os.PathLike[str]) -> TrainResult:
        """Return the results of a run that is done; ``output`` is named in them."""
        recipe, last = self.recipe, self.state.history[-1]
        costs = self._count() if self._costs is None else self._costs
        return TrainResult(
            arch=recipe.arch,
            data=recipe.data,
            method=recipe.method,
            keep_ratio=recipe.keep_ratio if self.method.masked else 1.0,
            epochs=recipe.epochs,
            test_accuracy=last.test_accuracy,
            output=os.fspath(output),
            seconds=perf_counter() - self._begun,
            bitops=costs.bitops,
            layer_bitops=costs.layer_bitops,
            test_loss=last.test_loss,
            train_accuracy=last.train_accuracy,
            weights=costs.weights,
            survivors=costs.survivors,
            flipped=last.flipped,
            seed=recipe.seed,
        )

    def saved(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on, as nested plain values and tensors."""
        now = perf_counter()
        return {
            "pabzip": __version__,
            **surroundings(self.device),
            "recipe": to_dict(self.given),
            **self.state.to_plain(),
            "seconds": now - self._begun,
            "epoch_seconds": now - self._epoch_begun,
        }

    def take_up(self, saved: Mapping[str, Any]) -> None:
        """Continue where `saved` was taken, to the bit on a CPU.

        Raises:
            CheckpointError: it is not the state of such a run.
        """
        try:
            self.state.take_up(saved)
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.keeper.path}: expected the state of a run with this recipe, found "
                f"{error}; remove it and begin again without --resume"
            ) from error
        now = perf_counter()
        self._begun, self._epoch_begun = now - saved["seconds"], now - saved["epoch_seconds"]
        for observer in self.observers:
            observer.resumed(tuple(self.state.history), self.state.step)

    def check_start(self) -> None:
        """Make sure that all processes are about to do the same.

        Raises:
            TrainingError: they are not; the message names the ranks.
        """
        self.world.check_same("the number of training images", digest(len(self.splits.train)))
        self.check_ranks("the network before the training")

    def check_ranks(self, what: str) -> None:
        """Make sure that all processes have the same network and masks.

        Raises:
            TrainingError: they have not; the message names the ranks.
        """
        if self.world.ranks > 1:
            self.world.check_same(what, self.state.digest())

    def _search_when_due(self) -> None:
        """Do the searches that are due before this epoch, and say what a step costs from now on."""
        searches = self.state.searches
        for planned in planned_searches(self.recipe)[searches:]:
            if planned.epoch < self.state.epoch:
                self._search(planned)
        if self.state.searches > searches or self._costs is None:
            self._costs = self._count()
            for observer in self.observers:
                observer.counted(self._costs)

    def _count(self) -> StepCosts:
        """Return what a training step of the network costs as it is pruned now."""
        state = self.state
        layers = step_costs(state.net, self.splits.input_shape, state.masks, self.recipe)
        return StepCosts(
            epoch=state.epoch,
            layers=tuple(layers),
            weights=self.signs.total,
            survivors=sum(int(mask.sum()) for mask in state.masks.values()),
        )

    def _search(self, planned: PlannedSearch) -> None:
        """Prune the network, on all processes by the first one's masks."""
        state = self.state
        masks = self.world.from_first(lambda: self._find(state.net, planned, self._searched))
        apply_masks(state.net, masks)
        state.masks = {name: mask.to(self.device) for name, mask in masks.items()}
        state.optimisers.prune(state.masks)
        state.searches += 1
        self._expected = None
        self.check_ranks("the ticket after the search")
        self.keeper.save(self.saved)

    def _epoch(self) -> None:
        """Train one epoch or what is left of it, evaluate, and tell the observers."""
        state = self.state
        epoch = state.epoch
        if not state.step:
            self._epoch_begun = perf_counter()
        with predictive_gradients(state.net, self.recipe):
            train_epoch(
                state,
                self.splits.train,
                self._gradients,
                self.recipe,
                steps=self.steps,
                ranks=(self.world.rank, self.world.ranks),
                augmentation=self.splits.augmentation if self.recipe.augment else None,
                on_step=self._stepped,
            )
        state.optimisers.end_epoch()
        self.check_ranks(f"the network after epoch {epoch}")
        trained, tested = state.meter.read(), self._evaluate()
        if not math.isfinite(tested.loss):
            raise TrainingError(
                f"epoch {epoch}, step {trained.step}: expected a finite test loss, found "
                f"{tested.loss:g}; lower sgd.learning_rate, or use an architecture with batch norm"
            )
        stats = self._stats(trained, tested)
        state.history.append(stats)
        state.step, state.meter = 0, Meter(epoch + 1, self.device)
        for observer in self.observers:
            observer.epoch_ended(stats)
        if self.keeper.epoch_due():
            self.keeper.save(self.saved)

    def _evaluate(self) -> Evaluation:
        """Measure on the test set, each process on its part of it."""
        images = self.splits.test
        sums = batch_sums(self.state.net, images, part=(self.world.rank, self.world.ranks))
        self.world.add_up(sums)
        return summarised(sums, len(images))

    def _stats(self, trained: Progress, tested: Evaluation) -> EpochStats:
        """Return the numbers of the epoch that has ended."""
        return EpochStats(
            epoch=trained.epoch,
            epochs=self.recipe.epochs,
            loss=trained.loss,
            train_accuracy=trained.accuracy,
            test_loss=tested.loss,
            test_accuracy=tested.accuracy,
            flips_per_step=trained.flips_per_step,
            flipped=self.signs.flipped(self.state.masks),
            seconds=perf_counter() - self._epoch_begun,
            expected_bytes=self._expected_bytes(),
        )

    def _expected_bytes(self) -> float | None:
        """Return the size of the file to come; the first process alone needs to know."""
        if not (self.world.first and self.method.seeded):
            return None
        if self._expected is None:
            self._expected = ExpectedBytes(self.state.net, self.state.masks, self.recipe)
        return self._expected.bytes()

    def _stepped(self, step: int) -> None:
        """Read the meter now and then, tell the observers, and save when it is time."""
        state = self.state
        state.step = step
        if step % _READ_EVERY == 0 or step == self.steps:
            progress = state.meter.read()
            for observer in self.observers:
                observer.stepped(progress)
        if self.keeper.step_due() and step < self.steps:
            state.meter.read()  # a state with a loss that is not finite is not worth keeping
            self.keeper.save(self.saved)

    def _searched(self, iteration: int, iterations: int) -> None:
        """Tell the observers of the search."""
        for observer in self.observers:
            observer.searched(iteration, iterations)

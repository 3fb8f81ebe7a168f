"""The training loop: search when due, train an epoch, evaluate, call the callbacks."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from time import perf_counter
from typing import IO, Any

import torch
from torch import nn

from pabzip._version import __version__
from pabzip.checkpoint import save_checkpoint
from pabzip.data import Splits
from pabzip.errors import CheckpointError, TrainingError
from pabzip.formats.atomic import open_atomic
from pabzip.init import seeded_parameters
from pabzip.search import apply_masks
from pabzip.train.build import (
    Inputs,
    build_network,
    check_data,
    forget_seeding,
    isolated,
    load_data,
    pick_device,
    sharded,
)
from pabzip.train.callbacks import JsonLog, Observer, Progress
from pabzip.train.config import Recipe, comparable, method_of, to_dict
from pabzip.train.cost import StepCosts, step_costs
from pabzip.train.distributed import World, digest, joined, local_rank
from pabzip.train.evaluation import Evaluation, batch_sums, summarized
from pabzip.train.file_size import ExpectedBytes
from pabzip.train.found_tickets import TicketFinder
from pabzip.train.optimizers import Optimizers, predictive_gradients, shortened
from pabzip.train.precision import Precision
from pabzip.train.pruning import PlannedSearch, planned_searches
from pabzip.train.results import EpochStats, TrainResult
from pabzip.train.resume import Keeper, SaveEvery, check_resumption, surroundings
from pabzip.train.run_state import Meter, RunState
from pabzip.train.step import BatchGradients, steps_of, train_epoch


class SignRecord:
    """Remembers the signs that weights were drawn with and counts those that differ later.

    Costs one byte a weight, on the weights' device. It is made of the freshly drawn network, so a
    run that is continued makes the same record again.

    Args:
        weights: the seeded weights by name, as they were drawn.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter]):
        self._weights = dict(weights)
        self._negative = {name: weight.detach().signbit() for name, weight in weights.items()}
        self.total = sum(weight.numel() for weight in weights.values())

    def flipped(self, masks: Mapping[str, torch.Tensor]) -> float:
        """Return the fraction of the survivors whose sign is not the recorded one.

        Args:
            masks: bool tensors by the weights' names and of their shapes, True for a survivor.
        """
        counts = [
            ((weight.detach().signbit() != self._negative[name]) & masks[name]).sum()
            for name, weight in self._weights.items()
        ]
        survivors = sum(int(mask.sum()) for mask in masks.values())
        return sum(int(count) for count in counts) / max(survivors, 1)


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
            optimizers=Optimizers(net, recipe, {}),
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
        state.optimizers.prune(state.masks)
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
        state.optimizers.end_epoch()
        self.check_ranks(f"the network after epoch {epoch}")
        trained, tested = state.meter.read(), self._evaluate()
        if not math.isfinite(tested.loss):
            raise TrainingError(
                f"epoch {epoch}, step {trained.step}: expected a finite test loss, found "
                f"{tested.loss:g}; lower sgd.lr, or use an architecture with batch norm"
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
        return summarized(sums, len(images))

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


def train(
    recipe: Recipe,
    *,
    output: str | os.PathLike[str] = "model.pt",
    log: str | os.PathLike[str] | IO[str] | None = None,
    observers: Iterable[Observer] = (),
    splits: Splits | None = None,
    download: bool = False,
    ticket: str | os.PathLike[str] | None = None,
    save_every: SaveEvery | str | None = None,
    resume: bool = False,
) -> TrainResult:
    """Find a ticket and write it as a checkpoint.

    The network's weights are drawn from the recipe's seed, a search prunes them, and the recipe's
    method learns the signs of the survivors while SGD trains the dense parameters. On a CPU the
    same recipe gives the same checkpoint bit for bit (for one version of torch and number of
    threads), however often the run was interrupted and resumed. The caller's random states, default
    dtype, gradient mode and threads are left as they were.

    Where ``torchrun`` started several processes, or a process group of torch's exists, they train
    together: each computes its part of ``recipe.shards`` of every batch, gradients are averaged
    before anything is decided by them, and the result is that of one process with the same recipe,
    bit for bit on a CPU. The first process alone searches, writes, logs and tells its observers;
    all return the results.

    Args:
        recipe: what to do.
        output: path of the checkpoint, written whole at the very end; an existing file stays as it
            is until then, and for good if anything goes wrong.
        log: path or text stream for a log in JSON lines (`JsonLog`).
        observers: told of every step, epoch and the end, such as `ProgressBar`.
        splits: the data, already loaded; by default ``recipe.data`` is loaded from
            ``recipe.data_root``.
        download: fetch a dataset that is missing.
        ticket: a checkpoint of `find_ticket`, which takes the place of the search.
        save_every: how often the state of the run is saved in ``<output>.progress``, a `SaveEvery`
            or a text such as ``"10min"``, ``"500steps"`` or ``"1epoch"``; also after each search.
            By default it is not saved. The file is removed once ``output`` is written.
        resume: continue from ``<output>.progress`` where there is one, else begin. A run that
            begins removes the state that another left there.

    Returns:
        The results; all but ``output`` and ``seconds`` also travel in the checkpoint.

    Raises:
        TrainingError: a loss or gradient is not finite; names epoch and step, and what is kept. Or
            the processes disagree, or one is gone; names the ranks.
        SearchError: the search found no usable mask.
        ArchitectureError: the architecture does not fit the data.
        DataError: the dataset is unknown or missing.
        RecipeError: a device that is not there, augmentation where the data has none, or a resumed
            run that was begun with another recipe.
        CheckpointError: the saved state is damaged, or ``ticket`` is not of this recipe.
        OSError: ``output``, the state or ``log`` cannot be written.

    Source: Peek-a-Boo, Algorithm 1.
    """
    if isinstance(save_every, str):
        save_every = SaveEvery.parse(save_every)
    with joined(recipe.device) as world, ExitStack() as stack:
        recipe = sharded(recipe, world)
        started = digest({"ticket": ticket, "download": download, "resume": resume})
        world.check_same("the recipe", digest(comparable(recipe)))
        world.check_same("what the run was given besides it", started)
        device = pick_device(recipe.device, local_rank())
        watchers = [*observers, *([] if log is None else [JsonLog(log)])]
        stack.enter_context(isolated(recipe.seed, device))
        for watcher in watchers:
            stack.callback(watcher.close)
        keeper = Keeper(output, save_every, writes=world.first)
        told = watchers if world.first else []
        # Opened first, so that a place that cannot be written fails now and not after the training.
        with ExitStack() as writing:
            file = writing.enter_context(open_atomic(output)) if world.first else None
            run = Run(recipe, device, world, told, Inputs(splits, download, ticket), keeper)
            state = world.from_first(keeper.found) if resume else None
            if state is not None:
                check_resumption(state, recipe, device, keeper.path)
                run.take_up(state)
            elif world.first:
                keeper.remove()
            run.check_start()
            try:
                run.run()
            except TrainingError as error:
                raise TrainingError(f"{error}; {keeper.remains()}") from error
            result = run.result(output)
            if not run.method.seeded:
                forget_seeding(run.state.net)
            if file is not None:
                save_checkpoint(
                    run.state.net, file, settings=to_dict(recipe), results=result.lasting()
                )
        if world.first:
            keeper.remove()
        for watcher in told:
            watcher.finished(result)
        return result

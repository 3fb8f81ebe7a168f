"""The training loop: search when due, train an epoch, evaluate, call the callbacks.

`train` sets a run up and writes its checkpoint; `Trainer` is the loop. One step of it is
`pabzip.train.step.train_step`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from pabzip.checkpoint import save_checkpoint
from pabzip.data import Splits, batches
from pabzip.errors import RecipeError, TrainingError
from pabzip.formats.atomic import open_atomic
from pabzip.init import Seeding, attach_seeding, seeded_parameters, seeding
from pabzip.search import apply_masks
from pabzip.train.build import build_network, isolated, pick_device, prepare_data, sharded
from pabzip.train.callbacks import Callback
from pabzip.train.config import Recipe, comparable, method_of, to_dict
from pabzip.train.cost import step_costs
from pabzip.train.distributed import ProcessGroup, local_rank, process_group
from pabzip.train.evaluation import batch_sums, summarized
from pabzip.train.file_size import ExpectedBytes
from pabzip.train.optimizers import Optimizers, predictive_gradients, shortened
from pabzip.train.precision import Precision
from pabzip.train.pruning import (
    AT_ONCE,
    PlannedSearch,
    apply_ticket,
    planned_searches,
    search_masks,
)
from pabzip.train.results import EpochStats, StepCosts, TrainResult
from pabzip.train.resume import (
    RunState,
    RunStateFile,
    SaveEvery,
    SaveSchedule,
    check_resume,
    origin,
)
from pabzip.train.step import BatchGradients, EpochMetrics, dropped, steps_per_epoch, train_step

_READ_EVERY = 20
"""Steps between two readings of the epoch's metrics, which wait for the device."""


class Trainer:
    """The loop of one run, which can be saved after any step and resumed.

    Searches happen where `planned_searches` says. Before the first, the whole network trains; from
    then on what each one leaves.

    Args:
        recipe: as for `train`, with the number of its shards.
        device: where the network trains.
        group: the processes that train it together.
        callbacks: as for `train`; none on processes other than the first.
        save: writes the state that it is given; None for a run that saves none.
        schedule: says when a save is due.
        splits: as for `train`, and so are all others.
        download: see above.
        ticket: see above.
    """

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        group: ProcessGroup,
        callbacks: Sequence[Callback],
        *,
        save: Callable[[Mapping[str, Any]], None] | None,
        schedule: SaveSchedule,
        splits: Splits | None,
        download: bool,
        ticket: str | os.PathLike[str] | None,
    ):
        begun = perf_counter()
        self.given, self.method = recipe, method_of(recipe)
        self.device, self.group, self.callbacks = device, group, callbacks
        self._save_to, self._schedule, self._ticket = save, schedule, ticket
        splits = prepare_data(recipe, device, group, splits=splits, download=download)
        self.splits = splits
        if ticket is not None and not (self.method.masked or self.method.short):
            raise RecipeError(
                "a found ticket: expected a method that trains on a mask, found "
                f"{recipe.method!r}; leave the ticket out, or choose another method"
            )
        self.steps = steps_per_epoch(len(splits.train), recipe.batch_size, recipe.shards)
        precision = Precision(recipe.precision, recipe.channels_last, device)
        net = build_network(recipe, splits).to(device)
        precision.lay_out(net)
        weights = seeded_parameters(net)
        self._initial_signs = {name: weight.detach().signbit() for name, weight in weights.items()}
        self.recipe = recipe
        if self.method.short:
            shape = splits.input_shape
            self.recipe = group.from_first(lambda: shortened(recipe, net, shape, self._find_masks))
        self.state = RunState(
            net=net,
            masks={name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()},
            optimizers=Optimizers(net, self.recipe, {}),
            precision=precision,
            metrics=EpochMetrics(1, device),
            begun=begun,
            epoch_begun=begun,
        )
        self._gradients = BatchGradients(net, recipe.seed, recipe.shards, group, precision)
        self._costs: StepCosts | None = None
        self._expected: ExpectedBytes | None = None

    def run(self) -> None:
        """Search, and train all epochs that are left."""
        for callback in self.callbacks:
            callback.on_train_start(self.recipe, self.steps)
        while self.state.epoch <= self.recipe.epochs:
            self._search_when_due()
            self._epoch()

    def result(self, output: str | os.PathLike[str]) -> TrainResult:
        """Return the results of a run that is done; ``output`` is named in them."""
        recipe, last = self.recipe, self.state.history[-1]
        costs = self._count_costs() if self._costs is None else self._costs
        survivors, keep_ratio = costs.survivors, recipe.keep_ratio if self.method.masked else 1.0
        if self.method.scores:
            survivors = sum(int(mask.sum()) for mask in self.state.masks.values())
            keep_ratio = survivors / costs.weights
        return TrainResult(
            arch=recipe.arch,
            data=recipe.data,
            method=recipe.method,
            keep_ratio=keep_ratio,
            epochs=recipe.epochs,
            test_accuracy=last.test_accuracy,
            output=os.fspath(output),
            seconds=perf_counter() - self.state.begun,
            bitops=costs.bitops,
            layer_bitops=costs.layer_bitops,
            test_loss=last.test_loss,
            train_accuracy=last.train_accuracy,
            weights=costs.weights,
            survivors=survivors,
            flipped=last.flipped,
            seed=recipe.seed,
        )

    def resume(self, state: Mapping[str, Any], place: str) -> None:
        """Continue where a state was saved, to the bit on a CPU; `RunState.load_state_dict`."""
        self.state.load_state_dict(state, place)
        for callback in self.callbacks:
            callback.on_resume(tuple(self.state.history), self.state.step)

    def check_ranks(self, what: str) -> None:
        """Make sure that all processes have the same network and masks.

        Raises:
            TrainingError: they have not; the message names the ranks.
        """
        self.group.check_same(what, [dict(self.state.tensors()), self.state.masks])

    def _search_when_due(self) -> None:
        """Do the searches that are due before this epoch; count what a step costs from now on."""
        searches = self.state.searches
        for planned in planned_searches(self.recipe)[searches:]:
            if planned.epoch < self.state.epoch:
                self._search(planned)
        if self.state.searches > searches or self._costs is None:
            self._costs = self._count_costs()
            for callback in self.callbacks:
                callback.on_costs(self._costs)

    def _count_costs(self) -> StepCosts:
        """Return what a training step of the network costs as it is pruned now."""
        state, shape = self.state, self.splits.input_shape
        return step_costs(state.net, shape, state.masks, self.recipe, epoch=state.epoch)

    def _search(self, planned: PlannedSearch) -> None:
        """Prune the network, on all processes by the first one's masks."""

        def on_iteration(iteration: int, iterations: int) -> None:
            for callback in self.callbacks:
                callback.on_search_iteration(iteration, iterations)

        state = self.state
        masks = self.group.from_first(lambda: self._find_masks(state.net, planned, on_iteration))
        apply_masks(state.net, masks)
        state.masks = {name: mask.to(self.device) for name, mask in masks.items()}
        state.optimizers.prune(state.masks)
        state.searches += 1
        self._expected = None
        self.check_ranks("the ticket after the search")
        self._save()

    def _find_masks(
        self,
        net: nn.Module,
        planned: PlannedSearch = AT_ONCE,
        on_iteration: Callable[[int, int], None] | None = None,
    ) -> dict[str, Tensor]:
        """Prune ``net`` by a search, or to the ticket; return the masks, on the CPU."""
        if self._ticket is None:
            masks = search_masks(net, self.given, self.splits, planned, on_iteration=on_iteration)
        else:
            masks = apply_ticket(net, self.given, self._ticket)
        return {name: mask.cpu() for name, mask in masks.items()}

    def _epoch(self) -> None:
        """Train one epoch or what is left of it, evaluate, and call the callbacks."""
        state = self.state
        epoch = state.epoch
        if not state.step:
            state.epoch_begun = perf_counter()
        with predictive_gradients(state.net, self.recipe):
            self._train_steps()
        state.optimizers.end_epoch()
        learned = state.optimizers.learned_masks
        if learned is not None:
            state.masks, self._expected = learned, None
        self.check_ranks(f"the network after epoch {epoch}")
        trained = state.metrics.read()
        sums = batch_sums(state.net, self.splits.test, part=(self.group.rank, self.group.size))
        self.group.all_reduce(sums)
        tested = summarized(sums, len(self.splits.test))
        if not math.isfinite(tested.loss):
            raise TrainingError(
                f"epoch {epoch}, step {trained.step}: expected a finite test loss, found "
                f"{tested.loss:g}; lower sgd.lr, or use an architecture with batch norm"
            )
        stats = EpochStats(
            epoch=epoch,
            epochs=self.recipe.epochs,
            loss=trained.loss,
            train_accuracy=trained.accuracy,
            test_loss=tested.loss,
            test_accuracy=tested.accuracy,
            flips_per_step=trained.flips_per_step,
            flipped=self._flipped(),
            seconds=perf_counter() - state.epoch_begun,
            expected_bytes=self._expected_bytes(),
        )
        state.history.append(stats)
        state.step, state.metrics = 0, EpochMetrics(epoch + 1, self.device)
        for callback in self.callbacks:
            callback.on_epoch_end(stats)
        if self._schedule.epoch_due():
            self._save()

    def _train_steps(self) -> None:
        """Take one step for each batch that is left of the epoch.

        Order, augmentation and which steps are dropped are decided by seed and epoch. The metrics
        stay on the device and are read every few steps, which is when a loss that is not finite is
        noticed.
        """
        state, recipe, images = self.state, self.recipe, self.splits.train
        state.net.train()
        walk = batches(
            images,
            recipe.batch_size,
            shuffle_seed=recipe.seed,
            epoch=state.epoch - 1,
            augmentation=self.splits.augmentation if recipe.augment else None,
            start=state.step,
            shard=(self.group.rank, self.group.size),
        )
        for step, batch in zip(range(state.step + 1, self.steps + 1), walk, strict=False):
            state.metrics.begin(step)
            if not dropped(recipe.seed, state.epoch - 1, step - 1, recipe.drop_ratio):
                samples = min(recipe.batch_size, len(images) - (step - 1) * recipe.batch_size)
                train_step(
                    self._gradients,
                    state.optimizers,
                    state.metrics,
                    batch,
                    samples,
                    state.epoch,
                    step,
                )
            state.step = step
            if step % _READ_EVERY == 0 or step == self.steps:
                progress = state.metrics.read()
                for callback in self.callbacks:
                    callback.on_step_end(progress)
            if self._schedule.step_due() and step < self.steps:
                state.metrics.read()  # a state with a loss that is not finite is not worth saving
                self._save()

    def _flipped(self) -> float:
        """Return the fraction of the survivors whose sign is not the one that they began with."""
        masks = self.state.masks
        counts = [
            ((weight.detach().signbit() != self._initial_signs[name]) & masks[name]).sum()
            for name, weight in seeded_parameters(self.state.net).items()
        ]
        survivors = sum(int(mask.sum()) for mask in masks.values())
        return sum(int(count) for count in counts) / max(survivors, 1)

    def _expected_bytes(self) -> float | None:
        """Return the size of the file to come; the first process alone needs to know."""
        if not (self.group.first and self.method.seeded):
            return None
        if self._expected is None:
            self._expected = ExpectedBytes(self.state.net, self.state.masks, self.recipe)
        return self._expected.bytes()

    def _save(self) -> None:
        """Save the state, if this process of this run saves at all."""
        if self._save_to is not None:
            self._save_to({**origin(self.given, self.device), **self.state.state_dict()})
        self._schedule.saved()


def train(
    recipe: Recipe,
    *,
    output: str | os.PathLike[str] = "model.pt",
    callbacks: Iterable[Callback] = (),
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
    bit for bit on a CPU. The first process alone searches, writes and has callbacks; all
    return the results.

    Args:
        recipe: what to do.
        output: path of the checkpoint, written whole at the very end; an existing file stays as it
            is until then, and for good if anything goes wrong.
        callbacks: called at every step, epoch and the end, such as `ProgressBar` or `JsonLog`.
        splits: the data, already loaded; by default ``recipe.data`` is loaded from
            ``recipe.data_root``.
        download: fetch a dataset that is missing.
        ticket: a checkpoint of `find_ticket`, which takes the place of the search.
        save_every: how often the state of the run is saved in ``<output>.progress``: a `SaveEvery`
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
        OSError: ``output`` or the state cannot be written.

    Source: Peek-a-Boo, Algorithm 1.
    """
    if isinstance(save_every, str):
        save_every = SaveEvery.parse(save_every)
    with process_group(recipe.device) as group, ExitStack() as stack:
        recipe = sharded(recipe, group)
        group.check_same("the recipe", comparable(recipe))
        group.check_same("what the run was given besides it", [ticket, download, resume])
        device = pick_device(recipe.device, local_rank())
        called = list(callbacks)
        stack.enter_context(isolated(recipe.seed, device))
        for callback in called:
            stack.callback(callback.close)
        called = called if group.first else []
        state_file = RunStateFile(output)
        # Opened first, so that a place that cannot be written fails now and not after the training.
        with ExitStack() as writing:
            file = writing.enter_context(open_atomic(output)) if group.first else None
            trainer = Trainer(
                recipe,
                device,
                group,
                called,
                save=state_file.write if group.first and save_every is not None else None,
                schedule=SaveSchedule(save_every),
                splits=splits,
                download=download,
                ticket=ticket,
            )
            state = group.from_first(state_file.read) if resume else None
            if state is not None:
                check_resume(state, recipe, device, state_file.path)
                trainer.resume(state, state_file.path)
            elif group.first:
                state_file.remove()
            group.check_same("the number of training images", len(trainer.splits.train))
            trainer.check_ranks("the network before the training")
            try:
                trainer.run()
            except TrainingError as error:
                left = state_file.left() if group.first else "rank 0 says what is kept"
                raise TrainingError(f"{error}; {left}") from error
            result = trainer.result(output)
            net = trainer.state.net
            if not trainer.method.seeded:
                # Magnitudes were trained: files name no seeded weight and store all as they are.
                attach_seeding(net, Seeding(seeding(net).seed, {}))
            if file is not None:
                save_checkpoint(net, file, settings=to_dict(recipe), results=result.lasting())
        if group.first:
            state_file.remove()
        for callback in called:
            callback.on_train_end(result)
        return result

"""The training loop: search when due, train an epoch, evaluate, call the callbacks.

`pabzip.train.run.train` sets a run up and writes its checkpoint; one step of it is
`pabzip.train.step.train_step`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from pabzip.checkpoint import Checkpoint, load_checkpoint
from pabzip.data import AnyImages, Splits, batches
from pabzip.errors import RecipeError, TrainingError
from pabzip.init import attach_seeding, seeded_parameters
from pabzip.search import apply_masks
from pabzip.train.build import build_network, prepare_data
from pabzip.train.callbacks import Callback
from pabzip.train.config import Recipe, method_of
from pabzip.train.cost import step_costs
from pabzip.train.distributed import ProcessGroup
from pabzip.train.evaluation import Evaluation, batch_sums, summarized
from pabzip.train.file_size import ExpectedBytes
from pabzip.train.optimizers import Optimizers, predictive_gradients, shortened
from pabzip.train.precision import Precision
from pabzip.train.pruning import (
    AT_ONCE,
    PlannedSearch,
    apply_ticket,
    learned_by_scores,
    planned_searches,
    search_masks,
    ticket_digest,
    ticket_seeding,
)
from pabzip.train.results import EpochStats, StepCosts, TrainResult
from pabzip.train.resume import RunState, SaveSchedule, origin
from pabzip.train.step import BatchGradients, EpochMetrics, dropped, steps_per_epoch, train_step

_READ_EVERY = 20
"""Steps between two readings of the epoch's metrics, which wait for the device."""


class Trainer:
    """The loop of one run, which can be saved after any step and resumed.

    Searches happen where `planned_searches` says. Before the first, the whole network trains; from
    then on what each one leaves. Epochs are measured on the validation images, where there are any,
    and then the test images are seen at the end alone.

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
        ticket: str | os.PathLike[str] | Checkpoint | None,
    ):
        begun = perf_counter()
        self.given, self.method = recipe, method_of(recipe)
        self.device, self.group, self.callbacks = device, group, callbacks
        self._save_to, self._schedule, self._ticket = save, schedule, ticket
        splits = prepare_data(recipe, device, group, splits=splits, download=download)
        self.splits = splits
        masked = self.method.masked and not self.method.rounds
        if ticket is not None and not (masked or self.method.short):
            raise RecipeError(
                "a found ticket: expected a method that trains on a mask, found "
                f"{recipe.method!r}; leave the ticket out, or choose another method"
            )
        found = load_checkpoint(ticket) if isinstance(ticket, str | os.PathLike) else ticket
        # The ticket of a score method, which is taken whole, with the record of its weights.
        self._learned = found if found is not None and learned_by_scores(found) else None
        self.ticket_digest = "" if found is None else ticket_digest(found)
        self.steps = steps_per_epoch(len(splits.train), recipe.batch_size, recipe.shards)
        precision = Precision(recipe.precision, recipe.channels_last, device)
        net = build_network(recipe, splits).to(device)
        precision.lay_out(net)
        weights = seeded_parameters(net)
        self._initial_signs = {name: weight.detach().signbit() for name, weight in weights.items()}
        self.flipped_ticket = found is not None and _flips(found.state_dict, self._initial_signs)
        self.recipe = recipe
        if self.method.short:
            shape = splits.input_shape
            self.recipe = group.from_first(lambda: shortened(recipe, net, shape, self._find_masks))
        if self.method.rounds:
            rounds = planned_searches(recipe)[-1].epoch
            self.recipe = recipe.replace(epochs=rounds + recipe.epochs)
        self.state = RunState(
            net=net,
            masks={name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()},
            optimizers=Optimizers(net, self._until_rewind(0), {}),
            precision=precision,
            metrics=EpochMetrics(1, device),
            begun=begun,
            epoch_begun=begun,
        )
        self._gradients = BatchGradients(net, recipe.seed, recipe.shards, group, precision)
        self._costs: StepCosts | None = None
        self._expected: ExpectedBytes | None = None
        self._tested: Evaluation | None = None

    def run(self) -> None:
        """Search, train all epochs that are left, and test what no epoch tested."""
        for callback in self.callbacks:
            callback.on_train_start(self.recipe, self.steps)
        while self.state.epoch <= self.recipe.epochs:
            if self.method.rounds and self.state.epoch == self.recipe.imp.rewind_epoch + 1:
                self._remember()
            self._search_when_due()
            self._epoch()
        if self.splits.validation is not None:
            self._tested = self._evaluate("test")

    def result(self, output: str | os.PathLike[str]) -> TrainResult:
        """Return the results of a run that is done; ``output`` is named in them."""
        recipe, last, tested = self.recipe, self.state.history[-1], self._tested
        test_loss, test_accuracy = (tested.loss, tested.accuracy) if tested else last.measured
        costs = self._count_costs() if self._costs is None else self._costs
        survivors, keep_ratio = costs.survivors, recipe.keep_ratio if self.method.masked else 1.0
        if self.method.scores:
            survivors = sum(int(mask.sum()) for mask in self.state.masks.values())
        if self.method.scores or self._learned is not None:
            keep_ratio = survivors / costs.weights
        return TrainResult(
            arch=recipe.arch,
            data=recipe.data,
            method=recipe.method,
            keep_ratio=keep_ratio,
            epochs=recipe.epochs,
            test_accuracy=test_accuracy,
            output=os.fspath(output),
            seconds=perf_counter() - self.state.begun,
            bitops=costs.bitops,
            layer_bitops=costs.layer_bitops,
            test_loss=test_loss,
            train_accuracy=last.train_accuracy,
            weights=costs.weights,
            survivors=survivors,
            flipped=last.flipped,
            seed=recipe.seed,
            validation=recipe.validation,
            validation_loss=last.validation_loss,
            validation_accuracy=last.validation_accuracy,
        )

    def resume(self, state: Mapping[str, Any], place: str) -> None:
        """Continue where a state was saved, to the bit on a CPU; `RunState.load_state_dict`."""
        self.state.load_state_dict(state, place)
        if self._learned is not None and self.state.searches:
            attach_seeding(self.state.net, ticket_seeding(self.given, self._learned))
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
        if self._learned is not None:
            # The other processes did not read the ticket into their networks.
            attach_seeding(state.net, ticket_seeding(self.given, self._learned))
            tensors = self.group.from_first(
                lambda: {name: value.cpu() for name, value in state.net.state_dict().items()}
            )
            state.net.load_state_dict(tensors)
        apply_masks(state.net, masks)
        state.masks = {name: mask.to(self.device) for name, mask in masks.items()}
        if self._learned is not None:
            # Latent weights begin with the signs of the ticket, which may not be the seed's.
            state.optimizers = Optimizers(state.net, self.recipe, state.masks)
        state.optimizers.prune(state.masks)
        state.searches += 1
        self._expected = None
        if self.method.rounds:
            self._rewind()
        self.check_ranks("the ticket after the search")
        self._save()

    def _remember(self) -> None:
        """Keep what the weights, and all else in the network, are to be rewound to."""
        if self.recipe.imp.rewind == "weights" and not self.state.rewind:
            self.state.rewind = {
                name: tensor.detach().clone() for name, tensor in self.state.tensors()
            }

    @torch.no_grad()
    def _rewind(self) -> None:
        """Rewind after a round: the survivors if weights rewind, momenta and rates in any case."""
        state = self.state
        for name, tensor in state.tensors():
            if state.rewind:
                tensor.copy_(state.rewind[name])
        apply_masks(state.net, state.masks)
        recipe = self._until_rewind(state.searches)
        state.optimizers = Optimizers(state.net, recipe, state.masks)

    def _until_rewind(self, searches: int) -> Recipe:
        """Return the recipe with the epochs that learning rates fall over after some searches."""
        if not self.method.rounds:
            return self.recipe
        own = self.recipe.imp
        last = searches == own.rounds
        return self.recipe.replace(epochs=self.given.epochs if last else own.round_epochs)

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
        part = "test" if self.splits.validation is None else "validation"
        found = self._evaluate(part)
        measured = {f"{part}_loss": found.loss, f"{part}_accuracy": found.accuracy}
        stats = EpochStats(
            epoch=epoch,
            epochs=self.recipe.epochs,
            loss=trained.loss,
            train_accuracy=trained.accuracy,
            **measured,
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

    def _evaluate(self, part: str) -> Evaluation:
        """Measure the network, by all processes, on the ``"test"`` or ``"validation"`` images.

        Raises:
            TrainingError: the loss is not finite.
        """
        images: AnyImages = getattr(self.splits, part)
        sums = batch_sums(self.state.net, images, part=(self.group.rank, self.group.size))
        self.group.all_reduce(sums)
        found = summarized(sums, len(images))
        if not math.isfinite(found.loss):
            epoch = min(self.state.epoch, self.recipe.epochs)
            raise TrainingError(
                f"epoch {epoch}, step {self.steps}: expected a finite {part} loss, found "
                f"{found.loss:g}; lower sgd.lr, or use an architecture with batch norm"
            )
        return found

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
            self._save_to(
                {**origin(self.given, self.device, self.ticket_digest), **self.state.state_dict()}
            )
        self._schedule.saved()


def _flips(ticket: Mapping[str, Tensor], signs: Mapping[str, Tensor]) -> bool:
    """Return whether a ticket keeps a weight with another sign than the seed gave it."""
    return any(
        bool(((ticket[name] != 0) & (ticket[name].signbit() != sign.cpu())).any())
        for name, sign in signs.items()
        if name in ticket and ticket[name].shape == sign.shape
    )

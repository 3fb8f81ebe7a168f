"""Train a ticket: search its mask, then unmask its signs."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from time import perf_counter
from typing import IO

import torch

from pabzip import data
from pabzip.data import Images, Splits
from pabzip.errors import RecipeError, TrainingError
from pabzip.formats.atomic import open_atomic
from pabzip.init import seeded_parameters
from pabzip.search import synflow
from pabzip.train.bitops import bit_operations
from pabzip.train.checkpoint import save_checkpoint
from pabzip.train.epoch import steps_of, train_epoch
from pabzip.train.evaluation import evaluate
from pabzip.train.isolation import isolated
from pabzip.train.network import build_network, pick_device
from pabzip.train.observers import JsonLog, Observer, Progress
from pabzip.train.optimisers import Optimisers
from pabzip.train.recipes import Recipe
from pabzip.train.results import EpochStats, TrainResult
from pabzip.train.signs import SignRecord
from pabzip.unmask import PsgConfig, apply_psg


def train(
    recipe: Recipe,
    *,
    output: str | os.PathLike[str] = "model.pt",
    log: str | os.PathLike[str] | IO[str] | None = None,
    observers: Iterable[Observer] = (),
    splits: Splits | None = None,
    download: bool = False,
) -> TrainResult:
    """Find a ticket and write it as a checkpoint.

    The network's weights are drawn from the recipe's seed, SynFlow prunes them, and Bop flips the
    signs of the survivors while SGD trains the dense parameters. On a CPU the same recipe gives
    the same checkpoint bit for bit (for one version of torch and number of threads). The caller's
    random states, default dtype, gradient mode and threads are left as they were.

    Args:
        recipe: what to do.
        output: path of the checkpoint, written whole at the very end; an existing file stays as it
            is until then, and for good if anything goes wrong.
        log: path or text stream for a log in JSON lines (`JsonLog`).
        observers: told of every step, epoch and the end, such as `ProgressBar`.
        splits: the data, already loaded; by default ``recipe.data`` is loaded from
            ``recipe.data_root``.
        download: fetch a dataset that is missing.

    Returns:
        The results, which also travel in the checkpoint.

    Raises:
        TrainingError: a loss or gradient is not finite; names epoch and step.
        SearchError: the search found no usable mask.
        ArchitectureError: the architecture does not fit the data.
        DataError: the dataset is unknown or missing.
        RecipeError: a device that is not there, or augmentation where the data has none.
        OSError: ``output`` or ``log`` cannot be written.

    Source: Peek-a-Boo, Algorithm 1.
    """
    device = pick_device(recipe.device)
    watchers = [*observers, *([] if log is None else [JsonLog(log)])]
    with isolated(recipe.seed, device), ExitStack() as stack:
        for watcher in watchers:
            stack.callback(watcher.close)
        # Opened first, so that a place that cannot be written fails now and not after the training.
        with open_atomic(output) as file:
            run = _Run(recipe, device, watchers, splits, download)
            result = run.run(output)
            save_checkpoint(run.net, file, recipe=recipe, results=result)
        for watcher in watchers:
            watcher.finished(result)
        return result


class _Run:
    """The parts of one training run, from its data to its checkpoint."""

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        observers: Sequence[Observer],
        splits: Splits | None,
        download: bool,
    ):
        self.begun = perf_counter()
        self.recipe = recipe
        self.observers = observers
        if splits is None:
            splits = data.load(recipe.data, root=recipe.data_root, download=download)
        self.augmentation = splits.augmentation if recipe.augment else None
        if recipe.augment and self.augmentation is None:
            raise RecipeError(
                f"augment: expected false for {splits.name}, which has no augmentation, found true"
            )
        self.train_images = _on_device(splits.train, device)
        self.test_images = _on_device(splits.test, device)
        self.net = build_network(recipe, splits).to(device)
        self.input_shape = tuple(splits.train.images.shape[1:])

    def run(self, output: str | os.PathLike[str]) -> TrainResult:
        """Search and unmask; ``output`` is named in the results."""
        recipe, net = self.recipe, self.net
        steps = steps_of(len(self.train_images), recipe.batch_size)
        for observer in self.observers:
            observer.started(recipe, steps)
        masks = synflow(
            net,
            recipe.keep_ratio,
            self.input_shape,
            recipe.search.iterations,
            on_iteration=self._searched,
        )
        signs = SignRecord(seeded_parameters(net), masks)
        bitops = bit_operations(net, self.input_shape, masks, **_backward_bits(recipe))
        stats = self._unmask(signs)
        return TrainResult(
            arch=recipe.arch,
            data=recipe.data,
            method=recipe.method,
            keep_ratio=recipe.keep_ratio,
            epochs=recipe.epochs,
            test_accuracy=stats.test_accuracy,
            output=os.fspath(output),
            seconds=perf_counter() - self.begun,
            bitops=bitops,
            test_loss=stats.test_loss,
            train_accuracy=stats.train_accuracy,
            weights=signs.total,
            survivors=signs.survivors,
            flipped=stats.flipped,
            seed=recipe.seed,
        )

    def _unmask(self, signs: SignRecord) -> EpochStats:
        """Train all epochs and return the numbers of the last."""
        with ExitStack() as stack:
            if self.recipe.method == "pab-bop-psg":
                psg = self.recipe.psg
                stack.callback(apply_psg(self.net, PsgConfig(**dataclasses.asdict(psg))).remove)
            optimisers = Optimisers(self.net, self.recipe)
            for epoch in range(1, self.recipe.epochs + 1):
                stats = self._epoch(epoch, optimisers, signs)
        return stats

    def _epoch(self, epoch: int, optimisers: Optimisers, signs: SignRecord) -> EpochStats:
        """Train one epoch, evaluate, and tell the observers."""
        begun = perf_counter()
        trained = train_epoch(
            self.net,
            self.train_images,
            optimisers,
            epoch=epoch,
            seed=self.recipe.seed,
            batch_size=self.recipe.batch_size,
            augmentation=self.augmentation,
            on_progress=self._stepped,
        )
        optimisers.end_epoch()
        tested = evaluate(self.net, self.test_images)
        if not math.isfinite(tested.loss):
            raise TrainingError(
                f"epoch {epoch}, step {trained.step}: expected a finite test loss, found "
                f"{tested.loss:g}; nothing was written. Lower sgd.learning_rate, or use an "
                "architecture with batch norm"
            )
        stats = EpochStats(
            epoch=epoch,
            epochs=self.recipe.epochs,
            loss=trained.loss,
            train_accuracy=trained.accuracy,
            test_loss=tested.loss,
            test_accuracy=tested.accuracy,
            flips_per_step=trained.flips_per_step,
            flipped=signs.flipped(),
            seconds=perf_counter() - begun,
        )
        for observer in self.observers:
            observer.epoch_ended(stats)
        return stats

    def _searched(self, iteration: int, iterations: int) -> None:
        """Tell the observers of the search."""
        for observer in self.observers:
            observer.searched(iteration, iterations)

    def _stepped(self, progress: Progress) -> None:
        """Tell the observers of some steps."""
        for observer in self.observers:
            observer.stepped(progress)


def _on_device(images: Images, device: torch.device) -> Images:
    """Move images and labels, so that no step waits for a copy."""
    return dataclasses.replace(
        images, images=images.images.to(device), labels=images.labels.to(device)
    )


def _backward_bits(recipe: Recipe) -> dict[str, int]:
    """Return the bits of the backward pass; none to change without PSG."""
    if recipe.method != "pab-bop-psg":
        return {}
    psg = recipe.psg
    return {
        "input_bits": psg.input_bits,
        "weight_bits": psg.weight_bits,
        "gradient_bits": psg.gradient_bits,
    }

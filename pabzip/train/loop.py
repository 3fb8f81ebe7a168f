"""Train a ticket: search its mask, then unmask its signs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from typing import IO

from pabzip.data import Splits
from pabzip.errors import TrainingError
from pabzip.formats.atomic import open_atomic
from pabzip.train.cadence import SaveEvery
from pabzip.train.checkpoint import save_checkpoint
from pabzip.train.digest import digest
from pabzip.train.inputs import Inputs, sharded
from pabzip.train.isolation import isolated
from pabzip.train.keeper import Keeper
from pabzip.train.network import forget_seeding, pick_device
from pabzip.train.observers import JsonLog, Observer
from pabzip.train.recipes import Recipe
from pabzip.train.results import TrainResult
from pabzip.train.resumption import check_resumption, comparable
from pabzip.train.run import Run
from pabzip.train.world import joined, local_rank


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
                save_checkpoint(run.state.net, file, recipe=recipe, results=result)
        if world.first:
            keeper.remove()
        for watcher in told:
            watcher.finished(result)
        return result

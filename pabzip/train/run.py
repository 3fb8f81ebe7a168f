"""A run from start to end: `train` writes a trained checkpoint, `find_ticket` a searched one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from time import perf_counter

from pabzip.checkpoint import Checkpoint, save_checkpoint
from pabzip.data import Splits, load
from pabzip.errors import RecipeError, TrainingError
from pabzip.formats.atomic import open_atomic
from pabzip.init import Seeding, attach_seeding, seeding
from pabzip.train.build import build_network, held_out, isolated, pick_device, sharded
from pabzip.train.callbacks import Callback
from pabzip.train.config import Recipe, comparable, method_of, to_dict
from pabzip.train.cost import step_costs
from pabzip.train.distributed import local_rank, process_group
from pabzip.train.pruning import AT_ONCE, planned_searches, search_masks
from pabzip.train.results import SearchResult, TrainResult
from pabzip.train.resume import RunStateFile, SaveEvery, SaveSchedule, check_resume
from pabzip.train.trainer import Trainer


def train(
    recipe: Recipe,
    *,
    output: str | os.PathLike[str] = "model.pt",
    callbacks: Iterable[Callback] = (),
    splits: Splits | None = None,
    download: bool = False,
    ticket: str | os.PathLike[str] | Checkpoint | None = None,
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

    With ``recipe.validation``, or where ``splits`` has validation images, epochs are measured on
    these, and the test images are seen once, by the network as it is written.

    Args:
        recipe: what to do.
        output: path of the checkpoint, written whole at the very end; an existing file stays as it
            is until then, and for good if anything goes wrong.
        callbacks: called at every step, epoch and the end, such as `ProgressBar` or `JsonLog`.
        splits: the data, already loaded; by default ``recipe.data`` is loaded from
            ``recipe.data_root``.
        download: fetch a dataset that is missing.
        ticket: a checkpoint of `find_ticket`, or of a score method, or its path; it takes the place
            of the search (`pabzip.train.apply_ticket`).
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
        RecipeError: a device that is not there, augmentation where the data has none, too few
            images to hold some out, or a resumed run that was begun with another recipe or ticket.
        CheckpointError: the saved state is damaged, or ``ticket`` is not of this recipe.
        OSError: ``output`` or the state cannot be written.

    Source: Peek-a-Boo, Algorithm 1.
    """
    if isinstance(save_every, str):
        save_every = SaveEvery.parse(save_every)
    with process_group(recipe.device) as group, ExitStack() as stack:
        recipe = sharded(recipe, group)
        group.check_same("the recipe", comparable(recipe))
        place = dict(ticket.state_dict) if isinstance(ticket, Checkpoint) else ticket
        group.check_same("what the run was given besides it", [place, download, resume])
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
                check_resume(state, recipe, device, state_file.path, trainer.ticket_digest)
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
            drawn = Seeding(0, {})
            if not trainer.method.seeded:
                # Magnitudes were trained: files name no seeded weight and store all as they are.
                # Flips of the ticket that it began as are known no more, so neither is the ticket.
                record = seeding(net)
                drawn = drawn if trainer.flipped_ticket else record
                attach_seeding(net, Seeding(record.seed, {}))
            if file is not None:
                save_checkpoint(
                    net,
                    file,
                    settings=to_dict(recipe),
                    results=result.lasting(),
                    drawn=drawn.specs,
                    drawn_frozen=drawn.frozen,
                    scores=trainer.state.optimizers.scores,
                )
        if group.first:
            state_file.remove()
        for callback in called:
            callback.on_train_end(result)
        return result


def find_ticket(
    recipe: Recipe,
    *,
    output: str | os.PathLike[str] = "found.pt",
    splits: Splits | None = None,
    download: bool = False,
    on_iteration: Callable[[int, int], None] | None = None,
) -> SearchResult:
    """Draw a network, search its mask, and write the ticket as a checkpoint, untrained.

    The caller's random states, default dtype, gradient mode and threads are left as they were.

    Args:
        recipe: as for `pabzip.train.train`; all that decides network and search matters.
        output: path of the checkpoint, written whole at the end.
        splits: the data, already loaded; by default ``recipe.data`` is loaded.
        download: fetch a dataset that is missing.
        on_iteration: called as ``on_iteration(i, iterations)`` after each round of the search.

    Returns:
        The results, which also travel in the checkpoint.

    Raises:
        RecipeError: a recipe that does not search at initialization alone.
        SearchError: the search found no usable mask.
        ArchitectureError, DataError, OSError: as `pabzip.train.train`.

    Source: Peek-a-Boo, Section 4.3 (ImageNet), whose search and training are two programs.
    """
    begun = perf_counter()
    planned = planned_searches(recipe)
    if not planned or method_of(recipe).rounds:
        raise RecipeError(
            f"a search without training: expected a method that trains on a mask, found "
            f"{recipe.method!r}; choose another method"
        )
    if planned != (AT_ONCE,):
        raise RecipeError(
            "a search without training: expected one search, at initialization, found "
            f"search.epoch = {recipe.search.epoch} and search.shots = {recipe.search.shots}; set "
            "search.epoch = 0 and search.shots = 1"
        )
    device = pick_device(recipe.device)
    with isolated(recipe.seed, device), open_atomic(output) as file:
        if splits is None:
            splits = load(recipe.data, root=recipe.data_root, download=download)
        splits = held_out(recipe, splits)
        net = build_network(recipe, splits).to(device)
        masks = search_masks(net, recipe, splits, on_iteration=on_iteration)
        costs = step_costs(net, splits.input_shape, masks, recipe)
        result = SearchResult(
            arch=recipe.arch,
            data=recipe.data,
            search=recipe.search.method,
            keep_ratio=recipe.keep_ratio,
            epochs=0,
            weights=costs.weights,
            survivors=costs.survivors,
            bitops=costs.bitops,
            layer_bitops=costs.layer_bitops,
            seed=recipe.seed,
            output=os.fspath(output),
            seconds=perf_counter() - begun,
        )
        save_checkpoint(net, file, settings=to_dict(recipe), results=result.to_dict())
    return result

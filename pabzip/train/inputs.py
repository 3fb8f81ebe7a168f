"""What a run is given besides its recipe: the data, and perhaps a ticket."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

from pabzip import data
from pabzip.data import Splits
from pabzip.errors import RecipeError
from pabzip.train.recipes import Recipe
from pabzip.train.world import World


@dataclass(frozen=True)
class Inputs:
    """What a run is given besides its recipe.

    Attributes:
        splits: the data, already loaded; None loads the recipe's.
        download: fetch a dataset that is missing.
        ticket: path of a ticket that was found before; it takes the place of the search.
    """

    splits: Splits | None = None
    download: bool = False
    ticket: str | os.PathLike[str] | None = None


def load_data(recipe: Recipe, inputs: Inputs, world: World) -> Splits:
    """Return the data; where it has to be fetched, one process does so before the others read.

    Raises:
        DataError: the dataset is unknown, missing or damaged.
    """
    if inputs.splits is not None:
        return inputs.splits

    def fetch() -> None:
        data.load(recipe.data, root=recipe.data_root, download=True)

    if inputs.download and world.ranks > 1:
        world.from_first(fetch)
    return data.load(recipe.data, root=recipe.data_root, download=inputs.download)


def sharded(recipe: Recipe, world: World) -> Recipe:
    """Return ``recipe`` with the number of its shards, where it leaves that to the processes.

    Raises:
        RecipeError: the processes are no power of two, or more than the samples of a batch.
    """
    if recipe.shards:
        return recipe
    try:
        return dataclasses.replace(recipe, shards=world.ranks)
    except RecipeError as error:
        raise RecipeError(
            f"{error}, one for each process; start torchrun with --nproc-per-node of 1, 2, 4, ..., "
            "at most the batch size"
        ) from error


def check_data(recipe: Recipe, splits: Splits, world: World) -> None:
    """Refuse augmentation that there is none of, and shards that cannot be shared out or filled.

    Raises:
        RecipeError: the key, what was expected for this data and these processes, and the way out.
    """
    if recipe.augment and splits.augmentation is None:
        raise RecipeError(
            f"augment: expected false for {splits.name}, which has no augmentation, found true"
        )
    if recipe.shards % world.ranks:
        raise RecipeError(
            f"shards: expected a multiple of the {world.ranks} processes, which must be a power of "
            f"two, found {recipe.shards}; leave it out, set --shards "
            f"{1 << (world.ranks - 1).bit_length()}, or start torchrun with --nproc-per-node of "
            "1, 2, 4, ... processes"
        )
    if len(splits.train) < recipe.shards:
        raise RecipeError(
            f"shards: expected at most the {len(splits.train)} training images, found "
            f"{recipe.shards}"
        )

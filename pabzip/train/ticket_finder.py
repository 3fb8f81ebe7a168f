"""Where the masks of a run come from: a search of its own, or a ticket that was found before."""

from __future__ import annotations

import os
from collections.abc import Callable

from torch import Tensor, nn

from pabzip.data import Splits
from pabzip.errors import RecipeError
from pabzip.train.found_tickets import apply_ticket
from pabzip.train.methods import method_of
from pabzip.train.recipes import Recipe
from pabzip.train.searching import AT_ONCE, PlannedSearch, search_masks


class TicketFinder:
    """Prunes networks as a recipe says, or to a ticket.

    Args:
        recipe: as for `search_masks` and `apply_ticket`.
        splits: the data.
        ticket: path of a ticket of `pabzip.train.find_ticket`, in place of a search; or None.

    Raises:
        RecipeError: a ticket for a method that has no use for it.
    """

    def __init__(self, recipe: Recipe, splits: Splits, ticket: str | os.PathLike[str] | None):
        method = method_of(recipe)
        if ticket is not None and not (method.masked or method.short):
            raise RecipeError(
                "a found ticket: expected a method that trains on a mask, found "
                f"{recipe.method!r}; leave the ticket out, or choose another method"
            )
        self._recipe, self._splits, self._ticket = recipe, splits, ticket

    def __call__(
        self,
        net: nn.Module,
        planned: PlannedSearch = AT_ONCE,
        on_iteration: Callable[[int, int], None] | None = None,
    ) -> dict[str, Tensor]:
        """Prune ``net`` and return its masks by name, bool, on the CPU.

        Args:
            net: drawn from the recipe's seed, on any device.
            planned: which of the run's searches this is.
            on_iteration: as for `search_masks`; a ticket has none.

        Raises:
            SearchError, RecipeError, CheckpointError: as `search_masks` and `apply_ticket`.
        """
        if self._ticket is not None:
            masks = apply_ticket(net, self._recipe, self._ticket)
        else:
            masks = search_masks(
                net, self._recipe, self._splits, planned, on_iteration=on_iteration
            )
        return {name: mask.cpu() for name, mask in masks.items()}

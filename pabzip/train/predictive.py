"""Predictive gradients for the methods that use them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from pabzip.train.methods import method_of
from pabzip.train.recipes import Recipe
from pabzip.unmask import PsgConfig, apply_psg


@contextmanager
def predictive_gradients(net: nn.Module, recipe: Recipe) -> Iterator[None]:
    """Let the seeded layers of ``net`` compute approximate gradients, where the method does so.

    Source: Peek-a-Boo, Section 3.3.
    """
    if not method_of(recipe).psg:
        yield
        return
    handle = apply_psg(net, PsgConfig(**dataclasses.asdict(recipe.psg)))
    try:
        yield
    finally:
        handle.remove()

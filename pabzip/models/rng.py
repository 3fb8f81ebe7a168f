"""Construct modules without touching the caller's random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def own_rng(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator inside the block and give the caller's state back after it.

    Only the CPU generator is seeded: ``torch.manual_seed`` would also reseed every accelerator,
    whose state could not be given back without starting it.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield

"""A batch computed in parts, so that one process and several reach the same bits.

Floating-point sums depend on their order. Here the order is a property of the run and not of the
machines: a batch is cut into ``shards`` parts, a power of two, and whatever the parts give is added
along one binary tree, ``((0 + 1) + (2 + 3)) + ...``. A process that has an aligned part of the
shards adds along its part of the tree, and the processes along the rest (`World.add_up`), so every
number of processes that divides ``shards`` gives the same sums, bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch


def bounds(samples: int, shards: int, shard: int) -> tuple[int, int]:
    """Return where a shard begins and ends in a batch.

    Shards differ by one sample at most, and the part of a process is that of its shards together.
    """
    return samples * shard // shards, samples * (shard + 1) // shards


def shards_of(rank: int, ranks: int, shards: int) -> range:
    """Return the shards that a process computes; ``ranks`` divides ``shards``."""
    each = shards // ranks
    return range(rank * each, (rank + 1) * each)


def tree_sum(parts: Iterator[torch.Tensor]) -> torch.Tensor:
    """Add tensors along a binary tree as they come; at most log2 of their number wait.

    Args:
        parts: a power of two of tensors of one shape; they are used up.
    """
    waiting: list[tuple[int, torch.Tensor]] = []
    for part in parts:
        level = 0
        while waiting and waiting[-1][0] == level:
            part = waiting.pop()[1].add_(part)
            level += 1
        waiting.append((level, part))
    assert len(waiting) == 1, "expected a power of two of parts"
    return waiting[0][1]


def step_seed(seed: int, epoch: int, step: int, shard: int) -> int:
    """Return the seed of torch's generators for one shard of one step.

    What a network draws at random (dropout) then depends on where the run stands and on nothing
    that happened before, so it is the same after a resumption and in any number of processes.
    """
    text = f"pabzip {seed} {epoch} {step} {shard}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1

"""The processes of a run: who computes what, and digests to check that all agree."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pabzip.errors import TrainingError


def digest(value: Any) -> str:
    """Return the SHA-256, in hexadecimal, of nested tables, lists, plain values and tensors.

    The same values give the same digest on every device and after `torch.save` and `torch.load`:
    order, types, shapes and every bit count, strides and devices do not. Plain is what ``repr``
    tells apart.
    """
    hasher = hashlib.sha256()
    _feed(hasher, value)
    return hasher.hexdigest()


def _feed(hasher: Any, value: Any) -> None:
    """Add one value, with enough of its type and size that no two structures look alike."""
    match value:
        case torch.Tensor():
            hasher.update(f"tensor {value.dtype} {tuple(value.shape)}\n".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            hasher.update(flat.view(torch.uint8).numpy())
        case Mapping():
            hasher.update(f"table {len(value)}\n".encode())
            for key, item in value.items():
                _feed(hasher, key)
                _feed(hasher, item)
        case list() | tuple():
            hasher.update(f"{type(value).__name__} {len(value)}\n".encode())
            for item in value:
                _feed(hasher, item)
        case _:
            text = repr(value).encode()
            hasher.update(f"{type(value).__name__} {len(text)}\n".encode() + text)


def bounds(count: int, parts: int, part: int) -> tuple[int, int]:
    """Return where one part of a batch, or of anything else that is counted, begins and ends.

    Parts differ by one item at most, and the part of a process is that of its shards together.
    """
    return count * part // parts, count * (part + 1) // parts


T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for another before it gives up; the first rank searches that long."""


class ProcessGroup:
    """The processes of a run, those of torch's default process group where there are several.

    Args:
        rank: which process this is, from 0.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, logs and shows progress."""
        return self.rank == 0

    def all_reduce(self, values: torch.Tensor) -> None:
        """Replace ``values`` by its sum over the processes, in the order of their binary tree.

        One partner a level: both add the same two numbers, so both agree.

        Raises:
            TrainingError: another process is gone, here as in the other methods.
        """
        if self.size == 1:
            return
        other = torch.empty_like(values)
        distance = 1
        while distance < self.size:
            partner = self.rank ^ distance
            with self._contact("adding up"):
                operations = [
                    dist.P2POp(dist.isend, values, partner),
                    dist.P2POp(dist.irecv, other, partner),
                ]
                for request in dist.batch_isend_irecv(operations):
                    request.wait()
            values += other
            distance *= 2

    def from_first(self, make: Callable[[], T]) -> T:
        """Return on every process what ``make`` returns, or raises, on the first.

        So no process waits for one that failed. The value is plain, tensors on the CPU.
        """
        if self.size == 1:
            return make()
        sent: list[Any] = [None, None]
        if self.first:
            try:
                sent = [make(), None]
            except Exception as error:
                sent = [None, error]
        with self._contact("waiting for rank 0"):
            dist.broadcast_object_list(sent, src=0)
        result: T = sent[0]
        failure: Exception | None = sent[1]
        if failure is not None:
            raise failure
        return result

    def check_same(self, what: str, value: Any) -> None:
        """Make sure that all processes have the same, of anything that has a `digest`.

        Raises:
            TrainingError: they have not; the message names the ranks.
        """
        if self.size == 1:
            return
        digests: list[Any] = [None] * self.size
        with self._contact(f"comparing {what}"):
            dist.all_gather_object(digests, digest(value))
        others = [str(rank) for rank, found in enumerate(digests) if found != digests[0]]
        if others:
            raise TrainingError(
                f"{what}: expected the same on all {self.size} ranks, found another than rank 0's "
                f"on rank {', '.join(others)}; start every rank with the same command, data and "
                "version of pabzip"
            )

    @contextmanager
    def _contact(self, doing: str) -> Iterator[None]:
        """Turn torch's error about a lost or silent process into ours."""
        try:
            yield
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise TrainingError(
                f"rank {self.rank}, {doing}: expected an answer from every other rank, found one "
                f"gone or silent ({reason}); look at its own message, then start all of them again"
            ) from error


@contextmanager
def process_group(device: str) -> Iterator[ProcessGroup]:
    """Join the processes that ``torchrun`` started, or be one alone.

    A process group that exists already is taken as it is and left alone. Otherwise one is made
    where the environment has torchrun's ``WORLD_SIZE``, and undone afterwards: nccl where the
    recipe's ``device`` is CUDA, else gloo.
    """
    if dist.is_available() and dist.is_initialized():
        yield ProcessGroup(dist.get_rank(), dist.get_world_size())
        return
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        yield ProcessGroup()
        return
    # Functions of this module keep, as the default of an argument, whatever group there is when it
    # is imported, and training imports it by roundabout ways. Were that done later, the group and
    # gloo's threads would outlive their end below, and a thread can abort a Python that shuts down.
    import torch.distributed.nn

    cuda = device != "cpu" and torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def local_rank() -> int | None:
    """Return which process of its machine torchrun says this is; None without torchrun."""
    rank = os.environ.get("LOCAL_RANK")
    return int(rank) if rank is not None and rank.isdigit() else None

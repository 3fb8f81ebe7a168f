"""Write a ticket's tensors to other files: .safetensors, also in shards, .npz, .pt or .gguf."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray

from pabzip._optional import require
from pabzip.errors import PackError
from pabzip.formats import Scalar
from pabzip.formats.ahead import Progress, one_ahead
from pabzip.formats.atomic import open_atomic
from pabzip.packing.checkpoint_files import INDEX_SUFFIX
from pabzip.packing.gguf import write_gguf
from pabzip.packing.npz_files import write_npz
from pabzip.packing.safetensors_files import index_text, shard_names, split, write_safetensors
from pabzip.packing.sources import Described
from pabzip.ticket import GGUF_HEADER, Ticket

MAX_SHARDS = 500
"""Of one checkpoint: all of them are open until the last is complete."""


def write_pt(
    tensors: Mapping[str, Described],
    values: Iterable[NDArray[Any]],
    file: BinaryIO,
    *,
    metadata: Mapping[str, Scalar] | None = None,
) -> None:
    """Write a torch state dict that ``torch.load(weights_only=True)`` reads.

    ``torch.save`` wants all tensors at once, so all are held in memory. Arguments are as for
    `write_safetensors`; a state dict has no place for metadata.
    """
    torch = require("torch", extra="torch", purpose="writing a .pt file")
    from pabzip.storable import torch_of

    named = zip(tensors.items(), values, strict=True)
    torch.save({name: torch_of(array.copy(), dtype) for (name, (dtype, _)), array in named}, file)


FORMATS: Mapping[str, Callable[..., None]] = {
    "safetensors": write_safetensors,
    "npz": write_npz,
    "pt": write_pt,
    "gguf": write_gguf,
}
"""The writers by the suffix that stands for them; the first for stdout."""


def described(ticket: Ticket, *, as_stored: bool = False) -> dict[str, Described]:
    """Return what a ticket's tensors are once they are written, by name, in its order.

    Plain weights, or with ``as_stored`` what was packed.
    """
    if as_stored:
        return {name: Described(ticket.dtype(name), ticket.shape(name)) for name in ticket.names}
    return {
        name: Described(ticket.plain_dtype(name), ticket.plain_shape(name))
        for name in ticket.plain_names
    }


def blocks(ticket: Ticket) -> list[str]:
    """Return the names of tensors of a ``.gguf`` file that stay bytes of blocks, such as Q8_0.

    They are all of its uint8 but ternary ones: no such file has numbers of that type.
    """
    if GGUF_HEADER not in ticket.names:
        return []
    return [
        name
        for name in ticket.plain_names
        if ticket.plain_dtype(name) == "uint8" and ticket.kind(name) != "ternary"
    ]


def values_of(
    ticket: Ticket,
    tensors: Mapping[str, Described],
    names: Iterable[str],
    *,
    as_stored: bool = False,
    bitnet_scale: str | None = None,
    threads: int | None = None,
    on_tensor: Callable[[str], object] | None = None,
    on_progress: Progress | None = None,
) -> Iterator[NDArray[Any]]:
    """Yield the values of tensors, each regenerated while the one before it is written.

    Args:
        ticket: an open one.
        tensors: what they are: `described`, with the same ``as_stored``.
        names: of those to yield, in this order.
        as_stored: yield what was packed in place of plain weights.
        bitnet_scale: as for `Ticket.plain`.
        threads: to regenerate with.
        on_tensor: called with the name of each tensor once it is done with.
        on_progress: told of ``"unpacking"``.

    Yields:
        Arrays in their own type, C-contiguous, bfloat16 as uint16 bit patterns.
    """
    names = list(names)

    def made(name: str) -> NDArray[Any]:
        found = ticket.state_tensor(
            name, as_stored=as_stored, bitnet_scale=bitnet_scale, threads=threads
        )
        return found.values

    arrays = one_ahead(names, made, lambda name: tensors[name].nbytes)
    for name in names:
        yield next(arrays)
        if on_progress is not None:
            on_progress("unpacking", tensors[name].nbytes)
        if on_tensor is not None:
            on_tensor(name)


def shard_files(target: str, tensors: Mapping[str, Described], most: int) -> dict[str, list[str]]:
    """Return the paths of shards of at most so many bytes each, with the names of their tensors.

    They stand beside ``target``, a name such as ``model.safetensors``, as Hugging Face names them;
    a model that fits in one is ``target`` itself.

    Raises:
        PackError: they would be more than `MAX_SHARDS`.
    """
    parts = split(tensors, most)
    if len(parts) > MAX_SHARDS:
        raise PackError(
            f"{target}: expected at most {MAX_SHARDS} shards, found {len(parts)} of {most} bytes "
            "each; choose larger ones"
        )
    if len(parts) == 1:
        return {target: parts[0]}
    path = Path(target)
    return {
        str(path.with_name(name)): names
        for name, names in zip(shard_names(path.stem, len(parts)), parts, strict=True)
    }


def index_file(target: str) -> str:
    """Return the path of the index of shards that stand beside ``target``."""
    return f"{target}{INDEX_SUFFIX}"


def write_shards(
    target: str,
    shards: Mapping[str, Sequence[str]],
    tensors: Mapping[str, Described],
    values: Callable[[Sequence[str]], Iterable[NDArray[Any]]],
    metadata: Mapping[str, Scalar],
) -> int:
    """Write a checkpoint in several safetensors files and their index; return the files' bytes.

    The files take their names only once all are complete and on disk: first an old index goes, then
    shards come, and the new index is last. So whatever ends this early, old files stay, or there is
    no index, and nothing that looks whole is not.

    Args:
        target: path of the model, as for `shard_files`.
        shards: what that gives.
        tensors: what the tensors are, by name.
        values: gives those of the tensors of these names, one at a time.
        metadata: of the ticket.
    """
    index, total = index_file(target), 0
    listed = {os.path.basename(path): names for path, names in shards.items()}
    with ExitStack() as stack:  # which closes in the opposite order
        file = stack.enter_context(open_atomic(index))
        file.write(index_text(listed, tensors))
        for path, names in shards.items():
            file = stack.enter_context(open_atomic(path))
            part = {name: tensors[name] for name in names}
            write_safetensors(part, values(names), file, metadata=metadata)
            total += file.tell()
            file.flush()
            os.fsync(file.fileno())
        stack.callback(_remove, index)
        complete = stack.pop_all()
    with complete:
        return total


def _remove(path: str) -> None:
    """Remove a file, if there is one."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)

"""Pack a network into a .pabz file: `pabzip.pack` and `pabzip.save_file`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO, Union, cast

from pabzip.errors import PackError, SeedError
from pabzip.formats import AUTO, Contents, Scalar, Tensor
from pabzip.formats.ahead import Progress
from pabzip.formats.writer import write_ticket
from pabzip.init import Seeding, seeding, unwrap
from pabzip.packing.checkpoint_files import File, is_source, open_checkpoint
from pabzip.packing.sources import MemorySource, Value
from pabzip.packing.sources import Source as CheckpointSource
from pabzip.packing.tensors import StateTensors
from pabzip.ticket import DenseTensor, Ticket, TicketReport

if TYPE_CHECKING:
    from torch import nn

    from pabzip.checkpoint import Checkpoint


Metadata = Mapping[str, Scalar]
Source = Union[
    "nn.Module",
    "Checkpoint",
    Mapping[str, Value],
    CheckpointSource,
    str,
    os.PathLike[str],
    BinaryIO,
]


def pack(
    source: Source,
    target: str | os.PathLike[str] | BinaryIO,
    *,
    coder: str = "auto",
    dense_dtype: str | None = None,
    fold_bn: bool = False,
    metadata: Metadata | None = None,
    ternary: bool = False,
    ticket: bool = False,
    on_progress: Progress | None = None,
) -> TicketReport:
    """Write a network as a ``.pabz`` file; an existing file is replaced, as by ``torch.save``.

    The file is written beside the target, opened again, regenerated and compared with ``source``
    before it takes the target's name, so a failure leaves the old file as it was. Files are read
    tensor by tensor: memory holds the largest, what encoding it takes, and codes of seeded weights.

    Args:
        source: a network drawn by `pabzip.init_`, a `Checkpoint`, or tensors by name (torch's, or
            numpy arrays). Or the path of a file, whose form is told by its content: a ``model.pt``
            of pabzip, safetensors, ``.npz``, what ``torch.save`` made of a state dict (also under
            ``"state_dict"``, ``"model_state_dict"``, ``"model"`` or ``"module"``), the index of
            one in shards (``model.safetensors.index.json``), or a folder that holds one of these.
            Tensors without a seed are stored as codes where they are ternary, see ``ternary``, and
            dense otherwise: lossless, and zeros cost little there too. So is a checkpoint whose
            magnitudes were trained, which names no seeded weight.
        target: path of the file to write, or a binary stream.
        coder: ``"auto"`` takes the smallest for each tensor, or a coder's name.
        dense_dtype: None keeps dense tensors lossless; ``"float16"`` or ``"bfloat16"`` stores the
            floating ones rounded to nearest even.
        fold_bn: keep of each batch norm only the scale and the shift that evaluation needs, about
            half the bytes (`pabzip.packing.batchnorm`). The file loads as ever and is for
            inference: training on needs the original. Its metadata says ``"folded": true``.
        metadata: flat JSON values that travel in the header, on top of the checkpoint's own.
        ternary: also write as codes every other float32 tensor of two or more dimensions whose
            values are 0 and plus or minus one scale, of the tensor or of each row along the first
            dimension (`pabzip.packing.tensors`), and refuse a ``source`` without any. A network
            then needs no seed. Sources without one, other than networks, have their ternary
            tensors written so in any case.
        ticket: of a checkpoint whose magnitudes were trained, pack the ticket at initialization in
            their place: the seed and the mask (`Checkpoint.at_initialization`). Not of iterative
            magnitude pruning that went back to trained weights, of which no seed tells.
        on_progress: as for `Ticket.save`.

    A tensor of two or more dimensions that equals an earlier one to the bit is stored as a second
    name of it (`pabzip.packing.tensors`).

    Returns:
        The sizes of the file and its tensors, as attributes and as a mapping with the keys of
        ``pabzip pack --json``.

    Raises:
        PackError: a seeded weight is not plus or minus its seed's magnitude, is not float32, or a
            dense tensor cannot be stored (of an element type such as float8, say, which is told
            before anything is written); the message names the tensor and the count. With
            ``fold_bn`` also: nothing can be folded, the checkpoint is of a custom architecture, or
            the folded network's outputs differ from the original's. With ``ternary`` also: no
            tensor is ternary. With ``ticket`` also: its weights are not the seed's.
        SeedError: ``source`` is a network without a record of its seed, or with ``ticket`` a
            checkpoint that does not say how its weights were drawn.
        CheckpointError: ``source`` is a path that holds no checkpoint, a damaged one, or one that
            asks to run code, which is never run.

    Source: Peek-a-Boo, Appendix D (what is stored); DESIGN, "Exactness".
    """
    with prepared(
        source,
        metadata=metadata,
        fold_bn=fold_bn,
        dense_dtype=dense_dtype,
        ternary=ternary,
        ticket=ticket,
    ) as ready:
        return ready.save(target, coder=coder, dense_dtype=dense_dtype, on_progress=on_progress)


def save_file(
    source: Source | Ticket,
    filename: str | os.PathLike[str],
    metadata: Metadata | None = None,
) -> TicketReport:
    """Write a ``.pabz`` file as ``safetensors.torch.save_file`` writes its own: `pack`, in short.

    `pabzip.load_file` reads the tensors back; `pack` has the options.

    Args:
        source: as for `pack`, or a `Ticket`.
        filename: path of the file; an existing one is replaced.
        metadata: flat JSON values that travel in the header, on top of a checkpoint's own.

    Returns:
        The sizes of the file and its tensors, as of `pack`.

    Raises:
        PackError: as for `pack`; also ``metadata`` for a `Ticket`, which has its own.
        SeedError: ``source`` is a network without a record of its seed.
        CheckpointError: as for `pack`.
    """
    if not isinstance(source, Ticket):
        return pack(source, filename, metadata=metadata)
    if metadata:
        raise PackError(
            f"{os.fspath(filename)}: expected no metadata beside a Ticket, found "
            f"{', '.join(metadata)}; make the Ticket with them"
        )
    return source.save(filename)


@dataclass(frozen=True)
class Prepared:
    """A network or checkpoint that is ready to be packed; its tensors are read when they are due.

    Attributes:
        contents: all that the ticket is going to hold but its tensors.
        tensors: these, by name.
        ternary: whether one of them must be ternary.
        has_seed: whether the source said how it was drawn, were it that no weight was.
        drawn: whether weights were drawn from the seed that have been trained since.
    """

    contents: Contents
    tensors: StateTensors
    ternary: bool
    has_seed: bool
    drawn: bool

    def save(
        self,
        target: str | os.PathLike[str] | BinaryIO,
        *,
        coder: str = AUTO,
        dense_dtype: str | None = None,
        on_progress: Progress | None = None,
    ) -> TicketReport:
        """Write the file; arguments and errors as for `pack`."""
        return write_ticket(
            self.contents,
            self.tensors,
            target,
            coder=coder,
            dense_dtype=dense_dtype,
            on_progress=on_progress,
            sizes=self.tensors.sizes,
            before_saving=self.tensors.require_ternary if self.ternary else None,
        )


def to_ticket(source: Source, **options: Any) -> Ticket:
    """Read a network or checkpoint as a `Ticket` in memory; arguments as for `prepared`."""
    with prepared(source, **options) as ready:
        tensors = [_own(tensor) for tensor in ready.tensors.values()]
        if ready.ternary:
            ready.tensors.require_ternary()
    contents = ready.contents
    return Ticket(
        seed=contents.seed,
        tensors=tensors,
        arch=contents.arch,
        arch_options=contents.options,
        metadata=contents.metadata,
    )


def _own(tensor: Tensor) -> Tensor:
    """Return a tensor that shares no memory with a network that may go on being trained."""
    if isinstance(tensor, DenseTensor):
        return replace(tensor, values=tensor.values.copy())
    return tensor


@contextmanager
def prepared(
    source: Source,
    *,
    metadata: Metadata | None = None,
    fold_bn: bool = False,
    dense_dtype: str | None = None,
    ternary: bool = False,
    ticket: bool = False,
) -> Iterator[Prepared]:
    """Check what can be checked at once, and get ready to pack; arguments as for `pack`.

    ``dense_dtype`` rounds nothing here: it is what `Prepared.save` is going to be given, so that a
    folded network is checked as it will load. A file stays open until the ``with`` block ends.
    """
    opened: Any = source
    if isinstance(source, str | os.PathLike) or hasattr(source, "readinto"):
        opened = open_checkpoint(cast(File, source))
    try:
        yield _ready(opened, metadata or {}, fold_bn, dense_dtype, ternary, ticket)
    finally:
        if opened is not source and hasattr(opened, "close"):
            opened.close()


def _ready(
    source: Any,
    metadata: Metadata,
    fold_bn: bool,
    dense_dtype: str | None,
    ternary: bool,
    ticket: bool,
) -> Prepared:
    """Return what `prepared` does, of a source that is open."""
    net: nn.Module | None = None
    own: Metadata = {}
    arch: str
    options: Mapping[str, Scalar]
    arch, options = "custom", {}
    record, drawn = Seeding(0, {}), False
    # Nothing of torch can have been given to a process that has not loaded it.
    is_checkpoint = "torch" in sys.modules and _is_checkpoint(source)
    is_network = "torch" in sys.modules and isinstance(source, sys.modules["torch"].nn.Module)
    if ticket:
        if not is_checkpoint:
            found = "a network" if is_network else f"{_named(source)}, tensors without a seed"
            raise PackError(
                f"ticket: expected a checkpoint, found {found}; save the network as a checkpoint, "
                "or leave out ticket (--ticket)"
            )
        _check_rewound(source)
        source = source.at_initialization()
    if is_network:
        net, record = _seeded_network(source, ternary)
        state: Mapping[str, Any] = net.state_dict()
        arch, options = getattr(net, "pabzip_arch", ("custom", {}))
    elif is_checkpoint:
        state, record, own = source.state_dict, source.seeding, source.metadata()
        arch, options, drawn = source.arch, source.arch_options, bool(source.drawn)
    elif fold_bn:
        raise PackError(
            f"expected a network or a checkpoint to fold, found {_named(source)}, tensors without "
            "a network; fold the network, or leave out fold_bn (--fold-bn)"
        )
    elif isinstance(source, Mapping):
        state = source
    elif not is_source(source):
        raise PackError(
            "expected a network, a checkpoint, tensors by name, or the path of one of these, "
            f"found a {type(source).__name__}"
        )
    if fold_bn:
        from pabzip.packing.batchnorm import fold_checked

        state = fold_checked(net, state, arch, options, dense_dtype)
        metadata = {**metadata, "folded": True}
    tensors: CheckpointSource = source if is_source(source) else MemorySource(state)
    has_seed = is_network or is_checkpoint
    return Prepared(
        Contents(record.seed, arch, options, {**tensors.metadata, **own, **metadata}, ()),
        StateTensors(tensors, record, ternary=ternary or not has_seed),
        ternary,
        has_seed,
        drawn,
    )


def _is_checkpoint(source: object) -> bool:
    """Return whether this is a checkpoint of ours."""
    from pabzip.checkpoint import Checkpoint

    return isinstance(source, Checkpoint)


def _named(source: object) -> str:
    """Return what tensors without a seed are called in messages."""
    return getattr(source, "place", "") or f"a {type(source).__name__}"


def _check_rewound(checkpoint: Checkpoint) -> None:
    """Refuse a network whose last training began with weights that training had moved."""
    settings = checkpoint.settings or {}
    own = settings.get("imp")
    if settings.get("method") != "imp" or not isinstance(own, Mapping):
        return
    for name, cold in (("rewind", "weights"), ("rewind_epoch", 0)):
        if own.get(name, cold) != cold:
            raise PackError(
                "ticket: expected weights that go back to those of the seed, found imp."
                f"{name} = {own[name]}, so that the ticket has trained weights; pack it as it is, "
                f"or train with imp.{name} = {cold}"
            )


def _seeded_network(net: nn.Module, ternary: bool) -> tuple[nn.Module, Seeding]:
    """Return the network inside any wrappers, and its record; with ``ternary`` it may have none."""
    net = unwrap(net)
    try:
        record = seeding(net)
    except SeedError:
        if not ternary:
            raise
        return net, Seeding(0, {})
    # The record of a wrapper of another kind, which holds the network as ``.module``.
    if record.specs and all(name.startswith("module.") for name in record.specs):
        inner = getattr(net, "module", None)
        if inner is not None:
            return _seeded_network(inner, ternary)
    return net, record

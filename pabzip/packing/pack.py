"""Pack a network into a .pabz file: `pabzip.pack` and `pabzip.save_file`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO, Union, cast

from pabzip.errors import PackError, SeedError
from pabzip.formats import AUTO, Base, Contents, Scalar, Tensor
from pabzip.formats.ahead import Progress
from pabzip.formats.writer import write_ticket
from pabzip.init import Seeding, seeding
from pabzip.packing.base import BaseSource, open_base
from pabzip.packing.checkpoint_files import File, is_source, open_checkpoint
from pabzip.packing.sources import MemorySource, Value
from pabzip.packing.sources import Source as CheckpointSource
from pabzip.packing.tensors import StateTensors
from pabzip.packing.ternary import TernaryPacker, bitnet_scale_of
from pabzip.ticket import DenseTensor, Ticket, TicketReport
from pabzip.wrappers import bare, full_state, unwrap

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
    base: BaseSource | None = None,
    negative_zero: str = "keep",
    bitnet_scale: str | None = None,
    on_progress: Progress | None = None,
) -> TicketReport:
    """Write a network as a ``.pabz`` file; an existing file is replaced, as by ``torch.save``.

    The file is written beside the target, opened again, regenerated and compared with ``source``
    before it takes the target's name, so a failure leaves the old file as it was. Files are read
    tensor by tensor: memory holds the largest, what encoding it takes, and codes of seeded weights.

    Args:
        source: a network drawn by `pabzip.init_`, wrapped or not (under FSDP every rank has to call
            this), a `Checkpoint`, or tensors by name (torch's, or numpy arrays). Or the path of a
            file, whose form is told by its content: a ``model.pt`` of pabzip, safetensors,
            ``.npz``, ``.gguf``, what ``torch.save`` made of a state dict (also under
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
        ternary: also write as codes every other tensor whose values are 0 and plus or minus one
            scale, of the tensor or of each row, group or column: float32, float16, bfloat16, int8,
            or uint8 in transformers' layout of BitNet (`pabzip.packing.ternary`), and refuse a
            ``source`` without any (not with ``base``). A network then needs no seed. Sources
            without one, other than networks, have their ternary tensors written so in any case.
        ticket: of a checkpoint whose magnitudes were trained, pack the ticket at initialization in
            their place: the seed and the mask (`Checkpoint.at_initialization`). Not of iterative
            magnitude pruning that went back to trained weights, of which no seed tells.
        base: pack ``source`` as changes of these tensors, where that takes fewer bytes
            (`pabzip.packing.delta`): a path of any form that ``source`` may have or of a .pabz
            file, tensors by name, a network, or an open `Ticket`. The file then needs the same
            ``base`` to be read. A network then needs no seed. Tensors that the base has not, or has
            of another shape or type, are packed as without it.
        negative_zero: ``"keep"`` stores -0.0 in ternary tensors as it is; ``"drop"`` as 0, which
            takes fewer bytes, and the report counts them. Pruned weights of seeded tensors load as
            0 in any case: where they were -0.0, as multiplying by a mask leaves them, the report
            counts them, too.
        bitnet_scale: what the network does with ``weight_scale`` of packed BitNet weights:
            ``"divide"`` (BitLinear) or ``"multiply"`` (AutoBitLinear). None goes by the
            ``config.json`` beside ``source``; where that says nothing, whoever asks for plain
            weights must say it.
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
        BaseFileError: ``base`` cannot be read.

    Source: Peek-a-Boo, Appendix D (what is stored); DESIGN, "Exactness".
    """
    with prepared(
        source,
        metadata=metadata,
        fold_bn=fold_bn,
        dense_dtype=dense_dtype,
        ternary=ternary,
        ticket=ticket,
        base=base,
        negative_zero=negative_zero,
        bitnet_scale=bitnet_scale,
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
        packer: what recognizes ternary tensors, and counts their -0.0; None where none are to be.
    """

    contents: Contents
    tensors: StateTensors
    ternary: bool
    has_seed: bool
    drawn: bool
    packer: TernaryPacker | None

    def save(
        self,
        target: str | os.PathLike[str] | BinaryIO,
        *,
        coder: str = AUTO,
        dense_dtype: str | None = None,
        on_progress: Progress | None = None,
    ) -> TicketReport:
        """Write the file; arguments and errors as for `pack`."""
        found = write_ticket(
            self.contents,
            self.tensors,
            target,
            coder=coder,
            dense_dtype=dense_dtype,
            on_progress=on_progress,
            sizes=self.tensors.sizes,
            before_saving=self.tensors.require_ternary if self.ternary else None,
        )
        dropped = sum(self.tensors.negative_zeros.values())
        dropped += self.packer.dropped if self.packer else 0
        return replace(found, negative_zeros_dropped=dropped)


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
    base: BaseSource | None = None,
    negative_zero: str = "keep",
    bitnet_scale: str | None = None,
) -> Iterator[Prepared]:
    """Check what can be checked at once, and get ready to pack; arguments as for `pack`.

    ``dense_dtype`` rounds nothing here: it is what `Prepared.save` is going to be given, so that a
    folded network is checked as it will load. Files stay open until the ``with`` block ends.
    """
    given = {"negative_zero": negative_zero != "keep", "bitnet_scale": bitnet_scale is not None}
    if bitnet_scale is None and isinstance(source, str | os.PathLike):
        bitnet_scale = bitnet_scale_of(source)
    packer = TernaryPacker(negative_zero=negative_zero, bitnet_scale=bitnet_scale)
    with ExitStack() as stack:
        opened: Any = source
        if isinstance(source, str | os.PathLike) or hasattr(source, "readinto"):
            opened = open_checkpoint(cast(File, source))
            if hasattr(opened, "close"):
                stack.callback(opened.close)
        changed = None
        if base is not None:
            changed = open_base(base)
            stack.callback(changed.close)
        made = _ready(
            opened, metadata or {}, fold_bn, dense_dtype, ternary, ticket, changed, packer
        )
        for option in (name for name, own in given.items() if own and made.packer is None):
            flag = {"negative_zero": "--drop-negative-zero"}.get(option, "--bitnet-scale")
            raise PackError(
                f"{option}: expected ternary beside it, found a network or checkpoint with a seed "
                "without, of which no tensor is taken for ternary; add ternary (--ternary), or "
                f"leave out {option} ({flag})"
            )
        yield made


def _ready(
    source: Any,
    metadata: Metadata,
    fold_bn: bool,
    dense_dtype: str | None,
    ternary: bool,
    ticket: bool,
    base: Base | None,
    packer: TernaryPacker,
) -> Prepared:
    """Return what `prepared` does, of a source and a base that are open."""
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
        net, record = unwrap(source), _record(source, ternary or base is not None)
        state: Mapping[str, Any] = full_state(source)
        arch, options = getattr(bare(source), "pabzip_arch", ("custom", {}))
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
    packer.seed = record.seed
    packer.taken = {spec.stream for spec in record.specs.values()}
    wanted = packer if ternary or not has_seed else None
    return Prepared(
        Contents(record.seed, arch, options, {**tensors.metadata, **own, **metadata}, ()),
        StateTensors(tensors, record, wanted, base),
        ternary,
        has_seed,
        drawn,
        wanted,
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


def _record(net: nn.Module, ternary: bool) -> Seeding:
    """Return how a network was drawn; with ``ternary`` it need not have been."""
    try:
        return seeding(net)
    except SeedError:
        if not ternary:
            raise
        return Seeding(0, {})

"""Pack a network into a .pabz file: `pabzip.pack` and `pabzip.save_file`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO, Union

from pabzip._optional import require
from pabzip.errors import PackError, SeedError
from pabzip.formats import Base
from pabzip.init import Seeding, seeding
from pabzip.packing.base import BaseSource, open_base
from pabzip.packing.gguf import gguf_state, is_gguf
from pabzip.packing.ternary import TernaryPacker, bitnet_scale_of
from pabzip.ticket import Ticket, TicketReport
from pabzip.wrappers import bare, full_state, unwrap

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pabzip.checkpoint import Checkpoint


Metadata = Mapping[str, str | int | float | bool | None]
Source = Union["nn.Module", "Checkpoint", Mapping[str, "torch.Tensor"], str, os.PathLike[str]]


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
) -> TicketReport:
    """Write a network as a ``.pabz`` file; an existing file is replaced, as by ``torch.save``.

    The file is written beside the target, opened again, regenerated and compared with ``source``
    before it takes the target's name, so a failure leaves the old file as it was.

    Args:
        source: a network drawn by `pabzip.init_`, wrapped or not (under FSDP every rank has to call
            this), a `Checkpoint`, or the path of a ``model.pt``.
            One whose magnitudes were trained names no seeded weight, and all its tensors are stored
            dense; zeros cost little there too.
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
            or uint8 in transformers' layout of BitNet (`pabzip.packing.ternary`). ``source`` then
            needs no seed: it may be any network, a mapping of tensors by name, or the path of a
            file that ``torch.save`` made of one. Of a ``.gguf`` file, blocks of TQ1_0 and TQ2_0 are
            written so in any case.
        ticket: of a checkpoint whose magnitudes were trained, pack the ticket at initialization in
            their place: the seed and the mask (`Checkpoint.at_initialization`). Not of iterative
        magnitude pruning that went back to trained weights, of which no seed tells.
        base: pack ``source`` as changes of these tensors, where that takes fewer bytes
            (`pabzip.packing.delta`): the path of a file (.safetensors, an index of shards, .npz,
            .pabz, .pt), tensors by name, a network, or an open `Ticket`. The file then needs the
            same ``base`` to be read. ``source`` needs no seed, as with ``ternary``, and may be a
            file of any of these forms. Tensors that the base has not, or has of another shape or
            type, are packed as without it.
        negative_zero: ``"keep"`` stores -0.0 in ternary tensors as it is; ``"drop"`` as 0, which
            takes fewer bytes, and the report counts them.
        bitnet_scale: what the network does with ``weight_scale`` of packed BitNet weights:
            ``"divide"`` (BitLinear) or ``"multiply"`` (AutoBitLinear). None goes by the
            ``config.json`` beside ``source``; where that says nothing, whoever asks for plain
            weights must say it.

    A tensor of two or more dimensions that equals an earlier one to the bit is stored as a second
    name of it (`pabzip.packing.tensors`).

    Returns:
        The sizes of the file and its tensors, as attributes and as a mapping with the keys of
        ``pabzip pack --json``.

    Raises:
        PackError: a seeded weight is not plus or minus its seed's magnitude, is not float32, or a
            dense tensor cannot be stored; the message names the tensor and the count. With
            ``fold_bn`` also: nothing can be folded, the checkpoint is of a custom architecture, or
            the folded network's outputs differ from the original's. With ``ternary`` also: no
            tensor is ternary. With ``ticket`` also: its weights are not the seed's.
        SeedError: ``source`` is a network or mapping without a record of its seed, or with
            ``ticket`` a checkpoint that does not say how its weights were drawn.
        CheckpointError: ``source`` is a path that holds no checkpoint of ours.
        BaseFileError: ``base`` cannot be read.

    Source: Peek-a-Boo, Appendix D (what is stored); DESIGN, "Exactness".
    """
    ternary = ternary or is_gguf(source)
    packer = ternary_packer(source, negative_zero, bitnet_scale) if ternary else None
    with contextlib.ExitStack() as stack:
        opened = None
        if base is not None:
            opened = open_base(base)
            stack.callback(opened.close)
        made = to_ticket(
            source,
            metadata=metadata,
            fold_bn=fold_bn,
            dense_dtype=dense_dtype,
            packer=packer,
            ticket=ticket,
            base=opened,
        )
        report = made.save(target, coder=coder, dense_dtype=dense_dtype)
    return replace(report, negative_zeros_dropped=packer.dropped if packer else 0)


def save_file(
    source: Source | Ticket,
    filename: str | os.PathLike[str],
    metadata: Metadata | None = None,
) -> TicketReport:
    """Write a ``.pabz`` file as ``safetensors.torch.save_file`` writes its own: `pack`, in short.

    `pabzip.load_file` reads the tensors back; `pack` has the options.

    Args:
        source: as for `pack`, or a `Ticket`. Tensors by name have no seed, so at least one of them
            must be ternary, as for ``pack(..., ternary=True)``.
        filename: path of the file; an existing one is replaced.
        metadata: flat JSON values that travel in the header, on top of a checkpoint's own.

    Returns:
        The sizes of the file and its tensors, as of `pack`.

    Raises:
        PackError: as for `pack`; also ``metadata`` for a `Ticket`, which has its own.
        SeedError: ``source`` is a network without a record of its seed.
        CheckpointError: ``source`` is a path that holds no checkpoint of ours.
    """
    if not isinstance(source, Ticket):
        return pack(source, filename, metadata=metadata, ternary=isinstance(source, Mapping))
    if metadata:
        raise PackError(
            f"{os.fspath(filename)}: expected no metadata beside a Ticket, found "
            f"{', '.join(metadata)}; make the Ticket with them"
        )
    return source.save(filename)


def ternary_packer(source: Source, negative_zero: str, bitnet_scale: str | None) -> TernaryPacker:
    """Return what recognizes the ternary tensors of a source; arguments as for `pack`."""
    if bitnet_scale is None and isinstance(source, str | os.PathLike):
        bitnet_scale = bitnet_scale_of(source)
    return TernaryPacker(negative_zero=negative_zero, bitnet_scale=bitnet_scale)


def to_ticket(
    source: Source,
    *,
    metadata: Metadata | None = None,
    fold_bn: bool = False,
    dense_dtype: str | None = None,
    packer: TernaryPacker | None = None,
    ticket: bool = False,
    base: Base | None = None,
) -> Ticket:
    """Read a network or checkpoint as a `Ticket`; arguments and errors as for `pack`.

    ``packer`` is what recognizes ternary tensors (`ternary_packer`); None where none are to be.
    ``base`` is open, and stays in use by the ticket. ``dense_dtype`` rounds nothing here: it is
    what `Ticket.save` is going to be given, so that a folded network is checked as it will load.
    """
    if isinstance(source, str | os.PathLike) and is_gguf(source):
        if fold_bn or ticket or base is not None:
            raise PackError(
                f"{os.fspath(source)}: expected a network to fold, a checkpoint with a seed or a "
                "fine-tune of a base, found a .gguf file; leave out fold_bn, ticket and base "
                "(--fold-bn, --ticket, --base)"
            )
        tensors = gguf_state(source, packer or ternary_packer(source, "keep", None))
        return Ticket(seed=0, tensors=tensors, metadata=metadata)
    require("torch", extra="torch", purpose="packing a network")
    import torch

    from pabzip.checkpoint import Checkpoint, load_checkpoint, load_state
    from pabzip.packing.tensors import load_any, state_tensors

    ternary = packer is not None
    net: nn.Module | None = None
    own: Metadata = {}
    if ticket:
        if isinstance(source, str | os.PathLike):
            source = load_checkpoint(source)
        if not isinstance(source, Checkpoint):
            raise PackError(
                f"ticket: expected a checkpoint, found a {type(source).__name__}; save the network "
                "as a checkpoint, or leave out ticket (--ticket)"
            )
        _check_rewound(source)
        source = source.at_initialization()
    if isinstance(source, torch.nn.Module):
        net, record = unwrap(source), _record(source, ternary or base is not None)
        state: Mapping[str, torch.Tensor] = full_state(source)
        arch, options = getattr(bare(source), "pabzip_arch", ("custom", {}))
    else:
        if not isinstance(source, Checkpoint | Mapping):
            plain = load_state if ternary else load_checkpoint
            source = (plain if base is None else load_any)(source)
        if isinstance(source, Checkpoint):
            state, record, own = source.state_dict, source.seeding, source.metadata()
            arch, options = source.arch, source.arch_options
        else:
            if not ternary and base is None:
                raise SeedError(
                    f"expected a network or a checkpoint, found a {type(source).__name__} without "
                    "the seed that drew its tensors; ternary=True (--ternary) packs ternary "
                    "tensors without one, base=... (--base) the changes from another file"
                )
            if fold_bn:
                raise PackError(
                    f"expected a network or a checkpoint to fold, found a {type(source).__name__} "
                    "of tensors; fold the network, or leave out fold_bn (--fold-bn)"
                )
            state, record, arch, options = source, Seeding(0, {}), "custom", {}
    metadata = {**own, **(metadata or {})}
    if fold_bn:
        from pabzip.packing.batchnorm import fold_checked

        state = fold_checked(net, state, arch, options, dense_dtype)
        metadata = {**metadata, "folded": True}
    if packer is not None:
        packer.seed = record.seed
        packer.taken = {spec.stream for spec in record.specs.values()}
    return Ticket(
        seed=record.seed,
        tensors=state_tensors(state, record, packer, base),
        arch=arch,
        arch_options=options,
        metadata=metadata,
    )


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

"""Load tickets: open one, or make numpy arrays, a torch state dict or a network of it.

Importing this module loads numpy alone; torch is loaded by what makes tensors and networks.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from numpy.typing import NDArray

from pabzip._optional import require
from pabzip.errors import ArchitectureError, FormatError
from pabzip.formats.sources import SeekableSource
from pabzip.init import Seeding, attach_seeding
from pabzip.packing.base import BaseSource, open_base
from pabzip.ticket import Ticket
from pabzip.wrappers import bare, full_state, load_full_state

if TYPE_CHECKING:
    import torch
    from torch import nn

Source = str | os.PathLike[str] | bytes | BinaryIO | SeekableSource
Network = TypeVar("Network", bound="nn.Module")


def open(  # noqa: A001
    source: Source, *, max_bytes: int | None = None, base: BaseSource | None = None
) -> Ticket:
    """Open a ``.pabz`` file lazily: the header is read and checked, tensors on access.

    Args:
        source: a path, the bytes of a file, or a seekable binary stream.
        max_bytes: refuse a file whose tensors take more than this many bytes once regenerated.
        base: for a file of changes (``pack --base``), what it was packed on: the path of a file
            (.safetensors, an index of shards, .npz, .pabz, .pt), tensors by name, a network, or an
            open `Ticket`. Its digest is compared with the file's before a tensor is made of it.

    Returns:
        A `Ticket`; ``ticket.names``, ``ticket.info()``, ``ticket.codes(name)``,
        ``ticket.weight(name)``. Close it, or use it as a context manager.

    Raises:
        FormatError: the file is damaged or not a ticket; `LimitError` past ``max_bytes``.
        BaseFileError: ``base`` cannot be read. Reading a tensor raises it where the base is
            missing, or is not the one that the file was packed on.
        OSError: the file cannot be opened.
    """
    opened = None if base is None else open_base(base)
    try:
        return Ticket.open(source, max_bytes=max_bytes, base=opened)
    except BaseException:
        if opened is not None:
            opened.close()
        raise


def load_arrays(
    source: Source,
    *,
    verify: bool = False,
    max_bytes: int | None = None,
    base: BaseSource | None = None,
    threads: int | None = None,
    as_stored: bool = False,
    bitnet_scale: str | None = None,
) -> dict[str, NDArray[Any]]:
    """Regenerate every tensor of a ticket as a numpy array.

    Args:
        source: as for `open`.
        verify: recompute the SHA-256 of the regenerated state and compare it with the file's.
        max_bytes: as for `open`.
        base: as for `open`.
        threads: threads to regenerate with; None takes the processors this process may use.
        as_stored: return ternary tensors in the layout that they were packed from (several
            weights a byte), bit for bit, in place of plain weights.
        bitnet_scale: ``"divide"`` or ``"multiply"``: what to do with the scales of ternary tensors
            in transformers' layout where the file does not say (`pabzip.Ticket.plain`).

    Returns:
        Arrays by name, in the file's order: float32 for seeded weights, their own dtype for dense
        and ternary tensors (bfloat16 as float32, exactly). Scales that are part of plain weights
        are left out.

    Raises:
        FormatError: the file is damaged, or its SHA-256 does not match.
        BaseFileError: as for `open`.
    """
    with open(source, max_bytes=max_bytes, base=base) as ticket:
        if verify:
            ticket.verify(threads=threads)
        return ticket.arrays(as_stored=as_stored, bitnet_scale=bitnet_scale, threads=threads)


def load(
    source: Source,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    verify: bool = False,
    max_bytes: int | None = None,
    base: BaseSource | None = None,
) -> nn.Module:
    """Rebuild the network of a ticket whose architecture is registered.

    Args:
        source: as for `open`.
        device: where the weights are regenerated. On CUDA the file's own bytes travel and are
            decoded there, all tensors together.
        dtype: floating dtype of all floating tensors; None keeps each tensor's own.
        verify: recompute the SHA-256 of the regenerated state and compare it with the file's.
        max_bytes: as for `open`.
        base: as for `open`.

    Returns:
        The network in evaluation mode, with its seed on record (`pabzip.seeding`), so that it can
        be packed or unmasked again.

    Raises:
        FormatError: the file is damaged, or its tensors do not fit the architecture it names.
        ArchitectureError: the file names no registered architecture ("custom"); build the network
            and use `load_into`.
        BaseFileError: as for `open`.
    """
    require("torch", extra="torch", purpose="pabzip.load")
    from pabzip.models import build

    with open(source, max_bytes=max_bytes, base=base) as ticket:
        if ticket.arch == "custom":
            raise ArchitectureError(
                "this ticket is of a custom architecture, expected a registered one; build your "
                "network and call pabzip.load_into(network, file), or take the tensors with "
                "pabzip.load_file(file) (on the command line: --arch module:callable)"
            )
        try:
            # Built without memory or random draws; the ticket's own tensors take their places.
            net = build(ticket.arch, ticket.arch_options, device="meta")
            _check_fit(net, ticket)
        except ArchitectureError as error:
            # The file names an architecture that its own tensors or options contradict.
            raise FormatError("header", str(error), file=ticket.file) from error
        state = _read_state(ticket, device=device, dtype=dtype, verify=verify)
        net.load_state_dict(state, strict=True, assign=True)
        attach_seeding(net, _seeding(ticket))
    return net.eval()


def load_file(
    source: Source,
    device: str | torch.device = "cpu",
    *,
    dtype: torch.dtype | None = None,
    verify: bool = False,
    max_bytes: int | None = None,
    base: BaseSource | None = None,
    as_stored: bool = False,
    bitnet_scale: str | None = None,
) -> dict[str, torch.Tensor]:
    """Return every tensor of a ``.pabz`` file, as ``safetensors.torch.load_file`` does of its own.

    Arguments are as for `load`, and ``as_stored`` and ``bitnet_scale`` as for `load_arrays`; the
    network may be of any architecture.

    Returns:
        torch tensors by name, in the file's order, on ``device``: what a network's
        ``load_state_dict`` takes.

    Raises:
        FormatError: the file is damaged, or its SHA-256 does not match.
        BaseFileError: as for `open`.
    """
    require("torch", extra="torch", purpose="pabzip.load_file")
    with open(source, max_bytes=max_bytes, base=base) as ticket:
        return _read_state(
            ticket,
            device=device,
            dtype=dtype,
            verify=verify,
            as_stored=as_stored,
            bitnet_scale=bitnet_scale,
        )


def load_into(
    net: Network,
    source: Source,
    *,
    verify: bool = False,
    max_bytes: int | None = None,
    base: BaseSource | None = None,
    as_stored: bool = False,
    bitnet_scale: str | None = None,
) -> Network:
    """Load a ticket into a network that is already built, in place.

    Values are copied into the network's own tensors, on their device and in their dtype (float32
    values are rounded to nearest even for shorter ones). Nothing is changed when the ticket does
    not fit.

    Args:
        net: a network with exactly the ticket's tensor names and shapes, wrapped or not
            (`pabzip.wrappers`); under FSDP every rank has to call this.
        source: as for `load`.
        verify: as for `load`.
        max_bytes: as for `load`.
        base: as for `open`.
        as_stored: as for `load_arrays`; for a network whose layers hold packed weights themselves.
        bitnet_scale: as for `load_arrays`.

    Returns:
        ``net`` itself, in the training or evaluation mode that it was in.

    Raises:
        ArchitectureError: names or shapes differ; the message shows which.
        FormatError: the file is damaged, or its SHA-256 does not match.
        BaseFileError: as for `open`.
    """
    require("torch", extra="torch", purpose="pabzip.load_into")
    with open(source, max_bytes=max_bytes, base=base) as ticket:
        _check_fit(net, ticket, as_stored=as_stored)
        state = _read_state(
            ticket,
            device="cpu",
            dtype=None,
            verify=verify,
            as_stored=as_stored,
            bitnet_scale=bitnet_scale,
        )
        load_full_state(net, state)
        attach_seeding(net, _seeding(ticket))
    return net


def tensors(
    ticket: Ticket,
    names: Sequence[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    as_stored: bool = False,
    bitnet_scale: str | None = None,
) -> dict[str, torch.Tensor]:
    """Regenerate tensors of an open ticket on ``device``, all of them together.

    Args:
        ticket: opened from a file, or in memory.
        names: of its tensors.
        device: as for `load`.
        dtype: as for `load`.
        as_stored: as for `load_arrays`.
        bitnet_scale: as for `load_arrays`.

    Returns:
        torch tensors by name, in the order of ``names``.

    Raises:
        FormatError: a tensor's section is damaged.
        KeyError: no tensor of a name.
    """
    import torch

    from pabzip.storable import torch_of

    device = torch.device(device)
    if device.type == "cuda":
        from pabzip.runtime.cuda_state import read_tensors

        return read_tensors(
            ticket,
            names,
            device=device,
            dtype=dtype,
            as_stored=as_stored,
            bitnet_scale=bitnet_scale,
        )
    weights = ticket.weights(name for name in names if ticket.kind(name) == "seeded")
    found = {}
    for name in names:
        if name in weights:
            value = torch_of(weights[name], "float32")
        else:
            held = ticket.state_tensor(name, as_stored=as_stored, bitnet_scale=bitnet_scale)
            fresh = ticket.kind(name) == "ternary"  # others may be the ticket's own memory
            value = torch_of(held.values if fresh else held.values.copy(), held.dtype)
        found[name] = value.to(device, dtype if value.is_floating_point() else None)
    return found


def _read_state(
    ticket: Ticket,
    *,
    device: str | torch.device,
    dtype: torch.dtype | None,
    verify: bool,
    as_stored: bool = False,
    bitnet_scale: str | None = None,
) -> dict[str, torch.Tensor]:
    """Regenerate all tensors, checking the file's digest first where it is asked for."""
    if verify:
        ticket.verify()
    names = ticket.names if as_stored else ticket.plain_names
    return tensors(
        ticket, names, device=device, dtype=dtype, as_stored=as_stored, bitnet_scale=bitnet_scale
    )


def _seeding(ticket: Ticket) -> Seeding:
    """Return the record that `init_` would have left on the ticket's network.

    A tied weight is on it once, as in the network. Weights with scales of their rows are not drawn
    by the seed alone, and not on it.
    """
    seeded = [
        name
        for name in ticket.names
        if ticket.kind(name) == "seeded"
        and ticket.tied(name) is None
        and ticket.scales(name) is None
    ]
    seeded.sort(key=lambda name: ticket.spec(name).stream)  # as `init_` has them
    frozen = {name: ticket.frozen(name) for name in seeded}
    return Seeding(
        ticket.seed,
        {name: ticket.spec(name) for name in seeded},
        {name: found for name, found in frozen.items() if found is not None},
    )


def _check_fit(net: nn.Module, ticket: Ticket, *, as_stored: bool = False) -> None:
    """Refuse a ticket whose names or shapes are not the network's."""
    expected = {name: tuple(value.shape) for name, value in full_state(net).items()}
    names = ticket.names if as_stored else ticket.plain_names
    shape_of = ticket.shape if as_stored else ticket.plain_shape
    found = {name: tuple(shape_of(name)) for name in names}
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    if missing or extra:
        parts = []
        if missing:
            parts.append(
                f"{len(missing)} tensors of the network are not in the file "
                f"({', '.join(missing[:3])})"
            )
        if extra:
            parts.append(
                f"{len(extra)} tensors of the file are not in the network ({', '.join(extra[:3])})"
            )
        raise ArchitectureError(
            f"{type(bare(net)).__name__}: expected the same tensor names, found that "
            f"{' and '.join(parts)}; build the network that was packed"
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise ArchitectureError(
                f"{type(bare(net)).__name__}: {name}: expected shape {list(shape)}, found "
                f"{list(found[name])} in the file; build the network with the options it was "
                "packed with"
            )

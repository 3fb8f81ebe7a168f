"""`pabzip unpack`: regenerate the weights as .safetensors, .npz or .pt."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, BinaryIO

import click
import numpy as np

from pabzip._optional import require
from pabzip.cli._files import (
    check_output,
    default_output,
    format_of,
    open_output,
    open_ticket,
)
from pabzip.cli._options import max_bytes_option, output_option, reporting, threads_option
from pabzip.cli._output import Reporter, size

if TYPE_CHECKING:
    from pabzip.ticket import Ticket


Writer = Callable[["Ticket", BinaryIO, int | None, Callable[[str], None]], None]
"""Writes all tensors of an open ticket into a binary file, regenerated with so many threads, and
calls the last argument with each tensor's name once it is regenerated."""


def write_safetensors(
    ticket: Ticket, file: BinaryIO, threads: int | None, wrote: Callable[[str], None]
) -> None:
    """Write the safetensors format; the library wants all tensors in memory at once."""
    # The plain entry point takes the name of a dtype, so bfloat16 needs no numpy type; it reads
    # from the arrays' own memory, which `held` keeps alive.
    from safetensors import TensorSpec, serialize

    held, specs = [], {}
    for name in ticket.names:
        values = ticket.exact(name, threads=threads)
        if sys.byteorder == "big":
            values = values.byteswap()
        held.append(values)
        specs[name] = TensorSpec(
            dtype=ticket.dtype(name),
            shape=list(ticket.shape(name)),
            data_ptr=values.ctypes.data,
            data_len=values.nbytes,
        )
        wrote(name)
    # One entry, which loaders of torch weights expect: the library writes several in random order,
    # and the same ticket must give the same bytes.
    file.write(serialize(specs, {"format": "pt"}))


def write_npz(
    ticket: Ticket, file: BinaryIO, threads: int | None, wrote: Callable[[str], None]
) -> None:
    """Write numpy's .npz, uncompressed; bfloat16 becomes float32, exactly."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name in ticket.names:
            # A fixed date, so that the same ticket gives the same bytes.
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            with archive.open(entry, "w", force_zip64=True) as member:
                values = ticket.weight(name, threads=threads)
                np.lib.format.write_array(member, np.asarray(values), allow_pickle=False)
            wrote(name)


def write_pt(
    ticket: Ticket, file: BinaryIO, threads: int | None, wrote: Callable[[str], None]
) -> None:
    """Write a torch state dict that ``torch.load(weights_only=True)`` reads, all at once."""
    torch = require("torch", extra="torch", purpose="writing a .pt file")
    from pabzip.runtime.loaders import to_torch

    state = {}
    for name in ticket.names:
        values = ticket.exact(name, threads=threads)
        state[name] = to_torch(values.copy(), ticket.dtype(name))
        wrote(name)
    torch.save(state, file)


FORMATS: Mapping[str, Writer] = {
    "safetensors": write_safetensors,
    "npz": write_npz,
    "pt": write_pt,
}
"""The writers by the suffix that stands for them; the first for stdout."""


@click.command("unpack")
@click.argument("source", metavar="FILE")
@output_option("the name of FILE with .safetensors")
@click.option(
    "--format",
    "format_name",
    type=click.Choice(list(FORMATS)),
    help="The format of the output. [by its suffix; safetensors for stdout]",
)
@threads_option
@max_bytes_option
@reporting
def command(
    source: str,
    output: str | None,
    force: bool,
    format_name: str | None,
    threads: int | None,
    max_bytes: int | None,
    reporter: Reporter,
) -> None:
    """Regenerate every tensor of FILE and write plain weights.

    Writes .safetensors, .npz or .pt (a state dict); the first two need no torch. An .npz file has
    no bfloat16: such tensors become float32, exactly. FILE may be '-' for stdin; the output then
    is stdout unless -o names a file.
    """
    target = output or default_output(source, f".{format_name or 'safetensors'}")
    reporter = reporter.for_output(target)
    check_output(target, force=force, inputs=[source])
    chosen = format_name or format_of(target, FORMATS, "; or name the format with --format")
    with open_ticket(source, max_bytes=max_bytes) as ticket, open_output(target) as file:
        FORMATS[chosen](ticket, file, threads, reporter.detail)
        names = list(ticket.names)
        written = file.tell()
    values = {"output": target, "format": chosen, "tensors": len(names), "bytes": written}
    reporter.result(values, f"{source} -> {target}: {len(names)} tensors, {size(written)}")

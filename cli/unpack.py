"""`pabzip unpack`: regenerate the weights as .safetensors, .npz or .pt, or a .gguf again."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
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
from pabzip.cli._options import (
    base_option,
    max_bytes_option,
    output_option,
    reporting,
    threads_option,
)
from pabzip.cli._output import Reporter, size

if TYPE_CHECKING:
    from pabzip.ticket import Ticket


Tensors = Iterable[tuple[str, str, np.ndarray]]
"""Name, dtype and values of all tensors of a ticket, in order, each regenerated as it is taken;
values in their own dtype, C-contiguous, bfloat16 as uint16 bit patterns."""


def write_safetensors(tensors: Tensors, file: BinaryIO) -> None:
    """Write the safetensors format; the library wants all tensors in memory at once."""
    # The plain entry point takes the name of a dtype, so bfloat16 needs no numpy type; it reads
    # from the arrays' own memory, which `held` keeps alive.
    from safetensors import TensorSpec, serialize

    held, specs = [], {}
    for name, dtype, values in tensors:
        if sys.byteorder == "big":
            values = values.byteswap()
        held.append(values)
        specs[name] = TensorSpec(
            dtype=dtype,
            shape=list(values.shape),
            data_ptr=values.ctypes.data,
            data_len=values.nbytes,
        )
    # One entry, which loaders of torch weights expect: the library writes several in random order,
    # and the same ticket must give the same bytes.
    file.write(serialize(specs, {"format": "pt"}))


def write_npz(tensors: Tensors, file: BinaryIO) -> None:
    """Write numpy's .npz, uncompressed; bfloat16 becomes float32, exactly."""
    from pabzip.formats.dense import bfloat16_to_float32

    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, dtype, values in tensors:
            # A fixed date, so that the same ticket gives the same bytes.
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            with archive.open(entry, "w", force_zip64=True) as member:
                known = bfloat16_to_float32(values) if dtype == "bfloat16" else values
                np.lib.format.write_array(member, known, allow_pickle=False)


def write_pt(tensors: Tensors, file: BinaryIO) -> None:
    """Write a torch state dict that ``torch.load(weights_only=True)`` reads, all at once."""
    torch = require("torch", extra="torch", purpose="writing a .pt file")
    from pabzip.runtime.loaders import to_torch

    state = {}
    for name, dtype, values in tensors:
        state[name] = to_torch(values.copy(), dtype)
    torch.save(state, file)


def write_gguf(tensors: Tensors, file: BinaryIO) -> None:
    """Write the ``.gguf`` file that was packed, as it was."""
    from pabzip.packing import gguf

    gguf.write_gguf(tensors, file)


FORMATS: Mapping[str, Callable[[Tensors, BinaryIO], None]] = {
    "safetensors": write_safetensors,
    "npz": write_npz,
    "pt": write_pt,
    "gguf": write_gguf,
}
"""The writers by the suffix that stands for them; the first for stdout."""


def _tensors(
    ticket: Ticket,
    threads: int | None,
    reporter: Reporter,
    *,
    as_stored: bool,
    bitnet_scale: str | None,
) -> Tensors:
    """Yield the tensors of a ticket, and tell of each once it is written."""
    for name in ticket.names if as_stored else ticket.plain_names:
        found = ticket.state_tensor(
            name, as_stored=as_stored, bitnet_scale=bitnet_scale, threads=threads
        )
        yield name, found.dtype, found.values
        reporter.detail(name)


@click.command("unpack")
@click.argument("source", metavar="FILE")
@output_option("the name of FILE with .safetensors")
@click.option(
    "--format",
    "format_name",
    type=click.Choice(list(FORMATS)),
    help="The format of the output. [by its suffix; safetensors for stdout]",
)
@click.option(
    "--as-stored",
    is_flag=True,
    help="Write ternary tensors in the layout that they were packed from (several weights a byte), "
    "bit for bit, in place of plain weights.",
)
@click.option(
    "--bitnet-scale",
    type=click.Choice(["divide", "multiply"]),
    help="What to do with weight_scale of BitNet tensors where FILE does not say: BitLinear "
    "divides, AutoBitLinear multiplies.",
)
@threads_option
@base_option
@max_bytes_option
@reporting
def command(
    source: str,
    output: str | None,
    force: bool,
    format_name: str | None,
    as_stored: bool,
    bitnet_scale: str | None,
    threads: int | None,
    base: str | None,
    max_bytes: int | None,
    reporter: Reporter,
) -> None:
    """Regenerate every tensor of FILE and write plain weights.

    Writes .safetensors, .npz or .pt (a state dict); the first two need no torch. An .npz file has
    no bfloat16: such tensors become float32, exactly. With --as-stored a file that was packed from
    .gguf is written as that again. A file of changes (pack --base) needs its --base, whose digest
    is checked first. FILE may be '-' for stdin; the output then is stdout unless -o names a file.
    """
    target = output or default_output(source, f".{format_name or 'safetensors'}")
    reporter = reporter.for_output(target)
    check_output(target, force=force, inputs=[source, *([base] if base else [])])
    chosen = format_name or format_of(target, FORMATS, "; or name the format with --format")
    if chosen == "gguf" and not as_stored:
        raise click.UsageError(
            "expected --as-stored for a .gguf file, which is written as it was packed; add it, or "
            "write plain weights in another format"
        )
    with open_ticket(source, max_bytes=max_bytes, base=base) as ticket, open_output(target) as file:
        ticket.check_base()
        tensors = _tensors(
            ticket, threads, reporter, as_stored=as_stored, bitnet_scale=bitnet_scale
        )
        FORMATS[chosen](tensors, file)
        names = ticket.names if as_stored else ticket.plain_names
        count, written = len(names), file.tell()
    values = {"output": target, "format": chosen, "tensors": count, "bytes": written}
    reporter.result(values, f"{source} -> {target}: {count} tensors, {size(written)}")

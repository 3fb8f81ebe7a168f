"""`pabzip unpack`: regenerate the weights as .safetensors, .npz or .pt, or a .gguf again."""

from __future__ import annotations

import errno
import os
from functools import partial

import click

from pabzip.cli._files import (
    STANDARD,
    check_output,
    default_output,
    format_of,
    is_stream,
    open_output,
    open_ticket,
)
from pabzip.cli._options import (
    base_option,
    byte_size,
    max_bytes_option,
    output_option,
    reporting,
    threads_option,
)
from pabzip.cli._output import Bars, Reporter, size

FORMATS = ("safetensors", "npz", "pt", "gguf")
"""The formats by the suffix that stands for them; the first for stdout."""

_SAME_AS = {"pth": "pt", "bin": "pt"}
"""Other suffixes, and the format that they stand for."""


@click.command("unpack")
@click.argument("source", metavar="FILE")
@output_option("the name of FILE with .safetensors")
@click.option(
    "--format",
    "format_name",
    type=click.Choice(FORMATS),
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
@click.option(
    "--shard-size",
    type=byte_size,
    metavar="SIZE",
    help="Write safetensors in shards of at most this, such as 4GB, and their index, as Hugging "
    "Face names them: model-00001-of-00003.safetensors, model.safetensors.index.json.",
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
    shard_size: int | None,
    threads: int | None,
    base: str | None,
    max_bytes: int | None,
    reporter: Reporter,
) -> None:
    """Regenerate every tensor of FILE and write plain weights.

    Writes .safetensors, .npz or .pt (a state dict, also called .pth or .bin); the first two tensor
    by tensor and without torch, which holds all of a .pt in memory. An .npz file has no bfloat16:
    such tensors become float32, exactly. With --as-stored a file that was packed from .gguf is
    written as that again. A file of changes (pack --base) needs its --base, whose digest is checked
    first. FILE may be '-' for stdin; the output then is stdout unless -o names a file.
    """
    target = output or default_output(source, f".{format_name or 'safetensors'}")
    reporter = reporter.for_output(target)
    inputs = [source, *([base] if base else [])]
    if shard_size is None:
        check_output(target, force=force, inputs=inputs)
    hint = "; or name the format with --format"
    chosen = format_name or format_of(target, (*FORMATS, *_SAME_AS), hint)
    chosen = _SAME_AS.get(chosen, chosen)
    if chosen == "gguf" and not as_stored:
        raise click.UsageError(
            "expected --as-stored for a .gguf file, which is written as it was packed; add it, or "
            "write plain weights in another format"
        )
    if as_stored and bitnet_scale is not None:
        raise click.UsageError(
            "--bitnet-scale: expected plain weights, found --as-stored, which scales nothing; "
            "leave out one of them"
        )
    if shard_size is not None and (
        chosen != "safetensors" or target == STANDARD or is_stream(target) or shard_size < 1
    ):
        raise click.UsageError(
            "--shard-size: expected a size above 0 and the name of a .safetensors file as output"
        )
    from pabzip.packing import unpack as writing

    with open_ticket(source, max_bytes=max_bytes, base=base) as ticket:
        ticket.check_base()
        tensors = writing.described(ticket, as_stored=as_stored)
        blocks = 0 if as_stored else len(writing.blocks(ticket))
        shards = {target: list(tensors)}
        if shard_size is not None:
            shards = writing.shard_files(target, tensors, shard_size)
            _check_shards(target, list(shards), force=force, inputs=inputs)
        with Bars(sum(one.nbytes for one in tensors.values()), reporter) as bars:
            values = partial(
                writing.values_of,
                ticket,
                tensors,
                as_stored=as_stored,
                bitnet_scale=bitnet_scale,
                threads=threads,
                on_tensor=reporter.detail,
                on_progress=bars.advance,
            )
            if len(shards) > 1:
                written = writing.write_shards(target, shards, tensors, values, ticket.metadata)
            else:
                with open_output(target) as file:
                    write = writing.FORMATS[chosen]
                    write(tensors, values(tensors), file, metadata=ticket.metadata)
                    written = file.tell()
    result = {"output": target, "format": chosen, "tensors": len(tensors), "bytes": written}
    if shard_size is not None:
        result["shards"] = len(shards)
    parts = f" in {len(shards)} shards" if len(shards) > 1 else ""
    if blocks:
        result["blocks"] = blocks
        parts += f", {blocks} of which as bytes of llama.cpp's blocks, not plain weights"
    reporter.result(result, f"{source} -> {target}: {len(tensors)} tensors, {size(written)}{parts}")


def _check_shards(target: str, shards: list[str], *, force: bool, inputs: list[str]) -> None:
    """Refuse shards before any is written, as `check_output` does a file."""
    from pabzip.packing.unpack import index_file

    outputs = shards if shards == [target] else [*shards, index_file(target)]
    for path in outputs:
        check_output(path, force=force, inputs=inputs)
    if shards != [target] and os.path.exists(target):
        raise FileExistsError(
            errno.EEXIST,
            "exists already, and would be read in place of the shards; remove it, or name another "
            "with -o",
            target,
        )

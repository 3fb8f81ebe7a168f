"""``pabzip unpack``: from a .pabz file to plain weights, with numpy alone."""

from __future__ import annotations

from pathlib import Path

import click

from pabzip.cli.files import STANDARD, check_output, default_output, open_output
from pabzip.cli.options import max_bytes_option, output_option, reporting, threads_option
from pabzip.cli.output import Reporter, size
from pabzip.cli.tensor_files import FORMATS
from pabzip.cli.tickets import open_ticket


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
    chosen = format_name or _format_of(target)
    with open_ticket(source, max_bytes=max_bytes) as ticket, open_output(target) as file:
        FORMATS[chosen](ticket, file, threads=threads, wrote=reporter.detail)
        names = list(ticket.names)
        written = file.tell()
    values = {"output": target, "format": chosen, "tensors": len(names), "bytes": written}
    reporter.result(values, f"{source} -> {target}: {len(names)} tensors, {size(written)}")


def _format_of(target: str) -> str:
    """Return the format that a name's suffix stands for."""
    if target == STANDARD:
        return "safetensors"
    suffix = Path(target).suffix.removeprefix(".").lower()
    if suffix not in FORMATS:
        raise click.UsageError(
            f"{target}: expected a name that ends in {', '.join(f'.{name}' for name in FORMATS)}; "
            "or name the format with --format"
        )
    return suffix

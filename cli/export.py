"""``pabzip export``: a dense ONNX file, checked against torch before it is kept."""

from __future__ import annotations

import dataclasses

import click

from pabzip._optional import require
from pabzip.cli._files import (
    check_base,
    check_output,
    default_output,
    naming,
    open_output,
    read_source,
)
from pabzip.cli._options import (
    OwnNetwork,
    base_option,
    max_bytes_option,
    network_options,
    output_option,
    reporting,
)
from pabzip.cli._output import Reporter, size


def image_shape(text: str) -> tuple[int, ...]:
    """Read channels, height and width of one image: ``3,32,32`` or ``3x32x32``."""
    parts = text.replace("x", ",").split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) for part in parts):
        raise click.BadParameter(f"{text!r} is not a shape; expected such as 3,32,32")
    return tuple(int(part) for part in parts)


@click.command("export")
@click.argument("source", metavar="FILE")
@output_option("the name of FILE with .onnx")
@click.option("--opset", type=int, help="Version of the ONNX operator set. [18]")
@click.option(
    "--float16", is_flag=True, help="Compute in float16, half the size; inputs stay float32."
)
@click.option(
    "--fixed-batch", is_flag=True, help="Fix the batch at 1 image instead of leaving it open."
)
@click.option(
    "--input-shape",
    type=image_shape,
    metavar="C,H,W",
    help="One image; needed for a custom architecture. [from the architecture]",
)
@click.option(
    "--tolerance",
    type=float,
    help="Largest difference of a logit, relative to the largest. [1e-4; 1e-2 with --float16]",
)
@network_options
@base_option
@max_bytes_option
@reporting
def command(
    source: str,
    output: str | None,
    force: bool,
    opset: int | None,
    float16: bool,
    fixed_batch: bool,
    input_shape: tuple[int, ...] | None,
    tolerance: float | None,
    own_network: OwnNetwork,
    base: str | None,
    max_bytes: int | None,
    reporter: Reporter,
) -> None:
    """Export FILE (a .pabz ticket) as one dense ONNX file.

    The file is kept only if ONNX Runtime gives the logits and the classes that torch gives. FILE
    may be '-' for stdin; the output then is stdout unless -o names a file. A custom architecture
    needs --arch and --input-shape, a ticket of changes (pack --base) its --base.
    """
    target = output or default_output(source, ".onnx")
    reporter = reporter.for_output(target)
    check_output(target, force=force, inputs=[source, *([base] if base else [])])
    require("torch", extra="torch", purpose="pabzip export")
    from pabzip.export.onnx import export_ticket
    from pabzip.ticket import Ticket

    net = own_network()
    data = read_source(source, max_bytes=max_bytes)
    with open_output(target) as file, naming(source):
        with Ticket.open(data, max_bytes=max_bytes) as ticket:
            check_base(source, ticket, base)
        report = export_ticket(
            data,
            file,
            net=net,
            input_shape=input_shape,
            max_bytes=max_bytes,
            base=base,
            opset=opset,
            float16=float16,
            dynamic_batch=not fixed_batch,
            tolerance=tolerance,
        )
    reporter.result(
        {"output": target, **dataclasses.asdict(report)},
        f"{source} -> {target}: {size(report.bytes)}, opset {report.opset}, {report.precision}; "
        f"agrees with torch within {report.difference:.1e} on {report.samples} images",
    )

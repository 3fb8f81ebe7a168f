"""``pabzip info``: what a file holds and where its bytes go, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from pabzip.cli._files import check_output, format_of, open_output, open_ticket
from pabzip.cli._options import max_bytes_option, reporting
from pabzip.cli._output import Reporter, plain_table, printable, ratio, size

if TYPE_CHECKING:
    from rich.table import Table

IMAGE_TYPES = ("png", "svg", "pdf")
"""What a picture can be written as; the first for stdout."""

_COLUMNS = ("mask", "factors", "signs", "dense")  # of the parts; the header has a row of its own


@click.command("info")
@click.argument("source", metavar="FILE")
@click.option(
    "--plot",
    metavar="IMAGE",
    help=f"Draw where the bytes go; a name that ends in {', '.join(f'.{t}' for t in IMAGE_TYPES)}.",
)
@click.option("-f", "--force", is_flag=True, help="Replace an image that exists.")
@max_bytes_option
@reporting
def command(
    source: str, plot: str | None, force: bool, max_bytes: int | None, reporter: Reporter
) -> None:
    """Show what FILE holds: sizes, seed, architecture, and where the bytes go, tensor by tensor.

    Reads the header and the factors alone, and regenerates nothing; `pabzip verify` checks the
    weights. FILE may be '-' for stdin.
    """
    if plot is not None:
        image_type, reporter = format_of(plot, IMAGE_TYPES), reporter.for_output(plot)
        check_output(plot, force=force, inputs=[source])
    with open_ticket(source, max_bytes=max_bytes) as ticket:
        info = {**ticket.info(), "breakdown": ticket.breakdown()}
        metadata = dict(ticket.metadata)
        for name in ticket.names:
            if ticket.kind(name) == "seeded":
                spec = ticket.spec(name)
                scale = repr(spec.scale) if ticket.scales(name) is None else "of each row"
                reporter.detail(f"{name}: {spec.distribution}, scale {scale}, stream {spec.stream}")
    if plot is not None:
        from pabzip.cli._plot import save

        with open_output(plot) as file:
            save(info, file, image_type)
        reporter.detail(f"{source} -> {plot}")
    reporter.result(info, overview(info, metadata), tensor_table(info))


def overview(info: Mapping[str, Any], metadata: Mapping[str, Any]) -> Table:
    """Return the file's numbers as a table of two columns, for people."""
    weights, survivors = info["weights"], info["survivors"]
    changes = sum(row["kind"] == "delta" for row in info["tensors"])
    codes = {"weights": "all dense, none of a seed"}
    if changes:
        count = len(info["tensors"])
        codes = {"weights": f"none of a seed; {changes} of {count} tensors are changes of the base"}
    if weights:
        codes = {
            "codes by Huffman": f"{size(info['huffman_bytes'])}, "
            f"{ratio(info['huffman_bytes'], info['codes_bytes'])} the codes here",
            "weights": f"{weights:,}, of them {survivors:,} survive, keep ratio "
            f"{survivors / weights:.4g}",
        }
    frozen = sum(row.get("frozen", 0) for row in info["tensors"])
    if frozen:
        codes["frozen"] = f"{frozen:,} weights, pruned or kept by the seed, without codes"
    rows = {
        "architecture": info["arch"],
        "seed": str(info["seed"]),
        "file": f"{size(info['bytes'])} ({info['bytes']:,} bytes)",
        "  codes": size(info["codes_bytes"]),
        "  dense tensors": size(info["dense_bytes"]),
        "  header": size(info["header_bytes"]),
        "as float32": f"{size(info['float32_bytes'])}, "
        f"{ratio(info['float32_bytes'], info['bytes'])} the file",
        **codes,
        "sha256": info["sha256"],
        **({"base": f"{info['base']}, needed to unpack"} if info["base"] else {}),
        **{f"{key}": str(value) for key, value in metadata.items()},
    }
    table = plain_table(header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(printable(key), printable(value))
    return table


def tensor_table(info: Mapping[str, Any]) -> Table:
    """Return one row a tensor, for people: what it is, and where its bytes go."""
    table = plain_table()
    for title in ("tensor", "shape", "kind", "coder"):
        table.add_column(title, no_wrap=title != "tensor", overflow="fold")
    for title in (*_COLUMNS, "bytes", "weights", "survivors", "kept"):
        table.add_column(title, justify="right", no_wrap=True)
    *rows, framing = info["breakdown"]
    for tensor, row in zip(info["tensors"], rows, strict=True):
        weights, survivors = tensor["weights"], tensor["survivors"]
        coded = survivors is not None
        table.add_row(
            printable(tensor["name"]),
            "x".join(str(length) for length in tensor["shape"]) or "scalar",
            tensor["kind"],
            printable(tensor["coder"] or f"as {tensor.get('target', 'the base')}"),
            *_byte_cells(row),
            f"{weights:,}" if coded else "",
            f"{survivors:,}" if coded else "",
            f"{survivors / weights:.1%}" if coded and weights else "",
        )
    table.add_row("header, checksums", "", "", "", *_byte_cells(framing))
    whole = {part: sum(row[part] for row in info["breakdown"]) for part in (*_COLUMNS, "header")}
    table.add_row("all", "", "", "", *_byte_cells(whole), style="bold")
    return table


def _byte_cells(row: Mapping[str, Any]) -> list[str]:
    """Return the bytes of each part, empty for none, and their sum with the header's."""
    cells = [f"{row[part]:,}" if row[part] else "" for part in _COLUMNS]
    return [*cells, f"{sum(row[part] for part in (*_COLUMNS, 'header')):,}"]

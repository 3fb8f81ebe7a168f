"""``pabzip info``: what a file holds, from its header alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from pabzip.cli.options import max_bytes_option, reporting
from pabzip.cli.output import Reporter, printable, ratio, size
from pabzip.cli.tickets import open_ticket

if TYPE_CHECKING:
    from rich.table import Table


@click.command("info")
@click.argument("source", metavar="FILE")
@max_bytes_option
@reporting
def command(source: str, max_bytes: int | None, reporter: Reporter) -> None:
    """Show what FILE holds: sizes, seed, architecture, tensors.

    Reads the header alone and regenerates nothing; `pabzip verify` checks the weights. FILE may be
    '-' for stdin.
    """
    with open_ticket(source, max_bytes=max_bytes) as ticket:
        info = ticket.info()
        metadata = dict(ticket.metadata)
        for name in ticket.names:
            if ticket.kind(name) == "seeded":
                spec = ticket.spec(name)
                reporter.detail(
                    f"{name}: {spec.distribution}, scale {spec.scale!r}, stream {spec.stream}"
                )
    if reporter.json or reporter.quiet:
        reporter.result(info)
    else:
        reporter.result(info, overview(info, metadata), tensor_table(info))


def overview(info: Mapping[str, Any], metadata: Mapping[str, Any]) -> Table:
    """Return the file's numbers as a table of two columns, for people."""
    weights, survivors = info["weights"], info["survivors"]
    kept = f", keep ratio {survivors / weights:.4g}" if weights else ""
    rows = {
        "architecture": info["arch"],
        "seed": str(info["seed"]),
        "file": f"{size(info['bytes'])} ({info['bytes']:,} bytes)",
        "  codes": size(info["codes_bytes"]),
        "  dense tensors": size(info["dense_bytes"]),
        "  header": size(info["header_bytes"]),
        "as float32": f"{size(info['float32_bytes'])}, "
        f"{ratio(info['float32_bytes'], info['bytes'])} the file",
        "codes by Huffman": f"{size(info['huffman_bytes'])}, "
        f"{ratio(info['huffman_bytes'], info['codes_bytes'])} the codes here",
        "weights": f"{weights:,}, of them {survivors:,} survive{kept}",
        "sha256": info["sha256"],
        **{f"{key}": str(value) for key, value in metadata.items()},
    }
    table = _plain_table()
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(printable(key), printable(value))
    return table


def tensor_table(info: Mapping[str, Any]) -> Table:
    """Return one row a tensor, for people."""
    table = _plain_table(header=True)
    for title in ("tensor", "shape", "kind", "coder"):
        table.add_column(title, no_wrap=title != "tensor", overflow="fold")
    for title in ("bytes", "weights", "survivors", "kept"):
        table.add_column(title, justify="right", no_wrap=True)
    for tensor in info["tensors"]:
        weights, survivors = tensor["weights"], tensor["survivors"]
        seeded = tensor["kind"] == "seeded"
        table.add_row(
            printable(tensor["name"]),
            "x".join(str(length) for length in tensor["shape"]) or "scalar",
            tensor["kind"],
            tensor["coder"] or "",
            f"{tensor['bytes']:,}",
            f"{weights:,}" if seeded else "",
            f"{survivors:,}" if seeded else "",
            f"{survivors / weights:.1%}" if seeded and weights else "",
        )
    return table


def _plain_table(*, header: bool = False) -> Table:
    """Return an empty table with aligned columns and no lines."""
    from rich.table import Table

    return Table(box=None, show_header=header, pad_edge=False, padding=(0, 2, 0, 0))

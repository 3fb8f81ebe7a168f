"""``pabzip pack``: from a checkpoint to a .pabz file."""

from __future__ import annotations

import io
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import click

from pabzip._optional import require
from pabzip.cli._files import check_output, default_output, is_stream, open_output, read_source
from pabzip.cli._options import output_option, reporting
from pabzip.cli._output import Reporter, ratio, size


@click.command("pack")
@click.argument("source", metavar="CHECKPOINT")
@output_option("the name of CHECKPOINT with .pabz")
@click.option(
    "--coder",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="What turns codes into bytes: 'auto' takes the smallest for each tensor, 'huffman' is "
    "the paper's.",
)
@click.option(
    "--dense-dtype",
    type=click.Choice(["float16", "bfloat16"]),
    help="Round the dense tensors (batch norm, biases) to half precision. [lossless]",
)
@click.option(
    "--fold-bn",
    is_flag=True,
    help="Keep of each batch norm only what inference needs, a scale and a shift. The file loads "
    "as ever; training on needs the original.",
)
@click.option(
    "--ternary",
    is_flag=True,
    help="Write weights of 0 and plus or minus one scale, of a tensor, row, group or column, as "
    "codes. CHECKPOINT may then also be a plain state dict.",
)
@click.option(
    "--drop-negative-zero",
    is_flag=True,
    help="Store -0.0 in ternary tensors as 0: fewer bytes, but not the same bits. [kept]",
)
@click.option(
    "--bitnet-scale",
    type=click.Choice(["divide", "multiply"]),
    help="What the network does with weight_scale of packed BitNet weights: BitLinear divides, "
    "AutoBitLinear multiplies. [by config.json beside CHECKPOINT]",
)
@click.option(
    "--ticket",
    "at_initialization",
    is_flag=True,
    help="Of a network whose magnitudes were trained, pack the ticket that it began as: the seed "
    "and the mask.",
)
@click.option(
    "--base",
    metavar="FILE",
    help="Write CHECKPOINT as changes of FILE where they are smaller: ternary or of a few bits "
    "(ComPEFT), or any others. Both may be .safetensors, an index of its shards, .npz, .pabz or "
    ".pt; unpack then needs FILE, too.",
)
@reporting
def command(
    source: str,
    output: str | None,
    force: bool,
    coder: str,
    dense_dtype: str | None,
    fold_bn: bool,
    ternary: bool,
    drop_negative_zero: bool,
    bitnet_scale: str | None,
    at_initialization: bool,
    base: str | None,
    reporter: Reporter,
) -> None:
    """Pack CHECKPOINT (model.pt, as `pabzip train` writes it) into a .pabz file.

    CHECKPOINT may be a .gguf file, too: ternary blocks become codes, other blocks stay bytes.

    Every surviving weight must be plus or minus the magnitude that its seed draws, to the bit;
    otherwise nothing is written. What was written is opened and regenerated again before it takes
    its name. CHECKPOINT may be '-' for stdin; the output then is stdout unless -o names a file.
    """
    target = output or default_output(source, ".pabz")
    reporter = reporter.for_output(target)
    check_output(target, force=force, inputs=[source, *([base] if base else [])])
    from pabzip.packing.gguf import is_gguf

    loaded: Any = source
    if is_gguf(source):
        ternary = True
    else:
        require("torch", extra="torch", purpose="pabzip pack")
        from pabzip.checkpoint import load_checkpoint, load_state
        from pabzip.packing.tensors import load_any

        data = read_source(source)
        plain = load_state if ternary else load_checkpoint
        load = plain if base is None else load_any
        loaded = load(io.BytesIO(data) if isinstance(data, bytes) else data)
    from tqdm import tqdm

    from pabzip.packing.base import open_base
    from pabzip.packing.pack import ternary_packer, to_ticket

    negative_zero = "drop" if drop_negative_zero else "keep"
    packer = ternary_packer(source, negative_zero, bitnet_scale) if ternary else None
    ticket = to_ticket(
        loaded,
        fold_bn=fold_bn,
        dense_dtype=dense_dtype,
        packer=packer,
        ticket=at_initialization,
        base=None if base is None else open_base(base),
    )
    for name in ticket.names:
        reporter.detail(f"{name}: {ticket.kind(name)}, {list(ticket.shape(name))}")
    stored = [name for name in ticket.names if ticket.tied(name) is None]
    seeded = sum(ticket.kind(name) == "seeded" for name in stored)
    with ExitStack() as stack:
        file = stack.enter_context(open_output(target)) if is_stream(target) else target
        bar = stack.enter_context(
            tqdm(total=seeded, desc="encoding", unit="tensor", disable=not reporter.progress)
        )
        info = ticket.save(
            file, coder=coder, dense_dtype=dense_dtype, on_tensor=lambda _name: bar.update()
        )
    if packer is not None:
        info = replace(info, negative_zeros_dropped=packer.dropped)
    if at_initialization:
        what = f"the ticket at initialization, {info.survivors:,} of {info.weights:,} weights"
    elif info.weights:
        what = f"{info.survivors:,} of {info.weights:,} weights survive"
    elif info.base:
        kinds = Counter(row.get("change", row["kind"]) for row in info.tensors)
        what = f"changes of {base} ({', '.join(f'{n} {kind}' for kind, n in kinds.items())})"
    else:
        what = "all tensors dense"
        if getattr(loaded, "drawn", None):
            what += "; --ticket packs the seed and the mask in place of the trained weights"
    zeros = sum(packer.negative_zeros.values()) if packer else 0
    if zeros:
        kept = "stored as 0" if drop_negative_zero else "kept (--drop-negative-zero takes fewer)"
        what += f"; {zeros:,} ternary weights of -0.0 {kept}"
    reporter.result(
        info,
        f"{source} -> {target}: {size(info.bytes)}, "
        f"{ratio(info.float32_bytes, info.bytes)} smaller than float32; {what}",
    )

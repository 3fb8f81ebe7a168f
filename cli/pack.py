"""``pabzip pack``: from a checkpoint to a .pabz file."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack

import click

from pabzip.cli._files import check_output, default_output, is_stream, open_input, open_output
from pabzip.cli._options import output_option, reporting
from pabzip.cli._output import Bars, Reporter, ratio, size


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
    "codes, and refuse a CHECKPOINT without any (not with --base). Without a seed they are written "
    "so in any case.",
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

    CHECKPOINT may also be a .safetensors or .npz file, a torch state dict (.pt, .pth, .bin), the
    index of one in shards (model.safetensors.index.json), or a folder that holds one of these.
    Such tensors have no seed: ternary ones are written as codes, all others as they are, lossless.
    """
    target = output or default_output(source, ".pabz")
    reporter = reporter.for_output(target)
    check_output(target, force=force, inputs=[source, *([base] if base else [])])
    from pabzip.packing.pack import prepared

    with ExitStack() as stack:
        ready = stack.enter_context(
            prepared(
                stack.enter_context(open_input(source)),
                fold_bn=fold_bn,
                dense_dtype=dense_dtype,
                ternary=ternary,
                ticket=at_initialization,
                base=base,
                negative_zero="drop" if drop_negative_zero else "keep",
                bitnet_scale=bitnet_scale,
            )
        )
        file = stack.enter_context(open_output(target)) if is_stream(target) else target
        bars = stack.enter_context(Bars(sum(ready.tensors.sizes.values()), reporter))
        info = ready.save(file, coder=coder, dense_dtype=dense_dtype, on_progress=bars.advance)
    for row in info.tensors:
        reporter.detail(f"{row['name']}: {row['kind']}, {row['shape']}")
    if at_initialization:
        what = f"the ticket at initialization, {info.survivors:,} of {info.weights:,} weights"
    elif info.weights:
        what = f"{info.survivors:,} of {info.weights:,} weights survive"
    elif info.base:
        kinds = Counter(row.get("change", row["kind"]) for row in info.tensors)
        what = f"changes of {base} ({', '.join(f'{n} {kind}' for kind, n in kinds.items())})"
    else:
        what = "all tensors dense"
        if ready.drawn:
            what += "; --ticket packs the seed and the mask in place of the trained weights"
        elif not ready.has_seed:
            what += f"; {source} does not say which seed drew its weights"
    zeros = sum(ready.packer.negative_zeros.values()) if ready.packer else 0
    if zeros:
        kept = "stored as 0" if drop_negative_zero else "kept (--drop-negative-zero takes fewer)"
        what += f"; {zeros:,} ternary weights of -0.0 {kept}"
    reporter.result(
        info,
        f"{source} -> {target}: {size(info.bytes)}, "
        f"{ratio(info.float32_bytes, info.bytes)} smaller than float32; {what}",
    )

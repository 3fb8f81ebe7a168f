"""``pabzip eval``: accuracy and loss on a dataset's test images."""

from __future__ import annotations

import click

from pabzip._optional import require
from pabzip.cli.architectures import require_arch
from pabzip.cli.files import STANDARD
from pabzip.cli.options import arch_option, arch_options_option, max_bytes_option, reporting
from pabzip.cli.output import Reporter
from pabzip.errors import DataError


@click.command("eval")
@click.argument("source", metavar="FILE")
@click.option("--data", help="Dataset to measure on. [the one that FILE was trained on]")
@click.option("--data-root", help="Folder that holds the dataset.")
@click.option("--download", is_flag=True, help="Fetch the dataset where it is missing.")
@arch_option
@arch_options_option
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:<number>.")
@max_bytes_option
@reporting
def command(
    source: str,
    data: str | None,
    data_root: str | None,
    download: bool,
    arch: str | None,
    arch_options: tuple[str, ...],
    device: str,
    max_bytes: int | None,
    reporter: Reporter,
) -> None:
    """Measure FILE on the test images of its dataset.

    FILE is a ticket (.pabz), a checkpoint (.pt) or an exported model (.onnx); '-' reads a ticket
    from stdin. A custom architecture needs --arch.
    """
    require_arch(arch, arch_options)
    require("torch", extra="train", purpose="pabzip eval")
    from pabzip import data as datasets
    from pabzip.cli.evaluation import read_subject
    from pabzip.train.evaluation import evaluate
    from pabzip.train.network import pick_device

    subject = read_subject(
        source,
        arch=arch,
        arch_options=arch_options,
        device=pick_device(device),
        max_bytes=max_bytes,
    )
    name = data or subject.data
    if name is None:
        raise click.UsageError(f"{source} does not say what it was trained on; name it with --data")
    images = datasets.load(name, root=data_root, download=download).test
    reporter.detail(f"measuring on {len(images):,} test images of {name}")
    try:
        found = evaluate(subject.model, images)
    except (RuntimeError, ValueError, IndexError) as error:
        if "out of memory" in str(error):
            raise
        raise DataError(
            f"{source}: expected images and labels of {name} that fit the network, found images "
            f"{list(images.input_shape)}: {error}"
        ) from error
    label = "<stdin>" if source == STANDARD else source
    reporter.result(
        {"accuracy": found.accuracy, "loss": found.loss, "samples": found.samples},
        f"{label}: accuracy {found.accuracy:.2%}, loss {found.loss:.4f}, "
        f"{found.samples:,} test images of {name}",
    )

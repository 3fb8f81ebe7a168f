"""`pabzip eval`: measure accuracy and loss on test or validation images."""

from __future__ import annotations

import click

from pabzip._optional import require
from pabzip.cli._files import STANDARD, check_base, naming, read_source
from pabzip.cli._options import (
    OwnNetwork,
    base_option,
    max_bytes_option,
    network_options,
    reporting,
)
from pabzip.cli._output import Reporter
from pabzip.errors import ArchitectureError, DataError


@click.command("eval")
@click.argument("source", metavar="FILE")
@click.option("--data", help="Dataset to measure on. [the one that FILE was trained on]")
@click.option(
    "--part",
    type=click.Choice(["test", "validation"]),
    default="test",
    show_default=True,
    help="Images to measure on: validation are those that the training of FILE held out.",
)
@click.option("--data-root", help="Folder that holds the dataset.")
@click.option("--download", is_flag=True, help="Fetch the dataset where it is missing.")
@click.option(
    "--import",
    "packages",
    metavar="PACKAGE",
    multiple=True,
    help="Import a package of yours, which may register the dataset or the network; repeatable.",
)
@network_options
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:<number>.")
@base_option
@max_bytes_option
@reporting
def command(
    source: str,
    data: str | None,
    part: str,
    data_root: str | None,
    download: bool,
    packages: tuple[str, ...],
    own_network: OwnNetwork,
    device: str,
    base: str | None,
    max_bytes: int | None,
    reporter: Reporter,
) -> None:
    """Measure FILE on the test images of its dataset, or on validation images.

    FILE is a ticket (.pabz), a checkpoint (.pt) or an exported model (.onnx); '-' reads a ticket
    from stdin. A custom architecture needs --arch, a ticket of changes (pack --base) its --base.
    """
    require("torch", extra="train", purpose="pabzip eval")
    from pabzip.cli._settings import import_packages
    from pabzip.data import hold_out, load
    from pabzip.ticket import Ticket
    from pabzip.train.build import pick_device
    from pabzip.train.evaluation import evaluate, open_model

    import_packages(packages)
    net = own_network()
    file = read_source(source, max_bytes=max_bytes)
    try:
        with naming(source):
            if base is not None and not source.lower().endswith((".pt", ".pth", ".onnx")):
                with Ticket.open(file, max_bytes=max_bytes) as ticket:
                    check_base(source, ticket, base)
            opened = open_model(file, pick_device(device), net=net, max_bytes=max_bytes, base=base)
    except ArchitectureError as error:
        raise ArchitectureError(f"{source}: {error}") from error
    name = data or opened.data
    if name is None:
        raise click.UsageError(f"{source} does not say what it was trained on; name it with --data")
    if part == "validation" and opened.held_out is None:
        raise click.UsageError(
            f"{source} does not say which images its training held out, as tickets and "
            "checkpoints of train --validation do; measure it on --part test"
        )
    splits = load(name, root=data_root, download=download)
    images = splits.test
    if part == "validation" and opened.held_out is not None:
        fraction, seed = opened.held_out
        images = hold_out(splits, fraction, seed=seed).validation or images
    reporter.detail(f"measuring on {len(images):,} {part} images of {name}")
    try:
        found = evaluate(opened.model, images)
    except (RuntimeError, ValueError, IndexError) as error:
        if "out of memory" in str(error):
            raise
        raise DataError(
            f"{source}: expected images and labels of {name} that fit the network, found images "
            f"{list(images.input_shape)}: {error}"
        ) from error
    label = "<stdin>" if source == STANDARD else source
    reporter.result(
        found.to_dict(),
        f"{label}: accuracy {found.accuracy:.2%}, loss {found.loss:.4f}, "
        f"{found.samples:,} {part} images of {name}",
    )

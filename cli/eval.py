"""`pabzip eval`: measure accuracy and loss on test images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pabzip._optional import require
from pabzip.cli._files import STANDARD, naming, read_source
from pabzip.cli._options import (
    arch_option,
    arch_options_option,
    max_bytes_option,
    named_network,
    reporting,
    require_arch,
)
from pabzip.cli._output import Reporter
from pabzip.errors import ArchitectureError, DataError

if TYPE_CHECKING:
    import torch
    from torch import nn

    Subject = tuple[nn.Module | Callable[[torch.Tensor], Any], str | None]


def _read_model(
    source: str,
    *,
    arch: str | None,
    arch_options: Sequence[str],
    device: torch.device,
    max_bytes: int | None,
) -> Subject:
    """Read a ticket, a checkpoint (.pt, .pth) or an exported model (.onnx), by its suffix.

    Args:
        source: a path, or ``-`` for a ticket on stdin.
        arch: ``module:callable`` or a registered name that replaces what the file says; needed for
            a custom architecture.
        arch_options: ``key=value`` pairs for ``arch``.
        device: where a network runs; an ONNX model runs on the CPU.
        max_bytes: refuse a ticket that regenerates to more.

    Returns:
        A network, or a function from images ``float32[B, C, H, W]`` to logits; and the dataset that
        the file says it was trained on, if it does.

    Raises:
        PabzError: the file cannot be read, or needs an ``arch`` that was not given.
        OSError: the file cannot be opened.
    """
    suffix = Path(source).suffix.lower()
    if suffix == ".onnx":
        return _from_onnx(source)
    net = None if arch is None else named_network(arch, arch_options)
    if suffix in (".pt", ".pth"):
        return _from_checkpoint(source, net, device)
    return _from_ticket(source, net, device, max_bytes)


def _from_ticket(
    source: str, net: nn.Module | None, device: torch.device, max_bytes: int | None
) -> Subject:
    """Load a ticket into the network that it names, or into ``net``."""
    from pabzip.runtime.loaders import load, load_into
    from pabzip.ticket import Ticket

    data = read_source(source, max_bytes=max_bytes)
    with naming(source):
        with Ticket.open(data, max_bytes=max_bytes) as ticket:
            named = ticket.metadata.get("data")
            if net is None and ticket.arch == "custom":
                raise _needs_arch(source)
        if net is None:
            net = load(data, device=device, max_bytes=max_bytes)
        else:
            net = load_into(net, data, max_bytes=max_bytes).to(device)
    return net, named if isinstance(named, str) else None


def _from_checkpoint(source: str, net: nn.Module | None, device: torch.device) -> Subject:
    """Load a checkpoint into the network that it names, or into ``net``."""
    from pabzip.checkpoint import load_checkpoint, network_from_checkpoint

    checkpoint = load_checkpoint(source)
    if net is None and checkpoint.arch == "custom":
        raise _needs_arch(source)
    named = checkpoint.metadata().get("data")
    net = network_from_checkpoint(checkpoint, net).to(device)
    return net, named if isinstance(named, str) else None


def _from_onnx(source: str) -> Subject:
    """Open an exported model; torch only carries the images."""
    require("torch", extra="train", purpose="measuring a model")
    from pabzip.runtime.onnx_session import open_onnx, session_logits

    session = open_onnx(source)
    logits = session_logits(session)
    named = session.get_modelmeta().custom_metadata_map.get("pabzip.data")
    return (lambda images: logits(images.numpy())), named or None


def _needs_arch(source: str) -> ArchitectureError:
    """Return the error for a custom architecture that nobody named."""
    return ArchitectureError(
        f"{source}: holds a custom architecture; name the class or function that builds it with "
        "--arch module:callable"
    )


@click.command("eval")
@click.argument("source", metavar="FILE")
@click.option("--data", help="Dataset to measure on. [the one that FILE was trained on]")
@click.option("--data-root", help="Folder that holds the dataset.")
@click.option("--download", is_flag=True, help="Fetch the dataset where it is missing.")
@click.option(
    "--import",
    "packages",
    metavar="PACKAGE",
    multiple=True,
    help="Import a package of yours, which may register the dataset or the network; repeatable.",
)
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
    packages: tuple[str, ...],
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
    from pabzip.cli._settings import import_packages
    from pabzip.train.build import pick_device
    from pabzip.train.evaluation import evaluate

    import_packages(packages)
    model, named = _read_model(
        source,
        arch=arch,
        arch_options=arch_options,
        device=pick_device(device),
        max_bytes=max_bytes,
    )
    name = data or named
    if name is None:
        raise click.UsageError(f"{source} does not say what it was trained on; name it with --data")
    images = datasets.load(name, root=data_root, download=download).test
    reporter.detail(f"measuring on {len(images):,} test images of {name}")
    try:
        found = evaluate(model, images)
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

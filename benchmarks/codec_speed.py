"""How fast a file is packed and loaded, against drawing the weights and against plain files.

Our file is read from memory into float32 arrays; ``kaiming_normal_`` draws the same tensors in
place, which is the least that any start from random weights takes. ``torch.load`` and safetensors
read the same model as plain float32 from a warm file, and safetensors also compressed by zstd -19.
All runs of one row take turns on the same number of threads. The cold rows start a new process.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy
import safetensors.torch
import torch
import zstandard
from _shared import (
    Progress,
    clock_by,
    finish,
    interleaved,
    kibibytes,
    markdown,
    parser,
    times,
    torch_threads,
)
from _tickets import Network, synflow_masks, trained, with_signs
from torch import nn

import pabzip

THREADS = (1, 2)
COLD_TORCH = (
    "import sys, torch, safetensors.torch as s; "
    "s.save_file(torch.load(sys.argv[1], weights_only=True), sys.argv[2])"
)

Runs = dict[str, Callable[[], object]]


class Files:
    """One network in every form that is compared, written to a folder of its own."""

    def __init__(self, net: nn.Module, folder: Path):
        self.net = net
        self.ticket, self.checkpoint = folder / "model.pabz", folder / "model.pt"
        self.plain, self.compressed = folder / "model.safetensors", folder / "model.zst"
        self.target = folder / "written.safetensors"
        self.info = pabzip.pack(net, self.ticket)
        self.packed = self.ticket.read_bytes()
        state = net.state_dict()
        torch.save(state, self.checkpoint)
        safetensors.torch.save_file(state, self.plain)
        self.compressed.write_bytes(
            zstandard.ZstdCompressor(level=19, threads=-1).compress(self.plain.read_bytes())
        )

    def sizes(self) -> dict[str, int]:
        """Return how many bytes each form takes."""
        files = (self.ticket, self.checkpoint, self.plain, self.compressed)
        names = ("pabzip", "torch.load", "safetensors", "safetensors + zstd")
        return {name: file.stat().st_size for name, file in zip(names, files, strict=True)}


def main() -> None:
    """Run the benchmark."""
    line = parser(__doc__, cache=True)
    line.add_argument("--repeats", type=int, default=15, help="timed runs of each; fewer cold ones")
    arguments = line.parse_args()
    if arguments.quick:
        arguments.repeats = 1
    network, keep_ratio = Network.of(arguments), arguments.keep_ratio or 0.1
    rows = []
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    clock = clock_by("wall", torch.cuda.synchronize if gpu else lambda: None)
    steps = len(THREADS) + 4 + bool(gpu)
    with tempfile.TemporaryDirectory() as folder, Progress(steps) as progress:
        masks = synflow_masks(network, keep_ratio, arguments, progress)
        progress.step("writing files")
        files = Files(trained(network, with_signs(masks)), Path(folder))
        progress.done()
        for what, threads, repeats, runs in _plan(files, arguments.repeats):
            progress.step(what)
            with torch_threads(threads):
                medians = interleaved(runs, repeats, clock=clock)
            progress.done()
            ratios = {f"pabzip / {n}": medians["pabzip"] / s for n, s in medians.items()}
            del ratios["pabzip / pabzip"]
            rows.append({"what": what, "threads": threads, "seconds": medians, "ratios": ratios})
        sizes = files.sizes()
    result = {
        "network": str(network),
        "keep_ratio": keep_ratio,
        "weights": files.info["weights"],
        "bytes": sizes,
        "rows": rows,
    }
    title = f"{network}, SynFlow, keep {keep_ratio:g}: seconds"
    shown = ", ".join(f"{name} {kibibytes(size)} KiB" for name, size in sizes.items())
    table = f"{_table(rows)}\nFiles: {shown}.\n"
    packages = ("torch", "safetensors", "zstandard")
    finish("codec_speed", arguments, title, table, result, *packages, gpu=gpu)


def _plan(files: Files, repeats: int) -> Iterator[tuple[str, int, int, Runs]]:
    """Yield what is compared: title, threads, repeats, and the runs, ours first."""
    few = max(1, repeats // 3)
    packs: Runs = {
        "pabzip": lambda: pabzip.pack(files.net, io.BytesIO()),
        "torch.save": lambda: torch.save(files.net.state_dict(), io.BytesIO()),
    }
    yield "pack", THREADS[-1], few, packs
    for threads in THREADS:
        yield "load", threads, repeats, _loads(files, threads)
    yield "one tensor", 1, repeats, _single(files)
    yield "unpack, cold process", THREADS[-1], few, _cold(files)
    if torch.cuda.is_available():
        yield "load to the GPU", THREADS[-1], repeats, _gpu(files)


def _loads(files: Files, threads: int) -> Runs:
    """Return every way to have the whole model in memory."""
    drawn = _empty(files, "cpu")

    def decompress() -> object:
        data = zstandard.ZstdDecompressor().decompress(files.compressed.read_bytes())
        return safetensors.numpy.load(data)

    return {
        "pabzip": lambda: pabzip.load_arrays(files.packed, threads=threads),
        "kaiming_normal_": lambda: [nn.init.kaiming_normal_(weight) for weight in drawn],
        "torch.load": lambda: torch.load(files.checkpoint, weights_only=True),
        "safetensors": lambda: safetensors.numpy.load_file(files.plain),
        "safetensors + zstd": decompress,
    }


def _empty(files: Files, device: str) -> list[torch.Tensor]:
    """Return tensors of the shapes of the seeded weights, to draw into."""
    weights = pabzip.seeded_parameters(files.net).values()
    return [torch.empty(weight.shape, device=device) for weight in weights]


def _single(files: Files) -> Runs:
    """Return ways to have the largest tensor alone."""
    parameters = pabzip.seeded_parameters(files.net)
    name = max(parameters, key=lambda name: parameters[name].numel())
    drawn = torch.empty(parameters[name].shape)

    def ours() -> object:
        with pabzip.open(files.packed) as ticket:
            return ticket.weight(name, threads=1)

    def plain() -> object:
        with safetensors.safe_open(files.plain, "np") as file:
            return file.get_tensor(name)

    return {
        "pabzip": ours,
        "kaiming_normal_": lambda: nn.init.kaiming_normal_(drawn),
        "safetensors": plain,
    }


def _cold(files: Files) -> Runs:
    """Return ways from a file to plain safetensors, each a new process."""

    def run(*command: object) -> None:
        subprocess.run([sys.executable, *map(str, command)], check=True, stdout=subprocess.DEVNULL)

    ours = ("-m", "pabzip.cli", "unpack", files.ticket, "-f", "-o", files.target)
    return {
        "pabzip": lambda: run(*ours),
        "torch.load": lambda: run("-c", COLD_TORCH, files.checkpoint, files.target),
    }


def _gpu(files: Files) -> Runs:
    """Return ways to have the whole model on the GPU."""
    drawn = _empty(files, "cuda")
    return {
        "pabzip": lambda: pabzip.load_file(files.packed, device="cuda"),
        "kaiming_normal_": lambda: [nn.init.kaiming_normal_(weight) for weight in drawn],
        "torch.load": lambda: torch.load(files.checkpoint, map_location="cuda", weights_only=True),
        "safetensors": lambda: safetensors.torch.load_file(files.plain, device="cuda"),
    }


def _table(rows: list[dict[str, Any]]) -> str:
    """Return the table for people: seconds, and how many times as long ours takes in brackets."""
    names = list(dict.fromkeys(name for row in rows for name in row["seconds"]))
    cells = []
    for row in rows:
        line = [row["what"], str(row["threads"])]
        for name in names:
            shown = times(row["seconds"][name]) if name in row["seconds"] else ""
            ratio = row["ratios"].get(f"pabzip / {name}")
            line.append(shown if ratio is None else f"{shown} ({ratio:.2f})")
        cells.append(line)
    note = "\nIn brackets: our time as a multiple of the other's.\n"
    return markdown(["what", "threads", *names], cells) + note


if __name__ == "__main__":
    main()

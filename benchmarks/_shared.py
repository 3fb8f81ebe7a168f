"""What the benchmarks share: arguments, fair timing, one table, one JSON file."""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from tqdm import tqdm

RESULTS = Path(__file__).resolve().parent / "results"
"""Where result files go unless ``--results`` says otherwise."""


def parser(description: str | None, *, cache: bool = False) -> argparse.ArgumentParser:
    """Return a parser with the arguments that every benchmark takes.

    ``cache`` adds ``--cache``: SynFlow's masks take minutes to find, so they are kept.
    """
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    result.add_argument("--arch", help="architecture, one of pabzip.models.names()")
    result.add_argument("--keep-ratio", type=float, help="fraction of the weights that survives")
    result.add_argument("--quick", action="store_true", help="a small, rough run of every part")
    result.add_argument("--json", action="store_true", help="print the JSON, not the table")
    result.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    if cache:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base / "pabzip" / "benchmarks"
        result.add_argument("--cache", type=Path, default=folder, help="folder of found masks")
    return result


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Clock = Callable[[Callable[[], object]], float]
"""Returns the seconds that one call takes."""


def clock_arguments(target: argparse.ArgumentParser) -> None:
    """Add ``--threads``, by default torch's own number, and ``--clock``."""
    import torch

    target.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    target.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: the process's own time, for one thread where others compute as well",
    )


class Progress(tqdm):  # type: ignore[misc]
    """A bar on stderr that says what is being done; where that is no terminal, a line per step."""

    def __init__(self, total: int):
        super().__init__(total=total, unit="step", disable=None, leave=False)

    def step(self, what: str) -> None:
        """Say what is done now."""
        self.set_description_str(what)

    def done(self, what: str | None = None) -> None:
        """Count one step as done; ``what`` says what came of it, on a line that stays."""
        self.update()
        if what is not None or self.disable:
            self.write(what or self.desc, file=sys.stderr)


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    clock: Clock | None = None,
) -> dict[str, float]:
    """Return the median seconds of each of several things, timed as `turns` does."""
    taken = turns(runs, repeats, clock=clock)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def turns(
    runs: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    clock: Clock | None = None,
    on_turn: Callable[[], None] | None = None,
) -> dict[str, list[float]]:
    """Time several things in turns (A B C A B C ...), so that a slow moment hits all of them.

    Each runs once untimed first: compilers and caches warm up. ``on_turn`` is called after every
    turn, the untimed one as well. The seconds of each come in the order of the turns.
    """
    clock = clock or clock_by("wall")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn in range(repeats + 1):
            for name, run in runs.items():
                took = clock(run)
                if turn:
                    seconds[name].append(took)
            if on_turn is not None:
                on_turn()
    finally:
        if collecting:
            gc.enable()
    return seconds


def clock_by(name: str, wait: Callable[[], object] = lambda: None) -> Clock:
    """Return one of `CLOCKS`; what a timed call returns is let go of outside of its seconds.

    ``wait`` is called before and at the end of a timed call, for devices that work on their own.
    """

    def clock(run: Callable[[], object]) -> float:
        wait()
        begin = CLOCKS[name]()
        result = run()
        wait()
        took = CLOCKS[name]() - begin
        del result
        return took

    return clock


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads, and as many as before afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine(*packages: str, gpu: str | None = None) -> dict[str, Any]:
    """Return what is worth knowing of where a benchmark ran.

    The versions of ``packages`` matter besides pabzip's, numpy's and numba's.
    """
    wanted = ("pabzip", "numpy", "numba", *packages)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        **({} if gpu is None else {"gpu": gpu}),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in wanted},
    }


def finish(
    name: str,
    arguments: argparse.Namespace,
    title: str,
    table: str,
    result: Mapping[str, Any],
    *packages: str,
    gpu: str | None = None,
) -> None:
    """Write the JSON file, with the machine in front, and print the table or the JSON.

    A quick run writes a file of its own, and so does each GPU. ``packages`` are as for `machine`.
    """
    facts = machine(*packages, gpu=gpu)
    device = "" if gpu is None else "-" + re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    file = f"{name}{device}{'-quick' if arguments.quick else ''}.json"
    arguments.results.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": facts, **result}, indent=1, allow_nan=False) + "\n"
    (arguments.results / file).write_text(text, encoding="utf-8")
    where = gpu or f"{facts['cpu']}, {facts['cores']} cores"
    print(text if arguments.json else f"{title} ({where}, {facts['date']})\n\n{table}", end="")


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, aligned so that it reads well as plain text, too.

    The first column is text, the others are numbers.
    """
    widths = [max(3, *map(len, column)) for column in zip(columns, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return f"| {' | '.join(padded)} |\n"

    dashes = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return line(columns) + line(dashes) + "".join(line(cells) for cells in rows)


def times(value: float) -> str:
    """Return seconds for people, three digits."""
    for unit, each in (("s", 1.0), ("ms", 1e-3)):
        if value >= each:
            return f"{value / each:.3g} {unit}" if value < 1000 else f"{value:.0f} s"
    return f"{value * 1e6:.3g} µs"


def kibibytes(size: float) -> str:
    """Return bytes in KiB, at least three digits."""
    value = size / 1024
    return f"{value:,.1f}" if value >= 10 else f"{value:.2f}"


def _cpu() -> str:
    """Return the processor's name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()

"""A log of JSON lines, one object an epoch."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Sequence
from typing import IO, Any

from pabzip._version import __version__
from pabzip.formats.atomic import naming
from pabzip.registry import register_callback
from pabzip.train.callbacks.base import Callback
from pabzip.train.config import Recipe, to_dict
from pabzip.train.results import EpochStats, StepCosts, TrainResult


@register_callback(
    "json-log",
    help="Write one JSON object an epoch.",
    metavar="FILE.jsonl",
    writes="file",
)
class JsonLog(Callback):
    """A log of one JSON object a line, each written at once, so that a killed run leaves its part.

    The first line has ``event`` ``"start"`` and the recipe; ``"bitops"`` says what a step costs, by
    layer, before the first step and after each later search; then there is one ``"epoch"`` an epoch
    with the numbers of `EpochStats`, and the last, ``"result"``, has those of `TrainResult`. A run
    that is continued appends a line with ``event`` ``"resume"``, the epoch and the steps done in
    it, and the versions of pabzip and torch; lines of what has to be run again are removed first,
    and finished epochs that the log lacks are added, so that each stands there exactly once.

    Args:
        target: path of the file, which is replaced unless the run is continued, or an open text
            stream, which stays open and is only appended to.
    """

    def __init__(self, target: str | os.PathLike[str] | IO[str]):
        self._target = target
        self._file: IO[str] | None = None
        self._past: tuple[Sequence[EpochStats], int] | None = None

    def on_resume(self, history: Sequence[EpochStats], step: int) -> None:
        """Remember where the earlier run stood."""
        self._past = (history, step)

    def on_train_start(self, recipe: Recipe, steps: int) -> None:
        """Open the file and write the recipe, or where an earlier run is continued."""
        header = {"pabzip": __version__, "steps": steps, "recipe": to_dict(recipe)}
        if isinstance(self._target, str | os.PathLike):
            mode = "w" if self._past is None else "a+"
            self._file = open(self._target, mode, encoding="utf-8")  # noqa: SIM115 (see close)
        else:
            self._file = self._target
        if self._past is None:
            self._write("start", header)
            return
        history, step = self._past
        if self._file is not self._target:
            logged = _keep_past(self._file, len(history))
            if logged is None:
                self._write("start", header)
            for stats in history[logged or 0 :]:
                self.on_epoch_end(stats)
        import torch

        self._write(
            "resume",
            {
                "pabzip": __version__,
                "torch": str(torch.__version__),
                "threads": torch.get_num_threads(),
                "epoch": len(history) + 1,
                "step": step,
            },
        )

    def on_costs(self, costs: StepCosts) -> None:
        """Write what a step costs from now on."""
        self._write(
            "bitops",
            {
                "epoch": costs.epoch,
                "bitops": costs.bitops,
                "weights": costs.weights,
                "survivors": costs.survivors,
                "layers": [dataclasses.asdict(layer) for layer in costs.layers],
            },
        )

    def on_epoch_end(self, stats: EpochStats) -> None:
        """Write one epoch."""
        self._write("epoch", stats.to_dict())

    def on_train_end(self, result: TrainResult) -> None:
        """Write the result."""
        self._write("result", result.to_dict())

    def close(self) -> None:
        """Close the file that `on_train_start` opened."""
        if self._file is not None and self._file is not self._target:
            self._file.close()

    def _write(self, event: str, values: dict[str, Any]) -> None:
        """Write one line and flush it."""
        assert self._file is not None
        line = json.dumps({"event": event, **values}, allow_nan=False)
        with naming(getattr(self._file, "name", "the log")):
            self._file.write(f"{line}\n")
            self._file.flush()


def _keep_past(file: IO[str], epochs: int) -> int | None:
    """Cut a log before the first line that is not of the first ``epochs`` epochs.

    Returns:
        How many of these epochs it holds; None for an empty file.

    Raises:
        FileExistsError: it does not begin as a log.
    """
    file.seek(0)
    kept, logged = 0, None
    for line in iter(file.readline, ""):
        event = _event(line) if line.endswith("\n") else {}
        if not kept and event.get("event") != "start":
            raise FileExistsError(errno.EEXIST, "holds no log of a run; name another", file.name)
        match event.get("event"):
            case "start" if logged is None:
                logged = 0
            case "epoch" if logged is not None and logged < epochs:
                logged += 1
            case "bitops" if event.get("epoch", 0) > epochs:
                break  # the run will write it again
            case "bitops" | "resume":
                pass
            case _:
                break
        kept = file.tell()
    file.seek(kept)
    file.truncate()
    return logged


def _event(line: str) -> dict[str, Any]:
    """Return the JSON object of a line, empty when it is none."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}

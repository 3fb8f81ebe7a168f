"""Run a tiny training over and over, each time killed by SIGKILL at a random moment, until it ends.

Usage: killed_runs.py FOLDER SEED KILLS. Torch is imported once; each attempt is a forked child that
a thread of its own kills after a random time. Writes FOLDER/killed.pt and prints one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import torch

from pabzip import data
from pabzip.train import Callback, JsonLog, Recipe, SaveEvery, merge, train

RECIPE = merge(
    Recipe(),
    {
        "arch": "conv2",
        "arch_options": {"width": 4},
        "keep_ratio": 0.5,
        "epochs": 3,
        "batch_size": 100,
        "device": "cpu",
        "search": {"iterations": 5},
    },
)


SPLITS = data.load("digits")


class Killer(Callback):
    """Starts the clock when the search does, and tells how long the run took from there."""

    def __init__(self, seconds: float | None):
        self.seconds = seconds
        self.begun = 0.0

    def on_train_start(self, recipe: Recipe, steps: int) -> None:
        """Start a thread that kills this process after the time given."""
        self.begun = time.monotonic()
        if self.seconds is not None:
            timer = threading.Timer(self.seconds, os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()


def attempt(folder: Path, seconds: float | None) -> int:
    """Train in a child, killed after ``seconds``; return its wait status."""
    child = os.fork()
    if child == 0:
        killer = Killer(seconds)
        train(
            RECIPE,
            output=folder / "killed.pt",
            splits=SPLITS,
            callbacks=[killer, JsonLog(folder / "killed.jsonl")],
            save_every=SaveEvery(steps=2),
            resume=True,
        )
        (folder / "seconds").write_text(str(time.monotonic() - killer.begun))
        os._exit(0)
    return os.waitpid(child, 0)[1]


def main() -> None:
    """Kill, resume, and report how often the state had been saved by then."""
    folder, seed, kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    chance = random.Random(seed)
    (folder / "warm").mkdir()
    assert attempt(folder / "warm", None) == 0
    whole = float((folder / "warm" / "seconds").read_text())
    done = saved = 0
    while done < kills:
        status = attempt(folder, chance.uniform(0.0, 0.5) * whole)
        if status == 0:
            # The machine was slower when the whole run was timed: begin again, and kill sooner.
            whole /= 2
            done = saved = 0
            for name in ("killed.pt", "killed.jsonl"):
                (folder / name).unlink()
            continue
        assert status == signal.SIGKILL, status
        done += 1
        saved += (folder / "killed.pt.progress").exists()
        assert not (folder / "killed.pt").exists()
    assert attempt(folder, None) == 0
    print(json.dumps({"kills": done, "saved": saved}))  # noqa: T201


if __name__ == "__main__":
    main()

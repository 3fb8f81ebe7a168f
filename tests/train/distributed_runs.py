"""One of several processes: train what the arguments say, and print what came of it as JSON.

Usage: distributed_runs.py OUTPUT CHANGES [FAULT], where CHANGES is a JSON object of recipe values,
perhaps with a found ticket's path as "ticket" among them, run by torchrun or with its environment
variables. FAULT makes the last rank go wrong on purpose.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch

from pabzip.errors import PabzError
from pabzip.train import Callback, JsonLog, Recipe, merge, train
from pabzip.train.trainer import Trainer

torch.set_num_threads(1)
LAST = os.environ.get("RANK") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)


def wrong_mask(find: Any) -> Any:
    """Let one rank change its network behind the others' backs."""

    def check(self: Trainer, what: str) -> None:
        if LAST and "search" in what:
            next(iter(self.state.masks.values())).logical_not_()
        find(self, what)

    return check


def main() -> None:
    """Train, and print the results or the error."""
    output, changes = sys.argv[1], json.loads(sys.argv[2])
    fault = sys.argv[3] if len(sys.argv) > 3 else ""
    if fault == "seed" and LAST:
        changes["seed"] = 99
    if fault == "mask":
        Trainer.check_ranks = wrong_mask(Trainer.check_ranks)  # type: ignore[method-assign]
    if fault == "crash" and LAST:
        Trainer._epoch = lambda self: os._exit(9)  # type: ignore[assignment, method-assign]
    ticket = changes.pop("ticket", None)
    recipe = merge(Recipe(device="cpu"), changes)
    interrupt = fault == "interrupt"
    try:
        result = train(
            recipe, output=output, resume=fault != "resume" or not LAST, save_every="3steps",
            ticket=ticket,
            callbacks=[*([Stop()] if interrupt else []), JsonLog(f"{output}.jsonl")],
        )  # fmt: skip
    except (PabzError, KeyboardInterrupt) as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))  # noqa: T201
        sys.exit(4)
    print(json.dumps(result.lasting()))  # noqa: T201


class Stop(Callback):
    """Interrupts the first process at the end of the first epoch."""

    def on_epoch_end(self, stats: Any) -> None:
        if stats.epoch == 1:
            raise KeyboardInterrupt


if __name__ == "__main__":
    main()

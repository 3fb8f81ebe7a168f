"""Run ``pabzip`` commands as a user does, several at a time, and read their JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def pabzip(*arguments: object, threads: int = 1) -> dict[str, Any]:
    """Run one command with ``--json`` and return the object that it prints.

    Args:
        *arguments: of the command, its verb first.
        threads: that torch may use; the result of a training run depends on it.

    Raises:
        RuntimeError: the command failed; the message is what it wrote to stderr.
    """
    command = [sys.executable, "-m", "pabzip.cli", *map(str, arguments), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[3:])}: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def in_parallel(work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int) -> list[Result]:
    """Return what ``work`` makes of each task, in order; at most ``jobs`` run at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(work, tasks))

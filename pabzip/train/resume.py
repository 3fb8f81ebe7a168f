"""Saving the state of a run and resuming it: when it is saved, where, and what may differ."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

import torch

from pabzip.errors import CheckpointError, RecipeError
from pabzip.formats.atomic import open_atomic
from pabzip.train.config import Recipe, comparable
from pabzip.train.distributed import digest
from pabzip.train.settings import Settings, setting


def progress_path(output: str | os.PathLike[str]) -> str:
    """Return the path of the state of a run that is to write ``output``."""
    return f"{os.fspath(output)}.progress"


FORMAT = "pabzip-progress"
VERSION = 1

_WAY_OUT = "remove it and begin again without --resume"
_TYPES: dict[str, type] = {
    "pabzip": str, "torch": str, "threads": int, "device": str, "recipe": dict, "tensors": dict,
    "masks": dict, "optimizers": dict, "precision": dict, "meter": dict, "history": list,
    "searches": int, "step": int, "seconds": float, "epoch_seconds": float,
}  # fmt: skip


class ProgressFile:
    """The file ``<output>.progress``: written whole or not at all, removed once the run is over.

    It is what ``torch.save`` makes of plain values and tensors, and is read by torch's safe reader
    alone. A SHA-256 over all of it finds damage that still unpickles.

    Args:
        output: the run's output; the file lies beside it, also where ``output`` is a link.
    """

    def __init__(self, output: str | os.PathLike[str]):
        self.path = progress_path(output)

    def exists(self) -> bool:
        """Whether there is an unfinished run."""
        return os.path.lexists(self.path)

    def write(self, content: Mapping[str, Any]) -> None:
        """Replace the state by ``content``: nested plain values and tensors, these go to the CPU.

        Raises:
            OSError: the file cannot be written; the old one is as it was.
        """
        plain = _on_cpu(dict(content))
        whole = {"format": FORMAT, "version": VERSION, "sha256": digest(plain), "content": plain}
        with open_atomic(self.path) as file:
            torch.save(whole, file)

    def read(self) -> dict[str, Any]:
        """Return the state, tensors on the CPU.

        Raises:
            CheckpointError: the file is damaged, is something else, or is newer than this pabzip.
            OSError: it cannot be opened.
        """
        with open(self.path, "rb") as file:
            try:
                whole = torch.load(file, weights_only=True, map_location="cpu")
            except Exception as error:
                # torch's own message recommends to load without the protection: not repeated.
                raise CheckpointError(
                    f"{self.path}: expected the state of an unfinished run, found a damaged file "
                    f"or none of pabzip's ({type(error).__name__}); {_WAY_OUT}"
                ) from None
        if not isinstance(whole, dict) or whole.get("format") != FORMAT:
            raise CheckpointError(
                f"{self.path}: expected the state of an unfinished run, found something else; "
                f"{_WAY_OUT}"
            )
        if whole.get("version") != VERSION:
            raise CheckpointError(
                f"{self.path}: version: expected {VERSION}, found {whole.get('version')!r}; "
                "continue with the pabzip that began the run"
            )
        content = whole.get("content")
        if not isinstance(content, dict) or whole.get("sha256") != digest(content):
            raise CheckpointError(
                f"{self.path}: expected content with the SHA-256 that was saved with it, found "
                f"another: the file is damaged; {_WAY_OUT}"
            )
        for key, kind in _TYPES.items():
            if not isinstance(content.get(key), kind):
                raise CheckpointError(
                    f"{self.path}: {key}: expected a value, found {type(content.get(key)).__name__}"
                    f"; {_WAY_OUT}"
                )
        return content

    def remove(self) -> None:
        """Remove the file, if there is one."""
        if self.exists():
            os.unlink(self.path)


def _on_cpu(value: Any) -> Any:
    """Return nested values with detached tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _on_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_cpu(item) for item in value)
    return value


_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(steps?|epochs?|min|minutes?)")
_UNITS = {"s": "steps", "e": "epochs", "m": "minutes"}


class SaveEvery(Settings, table="save_every"):
    """How often a run saves its state; it is saved when any of these is due.

    Raises:
        RecipeError: a value out of range.
    """

    steps: int | None = setting(None, "Steps between saves; None: they do not matter.", ge=1)
    epochs: int | None = setting(None, "Epochs between saves; None: they do not matter.", ge=1)
    minutes: float | None = setting(None, "Minutes since the last save; None: no matter.", gt=0)

    @classmethod
    def parse(cls, text: str) -> SaveEvery:
        """Read such as ``10min``, ``500 steps``, ``1 epoch``, or several: ``1epoch,10min``.

        Raises:
            RecipeError: it is none of these.
        """
        found: dict[str, float] = {}
        for part in text.lower().split(","):
            match = _PART.fullmatch(part.strip())
            unit = "" if match is None else _UNITS[match[2][0]]
            if match is None or unit in found or ("." in match[1] and unit != "minutes"):
                raise RecipeError(
                    f"save_every: expected such as 10min, 500steps, 1epoch or 1epoch,10min, "
                    f"found {text!r}"
                )
            found[unit] = float(match[1]) if unit == "minutes" else int(match[1])
        return cls(**found)  # type: ignore[arg-type]


class Cadence:
    """Says when a save is due.

    Args:
        every: how often; None: never.
        clock: the time in seconds; another one for tests.
    """

    def __init__(self, every: SaveEvery | None, clock: Callable[[], float] = monotonic):
        self._every = every
        self._clock = clock
        self._saved = clock()
        self._steps = 0
        self._epochs = 0

    def step_due(self) -> bool:
        """Count a step and say whether to save after it."""
        self._steps += 1
        return self._due()

    def epoch_due(self) -> bool:
        """Count an epoch and say whether to save after it."""
        self._epochs += 1
        return self._due()

    def saved(self) -> None:
        """Begin to count again."""
        self._saved = self._clock()
        self._steps = self._epochs = 0

    def _due(self) -> bool:
        """Say whether enough of anything has gone by since the last save."""
        every = self._every
        if every is None:
            return False
        return (
            (every.steps is not None and self._steps >= every.steps)
            or (every.epochs is not None and self._epochs >= every.epochs)
            or (every.minutes is not None and self._clock() - self._saved >= 60 * every.minutes)
        )


class Keeper:
    """Saves the state of a run beside its output, on the first process alone.

    Args:
        output: the run's output.
        every: how often; None: never.
        writes: whether this process is the one that writes.
    """

    def __init__(self, output: str | os.PathLike[str], every: SaveEvery | None, *, writes: bool):
        self._file = ProgressFile(output)
        self._cadence = Cadence(every)
        self._first = writes
        self._writes = writes and every is not None
        self._kept: str | None = None

    @property
    def path(self) -> str:
        """Path of the file that holds the state."""
        return self._file.path

    def found(self) -> dict[str, Any] | None:
        """Return the state that an earlier run left; None when there is none.

        Raises:
            CheckpointError: there is one, and it is damaged.
        """
        if not self._file.exists():
            return None
        state = self._file.read()
        self._kept = _where(state)
        return state

    def step_due(self) -> bool:
        """Count a step and say whether to save after it."""
        return self._cadence.step_due()

    def epoch_due(self) -> bool:
        """Count an epoch and say whether to save after it."""
        return self._cadence.epoch_due()

    def save(self, state: Callable[[], Mapping[str, Any]]) -> None:
        """Save what ``state`` returns, if this run saves at all.

        Raises:
            OSError: it cannot be written; what was saved before stays.
        """
        if self._writes:
            values = state()
            self._file.write(values)
            self._kept = _where(values)
        self._cadence.saved()

    def remove(self) -> None:
        """Remove the state: the output is complete."""
        self._file.remove()

    def remains(self) -> str:
        """Say what a run that fails now leaves; the first process knows."""
        if not self._first:
            return "rank 0 says what is kept"
        if self._kept is None:
            return "nothing was written"
        return f"the state after {self._kept} is kept in {self.path}"


def _where(state: Mapping[str, Any]) -> str:
    """Say where a state stands, for people."""
    epochs, step = len(state["history"]), state["step"]
    if step:
        return f"epoch {epochs + 1}, step {step}"
    return f"epoch {epochs}" if epochs else "the search"


def surroundings(device: torch.device) -> dict[str, Any]:
    """Return what decides the last bits of a result besides the recipe."""
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "device": device.type,
    }


def check_resumption(
    saved: Mapping[str, Any], recipe: Recipe, device: torch.device, place: str
) -> None:
    """Refuse to continue with another recipe; warn of other surroundings.

    Args:
        saved: what `ProgressFile.read` returned.
        recipe: the present one.
        device: the present one.
        place: the file's name, for messages.

    Raises:
        RecipeError: the recipes differ; the message shows each difference.
    """
    before, now = comparable(saved["recipe"]), comparable(recipe)
    differences = [
        f"{key} = {before.get(key)!r} then and {now.get(key)!r} now"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    if differences:
        raise RecipeError(
            f"{place}: expected the recipe that the run was begun with, found another: "
            f"{'; '.join(differences)}. Continue with the old values, or begin again without "
            "--resume"
        )
    for key, value in surroundings(device).items():
        if saved[key] != value:
            warnings.warn(
                f"{place}: {key} was {saved[key]} when the state was saved and is {value} now; "
                "the run goes on, but its last bits may differ from an uninterrupted one's",
                stacklevel=2,
            )

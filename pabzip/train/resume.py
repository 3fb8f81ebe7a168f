"""The state of a run: what it is, when and where it is saved, and what may differ on resume."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from time import monotonic, perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from pabzip._version import __version__
from pabzip.errors import CheckpointError, RecipeError
from pabzip.formats.atomic import open_atomic
from pabzip.train.config import Recipe, comparable, to_dict
from pabzip.train.distributed import digest
from pabzip.train.optimizers import Optimizers
from pabzip.train.precision import Precision
from pabzip.train.results import EpochStats
from pabzip.train.settings import Settings, setting
from pabzip.train.step import EpochMetrics


@dataclass
class RunState:
    """All that changes during a run. What it draws at random depends on this alone.

    Attributes:
        masks: bool tensors by name of the seeded weight, True for a survivor; all True before the
            first search.
        begun: when the run began, by ``perf_counter``; a pause before a resume does not count.
        history: the finished epochs.
        step: steps done in the epoch after them, dropped ones included.
        rewind: parameters and buffers that later rounds of pruning go back to, by name.
    """

    net: nn.Module
    masks: dict[str, Tensor]
    optimizers: Optimizers
    precision: Precision
    metrics: EpochMetrics
    begun: float
    epoch_begun: float
    history: list[EpochStats] = field(default_factory=list)
    step: int = 0
    searches: int = 0
    rewind: dict[str, Tensor] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """The epoch that is under way, counted from 1."""
        return len(self.history) + 1

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield parameters and buffers by name, also buffers that no checkpoint holds."""
        yield from self.net.named_parameters()
        yield from self.net.named_buffers()

    def state_dict(self) -> dict[str, Any]:
        """Return it as nested plain values and tensors: the run's own tensors, not copies."""
        return {
            "tensors": dict(self.tensors()),
            "masks": self.masks,
            "optimizers": self.optimizers.state_dict(),
            "precision": self.precision.state_dict(),
            "metrics": self.metrics.state_dict(),
            "history": [stats.to_dict() for stats in self.history],
            "step": self.step,
            "searches": self.searches,
            "rewind": self.rewind,
            "seconds": perf_counter() - self.begun,
            "epoch_seconds": perf_counter() - self.epoch_begun,
        }

    def load_state_dict(self, state: Mapping[str, Any], place: str) -> None:
        """Restore a `state_dict`, to the bit; ``place`` is the file's name, for messages."""
        try:
            _copy(state["tensors"], dict(self.tensors()))
            _copy(state["masks"], self.masks)
            if state["searches"]:
                self.optimizers.prune(self.masks)
            self.optimizers.load_state_dict(state["optimizers"])
            self.precision.load_state_dict(state["precision"])
            self.history = [EpochStats(**stats) for stats in state["history"]]
            self.step, self.searches = state["step"], state["searches"]
            device = next(iter(self.masks.values())).device
            self.rewind = {name: value.to(device) for name, value in state["rewind"].items()}
            self.metrics = EpochMetrics(self.epoch, device)
            self.metrics.load_state_dict(state["metrics"])
            self.begun = perf_counter() - state["seconds"]
            self.epoch_begun = perf_counter() - state["epoch_seconds"]
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
            raise CheckpointError(
                f"{place}: expected the state of a run with this recipe, found {error}; remove it "
                "and begin again without --resume"
            ) from error


def _copy(saved: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into those of the same names, shapes and dtypes."""
    if list(tensors) != list(saved):
        raise ValueError(f"tensors called {', '.join(list(saved)[:3])}, ...")
    for name, tensor in tensors.items():
        value = saved[name]
        if tensor.shape != value.shape or tensor.dtype != value.dtype:
            raise ValueError(f"{name} as {value.dtype} of shape {tuple(value.shape)}")
        with torch.no_grad():
            tensor.copy_(value)


def progress_path(output: str | os.PathLike[str]) -> str:
    """Return the path of the state of a run that is to write ``output``."""
    return f"{os.fspath(output)}.progress"


FORMAT = "pabzip-progress"
VERSION = 2

_TYPES: dict[str, type] = {
    "pabzip": str, "torch": str, "threads": int, "device": str, "recipe": dict, "ticket": str,
    "tensors": dict, "masks": dict, "optimizers": dict, "precision": dict, "metrics": dict,
    "history": list, "rewind": dict, "searches": int, "step": int, "seconds": float,
    "epoch_seconds": float,
}  # fmt: skip


class RunStateFile:
    """The file ``<output>.progress``: written whole or not at all, removed once the run is over.

    It is what ``torch.save`` makes of plain values and tensors, and is read by torch's safe reader
    alone. A SHA-256 over all of it finds damage that still unpickles.

    Args:
        output: the run's output; the file lies beside it, also where ``output`` is a link.
    """

    def __init__(self, output: str | os.PathLike[str]):
        self.path = progress_path(output)
        self._follows: str | None = None

    def write(self, state: Mapping[str, Any]) -> None:
        """Replace what is saved by ``state``: nested plain values and tensors."""
        plain = _on_cpu(dict(state))
        whole = {"format": FORMAT, "version": VERSION, "sha256": digest(plain), "content": plain}
        with open_atomic(self.path) as file:
            torch.save(whole, file)
        self._follows = _stage(state)

    def read(self) -> dict[str, Any] | None:
        """Return the state, tensors on the CPU; None where there is no unfinished run."""
        if not os.path.lexists(self.path):
            return None
        with open(self.path, "rb") as file:
            try:
                whole = torch.load(file, weights_only=True, map_location="cpu")
            except Exception as error:
                # torch's own message recommends to load without the protection: not repeated.
                found = f"a damaged file or none of pabzip's ({type(error).__name__})"
                raise self._refused("the state of an unfinished run", found) from None
        if not isinstance(whole, dict) or whole.get("format") != FORMAT:
            raise self._refused("the state of an unfinished run", "something else")
        if whole.get("version") != VERSION:
            raise CheckpointError(
                f"{self.path}: version: expected {VERSION}, found {whole.get('version')!r}; "
                "continue with the pabzip that began the run"
            )
        content = whole.get("content")
        if not isinstance(content, dict) or whole.get("sha256") != digest(content):
            expected = "content with the SHA-256 that was saved with it"
            raise self._refused(expected, "another: the file is damaged")
        for key, kind in _TYPES.items():
            if not isinstance(content.get(key), kind):
                raise self._refused(f"a value of {key}", type(content.get(key)).__name__)
        self._follows = _stage(content)
        return content

    def _refused(self, expected: str, found: str) -> CheckpointError:
        """Return the error for a file that no run can go on from."""
        return CheckpointError(
            f"{self.path}: expected {expected}, found {found}; remove it and begin again without "
            "--resume"
        )

    def remove(self) -> None:
        """Remove the file, if there is one."""
        if os.path.lexists(self.path):
            os.unlink(self.path)

    def left(self) -> str:
        """Return what a run that fails now leaves, for messages."""
        if self._follows is None:
            return "nothing was written"
        return f"the state after {self._follows} is kept in {self.path}"


def _on_cpu(value: Any) -> Any:
    """Return nested values with detached tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _on_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_cpu(item) for item in value)
    return value


def _stage(state: Mapping[str, Any]) -> str:
    """Return what a state follows, such as ``"epoch 3, step 20"``, for messages."""
    epochs, step = len(state["history"]), state["step"]
    if step:
        return f"epoch {epochs + 1}, step {step}"
    return f"epoch {epochs}" if epochs else "the search"


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


class SaveSchedule:
    """Says when a save is due: never, where ``every`` is None."""

    def __init__(self, every: SaveEvery | None):
        self._every = every
        self.saved()

    def step_due(self) -> bool:
        """Count a step and say whether to save after it."""
        self._steps += 1
        return self._due()

    def epoch_due(self) -> bool:
        """Count an epoch and say whether to save after it."""
        self._epochs += 1
        return self._due()

    def saved(self) -> None:
        """Start counting anew."""
        self._saved = monotonic()
        self._steps = self._epochs = 0

    def _due(self) -> bool:
        """Say whether enough of anything has gone by since the last save."""
        minutes = (monotonic() - self._saved) / 60
        done = {"steps": self._steps, "epochs": self._epochs, "minutes": minutes}
        limits = dict(self._every or ())
        return any(limit is not None and done[unit] >= limit for unit, limit in limits.items())


def origin(recipe: Recipe, device: torch.device, ticket: str = "") -> dict[str, Any]:
    """Return what decides a result to the last bit: it is saved with the state of a run.

    ``ticket`` is the digest of the ticket that the run was given; empty for none.
    """
    return {
        "pabzip": __version__,
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "recipe": to_dict(recipe),
        "ticket": ticket,
    }


def check_resume(
    saved: Mapping[str, Any], recipe: Recipe, device: torch.device, place: str, ticket: str = ""
) -> None:
    """Refuse to continue with another recipe or ticket; warn of another torch or device.

    ``saved`` is from `RunStateFile.read`, ``place`` is the file's name, for messages, and
    ``ticket`` is the digest of the ticket that there is now, as for `origin`. Another number of
    threads is warned of, too.
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
    if saved["ticket"] != ticket:
        then = "the ticket that the run was begun with" if saved["ticket"] else "no ticket"
        given = "another one" if ticket and saved["ticket"] else "one" if ticket else "none"
        raise RecipeError(
            f"{place}: expected {then}, found {given}. Continue as the run was begun, or begin "
            "again without --resume"
        )
    here = origin(recipe, device)
    for key in ("torch", "threads", "device"):
        if saved[key] != here[key]:
            warnings.warn(
                f"{place}: {key} was {saved[key]} when the state was saved and is {here[key]} now; "
                "the run goes on, but its last bits may differ from an uninterrupted one's",
                stacklevel=2,
            )

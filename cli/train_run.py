"""The flags of ``pabzip train`` that say how a run is watched, kept and continued."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pabzip.cli.files import STANDARD, check_output, is_stream
from pabzip.cli.output import Reporter, one_line, write_text
from pabzip.train.progress_file_name import progress_path

if TYPE_CHECKING:
    from pabzip.train.observers import Observer

Command = TypeVar("Command", bound=Callable[..., Any])

_SAVE_EVERY = "10min"

_OPTIONS = (
    click.option("--log", metavar="FILE.jsonl", help="Write one JSON object an epoch."),
    click.option("--curves", metavar="FILE.png", help="Draw loss, accuracy, flips and bytes."),
    click.option("--tensorboard", metavar="DIR", help="Write event files for TensorBoard."),
    click.option(
        "--save-every",
        metavar="WHEN",
        help="Save the state beside the output: 10min, 500steps, 1epoch, several with commas, or "
        f"never. [{_SAVE_EVERY}]",
    ),
    click.option(
        "--search-only", is_flag=True, help="Write the ticket that the search finds, untrained."
    ),
    click.option("--ticket", metavar="FILE.pt", help="Train such a ticket instead of searching."),
    click.option("--resume", is_flag=True, help="Continue from the saved state, if there is one."),
)


def run_flags(command: Command) -> Command:
    """Add the flags; the command receives them as keyword arguments that `RunFlags` holds."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class RunFlags:
    """The flags' values.

    Attributes:
        output: path of the checkpoint.
        log: path of the JSON log, or None.
        curves: path of the picture, or None.
        tensorboard: folder of the event files, or None.
        save_every: how often the state is saved, or None for the default.
        resume: continue an earlier run.
        search_only: do not train.
        ticket: path of a ticket that was found before, or None.
    """

    output: str
    log: str | None
    curves: str | None
    tensorboard: str | None
    save_every: str | None
    resume: bool
    search_only: bool
    ticket: str | None

    def check(self, *, force: bool, inputs: list[str]) -> None:
        """Refuse outputs before training, not after it.

        Raises:
            OSError: an output is in the way, or an unfinished run's state.
            click.UsageError: an output is ``-``.
        """
        if STANDARD in (self.output, self.log, self.curves, self.tensorboard):
            raise click.UsageError("a training run writes files; name them, '-' will not do")
        if self.curves is not None and not self.curves.lower().endswith(".png"):
            raise click.UsageError(
                f"--curves: expected a name that ends in .png, found {self.curves!r}; the picture "
                "is a PNG"
            )
        if self.search_only:
            self._check_search_only()
        if self.ticket is not None:
            inputs = [*inputs, self.ticket]
        check_output(self.output, force=force, inputs=inputs)
        taken = [*inputs, self.output]
        state = progress_path(self.output)
        continued = self.resume and os.path.lexists(state)
        for extra in (self.log, self.curves):
            if extra is not None:
                check_output(extra, force=force or continued, inputs=taken)
                taken.append(extra)
        if os.path.lexists(state) and not (self.resume or force):
            raise FileExistsError(
                errno.EEXIST,
                "holds the state of an unfinished run; continue it with --resume, or discard it "
                "with -f/--force",
                state,
            )

    def _check_search_only(self) -> None:
        """Refuse flags that a search would not heed."""
        given = {
            "--log": self.log,
            "--curves": self.curves,
            "--tensorboard": self.tensorboard,
            "--save-every": self.save_every,
            "--ticket": self.ticket,
            "--resume": self.resume or None,
        }
        for flag, value in given.items():
            if value is not None:
                raise click.UsageError(f"{flag} is for training, which --search-only leaves out")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise click.UsageError(
                "--search-only is for one process; run it without torchrun, then train by torchrun "
                "with --ticket"
            )

    def saving(self) -> str | None:
        """Return how often to save; None for never, which is the default for a device or pipe."""
        if self.save_every is None:
            return None if is_stream(self.output) else _SAVE_EVERY
        return None if self.save_every == "never" else self.save_every

    def observers(self, reporter: Reporter) -> list[Observer]:
        """Return those that were asked for."""
        from pabzip.cli.train_costs import CostRemark
        from pabzip.train.observers import Curves, ProgressBar, TensorBoard

        found: list[Observer] = [ProgressBar()] if reporter.progress else []
        if reporter.progress or (reporter.verbose and not reporter.quiet):
            found.append(CostRemark(layers=reporter.verbose > 0))
        if self.tensorboard is not None:
            found.append(TensorBoard(self.tensorboard))
        if self.curves is not None:
            found.append(Curves(self.curves))
        return found

    @contextmanager
    def told(self, reporter: Reporter) -> Iterator[None]:
        """Show warnings as one line each, and after Ctrl-C how to continue."""
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_: remark(reporter, str(message))
            try:
                yield
            except KeyboardInterrupt:
                state = progress_path(self.output)
                if os.path.lexists(state):
                    remark(reporter, f"the last state is kept in {state}; --resume continues it")
                raise


def first_process() -> bool:
    """Whether this process is the one of torchrun's that reports, or the only one."""
    return "WORLD_SIZE" not in os.environ or os.environ.get("RANK", "0") == "0"


def remark(reporter: Reporter, text: str) -> None:
    """Write a remark to stderr, unless quiet was asked for."""
    if not reporter.quiet and first_process():
        write_text(f"pabzip: {one_line(text)}\n", to_stderr=True)

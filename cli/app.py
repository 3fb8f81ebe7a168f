"""The `pabzip` command: a group that imports its subcommands when they are asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from pabzip._version import __version__
from pabzip.cli._output import Verbosity, report

# The summaries stand here so that ``pabzip --help`` imports none of the commands.
_COMMANDS = {
    "train": "Train a ticket: search its mask, learn its signs; writes model.pt.",
    "pack": "Pack a checkpoint into a .pabz file.",
    "unpack": "Regenerate the weights as .safetensors, .npz or .pt.",
    "info": "Show what a .pabz file holds.",
    "verify": "Regenerate every weight and compare the SHA-256.",
    "eval": "Measure accuracy and loss on test or validation images.",
    "export": "Write a dense ONNX file, checked against torch.",
    "bench": "Count what a step costs, check tickets; more with --help.",
}

_HELP = """\
Neural networks as seeds: train a ticket, pack it into a few kilobytes, run it anywhere.

The short way, on the handwritten digits that come with scikit-learn:

\b
  pabzip train                  trains a small network, writes model.pt
  pabzip pack model.pt          writes model.pabz
  pabzip info model.pabz        shows what is in it
  pabzip verify model.pabz      regenerates every weight, compares the SHA-256
  pabzip eval model.pabz        measures its accuracy
  pabzip unpack model.pabz      writes model.safetensors
  pabzip export model.pabz      writes model.onnx

Exit codes: 0 done, 1 failed, 2 usage, 3 corrupt or untrusted file, 4 training failed,
130 interrupted.

\b
Shell completion, for the shell's start-up file:
  bash  eval "$(_PABZIP_COMPLETE=bash_source pabzip)"
  zsh   eval "$(_PABZIP_COMPLETE=zsh_source pabzip)"
  fish  _PABZIP_COMPLETE=fish_source pabzip | source
"""


class PabzipGroup(click.Group):
    """The group that imports a subcommand on use, and owns the process's exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the subcommands in the order of the help."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the subcommand's module and return its ``command``; None for an unknown name."""
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"pabzip.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run the command line and exit; every error becomes one message and one exit code.

        The program is called ``pabzip``, as ``python -m pabzip.cli`` is, whatever ``prog_name`` is.
        """
        del prog_name
        verbosity = Verbosity()
        extra["standalone_mode"] = False
        try:
            code = super().main(args, "pabzip", obj=verbosity, **extra)
        except (Exception, KeyboardInterrupt) as error:
            code = report(error, verbosity)
        sys.exit(code)


@click.group(
    cls=PabzipGroup,
    help=_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="pabzip", message="%(prog)s %(version)s")
def main() -> None:
    """Run the subcommand that was named."""

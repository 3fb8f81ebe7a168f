"""The group: help, version, usage errors, laziness, completion."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import click
import pytest

import pabzip
from pabzip.cli.app import _COMMANDS
from pabzip.cli.app import main as group


def test_version(run):
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"pabzip {pabzip.__version__}\n")


def test_help_lists_every_command_and_how_to_complete(run):
    result = run("--help")
    assert result.exit_code == 0
    for name in ("train", "pack", "unpack", "info", "verify", "eval", "export", "bench"):
        assert f"\n  {name} " in result.stdout
    assert "_PABZIP_COMPLETE=bash_source pabzip" in result.stdout
    assert "130 interrupted" in result.stdout.replace("\n  ", " ")


@pytest.mark.parametrize("name", list(_COMMANDS))
def test_every_command_has_help_for_all_it_takes(run, name):
    result = run(name, "--help")
    assert result.exit_code == 0, result.stderr
    command = group.get_command(click.Context(group), name)
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert parameter.opts[0] in result.stdout


def test_no_command_shows_the_help_as_a_usage_error(run):
    result = run()
    assert result.exit_code == 2
    assert "Commands:" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments", [("frobnicate",), ("info",), ("info", "a", "b"), ("info", "a", "--frob")]
)
def test_usage_errors_exit_2_with_one_message(run, arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("pabzip: error: ")
    assert "--help'." in result.stderr


def test_importing_the_command_line_is_light():
    script = (
        "import sys, pabzip.cli\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numba', 'numpy', 'rich', 'tqdm'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout == "[]\n"


@pytest.mark.parametrize("name", ["train", "info", "verify", "unpack", "pack", "eval", "export"])
def test_help_of_a_command_needs_no_torch(name):
    script = (
        "import sys\n"
        "from pabzip.cli import main\n"
        "try:\n"
        f"    main(['{name}', '--help'])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "assert not {'torch', 'onnx', 'onnxruntime'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)


def test_shell_completion_answers():
    environment = {
        **os.environ,
        "_PABZIP_COMPLETE": "bash_complete",
        "COMP_WORDS": "pabzip un",
        "COMP_CWORD": "1",
    }
    found = subprocess.run(
        [sys.executable, "-m", "pabzip.cli"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "unpack" in found.stdout


def test_the_console_entry_is_the_group():
    assert importlib.import_module("pabzip.cli").main is group

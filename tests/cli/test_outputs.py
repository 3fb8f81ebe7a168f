"""Output files of the commands: what is refused, replaced, or cleaned up after a failure."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

import pytest

WRITERS = [
    ("pack", "model.pt", "model.pabz"),
    ("unpack", "model.pabz", "model.safetensors"),
    ("export", "model.pabz", "model.onnx"),
]
QUICK = WRITERS[:2]


@pytest.mark.parametrize(("command", "source", "target"), WRITERS)
def test_an_existing_output_needs_force(project, run, command, source, target):
    (project.folder / target).write_bytes(b"old")
    before = project.files()
    result = run(command, source)
    assert result.exit_code == 1
    assert result.stderr == (
        f"pabzip: error: {target}: exists already; replace it with -f/--force, or name another "
        "with -o\n"
    )
    assert (project.folder / target).read_bytes() == b"old"
    assert project.files() == before


@pytest.mark.parametrize(("command", "source", "target"), QUICK)
def test_force_replaces(project, run, command, source, target):
    (project.folder / target).write_bytes(b"old")
    assert run(command, source, "--force").exit_code == 0
    assert (project.folder / target).read_bytes() != b"old"


def test_train_refuses_an_existing_checkpoint_before_it_begins(project, run, monkeypatch):
    import pabzip.train.run

    monkeypatch.setattr(pabzip.train.run, "train", lambda *a, **k: pytest.fail("trained"))
    result = run("train")
    assert result.exit_code == 1
    assert "model.pt: exists already" in result.stderr


@pytest.mark.parametrize(("command", "source", "_"), WRITERS)
@pytest.mark.parametrize("kind", ["same", "dotted", "symlink", "hardlink"])
def test_the_input_is_never_the_output(project, run, command, source, _, kind):
    before = (project.folder / source).read_bytes()
    name = {"same": source, "dotted": f"./{source}"}.get(kind, "other.pt")
    if kind == "symlink":
        os.symlink(source, project.folder / name)
    if kind == "hardlink":
        os.link(project.folder / source, project.folder / name)
    for flags in ((), ("--force",)):
        result = run(command, source, "-o", name, *flags)
        assert result.exit_code == 1
        assert f"is the input {source} itself" in result.stderr
    assert (project.folder / source).read_bytes() == before


def test_a_symlinked_output_stays_a_link(project, run):
    real = project.folder / "real.pabz"
    real.write_bytes(b"old")
    link = project.folder / "link.pabz"
    os.symlink("real.pabz", link)
    assert run("pack", "model.pt", "-o", "link.pabz").exit_code == 1
    assert run("pack", "model.pt", "-o", "link.pabz", "--force").exit_code == 0
    assert link.is_symlink()
    assert run("verify", "real.pabz").exit_code == 0


@pytest.mark.parametrize(("command", "source", "_"), WRITERS)
def test_a_directory_is_no_output(project, run, command, source, _):
    (project.folder / "folder").mkdir()
    result = run(command, source, "-o", "folder", "--force")
    assert result.exit_code == 1
    assert "folder: is a directory; name a file in it" in result.stderr


@pytest.mark.parametrize(("command", "source", "target"), WRITERS)
def test_a_missing_folder_is_named(project, run, command, source, target):
    result = run(command, source, "-o", f"missing/{target}")
    assert result.exit_code == 1
    assert "there is no folder" in result.stderr
    assert "missing" in result.stderr


def without_privileges() -> None:
    """Drop root's right to write anywhere, between fork and exec."""
    drop, override, search = 24, 1, 2  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    libc = ctypes.CDLL(None)
    for capability in (override, search):
        libc.prctl(drop, capability, 0, 0, 0)


@pytest.mark.parametrize(("command", "source", "target"), QUICK)
def test_a_read_only_folder_is_named(project, spawn, command, source, target):
    closed = project.folder / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    result = spawn(command, source, "-o", f"closed/{target}", preexec_fn=without_privileges)
    assert result.returncode == 1, result.stderr
    assert b"read-only" in result.stderr
    assert list(closed.iterdir()) == []


@pytest.mark.parametrize("command", ["info", "verify", "unpack", "pack", "eval", "export"])
def test_a_missing_input_is_named(project, run, command):
    source = "missing.pt" if command == "pack" else "missing.pabz"
    result = run(command, source)
    assert result.exit_code == 1
    assert result.stderr == f"pabzip: error: {source}: No such file or directory\n"


@pytest.mark.parametrize("command", ["info", "verify", "unpack", "pack"])
def test_a_directory_is_no_input(project, run, command):
    (project.folder / "folder").mkdir()
    result = run(command, "folder")
    assert result.exit_code == 1
    assert "folder: " in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("pack", "model.pt", "-o", "/dev/full"),
        ("unpack", "model.pabz", "-o", "/dev/full", "--format", "npz"),
        ("unpack", "model.pabz", "-o", "-"),
    ],
)
def test_a_full_disk_leaves_nothing(project, spawn, arguments):
    before = project.files()
    with open("/dev/full", "wb") as full:
        result = spawn(*arguments, stdout=full)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert b"No space left on device" in result.stderr
    assert project.files() == before
    assert not os.path.isfile("/dev/full")


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_result_that_cannot_be_printed_exits_1(project, spawn, flags):
    with open("/dev/full", "wb") as full:
        result = spawn("info", "model.pabz", *flags, stdout=full)
    assert result.returncode == 1
    assert result.stderr == b"pabzip: error: <stdout>: No space left on device\n"


def test_a_write_that_fails_removes_the_temporary(project, run, monkeypatch):
    import errno

    from pabzip.packing import unpack

    def fail(tensors, values, file, **options):
        file.write(b"a part")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setitem(unpack.FORMATS, "npz", fail)
    (project.folder / "model.npz").write_bytes(b"old")
    before = project.files()
    result = run("unpack", "model.pabz", "-o", "model.npz", "--force")
    assert result.exit_code == 1
    assert result.stderr == "pabzip: error: model.npz: No space left on device\n"
    assert project.files() == before
    assert (project.folder / "model.npz").read_bytes() == b"old"


@pytest.mark.parametrize(
    "arguments", [("info", "model.pabz"), ("unpack", "model.pabz", "-o", "-"), ("--help",)]
)
def test_a_closed_pipe_is_quiet(project, spawn, arguments):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = spawn(*arguments, stdout=writer)
    finally:
        os.close(writer)
    assert result.stderr == b""
    assert result.returncode == 1


def test_a_device_is_written_directly(project, run):
    result = run("unpack", "model.pabz", "-o", "/dev/null", "--format", "npz")
    assert result.exit_code == 0, result.stderr
    assert not os.path.isfile("/dev/null")


def test_a_pipe_is_read_to_its_end(project, spawn):
    piped = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m pabzip.cli info <(cat model.pabz) --json"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout == spawn("info", "model.pabz", "--json").stdout


SLOW_TRAINING = ("train", "-o", "new.pt", "--epochs", "5000", "--log", "new.jsonl")


def test_ctrl_c_exits_130_and_leaves_the_last_state_alone(project):
    """Interrupted once training is under way, which the log shows."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pabzip.cli", *SLOW_TRAINING],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # A test run in the background may ignore the signal, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        log = project.folder / "new.jsonl"
        deadline = time.monotonic() + 100
        while not (log.exists() and log.read_text().count("\n") >= 2):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert stdout == b""
    assert stderr.decode().split("\n")[:2] == [
        "pabzip: the last state is kept in new.pt.progress; --resume continues it",
        "",
    ]
    assert stderr.endswith(b"\npabzip: error: interrupted\n")
    assert project.files() == {"model.pt", "model.pabz", "new.jsonl", "new.pt.progress"}


def test_ctrl_c_while_writing_leaves_nothing(project, run, monkeypatch):
    from pabzip.packing import unpack

    def interrupt(tensors, values, file, **options):
        file.write(b"a part")
        raise KeyboardInterrupt

    monkeypatch.setitem(unpack.FORMATS, "npz", interrupt)
    before = project.files()
    result = run("unpack", "model.pabz", "-o", "model.npz")
    assert result.exit_code == 130
    assert result.stderr.strip() == "pabzip: error: interrupted"
    assert project.files() == before


def test_a_killed_runs_temporary_is_cleaned_by_the_next(project, run, monkeypatch):
    from pabzip.formats.atomic import SUFFIX

    stale = project.folder / f".model.npz.1.abcdef{SUFFIX}"
    stale.write_bytes(b"a part")
    assert run("unpack", "model.pabz", "-o", "model.npz").exit_code == 0
    assert not stale.exists()

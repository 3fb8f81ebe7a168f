"""Damaged and hostile files at the command line: exit 3, one message, nothing left behind."""

from __future__ import annotations

import pickle

import pytest

READERS = [("info",), ("verify",), ("unpack", "-o", "out.safetensors")]


def assert_refused(result, project, before):
    assert result.exit_code == 3, (result.exit_code, result.stderr)
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("pabzip: error: bad.pabz: ")
    assert result.stdout == ""
    assert project.files() == before


@pytest.fixture
def refused(project, run):
    """Write bytes as bad.pabz and see every reader refuse them."""

    def check(data: bytes, *commands):
        (project.folder / "bad.pabz").write_bytes(data)
        before = project.files()
        for command, *rest in commands or READERS:
            assert_refused(run(command, "bad.pabz", *rest), project, before)

    return check


def test_empty_and_one_byte(refused):
    refused(b"")
    refused(b"\x89")


def test_cut_at_every_byte(project, refused):
    whole = project.ticket.read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 60)):
        refused(whole[:length], ("verify",))
    refused(whole[:-1])


def test_trailing_bytes_and_a_second_file(project, refused):
    whole = project.ticket.read_bytes()
    refused(whole + b"\0")
    refused(whole + whole)


def test_flipped_bits(project, refused):
    whole = project.ticket.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        refused(bytes(damaged), ("verify",))


class Malice:
    def __reduce__(self):
        return (open, ("owned", "w"))


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("pickle", pickle.dumps(Malice(), protocol=4)),
        ("zip", b"PK\x03\x04" + bytes(60)),
        ("safetensors", (2).to_bytes(8, "little") + b"{}"),
    ],
)
def test_other_formats_are_named_and_never_unpickled(project, refused, run, kind, data):
    refused(data)
    assert kind in run("info", "bad.pabz").stderr.lower()
    assert "owned" not in project.files()


def test_a_checkpoint_named_pabz_points_to_pack(project, refused, run):
    refused(project.checkpoint.read_bytes())
    assert "pabzip pack" in run("info", "bad.pabz").stderr


def test_a_newer_version_asks_to_upgrade(project, run):
    from pabzip.formats import MAGIC

    data = bytearray(project.ticket.read_bytes())
    version = len(MAGIC)
    data[version] = 99
    (project.folder / "bad.pabz").write_bytes(data)
    result = run("info", "bad.pabz")
    assert result.exit_code == 3
    assert "upgrade pabzip" in result.stderr


def test_a_file_from_stdin_is_called_stdin(run):
    result = run("info", "-", stdin=b"nothing of ours")
    assert result.exit_code == 3
    assert result.stderr.startswith("pabzip: error: <stdin>: magic: ")


def test_no_traceback_in_a_real_process(project, spawn):
    (project.folder / "bad.pabz").write_bytes(b"junk")
    result = spawn("info", "bad.pabz")
    assert result.returncode == 3
    assert b"Traceback" not in result.stderr
    assert result.stderr.count(b"\n") == 1
    twice = spawn("info", "bad.pabz", "-vv")
    assert twice.returncode == 3
    assert b"Traceback" in twice.stderr
    assert twice.stderr.splitlines()[-1] == result.stderr.strip()

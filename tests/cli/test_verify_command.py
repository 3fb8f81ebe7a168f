"""``pabzip verify``: files that are what they say, and files that are not."""

from __future__ import annotations

import json
import struct
import zlib

import pytest

import pabzip
from pabzip.formats.sources import SeekableSource


@pytest.fixture
def stored(project):
    with pabzip.open(project.ticket) as ticket:
        return ticket.info()["sha256"]


@pytest.mark.parametrize(
    "flags", [(), ("--backend", "numpy"), ("--threads", "1"), ("--threads", "2")]
)
def test_verify_gives_one_digest_by_every_way(project, run, stored, flags):
    result = run("verify", "model.pabz", "--json", *flags)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {"ok": True, "sha256": stored}


def test_verify_for_people(project, run, stored):
    result = run("verify", "model.pabz")
    assert result.stdout == f"model.pabz: OK, SHA-256 {stored}\n"
    assert run("verify", "model.pabz", "-q").stdout == ""


def test_a_long_stdin_is_not_held_in_memory(project, run, stored, monkeypatch):
    monkeypatch.setattr("pabzip.formats.atomic.IN_MEMORY_BYTES", 100)
    held = []
    read = SeekableSource.read

    def spied(self, offset, length):
        held.append(self._file._rolled)
        return read(self, offset, length)

    monkeypatch.setattr(SeekableSource, "read", spied)
    result = run("verify", "-", "--json", stdin=project.ticket.read_bytes())
    assert json.loads(result.stdout)["ok"] is True
    assert held
    assert all(held)  # in a temporary file


def test_a_long_stdin_is_refused_early(project, run, monkeypatch):
    monkeypatch.setattr("pabzip.formats.limits.MAX_HEADER_BYTES", 100)
    result = run("verify", "-", "--max-bytes", "10", stdin=project.ticket.read_bytes())
    assert result.exit_code == 1
    assert "<stdin>: longer than 210 bytes" in result.stderr


def test_verify_stdin(project, run, stored):
    result = run("verify", "-", "--json", stdin=project.ticket.read_bytes())
    assert json.loads(result.stdout) == {"ok": True, "sha256": stored}


def test_a_digest_that_differs_exits_3(project, run, stored):
    # The file as SPEC.md states it: magic, two 16-bit and two 32-bit numbers, a CRC-32, the header.
    data = project.ticket.read_bytes()
    version, reserved, length, _ = struct.unpack("<HHII", data[8:20])
    other = "0" * 64
    text = zlib.decompress(data[24 : 24 + length], -15).replace(stored.encode(), other.encode())
    header = zlib.compress(text, 9, -15)
    fields = struct.pack("<HHII", version, reserved, len(header), len(text))
    seal = struct.pack("<I", zlib.crc32(fields + header))
    project.ticket.write_bytes(data[:8] + fields + seal + header + data[24 + length :])
    result = run("verify", "model.pabz", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout) == {"ok": False, "sha256": stored}
    assert result.stderr == (
        f"pabzip: error: model.pabz: weights: expected the SHA-256 {other}, found {stored}; "
        "these are not the weights that were packed\n"
    )


def test_a_damaged_file_exits_3_and_still_prints_one_object(project, run):
    data = bytearray(project.ticket.read_bytes())
    data[-1] ^= 1
    project.ticket.write_bytes(data)
    result = run("verify", "model.pabz", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout) == {"ok": False, "sha256": None}
    assert result.stderr.startswith("pabzip: error: model.pabz: ")


def test_an_unknown_backend_is_a_usage_error(project, run):
    result = run("verify", "model.pabz", "--backend", "abacus")
    assert result.exit_code == 2
    assert "'numba', 'numpy'" in result.stderr

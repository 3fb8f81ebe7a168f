"""FAULTS of the house, 2: files are read and written where calls of Linux are missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pabzip.formats import atomic, open_atomic, sources
from pabzip.ticket import Ticket

SCRIPT = """
import os, sys, threading
sys.modules["fcntl"] = None  # an import of it fails, as on Windows
for name in ("pread", "sched_getaffinity", "fchmod", "O_CLOEXEC", "O_NOFOLLOW"):
    delattr(os, name)

import numpy as np
import pabzip
from pabzip.seeds import InitSpec

target = sys.argv[1]
codes = (np.arange(64 * 64) % 3 - 1).astype(np.int8).reshape(64, 64)
tensors = [
    pabzip.SeededTensor("w", InitSpec("normal", 0.5, 0), codes),
    pabzip.DenseTensor("b", np.arange(300_000, dtype=np.float32), "float32", "float32"),
    pabzip.DenseTensor("c", np.arange(300_000, dtype=np.float32), "float32", "float32"),
]
for _ in range(2):  # a new file, and one that is replaced
    digest = pabzip.Ticket(seed=1, tensors=tensors).save(target)["sha256"]
assert os.listdir(os.path.dirname(target)) == [os.path.basename(target)]
found = []
with pabzip.open(target) as ticket:
    reading = [threading.Thread(target=lambda: found.append(ticket.sha256())) for _ in range(4)]
    for thread in reading:
        thread.start()
    for thread in reading:
        thread.join()
assert found == [digest] * 4
assert (pabzip.load_arrays(target)["b"] == tensors[1].values).all()
print(digest)
"""


def test_reading_and_writing_without_the_calls_of_linux(tmp_path: Path) -> None:
    target = tmp_path / "m.pabz"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(target)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    with Ticket.open(target) as ticket:
        assert ticket.verify() == done.stdout.strip()


def test_a_file_is_read_in_any_order_without_pread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "data"
    file.write_bytes(bytes(range(256)))
    monkeypatch.delattr(os, "pread")
    monkeypatch.setattr(sources, "_MOST_AT_ONCE", 7)
    source = sources.open_source(file)
    assert source.read(200, 100) == bytes(range(200, 256))
    assert source.read(10, 20) == bytes(range(10, 30))
    source.close()
    with pytest.raises(ValueError, match="closed ticket"):
        source.read(0, 1)


def test_windows_renames_closed_files_and_keeps_open_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Windows itself does is acted here: it refuses to remove or rename an open file."""
    target, opened = tmp_path / "m.pabz", []
    left, written = (tmp_path / f".m.pabz.{n}.00{atomic.SUFFIX}" for n in (1, 2))
    left.write_bytes(b"left behind")
    written.write_bytes(b"open elsewhere")
    remove, rename = os.unlink, os.replace

    def unlink(path: str) -> None:
        if Path(path) == written:
            raise PermissionError(13, "open elsewhere", path)
        remove(path)

    def replace(source: Path, name: Path) -> None:
        assert opened[0].closed
        rename(source, name)

    monkeypatch.setattr(atomic, "_fcntl", None)
    monkeypatch.setattr(atomic, "_WINDOWS", True)
    monkeypatch.setattr(os, "unlink", unlink)
    monkeypatch.setattr(os, "replace", replace)
    with open_atomic(target) as stream:
        opened.append(stream)
        stream.write(b"new")
    assert target.read_bytes() == b"new"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [written.name, "m.pabz"]


def test_a_directory_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="expected a .pabz file, found a directory"):
        sources.open_source(tmp_path)

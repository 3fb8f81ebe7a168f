"""FAULTS 18 to 21: the old file or the new one, recognizable temporaries, clear errors."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from pabzip.errors import PackError
from pabzip.formats import atomic, open_atomic
from pabzip.formats import writer as saving
from pabzip.ticket import Ticket


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_the_new_content_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "m.pabz"
    target.write_bytes(b"old")
    with open_atomic(target) as stream:
        stream.write(b"new")
        assert target.read_bytes() == b"old"
        temporary = next(name for name in names(tmp_path) if name != "m.pabz")
        assert temporary.startswith(f".m.pabz.{os.getpid()}.")
        assert temporary.endswith(".pabzip-tmp")
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["m.pabz"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "m.pabz"
    target.write_bytes(b"old")

    def fail(stream: BinaryIO) -> None:
        stream.write(b"new")
        raise error

    with pytest.raises(error), open_atomic(target) as stream:
        fail(stream)
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["m.pabz"]


def test_the_check_sees_all_of_the_file_and_may_refuse_it(tmp_path: Path) -> None:
    target = tmp_path / "m.pabz"
    seen = []

    def check(path: Path) -> None:
        seen.append(path.read_bytes())
        raise PackError("no")

    with pytest.raises(PackError, match="no"), open_atomic(target, check=check) as stream:
        stream.write(b"new")
    assert seen == [b"new"]
    assert names(tmp_path) == []


WRITER = """
import sys, time
from pabzip.formats import open_atomic
with open_atomic(sys.argv[1]) as stream:
    stream.write(b"part")
    stream.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def start_writer(target: Path) -> subprocess.Popen[str]:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    return writer


def test_fault_18_kill_9_leaves_the_old_file_and_the_next_run_cleans(tmp_path: Path) -> None:
    target = tmp_path / "m.pabz"
    target.write_bytes(b"old")
    other = tmp_path / ".other.pabz.1.00000000.pabzip-tmp"
    other.write_bytes(b"")
    with start_writer(target) as writer:
        with open_atomic(target) as stream:  # the other writer is active: its temporary stays
            stream.write(b"mine")
        assert len(names(tmp_path)) == 3
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert target.read_bytes() == b"mine"
    assert len(names(tmp_path)) == 3
    with open_atomic(target) as stream:
        stream.write(b"new")
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == [other.name, "m.pabz"]  # another target's are not ours to judge


def test_fault_18_a_temporary_lost_to_another_writer_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lost = atomic._lock_own, []

    def lose_once(descriptor: int) -> bool:
        if not lost:
            lost.extend(tmp_path.iterdir())
            lost[0].unlink()
        return real(descriptor)

    monkeypatch.setattr(atomic, "_lock_own", lose_once)
    with open_atomic(tmp_path / "m.pabz") as stream:
        stream.write(b"new")
    assert names(tmp_path) == ["m.pabz"]


def test_many_writers_at_once(tmp_path: Path) -> None:
    target = tmp_path / "m.pabz"
    contents = [bytes([n]) * 10_000 for n in range(16)]
    errors: list[BaseException] = []

    def write(content: bytes) -> None:
        try:
            with open_atomic(target) as stream:
                stream.write(content)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert target.read_bytes() in contents
    assert names(tmp_path) == ["m.pabz"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_fault_19_dev_full(small_ticket: Ticket) -> None:
    mode = os.stat("/dev/full").st_mode
    with pytest.raises(OSError, match="No space left") as caught:
        small_ticket.save("/dev/full")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/dev/full")
    assert os.stat("/dev/full").st_mode == mode


def test_fault_19_a_full_disk(
    tmp_path: Path, small_ticket: Ticket, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "m.pabz"
    small_ticket.save(target)
    old = target.read_bytes()

    def full(stream: BinaryIO, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pabzip.formats.writer.write_all", full)
    with pytest.raises(OSError, match="No space left"):
        small_ticket.save(target)
    assert target.read_bytes() == old
    assert names(tmp_path) == ["m.pabz"]


def test_fault_20_target_is_a_directory(tmp_path: Path, small_ticket: Ticket) -> None:
    with pytest.raises(IsADirectoryError, match="expected a file to write, found a directory"):
        small_ticket.save(tmp_path)


def test_fault_20_missing_folder(tmp_path: Path, small_ticket: Ticket) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected the folder .*none to exist"):
        small_ticket.save(tmp_path / "none" / "m.pabz")
    with pytest.raises(FileNotFoundError):
        Ticket.open(tmp_path / "none.pabz")
    with pytest.raises(IsADirectoryError, match=r"expected a \.pabz file, found a directory"):
        Ticket.open(tmp_path)


def test_fault_20_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(atomic.os, "open", refuse)
    with (
        pytest.raises(OSError, match=f"cannot write in the folder {tmp_path}: Read-only") as caught,
        open_atomic(tmp_path / "m.pabz"),
    ):
        pass
    assert caught.value.errno == errno.EROFS


def test_fault_21_output_is_the_input(tmp_path: Path, small_ticket: Ticket) -> None:
    target = tmp_path / "m.pabz"
    small_ticket.save(target)
    with Ticket.open(target) as ticket:
        ticket.save(target, dense_dtype="float16")
        assert ticket.verify() == small_ticket.sha256()  # still the old file
    assert Ticket.open(target).dense("fc.bias").stored == "float16"


def test_fault_21_a_symbolic_link_is_followed_and_kept(
    tmp_path: Path, small_ticket: Ticket
) -> None:
    (tmp_path / "there").mkdir()
    link, real = tmp_path / "link.pabz", tmp_path / "there" / "real.pabz"
    link.symlink_to(real)
    small_ticket.save(link)  # the link leads to no file yet
    small_ticket.save(link)
    assert link.is_symlink()
    assert Ticket.open(real).verify() == small_ticket.sha256()
    assert names(tmp_path / "there") == ["real.pabz"]


def test_fault_21_a_hard_link_keeps_the_old_content(tmp_path: Path, small_ticket: Ticket) -> None:
    target, other = tmp_path / "m.pabz", tmp_path / "other"
    other.write_bytes(b"old")
    os.link(other, target)
    small_ticket.save(target)
    assert other.read_bytes() == b"old"


def test_permissions(tmp_path: Path) -> None:
    target, plain = tmp_path / "m.pabz", tmp_path / "plain"
    plain.touch()
    with open_atomic(target) as stream:
        stream.write(b"new")
    assert target.stat().st_mode == plain.stat().st_mode  # what the umask gives
    target.chmod(0o640)
    with open_atomic(target) as stream:
        stream.write(b"newer")
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_very_long_name(tmp_path: Path) -> None:
    target = tmp_path / ("ü" * 125 + ".pabz")
    with open_atomic(target) as stream:
        stream.write(b"new")
    assert names(tmp_path) == [target.name]


def test_a_file_that_does_not_read_back_is_not_kept(
    tmp_path: Path, small_ticket: Ticket, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "m.pabz"
    small_ticket.save(target)
    old = target.read_bytes()
    real = saving.EncodedFile.write

    def damage(self: Any, stream: BinaryIO) -> None:
        real(self, stream)
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\xaa")

    monkeypatch.setattr(saving.EncodedFile, "write", damage)
    with pytest.raises(PackError, match="expected what was written to read back"):
        small_ticket.save(target)
    assert target.read_bytes() == old
    assert names(tmp_path) == ["m.pabz"]

"""Atomic writes: a file is the old one or the new one, never a part of one.

A temporary beside the target takes the target's name only when it is complete and on disk. It is
called ``.<target's name>.<process>.<random>.pabzip-tmp``, and its writer holds a lock on it; the
system drops the lock with the process, however that ends, so the next writer of the same target
can tell a temporary that was left behind from one that is being written, and removes it.

Windows has no such lock and needs none: it refuses to remove a file that is open. It also refuses
to rename one, and to replace a target that is open elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, cast

from pabzip.formats.sources import OPEN_FLAGS

_fcntl: ModuleType | None
try:
    import fcntl as _fcntl
except ImportError:
    _fcntl = None

SUFFIX = ".pabzip-tmp"
_DISK = (errno.ENOSPC, getattr(errno, "EDQUOT", None), errno.EFBIG, errno.EIO)
_WINDOWS = os.name == "nt"
IN_MEMORY_BYTES = 64 << 20  # of a scratch file that lies beside no other
_NAME_CHARACTERS = 48  # of the target's name: 4 bytes each at most, well within a name's 255


@contextlib.contextmanager
def open_atomic(
    path: str | os.PathLike[str], *, check: Callable[[Path], object] | None = None
) -> Iterator[BinaryIO]:
    """Open a binary file for writing that appears under ``path`` only once it is complete.

    On an exception (an interrupt, too) the temporary is removed and an old file stays as it was.
    A symbolic link is followed, and stays; of several hard links only ``path`` changes; an old
    file's permissions are kept. A device or pipe has no old content to protect and is written
    directly.

    Args:
        path: the target.
        check: called with the temporary's path after it is on disk and before it takes the
            target's name; an exception from it leaves the target as it was.

    Yields:
        The stream to write to.

    Raises:
        IsADirectoryError: ``path`` is a directory.
        FileNotFoundError: the folder of ``path`` does not exist.
        OSError: the folder cannot be written to, or the disk is full; on Windows also where the
            target is open elsewhere.
    """
    mode = _mode_of(path)
    if mode is not None and stat.S_ISDIR(mode):
        raise IsADirectoryError(
            errno.EISDIR, "expected a file to write, found a directory; name a file in it", path
        )
    if mode is not None and not stat.S_ISREG(mode):
        with naming(path), open(path, "wb") as device:
            yield device
        return
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, f"expected the folder {target.parent} to exist; create it first", path
        )
    _remove_stale(target)
    temporary, stream = _create(target)
    try:
        with naming(path), stream:
            yield stream
            stream.flush()
            if mode is not None:
                os.chmod(temporary, stat.S_IMODE(mode))
            os.fsync(stream.fileno())
            if check is not None:
                check(temporary)
            if _fcntl is None:
                stream.close()  # Windows renames no open file
            os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)


@contextlib.contextmanager
def open_scratch(path: str | os.PathLike[str] | None = None) -> Iterator[BinaryIO]:
    """Open a binary file to write and to read back, which is gone afterwards.

    It lies beside ``path``, the file that it is made for, so that it takes the space of that file's
    disk. Without a path, or beside a device or pipe, it is in memory up to `IN_MEMORY_BYTES`, and
    beyond that where the system keeps temporary files.

    Raises:
        FileNotFoundError: the folder of ``path`` does not exist.
        OSError: the folder cannot be written to, or the disk is full.
    """
    mode = None if path is None else _mode_of(path)
    if path is None or (mode is not None and not stat.S_ISREG(mode)):
        with tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES) as spool:
            yield cast(BinaryIO, spool)
        return
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, f"expected the folder {target.parent} to exist; create it first", path
        )
    temporary, stream = _create(target)
    try:
        if not _WINDOWS:  # the system frees it with the process, however that ends
            temporary.unlink()
        with naming(path), stream:
            yield stream
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file in an error of the disk, which the system reports without one."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in _DISK:
            error.filename = os.fspath(path)
        raise


def _mode_of(path: str | os.PathLike[str]) -> int | None:
    """Return the mode of the file that ``path`` leads to; None where there is no such file."""
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None


def _prefix(target: Path) -> str:
    """Return what the names of the target's temporaries start with."""
    return f".{target.name[:_NAME_CHARACTERS]}."


def _create(target: Path) -> tuple[Path, BinaryIO]:
    """Create a temporary beside the target and lock it."""
    while True:
        name = f"{_prefix(target)}{os.getpid()}.{secrets.token_hex(4)}{SUFFIX}"
        temporary = target.with_name(name)
        try:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | OPEN_FLAGS, 0o666)
        except FileExistsError:
            continue
        except OSError as error:
            raise OSError(
                error.errno, f"cannot write in the folder {target.parent}: {error.strerror}", target
            ) from None
        stream = os.fdopen(descriptor, "w+b")
        if _lock_own(descriptor) and temporary.exists():
            return temporary, stream
        stream.close()  # another writer took it for stale before it was locked, and removes it


def _remove_stale(target: Path) -> None:
    """Remove the target's temporaries that no living process is writing.

    Those are the ones whose lock is free, on Windows the ones that are not open.
    """
    with contextlib.suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            if not (entry.name.startswith(_prefix(target)) and entry.name.endswith(SUFFIX)):
                continue
            with contextlib.suppress(OSError):
                if _WINDOWS:
                    os.unlink(entry.path)
                elif _fcntl is not None:
                    descriptor = os.open(entry.path, os.O_RDWR | os.O_NOFOLLOW | OPEN_FLAGS)
                    try:
                        _fcntl.flock(descriptor, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
                        os.unlink(entry.path)
                    finally:
                        os.close(descriptor)


def _lock_own(descriptor: int) -> bool:
    """Lock a temporary of our own; False where another process was faster.

    A file system without locks keeps its temporaries: nobody can tell which are stale.
    """
    if _fcntl is None:
        return True
    try:
        _fcntl.flock(descriptor, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Put the folder's new entry on disk, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

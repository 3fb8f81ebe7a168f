"""The disk cache of compiled kernels: never code of an older text, and no need for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pabzip

CONSTANTS = "STEP = 1\n"
CALLEE = """
from pabzip.seeds import _constants
from pabzip.seeds.compiled import compiled

STEP = _constants.STEP


@compiled
def advance(x):
    return x + STEP
"""
CALLER = """
from pabzip.seeds._callee import (
    advance,
)
from pabzip.seeds.compiled import compiled


@compiled
def twice(x):
    return 2 * advance(x)


print(twice(10), sum(twice.stats.cache_hits.values()))
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package with two kernels, one of which calls the other from another file."""
    folder = tmp_path / "pabzip"
    package = Path(pabzip.__file__).parent
    for part in ("", "seeds"):
        (folder / part).mkdir()
        for file in (package / part).iterdir():
            if file.is_file():
                shutil.copyfile(file, folder / part / file.name)
    texts = {"_constants": CONSTANTS, "_callee": CALLEE, "_caller": CALLER}
    for name, text in texts.items():
        (folder / "seeds" / f"{name}.py").write_text(text)
    return tmp_path


def run(copy: Path, **environment: str) -> str:
    """Run the calling kernel in a process of its own; return the result and the cache hits."""
    # Without Python's own cache, which does not see an edit that keeps size and time either.
    done = subprocess.run(
        [sys.executable, "-B", "-m", "pabzip.seeds._caller"],
        env={**os.environ, "PYTHONPATH": str(copy), "NUMBA_CACHE_DIR": "", **environment},
        cwd=copy,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def edit(file: Path, old: str, new: str) -> None:
    """Change a file's text but neither its size nor its time."""
    before, text = file.stat(), file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size


def cached(copy: Path) -> set[str]:
    return {file.name for file in copy.rglob("*.nb[ic]")}


def test_an_edit_of_what_a_kernel_calls_or_reads_is_compiled_anew(copy: Path) -> None:
    seeds = copy / "pabzip" / "seeds"
    assert run(copy) == "22 0"
    assert run(copy) == "22 1"  # from the cache
    files = cached(copy)
    assert files
    edit(seeds / "_callee.py", "x + STEP", "x - STEP")
    assert run(copy) == "18 0"
    assert run(copy) == "18 1"
    edit(seeds / "_constants.py", "STEP = 1", "STEP = 3")
    assert run(copy) == "14 0"
    assert run(copy) == "14 1"
    assert cached(copy) == files  # new code takes the place of the old


def test_a_cache_that_names_types_that_are_gone_is_compiled_anew(copy: Path) -> None:
    callee, caller = (copy / "pabzip" / "seeds" / f"_calle{letter}.py" for letter in "er")
    callee.write_text(
        "from typing import NamedTuple\n\n\nclass Pair(NamedTuple):\n    one: int\n    two: int\n"
    )
    caller.write_text(
        "from pabzip.seeds._callee import Pair\n"
        "from pabzip.seeds.compiled import compiled\n\n\n"
        "@compiled\ndef added(pair):\n    return pair.one + pair.two\n\n\n"
        "print(added(Pair(1, 2)), sum(added.stats.cache_hits.values()))\n"
    )
    assert run(copy) == "3 0"
    files = cached(copy)
    for file in (callee, caller):
        file.write_text(file.read_text().replace("Pair", "Both"))
    assert run(copy) == "3 0"
    assert run(copy) == "3 1"
    assert cached(copy) == files


def test_modules_that_are_reloaded_are_compiled_anew(copy: Path) -> None:
    (copy / "reload.py").write_text(
        "import importlib, pathlib\n"
        "from pabzip.seeds import _callee, _caller\n"
        "file = pathlib.Path(_callee.__file__)\n"
        "file.write_text(file.read_text().replace('x + STEP', '(x - STEP)'))\n"
        "importlib.reload(_callee), importlib.reload(_caller)\n"
    )
    done = subprocess.run(
        [sys.executable, "-B", "reload.py"],
        env={**os.environ, "PYTHONPATH": str(copy), "NUMBA_CACHE_DIR": ""},
        cwd=copy,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["22 0", "18 0"]


def test_kernels_that_move_in_their_file_keep_their_cache_files(copy: Path) -> None:
    run(copy)
    files = cached(copy)
    caller = copy / "pabzip" / "seeds" / "_caller.py"
    caller.write_text("# moved\n" + caller.read_text())
    assert run(copy) == "22 0"
    assert cached(copy) == files


def test_data_that_is_older_than_its_index_is_compiled_anew(copy: Path) -> None:
    run(copy)
    (data,) = copy.rglob("*twice*.nbc")
    old = data.read_bytes()
    edit(copy / "pabzip" / "seeds" / "_callee.py", "x + STEP", "x - STEP")
    assert run(copy) == "18 0"
    data.write_bytes(old)  # as after a process that was killed between the two writes
    assert run(copy) == "18 0"
    assert run(copy) == "18 1"


def test_no_folder_to_write_means_no_cache(copy: Path) -> None:
    for folder in (copy / "pabzip", copy / "pabzip" / "seeds"):
        (folder / "__pycache__").write_text("a file, so that no folder can be made here")
    nowhere = str(copy / "pabzip" / "__pycache__")
    assert run(copy, HOME=nowhere, XDG_CACHE_HOME=nowhere) == "22 0"
    assert run(copy, HOME=nowhere, XDG_CACHE_HOME=nowhere) == "22 0"
    assert not cached(copy)


def test_a_numba_with_another_cache_means_no_cache(copy: Path) -> None:
    (copy / "sitecustomize.py").write_text(
        "from numba.core import caching\n"
        "class Other:\n"
        "    def __init__(self, *, path): pass\n"
        "    def load(self, key): return None\n"
        "    def save(self, key, data): raise AssertionError('cached without a stamp')\n"
        "def create(self, function):\n"
        "    self._cache_file, self._enabled = Other(path=''), True\n"
        "caching.Cache.__init__ = create\n"
    )
    assert run(copy) == "22 0"
    assert not cached(copy)

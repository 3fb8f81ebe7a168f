"""Where the state of an unfinished run lies; known without loading torch."""

from __future__ import annotations

import os


def progress_path(output: str | os.PathLike[str]) -> str:
    """Return the path of the state of a run that is to write ``output``."""
    return f"{os.fspath(output)}.progress"

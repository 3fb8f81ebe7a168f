"""Where datasets lie on disk."""

from __future__ import annotations

import os
from pathlib import Path


def default_root() -> Path:
    """Return where downloads go: ``$XDG_CACHE_HOME/pabzip`` or ``~/.cache/pabzip``."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "pabzip"


def dataset_root(root: str | os.PathLike[str] | None) -> Path:
    """Return ``root`` as a path, or where downloads go if it is None."""
    return default_root() if root is None else Path(root).expanduser()

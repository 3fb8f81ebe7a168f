"""Loaders: numpy arrays, torch modules and state dicts, ONNX Runtime sessions.

`pabzip.runtime.arrays` needs numpy alone; the others load their library on use.
"""

from __future__ import annotations

from pabzip.runtime.arrays import load_arrays, open  # noqa: A004

__all__ = ["load_arrays", "open"]

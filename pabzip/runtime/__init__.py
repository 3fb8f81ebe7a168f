"""Loaders: numpy arrays, torch modules and state dicts, ONNX Runtime sessions.

Importing this package loads numpy alone; torch and ONNX Runtime are loaded on use.
"""

from __future__ import annotations

from pabzip.runtime.loaders import load_arrays, open  # noqa: A004

__all__ = ["load_arrays", "open"]

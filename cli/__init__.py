"""The command line: one click command a file, behind ``pabzip``.

Importing this package loads click alone: numba, torch and onnx are loaded by the commands that
need them, when they run.
"""

from __future__ import annotations

from pabzip.cli.app import main

__all__ = ["main"]

"""What a training run calls: a progress bar, logs, curves, or something of your own.

A new callback is one module in this folder; its registration alone makes it known to
``pabzip train --callback``.
"""

from __future__ import annotations

from pabzip.train.callbacks.base import Callback, build_callback, parse_callback
from pabzip.train.callbacks.curves import Curves
from pabzip.train.callbacks.json_log import JsonLog
from pabzip.train.callbacks.progress import ProgressBar
from pabzip.train.callbacks.tensorboard import TensorBoard

__all__ = [
    "Callback",
    "Curves",
    "JsonLog",
    "ProgressBar",
    "TensorBoard",
    "build_callback",
    "parse_callback",
]

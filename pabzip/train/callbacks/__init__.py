"""Watch a training run: a bar, logs, curves, or something of your own; one observer a module."""

from __future__ import annotations

from pabzip.train.callbacks.base import Observer, Progress
from pabzip.train.callbacks.curves import Curves
from pabzip.train.callbacks.json_log import JsonLog
from pabzip.train.callbacks.progress import ProgressBar
from pabzip.train.callbacks.tensorboard import TensorBoard

__all__ = ["Curves", "JsonLog", "Observer", "Progress", "ProgressBar", "TensorBoard"]

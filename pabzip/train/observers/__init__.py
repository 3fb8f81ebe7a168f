"""Watch a training run: a bar, logs, curves, or something of your own; one observer a module."""

from __future__ import annotations

from pabzip.train.observers.bar import ProgressBar
from pabzip.train.observers.base import Observer, Progress
from pabzip.train.observers.curves import Curves
from pabzip.train.observers.json_log import JsonLog
from pabzip.train.observers.tensorboard import TensorBoard

__all__ = ["Curves", "JsonLog", "Observer", "Progress", "ProgressBar", "TensorBoard"]

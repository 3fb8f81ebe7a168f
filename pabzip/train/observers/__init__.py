"""Watch a training run: a bar, logs, curves, or something of your own; one observer a module."""

from __future__ import annotations

from pabzip.train.observers.bar import ProgressBar
from pabzip.train.observers.base import Observer, Progress
from pabzip.train.observers.json_log import JsonLog

__all__ = ["JsonLog", "Observer", "Progress", "ProgressBar"]

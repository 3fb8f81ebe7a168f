"""Networks of the papers as plain ``nn.Module``, and the user's own by ``module:callable``."""

from __future__ import annotations

from pabzip.models.custom import resolve
from pabzip.models.registry import build, defaults, input_shape, names

__all__ = ["build", "defaults", "input_shape", "names", "resolve"]

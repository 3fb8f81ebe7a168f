"""The `context` coder: masks predicted from the magnitudes that the seed gives."""

from __future__ import annotations

from pabzip.formats.context.coder import Context

__all__ = ["Context"]

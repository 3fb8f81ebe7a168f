"""The ``context`` coder, in pieces."""

from __future__ import annotations

from pabzip.formats.context.coder import Context

__all__ = ["Context"]

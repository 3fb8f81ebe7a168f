"""``python -m pabzip.cli``: the same as ``pabzip``."""

from __future__ import annotations

from pabzip.cli.app import main

main()

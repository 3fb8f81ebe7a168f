"""Import a part of torchvision, or say what to install."""

from __future__ import annotations

import importlib
from typing import Any

from pabzip.errors import MissingDependencyError


def torchvision_part(name: str, *, purpose: str) -> Any:
    """Return the module ``torchvision.<name>``.

    Args:
        name: such as ``"datasets"`` or ``"models"``.
        purpose: what needs it, for the message.

    Raises:
        MissingDependencyError: torchvision is missing, or was built for another torch, which shows
            as an operator that does not exist or as a library that does not load.
    """
    try:
        return importlib.import_module(f"torchvision.{name}")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"{purpose}: expected torchvision, found no module named {error.name!r}; "
            "install it with: pip install 'pabzip[train]'"
        ) from error
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        import torch

        raise MissingDependencyError(
            f"{purpose}: expected a torchvision that matches torch {torch.__version__}, found one "
            f"that does not load ({error}); reinstall the two together with: "
            "pip install --upgrade --force-reinstall torch torchvision"
        ) from error

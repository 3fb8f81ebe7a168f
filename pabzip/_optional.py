"""Libraries that pabzip can do without: torch, onnx and others, loaded when they are used."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from pabzip.errors import MissingDependencyError


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import ``module`` and return it.

    Args:
        module: the module to import, such as ``"torch"``.
        extra: pabzip's extra that installs it, such as ``"torch"``.
        purpose: what needs it, for the message.

    Raises:
        MissingDependencyError: it is not installed. An import that fails for another reason (a
            broken installation) raises its own error unchanged.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingDependencyError(
            f"{purpose} needs {package}, which is not installed; run: pip install 'pabzip[{extra}]'"
        ) from error


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

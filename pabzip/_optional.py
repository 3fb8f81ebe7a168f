"""Import an optional dependency, or say which extra brings it."""

from __future__ import annotations

import importlib
from types import ModuleType

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

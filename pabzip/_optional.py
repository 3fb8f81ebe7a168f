"""Libraries that pabzip can do without: torch, onnx and others, loaded when they are used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import lazy_loader

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
    with _needing(module.partition(".")[0], extra, purpose):
        return importlib.import_module(module)


def lazy_names(
    package: str, file: str, *, extra: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package, by its ``.pyi`` file.

    Each name is imported with its first use, which raises `MissingDependencyError` where it needs
    torch and there is none.

    Args:
        package: ``__name__`` of the package.
        file: its ``__file__``, beside which the ``.pyi`` lies.
        extra: pabzip's extra that installs torch and what else the package needs.
    """
    find, names, public = lazy_loader.attach_stub(package, file)

    def __getattr__(name: str) -> Any:  # noqa: N807
        with _needing("torch", extra, f"{package}.{name}"):
            return find(name)

    return __getattr__, names, public


@contextmanager
def _needing(package: str, extra: str, purpose: str) -> Iterator[None]:
    """Say in our own words that ``package`` is missing, where the block fails because of it."""
    try:
        yield
    except ModuleNotFoundError as error:
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

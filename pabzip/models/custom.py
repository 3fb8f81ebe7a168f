"""The user's own architecture, named ``module:callable`` on the command line."""

from __future__ import annotations

import importlib
import inspect
import operator
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pabzip.errors import ArchitectureError
from pabzip.models.registry import own_rng
from pabzip.seeds import check_seed

if TYPE_CHECKING:
    from torch import nn


def resolve(target: str, options: Mapping[str, Any], *, dense_seed: int = 0) -> nn.Module:
    """Import ``module`` and return what ``callable(**options)`` makes.

    Only ever called with a name that the user typed, never with one read from a file. The current
    folder is searched first, as ``python -m`` does. Parameters are initialized from
    ``dense_seed`` and the caller's CPU random state is left alone; a callable that makes its
    network on an accelerator draws from that device's own state.

    Args:
        target: ``"module:callable"``, such as ``"mynets:Tiny"`` or ``"package.nets:make"``. The
            callable, a class or a function, may be nested: ``"mynets:Zoo.tiny"``.
        options: keyword arguments of the callable.
        dense_seed: as in `pabzip.models.build`.

    Returns:
        The network, with ``net.pabzip_arch = ("custom", options)`` unless it already names its
        architecture.

    Raises:
        ArchitectureError: a malformed target, a module or attribute that is missing, options that
            the callable does not take, an error raised by the user's code (chained), or a result
            that is no ``nn.Module``.
        SeedError: ``dense_seed`` out of range.
    """
    from torch import nn

    check_seed(dense_seed)
    module_name, colon, attribute = target.partition(":")
    if not (module_name and colon and attribute):
        raise ArchitectureError(
            f"architecture {target!r}: expected 'module:callable', such as 'mynets:Tiny'"
        )
    with _current_folder_first(), own_rng(dense_seed):
        make = _attribute(target, _module(target, module_name), attribute)
        net = _call(target, make, options)
    if not isinstance(net, nn.Module):
        raise ArchitectureError(
            f"architecture {target!r}: expected a torch.nn.Module from the call, "
            f"found {type(net).__name__}"
        )
    if not hasattr(net, "pabzip_arch"):
        net.pabzip_arch = ("custom", dict(options))  # type: ignore[assignment]
    return net


def _module(target: str, name: str) -> Any:
    """Import the module, telling a missing module from one that fails inside."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise _failed(target, f"importing {name!r}", error) from error
        raise ArchitectureError(
            f"architecture {target!r}: no module named {error.name!r} in the current folder "
            f"({os.getcwd()}) or on the Python path; run from the module's folder, set "
            "PYTHONPATH, or install it"
        ) from error
    except Exception as error:
        raise _failed(target, f"importing {name!r}", error) from error


def _attribute(target: str, module: Any, path: str) -> Any:
    """Return the attribute at a dotted path of the module."""
    try:
        found = operator.attrgetter(path)(module)
    except AttributeError as error:
        public = [name for name in vars(module) if not name.startswith("_")]
        raise ArchitectureError(
            f"architecture {target!r}: module {module.__name__!r} has no {path!r}; "
            f"it has {', '.join(public[:12]) or 'no public names'}"
        ) from error
    if not callable(found):
        raise ArchitectureError(
            f"architecture {target!r}: expected a class or function, found {type(found).__name__}"
        )
    return found


def _call(target: str, make: Any, options: Mapping[str, Any]) -> Any:
    """Call with the options, telling options that do not fit from an error inside."""
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # some builtins have none; the call itself then tells
        signature = None
    if signature is not None:
        try:
            signature.bind(**options)
        except TypeError as error:
            raise ArchitectureError(
                f"architecture {target!r}: options {dict(options)!r} do not fit its signature "
                f"{signature}: {error}"
            ) from error
    try:
        return make(**options)
    except Exception as error:
        raise _failed(target, "the call", error) from error


def _failed(target: str, what: str, error: Exception) -> ArchitectureError:
    """Return the error for an exception that left the user's own code."""
    return ArchitectureError(
        f"architecture {target!r}: {what} raised {type(error).__name__}: {error}"
    )


@contextmanager
def _current_folder_first() -> Iterator[None]:
    """Let imports find modules of the current folder, and put the search path back after."""
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before

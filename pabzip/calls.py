"""What a network is called with and what it returns: tensors, alone or nested in other values."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pabzip.errors import PabzError

if TYPE_CHECKING:
    from torch import Tensor, nn

EXAMPLE = "a tensor, a tuple of positional arguments or a mapping of keyword arguments"
"""What users pass as example inputs, for messages."""

Output = Callable[[Any], Any]
"""From what a network returns to the tensor, or for an export the tensors, that count."""

Change = Callable[[str, "Tensor"], "Tensor"]
"""Called as ``change(name, tensor)``; returns what takes the tensor's place."""


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a network.

    Tensors may be nested in tuples, lists and mappings. What holds no tensors (numbers, strings,
    flags, objects of other kinds) is passed on as it is.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        names: of the positional arguments.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, example: object, net: nn.Module | None = None) -> Call | None:
        """Read example inputs; None where they are not `EXAMPLE`, or hold no tensor.

        Args:
            example: a tensor is the first argument, a tuple holds the positional arguments, and a
                mapping with names for keys the keyword arguments.
            net: its ``forward`` names the positional arguments.
        """
        import torch

        if isinstance(example, torch.Tensor):
            example = (example,)
        if isinstance(example, tuple):
            call = cls(tuple(example), {}, _names(net, len(example)))
        elif isinstance(example, Mapping) and all(isinstance(key, str) for key in example):
            call = cls((), dict(example))
        else:
            return None
        return call if any(True for _ in call.tensors()) else None

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield all tensors with their names: of the argument, and of the way to them within it."""
        yield from named_tensors(self._named)

    def map(self, change: Change) -> Call:
        """Return the call with each tensor changed; ``change`` sees the names of `tensors`."""
        args = zip(self.names, self.args, strict=True)
        return dataclasses.replace(
            self,
            args=tuple(map_tensors(value, change, name) for name, value in args),
            kwargs={name: map_tensors(value, change, name) for name, value in self.kwargs.items()},
        )

    @property
    def shown(self) -> str:
        """The shapes of the tensors, for messages."""
        found = dict(self.tensors())
        if len(found) == 1 and not self.kwargs:
            return f"inputs of shape {tuple(next(iter(found.values())).shape)}"
        return ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in found.items())

    @property
    def _named(self) -> dict[str, Any]:
        return {**dict(zip(self.names, self.args, strict=True)), **self.kwargs}


def _names(net: nn.Module | None, count: int) -> tuple[str, ...]:
    """Return names for the first arguments of a network: those of its ``forward``, or numbers."""
    numbers = tuple(f"input.{number}" for number in range(count))
    if net is None:
        return numbers
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        known = inspect.signature(net.forward).parameters.values()
    except (TypeError, ValueError):  # not written in Python
        return numbers
    names = [parameter.name for parameter in known if parameter.kind in kinds]
    return (*names[:count], *numbers[len(names) :])


def named_tensors(value: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested mappings, dataclasses, tuples and lists, named by the way there.

    ``name`` is that of ``value``; the parts of what has none, or is empty, are named alone.
    """
    import torch

    if isinstance(value, torch.Tensor):
        yield name, value
        return
    for key, part in _parts(value):
        yield from named_tensors(part, f"{name}.{key}" if name else key)


def _parts(value: object) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a value and their names; none of what is no container."""
    if isinstance(value, Mapping):
        yield from ((str(key), part) for key, part in value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from zip(value._fields, value, strict=True)
    elif isinstance(value, tuple | list):
        yield from ((str(number), part) for number, part in enumerate(value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((part.name, getattr(value, part.name)) for part in dataclasses.fields(value))


def map_tensors(value: Any, change: Change, name: str = "") -> Any:
    """Return a value with the tensors in nested mappings, tuples and lists changed.

    Mappings become dictionaries. Names are those of `named_tensors`.
    """
    import torch

    if isinstance(value, torch.Tensor):
        return change(name, value)
    if not isinstance(value, Mapping | tuple | list):
        return value
    parts = {
        key: map_tensors(part, change, f"{name}.{key}" if name else key)
        for key, part in _parts(value)
    }
    if isinstance(value, Mapping):
        return dict(zip(value, parts.values(), strict=True))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*parts.values())
    return type(value)(parts.values())


def main_output(returned: object) -> Tensor | None:
    """Return the tensor that stands for what a network returned; None where there is none.

    A tensor is taken as it is; of anything else its ``logits``, or the first floating tensor in it.
    """
    import torch

    if isinstance(returned, torch.Tensor):
        return returned
    logits = entry(returned, "logits")
    if isinstance(logits, torch.Tensor):
        return logits
    tensors = (tensor for _, tensor in named_tensors(returned))
    return next((tensor for tensor in tensors if tensor.is_floating_point()), None)


def entry(returned: object, name: str) -> Any:
    """Return what a mapping or an object holds under a name; None where it holds nothing."""
    if isinstance(returned, Mapping):
        return returned.get(name)
    return getattr(returned, name, None)


def guarded(
    function: Callable[..., Any] | None, name: str, takes: str, error: type[PabzError]
) -> Callable[..., Any] | None:
    """Return a caller's function, which raises ``error`` where it fails; None for None.

    Args:
        function: what the caller has given.
        name: of the argument, for messages.
        takes: what it is called with, for messages.
        error: the class to raise.

    Raises:
        error: at once for what is no function, or is the class of a module and not a module.
    """
    import torch

    if function is None:
        return None
    expected = f"{name}: expected a function of {takes}"
    if isinstance(function, type) and issubclass(function, torch.nn.Module):
        made = function.__name__
        raise error(f"{expected}, found the class {made}; pass a module of it, {made}()")
    if not callable(function):
        raise error(f"{expected}, found {function!r}")

    def guard(*args: Any) -> Any:
        try:
            return function(*args)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as failure:
            given = ", ".join(map(shown, args))
            raise error(
                f"{expected}, found that it fails on {given} ({type(failure).__name__}: {failure})"
            ) from failure

    return guard


def shown(value: object) -> str:
    """Return the kind of a value, for messages: a tensor's dtype, a container's type and parts."""
    import torch

    if isinstance(value, torch.Tensor):
        return str(value.dtype)
    found = dict(named_tensors(value))
    if isinstance(value, Mapping | Sequence) and found:
        inside = ", ".join(f"{name} {tensor.dtype}" for name, tensor in list(found.items())[:4])
        return f"{type(value).__name__} of {inside}"
    return type(value).__name__

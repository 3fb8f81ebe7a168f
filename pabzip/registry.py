"""Registries: searches, methods, datasets, networks and callbacks by name.

What is registered stands in one file, with what is known of it beside it::

    @register_search("snip", needs_data=True)
    def snip(net, keep_ratio, ...): ...

A module of pabzip that registers something is imported when that is used, not before: the names,
and the facts beside them, are read from the text of its decorators, so that ``pabzip train --help``
lists every search without loading torch. Another package registers by being imported
(``pabzip train --import my_package``).
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

from pabzip.errors import ArchitectureError, DataError, PabzError, PackError, RecipeError

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Registration:
    """One name of a registry.

    Attributes:
        name: as settings and the command line give it.
        facts: what was said beside the name, such as ``{"needs_data": True}``: literals.
        module: the module that registers it, dotted.
        value: what is registered; None until that module is imported.
    """

    name: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    module: str = ""
    value: Any = None


class Registry:
    """Names, and what they stand for, from the modules of one package and from users' own.

    Args:
        what: for messages, such as ``"search.method"``.
        decorator: name of the decorator, such as ``"register_search"``. Its first argument is the
            name and all others are keywords; pabzip's own modules give them as literals.
        *packages: the packages whose modules register with it, dotted.
        error: raised for an unknown name.
    """

    def __init__(self, what: str, decorator: str, *packages: str, error: type[PabzError]):
        self._what, self._packages, self._decorator, self._error = what, packages, decorator, error
        self._own: dict[str, Registration] = {}

    @cached_property
    def _declared(self) -> dict[str, Registration]:
        """What pabzip's modules register, read from their text."""
        found: dict[str, Registration] = {}
        for package in self._packages:
            for file in sorted(_folder(package).glob("*.py")):
                for name, facts in _decorations(file.read_text("utf-8"), self._decorator):
                    found[name] = Registration(name, facts, f"{package}.{file.stem}")
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """All names: pabzip's own by file and line, then users' in the order of their imports."""
        return (*self._declared, *(name for name in self._own if name not in self._declared))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._declared or name in self._own)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def facts(self, name: str) -> Mapping[str, Any]:
        """Return what is said beside a name; imports nothing. Raises what `check` does."""
        self.check(name)
        return (self._own.get(name) or self._declared[name]).facts

    def get(self, name: str) -> Any:
        """Return what is registered under a name, importing its module if need be.

        Raises what `check` does.
        """
        self.check(name)
        if name not in self._own:
            importlib.import_module(self._declared[name].module)
        return self._own[name].value

    def check(self, name: object, *, also: str = "") -> None:
        """Refuse a name that nothing is registered under.

        ``also`` says what else the caller would take, for the message.

        Raises:
            PabzError: the registry's own error class; the message lists all names, the nearest
                first where one is near.
        """
        if name in self:
            return
        near = difflib.get_close_matches(name, self.names, n=1) if isinstance(name, str) else []
        hint = f"; did you mean {near[0]}?" if near else ""
        expected = ", ".join(self.names) + (f", or {also}" if also else "")
        raise self._error(f"{self._what}: expected one of {expected}, found {name!r}{hint}")

    def register(self, name: str, **facts: Any) -> Callable[[_Value], _Value]:
        """Return a decorator that registers what it is put on, and leaves it as it is.

        Args:
            name: the name; a package cannot take one that another has taken.
            **facts: what others must know of it without importing it.

        Raises:
            PabzError: the name is taken by another module (the registry's own error class).
        """

        def add(value: _Value) -> _Value:
            module = getattr(value, "__module__", "")
            taken = self._own.get(name) or self._declared.get(name)
            if taken is not None and taken.module != module:
                raise self._error(
                    f"{self._what}: expected a name that is free, found {name!r}, which "
                    f"{taken.module} has registered; choose another"
                )
            self._own[name] = Registration(name, facts, module, value)
            return value

        return add


def _folder(package: str) -> Path:
    """Return the folder of a package without importing it."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


def _decorations(text: str, decorator: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the facts of each use of ``decorator`` at the top level of a module."""
    if f"@{decorator}(" not in text:
        return
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") == decorator:
                    facts = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
                    yield ast.literal_eval(call.args[0]), {k: v for k, v in facts.items() if k}


SEARCHES = Registry("search.method", "register_search", "pabzip.search", error=RecipeError)
METHODS = Registry("method", "register_method", "pabzip.train", error=RecipeError)
DATASETS = Registry("data", "register_dataset", "pabzip.data", error=DataError)
NETWORKS = Registry("arch", "register_network", "pabzip.models", error=ArchitectureError)
CALLBACKS = Registry("callback", "register_callback", "pabzip.train.callbacks", error=RecipeError)
CODERS = Registry(
    "coder", "register_coder", "pabzip.formats", "pabzip.formats.context", error=PackError
)

register_search = SEARCHES.register
register_method = METHODS.register
register_dataset = DATASETS.register
register_network = NETWORKS.register
register_callback = CALLBACKS.register
register_coder = CODERS.register


@cache
def constant(package: str, module: str, name: str) -> tuple[str, ...]:
    """Return a tuple of texts, or the keys of a table, that a module holds, without importing it.

    For example ``constant("pabzip.search", "schedule", "SCHEDULES")``.
    """
    for node in ast.parse((_folder(package) / f"{module}.py").read_text("utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if name in {getattr(target, "id", None) for target in targets}:
            value: Any = getattr(node, "value", None)
            entries: list[Any] = value.keys if isinstance(value, ast.Dict) else value.elts
            return tuple(ast.literal_eval(entry) for entry in entries)
    raise LookupError(f"{package}.{module} has no {name}")

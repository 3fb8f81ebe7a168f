"""The table of linear forms, by torch's names; apart, as every module of forms writes to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FORMS: dict[str, Callable[..., Any]] = {}
"""Forms by name; `pabzip.search.linear_forms` says when they are asked."""


def form(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for the linear form of torch's functions with these names.

    A form is called with the `pabzip.search.gates.Gates` of the pass and then as torch's own
    function. It returns what the call gives on the linearized network, or ``NotImplemented`` where
    the call is to run as it is.
    """

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        FORMS.update(dict.fromkeys(names, function))
        return function

    return add

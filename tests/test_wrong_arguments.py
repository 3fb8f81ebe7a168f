"""Arguments of a wrong kind: our own errors, with the argument's name and what was found."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import pabzip
from pabzip.errors import ExportError, PabzError, SearchError, SeedError
from pabzip.search import magnitude, snip, synflow
from pabzip.unmask import apply_psg

INPUTS, LABELS = torch.ones(3, 4), torch.tensor([0, 1, 1])


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def searched(**options: Any) -> object:
    net = pabzip.init_(network(), 0)
    return snip(net, keep_ratio=0.5, example_inputs=INPUTS, targets=LABELS, **options)


def drawn(**options: Any) -> object:
    return pabzip.init_(network(), 0, **options)


def exported(**options: Any) -> object:
    pytest.importorskip("onnxscript")
    net = pabzip.init_(network(), 0)
    return pabzip.export_onnx(net, io.BytesIO(), example_inputs=INPUTS, **options)


LOSS = "loss: expected a function of the outputs, and of the targets where there are any, found"
OUTPUT = "output: expected a function of what the network returns, found"
FAILS = "that it fails on torch.float32 (AttributeError: 'Tensor' object has no attribute 'logits')"
NAMES = "expected a name, or several in a list, found 3"
NET = "net: expected a network, a torch.nn.Module, found"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: searched(loss="mse"), SearchError, f"{LOSS} 'mse'"),
        (lambda: searched(loss=nn.CrossEntropyLoss), SearchError,
         f"{LOSS} the class CrossEntropyLoss; pass a module of it, CrossEntropyLoss()"),
        (lambda: searched(loss=lambda outputs: outputs.sum()), SearchError,
         f"{LOSS} that it fails on torch.float32, torch.int64 (TypeError: "),
        (lambda: searched(output="logits"), SearchError, f"{OUTPUT} 'logits'"),
        (lambda: searched(output=lambda out: out.logits), SearchError, f"{OUTPUT} {FAILS}"),
        (lambda: searched(output=lambda out: {}["q"]), SearchError, "(KeyError: 'q')"),
        (lambda: magnitude(pabzip.init_(network(), 0), "0.3"), SearchError,  # type: ignore[arg-type]
         "keep_ratio: expected a fraction with 0 < keep_ratio <= 1, found '0.3'"),
        (lambda: exported(output="logits"), ExportError, f"{OUTPUT} 'logits'"),
        (lambda: exported(output=lambda out: out.logits), ExportError, f"{OUTPUT} {FAILS}"),
        (lambda: exported(dynamic_axes=["input"]), ExportError,
         "dynamic_axes: expected names of axes by input and axis, such as "
         "{'input': {1: 'tokens'}}, found ['input']"),
        (lambda: exported(dynamic_axes={"input": [1]}), ExportError, "found {'input': [1]}"),
        (lambda: drawn(kinds=3), SeedError, f"kinds: {NAMES}"),
        (lambda: drawn(only=3), SeedError, f"only: {NAMES}"),
        (lambda: drawn(skip=3), SeedError, f"skip: {NAMES}"),
        (lambda: drawn(buffers=3), SeedError, f"buffers: {NAMES}"),
        (lambda: drawn(gain="a"), SeedError, "gain: expected a finite number above 0, found 'a'"),
        (lambda: pabzip.init_("x", 0), SeedError, f"{NET} 'x'"),  # type: ignore[arg-type]
        (lambda: pabzip.init_(nn.ReLU, 0), SeedError, f"{NET} the class ReLU"),  # type: ignore[arg-type]
        (lambda: synflow("net", 0.5, input_shape=(4,)), SearchError, f"{NET} 'net'"),  # type: ignore[arg-type]
        (lambda: apply_psg("x"), SeedError, f"{NET} 'x'"),  # type: ignore[arg-type]
        (lambda: pabzip.randn(3, 1, device="foo"), SeedError,
         "device: expected one that torch has here, such as 'cpu', found 'foo' ("),
        (lambda: pabzip.randn(None, 1, device="foo", out=torch.empty(3)), SeedError,
         "device: expected one that torch has here, such as 'cpu', found 'foo' ("),
        (lambda: pabzip.rand(3, 1, device=f"cuda:{torch.cuda.device_count()}"), SeedError,
         "device: expected one that torch has here, such as 'cpu', found 'cuda:"),
    ],
)  # fmt: skip
def test_the_message_names_argument_and_find(
    call: Callable[[], object], error: type[PabzError], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_what_is_callable_serves() -> None:
    found = searched(loss=nn.CrossEntropyLoss(), output=nn.Identity())
    expected = searched()
    assert isinstance(found, dict)
    assert isinstance(expected, dict)
    assert all(torch.equal(found[name], expected[name]) for name in expected)

"""A training step never waits for the device.

Tensors on torch's ``meta`` device have shapes and no values, so a step that asks for a value or for
a size that depends on values fails there. What the ``meta`` device lets pass, a watch notices:
numbers that travel between Python and the device, for which CUDA waits as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pabzip import data, models
from pabzip.data.augment import crop_and_flip
from pabzip.registry import METHODS
from pabzip.train import Recipe
from pabzip.train.build import seed_network, sharded
from pabzip.train.config import method_of
from pabzip.train.distributed import ProcessGroup
from pabzip.train.optimizers import Optimizers
from pabzip.train.precision import Precision
from pabzip.train.step import BatchGradients, EpochMetrics, train_step
from pabzip.unmask import apply_psg

_READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "is_nonzero")
_COPIES = (
    torch.tensor, torch.as_tensor, torch.from_numpy,
    torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu,
)  # fmt: skip


class _Reads(TorchDispatchMode):
    """Refuses operations that wait for values: of one kind of device, or of all."""

    def __init__(self, device: str | None):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        waits = masked or name in _READS
        if waits and self.device in (None, args[0].device.type):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


class _Copies(TorchFunctionMode):
    """Refuses to carry values between Python and the device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _COPIES:
            raise AssertionError(f"{func.__name__} carries values to or from the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting(device: str | None = None) -> Iterator[None]:
    """Fail on whatever waits for the device; any device counts unless one kind is given."""
    with _Reads(device), _Copies():
        yield


def step_on(device: torch.device, **recipe_values: Any) -> Callable[[], None]:
    """Return one step of the loop, after a first one that made the optimizers' states."""
    recipe = sharded(
        Recipe(arch="resnet20", arch_options={"width": 4}, **recipe_values), ProcessGroup()
    )
    net = seed_network(models.build("resnet20", {"width": 4}), recipe).to(device).train()
    precision = Precision(recipe.precision, recipe.channels_last, device)
    precision.lay_out(net)
    if method_of(recipe).psg:
        apply_psg(net)
    optimizers, metrics = Optimizers(net, recipe, {}), EpochMetrics(1, device)
    gradients = BatchGradients(net, 0, recipe.shards, ProcessGroup(), precision)
    inputs = torch.zeros(4, 3, 32, 32, device=device)
    labels = torch.zeros(4, dtype=torch.int64, device=device)

    def step() -> None:
        metrics.begin(1)
        train_step(gradients, optimizers, metrics, (inputs, labels), len(labels), 1, 1)

    step()
    return step


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_any_method(method: str) -> None:
    step = step_on(torch.device("meta"), method=method)
    with no_waiting("meta"):  # torch's Adam counts its steps on the CPU
        step()


@pytest.mark.parametrize(
    "values",
    [{"precision": "bfloat16"}, {"precision": "float16"}, {"channels_last": True}, {"shards": 2}],
    ids=str,
)
def test_a_step_of_any_arithmetic(values: dict[str, Any]) -> None:
    # Loss scales and autocast want a device with values; the CPU's own step of Bop reads them.
    step = step_on(torch.device("cpu"), method="dense-sgd", **values)
    with no_waiting():
        step()


def test_a_batch_in_the_middle_of_a_pass() -> None:
    images = torch.zeros(12, 3, 32, 32, dtype=torch.uint8)
    labels = torch.zeros(12, dtype=torch.int64)
    held = data.Images(images, labels, 255, (0.5,) * 3, (0.25,) * 3).to(torch.device("meta"))
    walk = data.batches(held, 4, shuffle_seed=0, epoch=0, augmentation=crop_and_flip)
    next(walk)  # order and random words cross to the device with the first batch
    with no_waiting():
        inputs, _ = next(walk)
    assert inputs.shape == (4, 3, 32, 32)


def test_the_watch_sees_what_waits() -> None:
    values = torch.ones(3)
    waits: list[Callable[[], object]] = [
        lambda: values.sum().item(),
        lambda: bool(values.sum() > 0),
        lambda: int(values[0]),
        lambda: values.nonzero(),
        lambda: values[values > 0],
        lambda: values.tolist(),
        lambda: float(values[1]),
        lambda: torch.tensor([1.0]),
    ]
    for wait in waits:
        with pytest.raises(AssertionError, match="the device"), no_waiting():
            wait()

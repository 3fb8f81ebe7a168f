"""What inputs become while synaptic flow is measured: ones, or what integer inputs look up.

SynFlow measures a network on an input of ones. Of a network's inputs, floating tensors become ones.
Integers are token ids, categories or counts, of which ones would be one arbitrary token; the flow
starts at what they look up instead, the outputs of embeddings, which become ones. Tensors of bools
and all those whose name says ``mask`` or ``position`` stay as they are.

An embedding that is searched itself is a linear map of one-hot inputs. An input of ones sums its
rows; the flow starts before it at ones, and goes through the mean of its rows, which is that sum
but for a factor. So all rows are scored, whichever tokens the example has; of an embedding of
positions, whichever positions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pabzip.calls import Call, named_tensors

_EMBEDDINGS = (F.embedding, F.embedding_bag)
_LOOKUPS: dict[Any, tuple[int, str]] = {
    **dict.fromkeys(_EMBEDDINGS, (1, "weight")),
    **dict.fromkeys((torch.index_select, Tensor.index_select, Tensor.__getitem__), (0, "input")),
}
"""Functions that look up rows of a table: the place of the table in their call, and its name."""


def call_of_shape(input_shape: Sequence[int]) -> Call:
    """Return a call with one image, or whatever a network takes, of ones."""
    return Call((torch.ones(1, *input_shape, dtype=torch.float64),), {}, ("input",))


def starting(call: Call, device: torch.device) -> tuple[Call, list[Tensor]]:
    """Return a call whose floating tensors are float64 ones, and the leaf tensors behind them.

    Of images and volumes, single tensors of four dimensions or more, one sample is enough; the
    first dimension of others may be time. All tensors are moved to ``device``.
    """
    starts: list[Tensor] = []
    only = len(call.args) == 1 and not call.kwargs and isinstance(call.args[0], Tensor)

    def change(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.to(device)
        if _stays(name):
            return tensor.detach().to(device, torch.float64)
        shape = (1, *tensor.shape[1:]) if only and tensor.dim() > 3 else tuple(tensor.shape)
        ones = torch.ones(shape, dtype=torch.float64, device=device, requires_grad=True)
        starts.append(ones)
        # No leaf: the network may go on to write to it.
        return ones.clone()

    return call.map(change), starts


def _stays(name: str) -> bool:
    """Say by the name of an input whether its values are no signal."""
    return "mask" in name or "position" in name


class LookupStarts(TorchFunctionMode):
    """Within it, rows of parameters that a call's integers look up are ones, and start the flow.

    Integers are followed from the call through all operations that give integers again.

    Args:
        call: its integer tensors are followed, but for those named as masks and positions.
        tables: the parameters, as the network will use them.
        searched: those of them that are searched, at least one.
        start: told of every tensor that the flow starts at, before the network gets it.

    Attributes:
        starts: these tensors, leaves that require a gradient, in the order of the lookups.
    """

    def __init__(
        self,
        call: Call,
        tables: Iterable[Tensor],
        searched: Collection[Tensor],
        start: Callable[[Tensor], None],
    ):
        super().__init__()
        self.starts: list[Tensor] = []
        self._start = start
        self._tables = {id(table) for table in tables}
        self._searched = {id(weight) for weight in searched}
        self._device = next(iter(searched)).device
        self._tokens: dict[int, Tensor] = {}  # kept, so that no other tensor gets their ids
        for name, tensor in call.tensors():
            if not _stays(name):
                self._follow(tensor)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        tokens = any(id(tensor) in self._tokens for _, tensor in named_tensors((args, kwargs)))
        if func in _LOOKUPS and isinstance(output, Tensor) and output.is_floating_point():
            place, name = _LOOKUPS[func]
            table = args[place] if len(args) > place else kwargs[name]
            if func in _EMBEDDINGS and id(table) in self._searched:
                ones = torch.ones_like(output[..., :1])
                return (self._ones(ones.shape) if tokens else ones) * table.mean(0)
            # Tables that are no parameters hold positions (rotary embeddings) and the like.
            if tokens and (func in _EMBEDDINGS or id(table) in self._tables):
                return self._ones(output.shape)
        if tokens:
            for _, tensor in named_tensors(output):
                self._follow(tensor)
        return output

    def _ones(self, shape: Sequence[int]) -> Tensor:
        """Return ones that start the flow."""
        ones = torch.ones(shape, dtype=torch.float64, device=self._device, requires_grad=True)
        self.starts.append(ones)
        self._start(ones)
        return ones.clone()  # no leaf: the network may go on to write to it

    def _follow(self, tensor: Tensor) -> None:
        if not tensor.is_floating_point() and tensor.dtype != torch.bool:
            self._tokens[id(tensor)] = tensor

"""SynFlow: prune weights by synaptic flow, without data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Unpack

import torch
from torch import Tensor, nn

from pabzip.calls import Call, Output
from pabzip.errors import SearchError
from pabzip.registry import register_search
from pabzip.search.driver import Scorer, SearchCall, SearchOptions, shares_options
from pabzip.search.isolation import full_float32
from pabzip.search.layer_products import Product, exponent_of, shifted
from pabzip.search.linearized import Flow, LinearizedNetwork


class SynFlowScorer:
    """Scores weights by their synaptic flow, ``|dR/dw * w|``, in float64.

    R is the sum of the outputs for an input of ones, in evaluation mode, with every parameter and
    floating buffer replaced by its absolute value, and with linear activations and open gates
    (`pabzip.search.linear_forms`). A weight's score is then the weight of all paths through it, so
    a layer that thins out gains score, and collapse is put off.

    Args:
        net: any module that returns a floating tensor, or something with one in it.
        weights: the weights to score, by name.
        inputs: a call of the network, or the shape of one input without the batch dimension.
        output: from what the network returns to a tensor; None takes `pabzip.calls.main_output`.

    Attributes:
        reached: names of the weights that the input reached in the last round.
        connected: whether a path led from the input to the output in the last round.

    Source: Tanaka et al. 2020, equation (2) and Algorithm 1; Peek-a-Boo, Section 3.2.
    """

    _dtype = torch.float64

    def __init__(
        self,
        net: nn.Module,
        weights: Mapping[str, nn.Parameter],
        inputs: Call | Sequence[int],
        output: Output | None = None,
    ):
        self._network = LinearizedNetwork(net, weights, inputs, output)
        # Kept from round to round: new memory of this size costs more than the arithmetic.
        self._scores = {
            name: torch.empty(weight.shape, dtype=self._dtype, device=weight.device)
            for name, weight in self._network.weights.items()
        }
        # Of float64, `prune` reaches these too; of another dtype, they are copies of all weights.
        self._weights = {
            name: weight.detach().to(self._dtype) for name, weight in self._network.weights.items()
        }
        self._flow: Flow | None = None
        self.reached: Collection[str] = ()
        self.connected = True

    @torch.no_grad()
    def scores(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the synaptic flow of each weight under ``masks``.

        The tensors are written anew by the next call.

        Raises:
            SearchError: ``inputs`` do not fit the network.
        """
        self._network.prune(masks)
        self._flow = None  # frees the last round's memory first
        self._flow = flow = self._network.flow()
        self.reached = flow.reached
        self.connected = flow.connected
        with full_float32():
            for name, score in self._scores.items():
                products, rest = self._parts(flow, name)
                if not products:
                    score.zero_()
                for number, product in enumerate(products):
                    product.add_to(score, first=number == 0)
                if rest is not None:
                    score.add_(rest)
                score.mul_(self._weights[name]).abs_()
        return dict(self._scores)

    def _parts(self, flow: Flow, name: str) -> tuple[Sequence[Product], Tensor | None]:
        """Return what the gradient of R by a weight is the sum of, in the dtype of the scores."""
        return flow.products[name], flow.rests[name]


class FastSynFlowScorer(SynFlowScorer):
    """Scores weights by their synaptic flow, as `SynFlowScorer` does, in float32.

    What flows through the network stays float64; the scores, which are millions where activations
    are thousands, are computed in float32, so that half as many bytes are moved for them. They
    are divided by a power of two near R, which rounds nothing and changes no order, so that they
    overflow for no network whose R does not.

    Scores too near the threshold for float32 to tell apart are settled by `exact`. Without that
    the mask would not be float64's, since SynFlow multiplies differences: a channel that has lost
    a weight loses the next one sooner. Rounding the scores of float64 to float32, and nothing
    else, changed 15,034 of the 11,159,232 entries of ResNet-18's mask (keep 0.1, 100 iterations).

    Source: Tanaka et al. 2020, equation (2); the division of labor is ours.
    """

    _dtype = torch.float32

    def _parts(self, flow: Flow, name: str) -> tuple[Sequence[Product], Tensor | None]:
        """Return the parts in float32, over the power of two near R."""
        exponent = exponent_of(abs(flow.total))
        products = [product.scaled(exponent, torch.float32) for product in flow.products[name]]
        rest = flow.rests[name]
        return products, None if rest is None else shifted(rest, -exponent)

    @torch.no_grad()
    def exact(self, places: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return some synaptic flows of the last round in float64, as `ExactScorer` says."""
        assert self._flow is not None, "scores comes first"
        result = {}
        for name, place in places.items():
            weight = self._network.weights[name].detach()
            gradient = weight.new_zeros(len(place))
            for product in self._flow.products[name]:
                gradient += product.at(place)
            rest = self._flow.rests[name]
            if rest is not None:
                gradient += rest.reshape(-1)[place]
            result[name] = (gradient * weight.reshape(-1)[place]).abs_()
        return result


_SCORERS: dict[torch.dtype, Callable[..., Scorer]] = {
    torch.float64: SynFlowScorer,
    torch.float32: FastSynFlowScorer,
}


@register_search("synflow", needs_data=False, rounds=100, takes=("dtype",))
@shares_options
def synflow(
    net: nn.Module,
    keep_ratio: float,
    *,
    dtype: torch.dtype = torch.float64,
    **options: Unpack[SearchOptions],
) -> dict[str, Tensor]:
    """Find a mask by SynFlow and apply it: pruned weights become +0.0, survivors keep their bits.

    Nothing else of ``net`` changes: biases, buffers, gradients, ``requires_grad``, dtypes, devices
    and the train/eval mode of each module are as before, as is the global random state. On an
    exception the weights, too, are as before.

    Args:
        net: a network drawn by `pabzip.init_`, or any network with ``weights``. Activations,
            gates, attention and norms may be any; see `pabzip.search.linear_forms`.
        keep_ratio: fraction of the weights that survives, in (0, 1]; 0.1 is the paper's 90 %
            pruning. Exactly ``N - int((1 - keep_ratio) * N)`` of N weights survive, as published.
        input_shape: shape of one input, without the batch dimension, such as ``(3, 32, 32)``. A
            short sequence will do for a recurrent network, whose flow grows with each step.
        example_inputs: in place of ``input_shape``, what the network is called with: a tensor, a
            tuple of positional arguments, or a mapping of keyword arguments, where tensors may be
            nested in tuples, lists and mappings, and other values are passed on. One sample will
            do. Floating tensors count by their shape alone; integers, such as token ids, start the
            flow at what they look up (`pabzip.search.starts`); masks and positions stay as they
            are.
        targets: not used; every search takes the same arguments.
        loss: not used.
        output: from what the network returns to the floating tensor that R is the sum of. By
            default a tensor itself, else its ``logits``, else the first floating tensor in the
            mapping, dataclass or tuple.
        only: the seeded weights to decide on: names of weights or of modules, or a predicate
            ``(module, name) -> bool``. All by default.
        skip: the same, for seeded weights that stay as they are.
        weights: in place of ``only`` and ``skip``, any parameters of ``net`` by name.
        iterations: rounds of scoring and pruning. One round prunes by the dense network's scores
            and is prone to layer collapse; None is the published number, 100.
        schedule: how the number of survivors falls, one of `pabzip.search.SCHEDULES`; the
            exponential one is published.
        scope: ``"global"`` for one threshold, as published; ``"layer"`` for one of each weight
            tensor, so that each keeps the same fraction.
        seed: not used.
        on_iteration: called as ``on_iteration(i, iterations)`` after each round, i from 1.
        dtype: of the scores: float64, as published, or float32, which moves half as many bytes
            and finds the same mask; see `FastSynFlowScorer`.

    Returns:
        The masks by name, in the order of the weights: bool, of the weight's shape, on its device.
        A mask may be all False where a path leads around the layer, such as a residual block's.

    Raises:
        SearchError: an argument out of range, a network that does not take the inputs, scores
            that are not finite, a layer that cannot be scored, fewer weights with a path than are
            to survive, or layer collapse; the message names the layers.
        SeedError: ``weights`` is not given and ``net`` was not drawn from a seed, or ``only`` or
            ``skip`` names nothing.

    Source: Tanaka et al. 2020, Algorithm 1; Peek-a-Boo, Section 3.2, Algorithm 1, line 1 and
    Section 4.1. On its networks the masks are those of the published code, weight for weight.
    Deviations: that code prunes every weight that ties with the threshold, so its count may be
    missed; here ties are settled by position and the count is exact. Its networks have ReLU alone,
    so it needs no linear forms.
    """
    call = SearchCall(net, keep_ratio, **options)
    chosen, inputs = call.chosen, call.inputs
    if inputs is None:
        raise SearchError(
            "synflow: expected input_shape=, such as (3, 32, 32), or example_inputs=, found neither"
        )
    if dtype not in _SCORERS:
        raise SearchError(f"dtype: expected torch.float64 or torch.float32, found {dtype}")
    return call.run(_SCORERS[dtype](net, chosen, inputs, call.output), inputs, rounds=100)

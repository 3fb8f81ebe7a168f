"""SynFlow: prune weights by synaptic flow, without data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pabzip.errors import SearchError
from pabzip.search.driver import OnIteration, Scorer, iterative_search, search_weights
from pabzip.search.isolation import full_float32
from pabzip.search.linearized import (
    AbsoluteNetwork,
    Flow,
    empty_scores,
    exponent_of,
    shifted,
    write_gradient,
)
from pabzip.search.schedule import prune_groups


class SynFlowScorer:
    """Scores weights by their synaptic flow, ``|dR/dw * w|``, in float64.

    R is the sum of the outputs for an input of ones, in evaluation mode, with every parameter and
    floating buffer replaced by its absolute value. A weight's score is then the weight of all
    paths through it, so a layer that thins out gains score, and collapse is put off.

    Args:
        net: any module that maps one floating tensor to one floating tensor.
        weights: the weights to score, by name.
        input_shape: shape of one input, without the batch dimension.

    Raises:
        SearchError: ``input_shape`` is out of range.

    Source: Tanaka et al. 2020, equation (2) and Algorithm 1; Peek-a-Boo, Section 3.2.
    """

    def __init__(
        self, net: nn.Module, weights: Mapping[str, nn.Parameter], input_shape: Sequence[int]
    ):
        self._network = AbsoluteNetwork(net, weights, input_shape)
        # Kept from round to round: new memory of this size costs more than the arithmetic.
        self._scores = empty_scores(self._network.weights, torch.float64)

    @torch.no_grad()
    def scores(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the synaptic flow of each weight under ``masks``.

        The tensors are written anew by the next call.

        Raises:
            SearchError: ``input_shape`` does not fit the network.
        """
        self._network.prune(masks)
        flow = self._network.flow()
        for name, score in self._scores.items():
            write_gradient(score, flow.products[name], flow.rests[name])
            score.mul_(self._network.weights[name]).abs_()
        return dict(self._scores)


class FastSynFlowScorer:
    """Scores weights by their synaptic flow, as `SynFlowScorer` does, in float32.

    What flows through the network stays float64; the scores, which are millions where activations
    are thousands, are computed in float32, so that half as many bytes are moved for them. They
    are divided by a power of two near R, which rounds nothing and changes no order, so that they
    overflow for no network whose R does not.

    Scores too near the threshold for float32 to tell apart are settled by `exact`. Without that
    the mask would not be float64's, since SynFlow multiplies differences: a channel that has lost
    a weight loses the next one sooner. Rounding the scores of float64 to float32, and nothing
    else, changed 20,474 of the 11,164,352 entries of ResNet-18's mask (keep 0.1, 100 iterations).

    Args:
        net: any module that maps one floating tensor to one floating tensor.
        weights: the weights to score, by name.
        input_shape: shape of one input, without the batch dimension.

    Raises:
        SearchError: ``input_shape`` is out of range.

    Source: Tanaka et al. 2020, equation (2); the division of labor is ours.
    """

    def __init__(
        self, net: nn.Module, weights: Mapping[str, nn.Parameter], input_shape: Sequence[int]
    ):
        self._network = AbsoluteNetwork(net, weights, input_shape)
        self._flow: Flow | None = None
        self._weights = {
            name: weight.detach().to(torch.float32)
            for name, weight in self._network.weights.items()
        }
        # Kept from round to round: new memory of this size costs more than the arithmetic.
        self._scores = empty_scores(self._network.weights, torch.float32)

    @torch.no_grad()
    def scores(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the synaptic flow of each weight under ``masks``, over a power of two for all.

        Weights that are pruned get the flow that they would have. The tensors are written anew by
        the next call.

        Raises:
            SearchError: ``input_shape`` does not fit the network.
        """
        self._network.prune(masks)
        self._flow = flow = self._network.flow()
        exponent = exponent_of(abs(flow.total))
        with full_float32():
            for name, score in self._scores.items():
                products = [part.scaled(exponent, torch.float32) for part in flow.products[name]]
                rest = flow.rests[name]
                write_gradient(score, products, None if rest is None else shifted(rest, -exponent))
                score.mul_(self._weights[name]).abs_()
        return dict(self._scores)

    @torch.no_grad()
    def exact(self, places: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return some synaptic flows of the last round in float64.

        Args:
            places: positions in the flat weights, int64 vectors by name.

        Returns:
            float64 vectors by the same names.
        """
        assert self._flow is not None, "scores comes first"
        result = {}
        for name, place in places.items():
            weight = self._network.weights[name].detach()
            gradient = weight.new_zeros(len(place))
            for product in self._flow.products[name]:
                gradient += product.at(place, weight)
            rest = self._flow.rests[name]
            if rest is not None:
                gradient += rest.reshape(-1)[place]
            result[name] = (gradient * weight.reshape(-1)[place]).abs_()
        return result


_SCORERS: dict[torch.dtype, Callable[..., Scorer]] = {
    torch.float64: SynFlowScorer,
    torch.float32: FastSynFlowScorer,
}


def synflow(
    net: nn.Module,
    keep_ratio: float,
    input_shape: Sequence[int],
    iterations: int = 100,
    *,
    weights: Mapping[str, nn.Parameter] | None = None,
    schedule: str = "exponential",
    scope: str = "global",
    dtype: torch.dtype = torch.float64,
    on_iteration: OnIteration | None = None,
) -> dict[str, Tensor]:
    """Find a mask by SynFlow and apply it: pruned weights become +0.0, survivors keep their bits.

    Nothing else of ``net`` changes: biases, buffers, gradients, ``requires_grad``, dtypes, devices
    and the train/eval mode of each module are as before, as is the global random state. On an
    exception the weights, too, are as before.

    Args:
        net: a network drawn by `pabzip.init_`, or any network with ``weights``.
        keep_ratio: fraction of the weights that survives, in (0, 1]; 0.1 is the paper's 90 %
            pruning. Exactly ``round(keep_ratio * N)`` of N weights survive.
        input_shape: shape of one input, without the batch dimension, such as ``(3, 32, 32)``.
        iterations: rounds of scoring and pruning. One round prunes by the dense network's scores
            and is prone to layer collapse; 100 is the published choice.
        weights: the weights to decide on, by name; the seeded ones by default.
        schedule: how the number of survivors falls, one of `pabzip.search.SCHEDULES`; the
            exponential one is published.
        scope: ``"global"`` for one threshold, as published; ``"layer"`` for one of each weight
            tensor, so that each keeps the same fraction.
        dtype: of the scores: float64, as published, or float32, which moves half as many bytes
            and finds the same mask; see `FastSynFlowScorer`.
        on_iteration: called as ``on_iteration(i, iterations)`` after each round, i from 1.

    Returns:
        The masks by name, in the order of the weights: bool, of the weight's shape, on its device.

    Raises:
        SearchError: an argument out of range, a network that does not take ``input_shape``, scores
            that are not finite (the layer is named), or layer collapse (the layers are named).
        SeedError: ``weights`` is not given and ``net`` was not drawn from a seed.

    Source: Tanaka et al. 2020, Algorithm 1; Peek-a-Boo, Section 3.2, Algorithm 1, line 1 and
    Section 4.1. Deviations: the published code prunes every weight that ties with the threshold,
    so its count may be missed; here ties are settled by position and the count is exact.
    """
    chosen = search_weights(net, weights)
    if dtype not in _SCORERS:
        raise SearchError(f"dtype: expected torch.float64 or torch.float32, found {dtype}")
    scorer = _SCORERS[dtype](net, chosen, input_shape)
    return iterative_search(
        net, chosen, scorer, prune_groups(chosen, keep_ratio, scope), input_shape, iterations,
        schedule=schedule, on_iteration=on_iteration,
    )  # fmt: skip

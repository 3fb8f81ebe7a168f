"""Baselines without data: keep the largest weights, or keep weights at random.

At random, one fraction is kept of the whole network, or of each layer one that is given by name or
that follows from its depth.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Unpack

import numpy as np
import torch
from torch import Tensor, nn

from pabzip.errors import SearchError
from pabzip.init import seeding
from pabzip.registry import register_search
from pabzip.search.driver import SearchCall, SearchOptions, shares_options
from pabzip.search.schedule import PruneGroup, check_fraction
from pabzip.seeds import InitSpec, check_seed, magnitudes

FIRST_STREAM = 2**29
"""Stream of the first weight's scores. Weights are drawn from the streams far below; latent weights
begin at 2**30, dropped steps at 3 * 2**29, and the order of the data at 2**31."""


class MagnitudeScorer:
    """Scores weights by ``|w|``.

    Args:
        weights: the weights to score, by name.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter]):
        self._weights = dict(weights)

    def scores(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the magnitude of each weight."""
        return {name: self._weights[name].detach().abs() for name in masks}


class RandomScorer:
    """Scores weights by uniform random numbers: Philox words of a seed and a stream per weight.

    The scores are a function of the seed, the weight's number and its shape alone: the same on
    every device, with any number of threads, in every version of torch, and in every search of a
    run, so that a later search with fewer survivors keeps a part of the earlier ones'.

    Args:
        weights: the weights to score, by name, in the order that numbers them.
        seed: ``0 <= seed < 2**64``.

    Raises:
        SeedError: a seed out of range.

    Source: Philox4x32-10, Salmon et al. 2011; a score is the low 31 bits of an element's word.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], seed: int):
        self._seed = check_seed(seed)
        self._weights = dict(weights)

    def scores(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return whole numbers from 0 to ``2**31 - 1`` as float64, on the weights' devices."""
        scores = {}
        for number, (name, weight) in enumerate(self._weights.items()):
            spec = InitSpec("uniform", 1.0, FIRST_STREAM + number)
            words = magnitudes(self._seed, spec, 0, weight.numel()) >> np.uint32(1)
            drawn = torch.from_numpy(words.astype(np.float64)).view(weight.shape)
            scores[name] = drawn.to(weight.device)
        return scores


@register_search("magnitude", needs_data=False, rounds=1)
@shares_options
def magnitude(
    net: nn.Module, keep_ratio: float, **options: Unpack[SearchOptions]
) -> dict[str, Tensor]:
    """Keep the largest weights and prune the rest.

    A weight's magnitude does not depend on what else is pruned, so one round finds the mask. With
    one threshold, layers that were drawn small (those of large fan-in) go first, and may go whole.

    Arguments, result and errors are those of `pabzip.search.synflow`, with two differences:

    - ``input_shape`` or ``example_inputs`` may be left out. They tell whether a layer that was
      emptied cuts the network; without them every layer has to keep something.
    - ``iterations``, ``schedule`` and ``on_iteration`` are not used: there is one round.

    Source: Janowsky 1989; Frankle et al. 2021, Section 3, as a baseline at initialization.
    """
    call = SearchCall(net, keep_ratio, **options)
    return call.run(MagnitudeScorer(call.chosen), call.inputs)


@register_search("random", needs_data=False, rounds=1, at_random=True)
@shares_options
def random(
    net: nn.Module, keep_ratio: float, **options: Unpack[SearchOptions]
) -> dict[str, Tensor]:
    """Keep weights at random and prune the rest.

    Arguments, result and errors are those of `magnitude`, with two differences:

    - ``seed`` is that of the scores, ``0 <= seed < 2**64``; by default it is the network's own.
      The scores do not depend on torch's random state, and are independent of the weights. A
      seed that is out of range, or neither given nor on record, raises ``SeedError``.
    - In ``weights`` the order matters, since each weight has its own random stream by its place.
    """
    call = SearchCall(net, keep_ratio, **options)
    return call.run(_at_random(call), call.inputs)


@register_search("layerwise-random", needs_data=False, rounds=1, at_random=True, takes=("ratios",))
@shares_options
def layerwise_random(
    net: nn.Module,
    keep_ratio: float,
    *,
    ratios: Mapping[str, float] | None = None,
    **options: Unpack[SearchOptions],
) -> dict[str, Tensor]:
    """Keep weights at random, with a fraction for each tensor, such as a ticket's.

    Arguments, result and errors are those of `random`, with two differences:

    - ``ratios`` gives the fraction of some weights that survives, in (0, 1], by their names. All
      others have ``keep_ratio``: of a tensor of n weights, ``n - int((1 - keep_ratio) * n)``
      survive. A ratio of no weight that is searched raises ``SearchError``, which names it.
    - ``scope`` is not used: every tensor has a threshold of its own.

    Source: Frankle et al. 2021 and Su et al. 2020 ("random tickets"): at initialization the
    fractions of the layers matter more than which weights they are.
    """
    call = SearchCall(net, keep_ratio, **options)
    own = dict(ratios or {})
    for name in own:
        if name not in call.chosen:
            raise SearchError(
                f"ratios: expected names among {', '.join(list(call.chosen)[:8])}"
                f"{' and so on' if len(call.chosen) > 8 else ''}, found {name!r}"
            )
    return _layer_by_layer(call, {name: own.get(name, keep_ratio) for name in call.chosen})


RATIO_FORMS = ("resnet", "vgg")
"""How the smart ratios fall from layer to layer: by ``k * k + k``, k counted from the last layer,
for residual networks; for plain ones, that divided by the square of the layer's number."""


@register_search(
    "smart-ratio", needs_data=False, rounds=1, at_random=True,
    takes=("ratio_form", "linear_keep_ratio"),
)  # fmt: skip
@shares_options
def smart_ratio(
    net: nn.Module,
    keep_ratio: float,
    *,
    ratio_form: str = "resnet",
    linear_keep_ratio: float = 0.3,
    **options: Unpack[SearchOptions],
) -> dict[str, Tensor]:
    """Keep weights at random, with a fraction for each layer that depends on its depth.

    Convolutions keep the more the earlier they come, all in one proportion, so that ``keep_ratio``
    of all weights is left; Linear layers keep a fraction of their own. What a layer cannot take,
    because it is whole already, goes to the next one; what the last cannot take is pruned.

    Arguments, result and errors are those of `random`, with these differences:

    - ``ratio_form`` is one of ``"resnet"`` and ``"vgg"``: of L layers, the l-th keeps in proportion
      to ``k * k + k`` with ``k = L - l + 1``, or to that divided by ``l * l``.
    - ``linear_keep_ratio`` is the fraction of every Linear layer, in (0, 1].
    - ``scope`` is not used. Layers count in the order of the weights; those that are not searched,
      such as a dense classifier, do not.
    - A network without convolutions, or whose Linear layers alone keep more than asked for, raises
      ``SearchError``.

    Source: Su et al. 2020, smart ratios; both forms, the 0.3, the way of a surplus and the counts
    are those of its code. Rare Gems (Sreenivasan et al. 2022), Section 4 and Table 16 ("SR (v1)"),
    compares with it.
    """
    call = SearchCall(net, keep_ratio, **options)
    check_fraction(keep_ratio)
    check_fraction(linear_keep_ratio, "linear_keep_ratio")
    sizes = {name: weight.numel() for name, weight in call.chosen.items()}
    linear = [name for name, weight in call.chosen.items() if weight.dim() == 2]
    counts = smart_counts(sizes, linear, keep_ratio, ratio_form, linear_keep_ratio)
    # Half a weight less: what is pruned is rounded down, which leaves exactly the count.
    return _layer_by_layer(call, {name: (counts[name] - 0.5) / sizes[name] for name in sizes})


def smart_counts(
    sizes: Mapping[str, int],
    linear: Collection[str],
    keep_ratio: float,
    ratio_form: str = "resnet",
    linear_keep_ratio: float = 0.3,
) -> dict[str, int]:
    """Return how many weights `smart_ratio` keeps of each layer, from their sizes, in order.

    ``linear`` are the names of those that belong to Linear layers.
    """
    if ratio_form not in RATIO_FORMS:
        raise SearchError(
            f"ratio_form: expected one of {', '.join(RATIO_FORMS)}, found {ratio_form!r}"
        )
    shares = {}
    for number, name in enumerate(sizes, 1):
        k = len(sizes) - number + 1
        shares[name] = (k * k + k) / (number * number if ratio_form == "vgg" else 1)
    convolutions = [name for name in sizes if name not in linear]
    fixed = int(linear_keep_ratio * sum(sizes[name] for name in linear))
    wanted = int(keep_ratio * sum(sizes.values())) - fixed
    if not convolutions or wanted < 1:
        raise SearchError(
            f"smart-ratio: expected convolutions that keep what is left of keep_ratio={keep_ratio} "
            f"beside the {fixed} weights of Linear layers, found {len(convolutions)} convolutions "
            f"and {wanted} weights left; use layerwise-random, or a smaller linear_keep_ratio"
        )
    scale = wanted / sum(int(sizes[name] * shares[name]) for name in convolutions)
    counts, surplus = {name: int(linear_keep_ratio * sizes[name]) for name in linear}, 0
    for name in convolutions:
        ratio, size = scale * shares[name], sizes[name]
        if ratio < 1.0 and int((1.0 - ratio) * size) >= surplus:
            counts[name], surplus = int(ratio * size + surplus), 0
        else:
            counts[name], surplus = size, surplus + int((ratio - 1.0) * size)
    empty = [name for name, count in counts.items() if count < 1]
    if empty:
        raise SearchError(
            f"smart-ratio: keep_ratio={keep_ratio} leaves none of {', '.join(map(repr, empty))}; "
            "raise keep_ratio"
        )
    return counts


def _layer_by_layer(call: SearchCall, ratios: Mapping[str, float]) -> dict[str, Tensor]:
    """Keep weights at random, with a fraction for each tensor."""
    groups = [PruneGroup((name,), ratio) for name, ratio in ratios.items()]
    return call.run(_at_random(call), call.inputs, groups=groups)


def _at_random(call: SearchCall) -> RandomScorer:
    """Return the random scores of a call's seed, or of its network's."""
    return RandomScorer(call.chosen, seeding(call.net).seed if call.seed is None else call.seed)

"""Search: find the mask of a ticket, before or during training.

`synflow` is the search of the paper; `snip`, `grasp`, `magnitude`, `random`, `layerwise_random` and
`smart_ratio` stand beside it. All take the same arguments, which `synflow` describes, apply the
mask that they return, and go on from weights that are pruned already.

A search of your own is a scorer (`Scorer`), which `iterative_search` runs by a schedule, and a
function around it with ``@pabzip.registry.register_search("name", needs_data=False, rounds=1)``.
"""

from pabzip._optional import require

require("torch", extra="torch", purpose="pabzip.search")

from pabzip.search.baselines import (
    MagnitudeScorer,
    RandomScorer,
    layerwise_random,
    magnitude,
    random,
    smart_ratio,
)
from pabzip.search.driver import ExactScorer, PathScorer, Scorer, iterative_search
from pabzip.search.loss import GraspScorer, SnipScorer, grasp, snip
from pabzip.search.loss_network import LossNetwork
from pabzip.search.masks import apply_masks, keep_largest
from pabzip.search.schedule import (
    SCHEDULES,
    SCOPES,
    PruneGroup,
    exponential_schedule,
    linear_schedule,
    prune_groups,
)
from pabzip.search.synflow import FastSynFlowScorer, SynFlowScorer, synflow

__all__ = [
    "SCHEDULES",
    "SCOPES",
    "ExactScorer",
    "FastSynFlowScorer",
    "GraspScorer",
    "LossNetwork",
    "MagnitudeScorer",
    "PathScorer",
    "PruneGroup",
    "RandomScorer",
    "Scorer",
    "SnipScorer",
    "SynFlowScorer",
    "apply_masks",
    "exponential_schedule",
    "grasp",
    "iterative_search",
    "keep_largest",
    "layerwise_random",
    "linear_schedule",
    "magnitude",
    "prune_groups",
    "random",
    "smart_ratio",
    "snip",
    "synflow",
]

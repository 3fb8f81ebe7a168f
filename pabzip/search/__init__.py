"""Search: finding the mask of a ticket.

A search is four parts that know nothing of each other: a scorer (one a file, scores only), the
groups (which weights compete, and how many survive), a schedule (how many after each iteration)
and the mask selection. `iterative_search` joins them. `synflow` is the search of the paper;
`snip`, `grasp`, `magnitude`, `random` and `layerwise_random` stand beside it. All of them apply
the mask they return, and go on from weights that are pruned already.
"""

from pabzip.search.driver import ExactScorer, Scorer, iterative_search
from pabzip.search.grasp import GraspScorer, grasp
from pabzip.search.loss import LossNetwork
from pabzip.search.magnitude import MagnitudeScorer, magnitude
from pabzip.search.masks import apply_masks, keep_largest
from pabzip.search.random import RandomScorer, layerwise_random, random
from pabzip.search.schedule import (
    SCHEDULES,
    SCOPES,
    PruneGroup,
    exponential_schedule,
    linear_schedule,
    prune_groups,
)
from pabzip.search.snip import SnipScorer, snip
from pabzip.search.synflow import FastSynFlowScorer, SynFlowScorer, synflow

__all__ = [
    "SCHEDULES",
    "SCOPES",
    "ExactScorer",
    "FastSynFlowScorer",
    "GraspScorer",
    "LossNetwork",
    "MagnitudeScorer",
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
    "snip",
    "synflow",
]

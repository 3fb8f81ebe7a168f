"""Search: finding the mask of a ticket at initialisation.

A search is three parts that know nothing of each other: a scorer (one a file, scores only), a
schedule (how many weights survive after each iteration) and the mask selection. `iterative_search`
joins them; `synflow` is the search of the paper.
"""

from pabzip.search.driver import Scorer, iterative_search
from pabzip.search.masks import apply_masks, keep_largest
from pabzip.search.schedule import exponential_schedule
from pabzip.search.synflow import SynFlowScorer, synflow

__all__ = [
    "Scorer",
    "SynFlowScorer",
    "apply_masks",
    "exponential_schedule",
    "iterative_search",
    "keep_largest",
    "synflow",
]

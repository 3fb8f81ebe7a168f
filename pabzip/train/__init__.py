"""Training: recipes, the loop, evaluation, checkpoints and what a step costs.

Names are imported on first use, so that reading a recipe or a checkpoint does not load the whole
of training.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pabzip.train.bitops import LayerCost, bit_operations, layer_costs
    from pabzip.train.cadence import SaveEvery
    from pabzip.train.checkpoint import (
        Checkpoint,
        load_checkpoint,
        network_from_checkpoint,
        save_checkpoint,
    )
    from pabzip.train.costing import StepCosts, method_costs, step_costs
    from pabzip.train.defaults import default_recipe
    from pabzip.train.estimate import Estimate, estimate_costs
    from pabzip.train.evaluation import Evaluation, evaluate
    from pabzip.train.expected_bytes import ExpectedBytes
    from pabzip.train.found_tickets import SearchResult, apply_ticket, find_ticket
    from pabzip.train.loop import train
    from pabzip.train.macs import count_macs
    from pabzip.train.methods import Method, method_of
    from pabzip.train.network import build_network, classifier_name, seed_network
    from pabzip.train.observers import (
        Curves,
        JsonLog,
        Observer,
        Progress,
        ProgressBar,
        TensorBoard,
    )
    from pabzip.train.recipes import (
        BopRecipe,
        LatentRecipe,
        PsgRecipe,
        Recipe,
        SearchRecipe,
        SgdRecipe,
        SignSgdRecipe,
    )
    from pabzip.train.results import EpochStats, TrainResult
    from pabzip.train.toml import from_dict, merge, read_recipe, to_dict

_HOMES = {
    "BopRecipe": "recipes",
    "Checkpoint": "checkpoint",
    "Curves": "observers",
    "EpochStats": "results",
    "Estimate": "estimate",
    "Evaluation": "evaluation",
    "ExpectedBytes": "expected_bytes",
    "JsonLog": "observers",
    "LatentRecipe": "recipes",
    "LayerCost": "bitops",
    "Method": "methods",
    "Observer": "observers",
    "Progress": "observers",
    "ProgressBar": "observers",
    "PsgRecipe": "recipes",
    "Recipe": "recipes",
    "SaveEvery": "cadence",
    "SearchRecipe": "recipes",
    "SearchResult": "found_tickets",
    "SgdRecipe": "recipes",
    "SignSgdRecipe": "recipes",
    "StepCosts": "costing",
    "TensorBoard": "observers",
    "TrainResult": "results",
    "apply_ticket": "found_tickets",
    "bit_operations": "bitops",
    "build_network": "network",
    "classifier_name": "network",
    "count_macs": "macs",
    "default_recipe": "defaults",
    "estimate_costs": "estimate",
    "evaluate": "evaluation",
    "find_ticket": "found_tickets",
    "from_dict": "toml",
    "layer_costs": "bitops",
    "load_checkpoint": "checkpoint",
    "merge": "toml",
    "method_costs": "costing",
    "method_of": "methods",
    "network_from_checkpoint": "checkpoint",
    "read_recipe": "toml",
    "save_checkpoint": "checkpoint",
    "seed_network": "network",
    "step_costs": "costing",
    "to_dict": "toml",
    "train": "loop",
}

__all__ = [
    "BopRecipe",
    "Checkpoint",
    "Curves",
    "EpochStats",
    "Estimate",
    "Evaluation",
    "ExpectedBytes",
    "JsonLog",
    "LatentRecipe",
    "LayerCost",
    "Method",
    "Observer",
    "Progress",
    "ProgressBar",
    "PsgRecipe",
    "Recipe",
    "SaveEvery",
    "SearchRecipe",
    "SearchResult",
    "SgdRecipe",
    "SignSgdRecipe",
    "StepCosts",
    "TensorBoard",
    "TrainResult",
    "apply_ticket",
    "bit_operations",
    "build_network",
    "classifier_name",
    "count_macs",
    "default_recipe",
    "estimate_costs",
    "evaluate",
    "find_ticket",
    "from_dict",
    "layer_costs",
    "load_checkpoint",
    "merge",
    "method_costs",
    "method_of",
    "network_from_checkpoint",
    "read_recipe",
    "save_checkpoint",
    "seed_network",
    "step_costs",
    "to_dict",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"pabzip.train.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'pabzip.train' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))

"""Supermasks: learning which weights of a random network to keep, by a score for each weight."""

from pabzip._optional import require

require("torch", extra="torch", purpose="pabzip.supermask")

from pabzip.supermask.biprop import Biprop
from pabzip.supermask.connectivity import (
    FreeFlipping,
    FreePruning,
    imbalance_signs,
    remove_weights,
)
from pabzip.supermask.edge_popup import EdgePopup
from pabzip.supermask.gem_miner import GemMiner
from pabzip.supermask.scores import ScoreRule, ScoreSchedule, fall_epochs, gradual_keep_ratio

__all__ = [
    "Biprop",
    "EdgePopup",
    "FreeFlipping",
    "FreePruning",
    "GemMiner",
    "ScoreRule",
    "ScoreSchedule",
    "fall_epochs",
    "gradual_keep_ratio",
    "imbalance_signs",
    "remove_weights",
]

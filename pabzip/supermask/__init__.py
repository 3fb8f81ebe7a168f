"""Supermasks: learning which weights of a random network to keep, by a score for each weight."""

from pabzip.supermask.edge_popup import EdgePopup
from pabzip.supermask.scores import ScoreRule, ScoreSchedule, gradual_keep_ratio

__all__ = ["EdgePopup", "ScoreRule", "ScoreSchedule", "gradual_keep_ratio"]

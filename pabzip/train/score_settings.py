"""The settings of the score methods: how each learns which weights to keep.

Nothing here imports torch.
"""

from __future__ import annotations

from pabzip.registry import constant
from pabzip.train.methods import MethodSections
from pabzip.train.settings import Section, Settings, setting


class ScoreSettings(Settings):
    """What the tables of all score methods have: how scores move."""

    optimizer: str = setting("sgd", "What moves the scores.", choices=("sgd", "adam"))
    lr: float = setting(0.1, "Learning rate of the scores.", ge=0)
    momentum: float = setting(0.9, "Momentum of the scores, by SGD.", ge=0, lt=1)
    weight_decay: float = setting(0.0, "Weight decay of the scores.", ge=0)
    schedule: str = setting(
        "cosine",
        "How the learning rate falls: along a cosine to 0, at sgd.milestones, or not at all.",
        choices=("cosine", "milestones", "constant"),
    )
    penalty: float = setting(0.0, "Weight of the scores' norm in the loss.", ge=0)
    norm: int = setting(2, "Norm of that penalty: 2 adds squares, 1 sizes.", ge=1, le=2)
    frozen: float = setting(
        0.0, "Fraction of each mask that the seed fixes for good; files hold the rest.", ge=0, le=1
    )
    frozen_split: str = setting(
        "proportional",
        "Of the learned part of a frozen mask, keep keep_ratio, or half of it where that fits.",
        choices=lambda: constant("pabzip.seeds", "frozen", "SPLITS"),
    )


class EdgePopupRecipe(ScoreSettings, Section, table="edge_popup"):
    """How edge-popup learns scores.

    Source: Ramanujan et al. 2020 (SGD, rate 0.1, momentum 0.9, weight decay 1e-4, cosine); Rare
    Gems, Table 3, for ``scope``, ``gradual`` and ``penalty``.
    """

    weight_decay: float = setting(1e-4, "Weight decay of the scores.", ge=0)
    scope: str = setting(
        "layer",
        "What keep_ratio holds for: each layer, or the network.",
        choices=lambda: constant("pabzip.supermask", "edge_popup", "SCOPES"),
    )
    gradual: bool = setting(False, "Let the keep ratio fall during training, not at once.")
    period: int = setting(5, "Epochs between two falls of the keep ratio.", ge=1)


class ScoreSections(MethodSections):
    """The tables of the score methods too, which `pabzip.train.Recipe` inherits."""

    edge_popup: EdgePopupRecipe = EdgePopupRecipe()

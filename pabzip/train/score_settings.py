"""The settings of the score methods: how each learns which weights to keep.

Nothing here imports torch.
"""

from __future__ import annotations

from pabzip.registry import constant
from pabzip.train.methods import MethodSections
from pabzip.train.settings import Section, Settings, setting


class ScoreSettings(Settings):
    """What the tables of all score methods have: how scores move."""

    optimizer: str = setting("sgd", "Optimizer of the scores.", choices=("sgd", "adam"))
    lr: float = setting(0.1, "Learning rate of the scores.", ge=0)
    momentum: float = setting(0.9, "Momentum of the scores, by SGD.", ge=0, lt=1)
    weight_decay: float = setting(0.0, "Weight decay of the scores.", ge=0)
    schedule: str = setting(
        "cosine",
        "How the learning rate falls: along a cosine to 0, at sgd.milestones, or not at all.",
        choices=("cosine", "milestones", "constant"),
    )
    penalty: float = setting(0.0, "Weight of the scores' norm in the loss.", ge=0)
    norm: int = setting(2, "Norm of that penalty: 2 adds squared scores, 1 absolute.", ge=1, le=2)
    frozen: float = setting(
        0.0, "Fraction of each mask that the seed fixes for good; files hold the rest.", ge=0, le=1
    )


class KeepingSettings(ScoreSettings):
    """What the tables of score methods have that keep a given fraction of the weights."""

    frozen_split: str = setting(
        "proportional",
        "Of the learned part of a frozen mask, keep keep_ratio, or half where that allows it.",
        choices=lambda: constant("pabzip.seeds", "frozen", "SPLITS"),
    )


class EdgePopupRecipe(KeepingSettings, Section, table="edge_popup"):
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


class GemMinerRecipe(KeepingSettings, Section, table="gem_miner"):
    """How Gem-Miner learns scores.

    Source: Rare Gems, Algorithm 1 and Appendix A.3 (SGD, rates of 0.001 to 0.1, periods of 5 to
    10, penalties of 0 to 1e-4); its published configurations for momentum 0.9 and the cosine.
    """

    period: int = setting(5, "Epochs between two prunings of the lowest scores for good.", ge=1)
    counts: str = setting(
        "published",
        "When and how many are pruned for good: by the published code or the paper's Algorithm 1.",
        choices=lambda: constant("pabzip.supermask", "scores", "COUNTS"),
    )
    restore: bool = setting(
        False, "After the last epoch keep all that are not pruned for good, whatever their scores."
    )


class BipropRecipe(KeepingSettings, Section, table="biprop"):
    """How biprop learns scores.

    Source: Diffenderfer & Kailkhura 2021, Table 5 (Conv-2 to Conv-8, MPT-1/32: SGD, rate 0.1,
    momentum 0.9, weight decay 1e-4, cosine).
    """

    weight_decay: float = setting(1e-4, "Weight decay of the scores.", ge=0)
    gradient: str = setting(
        "published",
        "Gradient of a score, from that of the weight: times the score's sign and the drawn weight "
        "(published) or the binary one (gain); or times the binary weight alone (paper).",
        choices=lambda: constant("pabzip.supermask", "biprop", "GRADIENTS"),
    )
    scope: str = setting(
        "layer",
        "What keep_ratio holds for: each layer, or the network.",
        choices=lambda: constant("pabzip.supermask", "edge_popup", "SCOPES"),
    )


class ConnectivityRecipe(ScoreSettings, Section, table="connectivity"):
    """How free and minimal pruning and flipping learn.

    Source: Ivan & Florian 2020, Section 2 and Table A.2 (Adam; no decay of rates or weights is
    named), Section 2.3 for ``weight_removal``, Section 2.4 for ``positive``.
    """

    optimizer: str = setting("adam", "Optimizer of the scores.", choices=("sgd", "adam"))
    lr: float | None = setting(  # type: ignore[assignment]  # the paper's, where left out
        None,
        "Learning rate; the paper's if left out: 1e-3, with convolutions 3e-3 (pruning) or 5e-4 "
        "(flipping).",
        ge=0,
    )
    schedule: str = setting(
        "constant",
        "How the learning rate falls: along a cosine to 0, at sgd.milestones, or not at all.",
        choices=("cosine", "milestones", "constant"),
    )
    start: float = setting(0.1, "Scores begin between 0 and this.", gt=0, le=1)
    positive: float = setting(
        0.5,
        "Probability that a weight is positive at first; the file stores what differs from the "
        "seed's signs.",
        ge=0,
        le=1,
    )
    weight_removal: bool = setting(
        False,
        "Train with weights of plus and minus 1, the first layer's holding the product of all "
        "magnitudes; needs scheme = kaiming_signed_constant, classifier = seeded, and neither "
        "biases nor batch norm.",
    )


class ScoreSections(MethodSections):
    """The tables of all methods, which `pabzip.train.Recipe` inherits."""

    edge_popup: EdgePopupRecipe = EdgePopupRecipe()
    gem_miner: GemMinerRecipe = GemMinerRecipe()
    biprop: BipropRecipe = BipropRecipe()
    connectivity: ConnectivityRecipe = ConnectivityRecipe()

"""Every score method on masks frozen by the seed: trains, resumes, packs small and evaluates."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pabzip
from pabzip.errors import RecipeError
from pabzip.registry import METHODS
from pabzip.seeds import Frozen
from pabzip.train import Callback, Recipe, from_dict, train

SCORE_METHODS = [name for name in METHODS if METHODS.facts(name).get("scores")]


class StoppedError(Exception):
    """Raised in the midst of a run."""


class StopAt(Callback):
    def __init__(self, epoch: int):
        self.epoch = epoch

    def on_epoch_end(self, stats: Any) -> None:
        if stats.epoch == self.epoch:
            raise StoppedError


def recipe(method: str, frozen: float, split: str = "proportional") -> Recipe:
    table = METHODS.facts(method)["uses"][0]
    # Scores between 0 and 1 need large steps where there are so few of them.
    own: dict[str, Any] = {"lr": 10.0, "period": 1} if method == "gem-miner" else {}
    if "keep_ratio" in METHODS.facts(method)["uses"]:
        own["frozen_split"] = split
    return from_dict(
        {
            "arch": "lenet-300-100", "data": "digits", "method": method, "keep_ratio": 0.3,
            "epochs": 4, "batch_size": 64, table: {"frozen": frozen, **own},
        }
    )  # fmt: skip


@pytest.mark.parametrize("method", SCORE_METHODS)
def test_a_frozen_run_resumes_packs_and_evaluates_to_the_bit(method, tmp_path):
    whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
    result = train(recipe(method, 0.7), output=whole)
    with pytest.raises(StoppedError):
        train(recipe(method, 0.7), output=parts, save_every="1epoch", callbacks=[StopAt(2)])
    train(recipe(method, 0.7), output=parts, resume=True)
    one, other = (pabzip.load_checkpoint(path) for path in (whole, parts))
    assert one.seeding == other.seeding
    free = "keep_ratio" not in METHODS.facts(method)["uses"]
    expected = Frozen.of(0.0, 0.7) if free else Frozen.for_keep_ratio(0.7, 0.3)
    assert set(one.seeding.frozen.values()) == {expected}
    for name, tensor in one.state_dict.items():
        assert torch.equal(tensor, other.state_dict[name]), name
    packed = tmp_path / "whole.pabz"
    report = pabzip.pack(whole, packed)
    found = pabzip.evaluate(packed)
    assert found.accuracy == result.test_accuracy
    with pabzip.open(packed) as ticket:
        ticket.verify()
        codes = {name: ticket.codes(name) for name in one.init}
    assert sum(int((code != 0).sum()) for code in codes.values()) == result.survivors
    assert result.test_accuracy > 0.6
    places = {
        name: one.seeding.frozen[name].marks(0, spec.stream, 0, codes[name].size)
        for name, spec in one.init.items()
    }
    learned = sum(int((marks == 0).sum()) for marks in places.values())
    assert learned == pytest.approx(0.3 * result.weights, rel=0.01)
    assert report["codes_bytes"] * 8 <= 1.02 * learned + 64 * len(codes)
    if method in ("edge-popup", "biprop"):  # the others keep as many as they like
        train(recipe(method, 0.0), output=tmp_path / "all_learned.pt")
        everything = pabzip.pack(tmp_path / "all_learned.pt", tmp_path / "all_learned.pabz")
        assert report["codes_bytes"] <= 0.35 * everything["codes_bytes"]


def test_a_mask_may_be_frozen_by_the_even_split(tmp_path):
    train(recipe("edge-popup", 0.5, "even"), output=tmp_path / "model.pt")
    frozen = pabzip.load_checkpoint(tmp_path / "model.pt").seeding.frozen
    assert set(frozen.values()) == {Frozen.for_keep_ratio(0.5, 0.3, "even")}


@pytest.mark.parametrize("values", [{"frozen": 1.5}, {"frozen": -0.1}, {"frozen_split": "odd"}])
def test_wrong_settings_are_refused(values):
    with pytest.raises(RecipeError, match=f"edge_popup.{next(iter(values))}: expected"):
        from_dict({"edge_popup": values})

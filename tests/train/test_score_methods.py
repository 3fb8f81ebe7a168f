"""Every score method trains, resumes, packs and evaluates as the other methods do."""

from __future__ import annotations

import math

import pytest
import torch

import pabzip
from pabzip.errors import RecipeError
from pabzip.registry import METHODS
from pabzip.train import Callback, Recipe, train
from pabzip.train.score_settings import ConnectivityRecipe, EdgePopupRecipe, GemMinerRecipe

SCORE_METHODS = [name for name in METHODS if METHODS.facts(name).get("scores")]


class StoppedError(Exception):
    """Raised in the midst of a run."""


class StopAt(Callback):
    """Stops a run after an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, stats):
        if stats.epoch == self.epoch:
            raise StoppedError


# Scores between 0 and 1 need large steps where there are so few of them.
OWN = {"gem-miner": {"gem_miner": GemMinerRecipe(lr=10.0, period=1)}}


def recipe(method: str) -> Recipe:
    return Recipe(
        arch="lenet-300-100", data="digits", method=method, keep_ratio=0.3, epochs=4,
        batch_size=64, **OWN.get(method, {}),
    )  # fmt: skip


@pytest.mark.parametrize("method", SCORE_METHODS)
def test_it_resumes_packs_and_evaluates_to_the_bit(method, tmp_path):
    whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
    result = train(recipe(method), output=whole)
    with pytest.raises(StoppedError):
        train(recipe(method), output=parts, save_every="1epoch", callbacks=[StopAt(2)])
    train(recipe(method), output=parts, resume=True)
    one, other = (pabzip.load_checkpoint(path) for path in (whole, parts))
    assert one.init == other.init
    for name, tensor in one.state_dict.items():
        assert torch.equal(tensor, other.state_dict[name]), name
    packed = tmp_path / "whole.pabz"
    pabzip.pack(whole, packed)
    found = pabzip.evaluate(packed)
    assert found.accuracy == result.test_accuracy
    codes = {name: pabzip.open(packed).codes(name) for name in one.init}
    assert sum(int((code != 0).sum()) for code in codes.values()) == result.survivors
    assert result.test_accuracy > 0.6


@pytest.mark.parametrize("gradual", [False, True])
@pytest.mark.parametrize("penalty", [0.0, 1e-4])
def test_the_variants_of_edge_popup_train(gradual, penalty, tmp_path):
    own = EdgePopupRecipe(scope="global", gradual=gradual, period=1, penalty=penalty)
    result = train(recipe("edge-popup").replace(edge_popup=own), output=tmp_path / "net.pt")
    assert result.survivors == result.weights - math.ceil(0.7 * result.weights)
    assert result.test_accuracy > 0.6
    assert pabzip.pack(tmp_path / "net.pt", tmp_path / "net.pabz")["survivors"] == result.survivors


def test_gem_miner_keeps_what_the_schedule_leaves(tmp_path):
    own = GemMinerRecipe(lr=10.0, period=1, restore=True, counts="paper")
    result = train(recipe("gem-miner").replace(gem_miner=own), output=tmp_path / "net.pt")
    assert 0.3 * result.weights - 4 <= result.survivors <= 0.3 * result.weights
    assert result.keep_ratio == result.survivors / result.weights


def test_weights_of_1_and_uneven_signs_pack_and_evaluate(tmp_path):
    own = ConnectivityRecipe(weight_removal=True, positive=0.8, lr=0.01)
    run = recipe("free-pruning").replace(
        scheme="kaiming_signed_constant", arch_options={"bias": False}, connectivity=own
    )
    result = train(run, output=tmp_path / "net.pt")
    assert result.test_accuracy > 0.6
    pabzip.pack(tmp_path / "net.pt", tmp_path / "net.pabz")
    assert pabzip.evaluate(tmp_path / "net.pabz").accuracy == result.test_accuracy
    ticket = pabzip.open(tmp_path / "net.pabz")
    assert [ticket.spec(f"fc{i}.weight").scale for i in (2, 3)] == [1.0, 1.0]
    kept = ticket.weight("fc2.weight")
    kept = kept[kept != 0]
    assert 0.7 < (kept > 0).mean() < 0.9
    with pytest.raises(RecipeError, match=r"weights that the seed drew, found fc1\.bias"):
        train(run.replace(arch_options={}), output=tmp_path / "other.pt")


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("binary", [False, True])
def test_a_multi_prize_ticket_of_any_kind_packs_and_evaluates(binary, affine, tmp_path):
    options = {"width": 4, "bias": False, "affine": affine, "binary_activations": binary}
    run = Recipe(
        arch="conv2", arch_options=options, method="biprop", keep_ratio=0.3, epochs=3,
        classifier="seeded",
    )  # fmt: skip
    result = train(run, output=tmp_path / "mpt.pt")
    pabzip.pack(tmp_path / "mpt.pt", tmp_path / "mpt.pabz")
    assert pabzip.evaluate(tmp_path / "mpt.pabz").accuracy == result.test_accuracy
    ticket, state = pabzip.open(tmp_path / "mpt.pabz"), pabzip.load_file(tmp_path / "mpt.pabz")
    for name in pabzip.load_checkpoint(tmp_path / "mpt.pt").init:
        assert ticket.spec(name).distribution == "signed_constant"
        assert ticket.codes(name).min() == 0
        assert len(state[name].abs().unique()) == 2
    learned = [value for name, value in state.items() if ".weight" in name and value.dim() == 1]
    assert all((value != 1).any() for value in learned)
    assert bool(learned) == affine

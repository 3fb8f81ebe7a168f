"""Iterative magnitude pruning: what is pruned when, and what goes back to where."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

import pabzip
from pabzip.data import load
from pabzip.errors import PackError, RecipeError
from pabzip.train import Callback, Recipe, SgdRecipe, build_network, merge, train
from pabzip.train.methods import ImpRecipe
from pabzip.train.resume import RunStateFile
from pabzip.train.run import find_ticket

KEEP, ROUNDS, LENGTH, LAST = 0.2, 3, 2, 1
FORMS = {
    "cold": {"rewind_epoch": 0},
    "warm": {"rewind_epoch": 1},
    "rate": {"rewind": "rate"},
}


def recipe(form: str) -> Recipe:
    return Recipe(
        arch="conv2", arch_options={"width": 4}, method="imp", keep_ratio=KEEP, epochs=LAST,
        batch_size=128, sgd=SgdRecipe(milestones=(1,)), classifier="seeded",
        imp=ImpRecipe(rounds=ROUNDS, round_epochs=LENGTH, **FORMS[form]),
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_rounds_prune_the_smallest_weights_and_rewind(form, tmp_path, monkeypatch):
    states = []
    write = RunStateFile.write

    def remember(self, state):
        states.append(
            copy.deepcopy({key: state[key] for key in ("tensors", "masks", "optimizers")})
        )
        states[-1]["at"] = (len(state["history"]), state["searches"])
        write(self, state)

    monkeypatch.setattr(RunStateFile, "write", remember)
    result = train(recipe(form), output=tmp_path / "net.pt", save_every="1epoch")
    by = {state["at"]: state for state in states}
    drawn = dict(build_network(recipe(form), load("digits")).named_parameters())
    names = list(by[1, 0]["masks"])
    total = sum(drawn[name].numel() for name in names)
    alive = {name: np.ones(tuple(drawn[name].shape), dtype=bool) for name in names}
    for i in range(1, ROUNDS + 1):
        trained, rewound = by[LENGTH * i, i - 1], by[LENGTH * i, i]
        sizes = {name: trained["tensors"][name].detach().abs().numpy() for name in names}
        flat = np.concatenate([np.where(alive[n], sizes[n], -1.0).ravel() for n in names])
        left = total - int((1.0 - KEEP ** (i / ROUNDS)) * total)
        threshold = np.sort(flat)[-left]
        alive = {name: alive[name] & (sizes[name] >= threshold) for name in names}
        assert sum(int(mask.sum()) for mask in alive.values()) == left
        start = by[1, 0]["tensors"] if form == "warm" else drawn
        for name in rewound["tensors"]:
            found = rewound["tensors"][name].detach()
            expected = (trained["tensors"] if form == "rate" else start).get(name, found).detach()
            if name in alive:
                np.testing.assert_array_equal(rewound["masks"][name].numpy(), alive[name])
                expected = expected * torch.from_numpy(alive[name])
            assert torch.equal(found, expected), name
        parts = rewound["optimizers"]["parts"]["sgd"]
        assert not parts["state"]  # no momentum
        assert parts["param_groups"][0]["lr"] == 0.1
        before = trained["optimizers"]["parts"]["sgd"]
        assert before["param_groups"][0]["lr"] == pytest.approx(0.01)
        assert before["state"]
    assert result.epochs == ROUNDS * LENGTH + LAST
    assert result.survivors == total - int((1.0 - KEEP) * total)
    final = pabzip.load_checkpoint(tmp_path / "net.pt")
    for name in names:
        np.testing.assert_array_equal(final.state_dict[name].numpy() != 0, alive[name])


def test_a_cosine_falls_over_each_round(tmp_path, monkeypatch):
    rates = []
    write = RunStateFile.write

    def remember(self, state):
        own = state["optimizers"]["parts"]["sgd"]["param_groups"][0]["lr"]
        rates.append((len(state["history"]), state["searches"], own))
        write(self, state)

    monkeypatch.setattr(RunStateFile, "write", remember)
    own = recipe("cold").replace(sgd=SgdRecipe(schedule="cosine"), epochs=3)
    train(own, output=tmp_path / "net.pt", save_every="1epoch")
    found = {at[:2]: at[2] for at in rates}
    for done in range(ROUNDS + 1):
        begun = LENGTH * done
        epochs = LENGTH if done < ROUNDS else 3
        for epoch in range(done == 0, epochs + 1):
            expected = 0.05 * (1 + math.cos(math.pi * epoch / epochs))
            assert found[begun + epoch, done] == pytest.approx(expected, abs=1e-9)


class Stop(Exception):  # noqa: N818
    """Raised in the midst of a run."""


class StopAt(Callback):
    """Stops a run after an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, stats):
        if stats.epoch == self.epoch:
            raise Stop


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_resumed_run_ends_in_the_same_bits(form, stop, tmp_path):
    whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
    train(recipe(form), output=whole)
    with pytest.raises(Stop):
        # Saved two steps into an epoch, where what is rewound to has been remembered.
        train(recipe(form), output=parts, save_every="13steps", callbacks=[StopAt(stop)])
    train(recipe(form), output=parts, resume=True)
    assert whole.read_bytes() == parts.read_bytes()


def test_the_cold_ticket_packs_as_seed_and_mask(tmp_path):
    result = train(recipe("cold"), output=tmp_path / "net.pt")
    report = pabzip.pack(tmp_path / "net.pt", tmp_path / "net.pabz", ticket=True)
    assert report["survivors"] == result.survivors
    drawn = dict(build_network(recipe("cold"), load("digits")).named_parameters())
    for name, value in pabzip.load_file(tmp_path / "net.pabz").items():
        if name in drawn and value.dim() > 1:
            assert torch.equal(value, drawn[name].detach() * (value != 0)), name


@pytest.mark.parametrize(
    ("form", "found"), [("warm", "imp.rewind_epoch = 1"), ("rate", "imp.rewind = rate")]
)
def test_a_ticket_of_trained_weights_does_not_pack_as_seed_and_mask(form, found, tmp_path):
    train(recipe(form), output=tmp_path / "net.pt")
    with pytest.raises(PackError, match=f"ticket: expected weights that go back .* found {found},"):
        pabzip.pack(tmp_path / "net.pt", tmp_path / "net.pabz", ticket=True)
    assert pabzip.pack(tmp_path / "net.pt", tmp_path / "net.pabz")["weights"] == 0


def test_the_epoch_of_a_search_does_not_matter_to_it():
    search = {"search": {"epoch": LAST, "shots": 1}}
    assert merge(recipe("cold"), search).search.epoch == LAST
    with pytest.raises(RecipeError, match=r"search\.epoch: expected less than the 1 epochs"):
        merge(recipe("cold"), {**search, "method": "sgd"})


def test_what_contradicts_it_is_refused(tmp_path):
    with pytest.raises(
        RecipeError, match="imp.rewind_epoch: expected less than imp.round_epochs ="
    ):
        ImpRecipe(round_epochs=2, rewind_epoch=2)
    with pytest.raises(RecipeError, match="imp.rewind_epoch: expected 0 with imp.rewind = rate, "):
        ImpRecipe(rewind="rate", rewind_epoch=1)
    with pytest.raises(RecipeError, match="a search without training: expected a method"):
        find_ticket(recipe("cold"), output=tmp_path / "x.pt")
    with pytest.raises(
        RecipeError, match="a found ticket: expected a method that trains on a mask"
    ):
        train(recipe("cold"), output=tmp_path / "x.pt", ticket=tmp_path / "none.pt")

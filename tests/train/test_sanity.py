"""Sanity checks: what each makes of a ticket, and what the result says."""

from __future__ import annotations

import json
import math

import pytest
import torch
from click.testing import CliRunner

import pabzip
from pabzip.cli.bench import sanity
from pabzip.data import load
from pabzip.errors import CheckpointError, RecipeError
from pabzip.train import Recipe, SearchRecipe, build_network, train
from pabzip.train.methods import ImpRecipe
from pabzip.train.run import find_ticket
from pabzip.train.sanity import CHECKS, _read, _row, _variants, sanity_checks
from pabzip.train.score_settings import EdgePopupRecipe, GemMinerRecipe

BASE = Recipe(
    arch="conv2", arch_options={"width": 4}, keep_ratio=0.2, epochs=1, batch_size=64, seed=3
)
FOUND = {
    "gem": BASE.replace(method="gem-miner", gem_miner=GemMinerRecipe(lr=10.0, period=1)),
    "popup": BASE.replace(method="edge-popup", edge_popup=EdgePopupRecipe(lr=1.0)),
    "magnitude": BASE.replace(search=SearchRecipe(method="magnitude")),
    "imp": BASE.replace(method="imp", imp=ImpRecipe(rounds=1, round_epochs=1)),
}


@pytest.fixture(scope="module")
def tickets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tickets")
    for name, recipe in FOUND.items():
        (find_ticket if name == "magnitude" else train)(recipe, output=folder / f"{name}.pt")
    return folder


@pytest.mark.parametrize("name", FOUND)
def test_each_check_changes_what_it_says_and_nothing_else(tickets, name):
    ticket, recipe = _read(tickets / f"{name}.pt", {})
    variants = list(_variants(ticket, recipe, load("digits"), draws=2))
    assert [kind for kind, _ in variants] == [
        "ticket", "shuffled", "reinitialized", "shuffled", "reinitialized",
        *(["inverted"] if name != "imp" else []),
    ]  # fmt: skip
    drawn = pabzip.init.seeded_parameters(build_network(recipe, load("digits")))
    own = {key: ticket.state_dict[key] for key in ticket.init}
    masks = {key: value != 0 for key, value in own.items()}
    seen = []
    for kind, variant in variants:
        for key, value in variant.state_dict.items():
            if key not in own:
                assert torch.equal(value, ticket.state_dict[key])
                continue
            mask = value != 0
            if kind == "inverted" and name == "magnitude":
                assert not (mask & masks[key]).any()
            else:
                assert int(mask.sum()) == int(masks[key].sum())
            if kind == "reinitialized":
                assert variant.seed not in (ticket.seed, *seen)
                assert torch.equal(mask, masks[key])
                assert not torch.equal(value, own[key])
            else:
                assert variant.seed == ticket.seed
                assert torch.equal(value, drawn[key].detach() * mask)
            if kind in ("shuffled", "inverted"):
                assert not torch.equal(mask, masks[key])
            if kind == "inverted" and ticket.scores:
                score = ticket.scores[key].abs()
                assert score[mask].max() <= score[~mask].min()
        if kind == "reinitialized":
            seen.append(variant.seed)
    shuffles = [variant for kind, variant in variants if kind == "shuffled"]
    assert any(
        not torch.equal(shuffles[0].state_dict[key], shuffles[1].state_dict[key]) for key in own
    )
    total = sum(int(mask.sum()) for mask in masks.values())
    assert sum(int((variants[-1][1].state_dict[key] != 0).sum()) for key in own) == total


def test_all_are_trained_by_the_same_recipe(tickets):
    seen = []
    found = sanity_checks(
        [tickets / "gem.pt"], {"epochs": 2}, draws=2, on_run=lambda *run: seen.append(run)
    )
    assert [row.name for row in found.rows] == ["ticket", *CHECKS]
    assert [len(row.accuracies) for row in found.rows] == [1, 2, 2, 1]
    assert [(done, runs) for _, _, done, runs in seen] == [(i, 6) for i in range(1, 7)]
    assert (found.method, found.epochs) == ("sgd", 2)
    ticket = train(
        FOUND["gem"].replace(method="sgd", epochs=2), output=tickets / "tuned.pt",
        ticket=tickets / "gem.pt",
    )  # fmt: skip
    assert found.rows[0].accuracies == (ticket.test_accuracy,)


def test_a_check_is_passed_by_a_drop_beyond_the_margin():
    accuracies = {"ticket": [0.9, 0.92], "shuffled": [0.80, 0.82], "inverted": [0.89, 0.91]}
    images = 100_000
    row = _row("shuffled", accuracies, images)
    assert (row.drop, row.passed) == (pytest.approx(0.1), True)
    assert row.margin == pytest.approx(2 * math.sqrt(2 * 0.0002 / 2))
    assert _row("inverted", accuracies, images).passed is False
    assert _row("ticket", accuracies, images).passed is None
    single = _row("inverted", {"ticket": [0.9], "inverted": [0.88]}, 400)
    assert single.margin == pytest.approx(2 * math.sqrt((0.09 + 0.1056) / 400))
    assert single.passed is False
    assert single.deviation is None


@pytest.mark.parametrize("name", ["magnitude", "imp"])
def test_the_command_prints_a_table_or_json(tickets, name):
    runner = CliRunner()
    path = str(tickets / f"{name}.pt")
    told = runner.invoke(sanity, [path, "--epochs", "1", "--json"])
    assert told.exit_code == 0, told.output
    values = json.loads(told.stdout)
    assert [row["name"] for row in values["rows"]] == ["ticket", *CHECKS[: 3 - (name == "imp")]]
    assert values["passed"] == all(row["passed"] is not False for row in values["rows"])
    if name == "imp":
        text = runner.invoke(sanity, [path, path, "--epochs", "1"]).output
        assert "reinitialized" in text
        assert ("Every sanity check is passed" in text) != ("Not passed: " in text)


def test_what_cannot_be_checked_is_refused(tickets, tmp_path):
    with pytest.raises(RecipeError, match="expected at least one ticket and one draw"):
        sanity_checks([])
    with pytest.raises(RecipeError, match="expected a method that trains on a mask, found 'dense"):
        sanity_checks([tickets / "gem.pt"], {"method": "dense-sgd"})
    net = pabzip.init_(torch.nn.Sequential(torch.nn.Linear(2, 2)), 0)
    pabzip.save_checkpoint(net, tmp_path / "bare.pt")
    with pytest.raises(CheckpointError, match="bare.pt: expected a ticket with the recipe"):
        sanity_checks([tmp_path / "bare.pt"])

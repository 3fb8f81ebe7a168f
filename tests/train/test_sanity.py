"""Sanity checks: what each makes of a ticket, and what the result says."""

from __future__ import annotations

import json
import math
from dataclasses import replace

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
from pabzip.train.sanity import CHECKS, _lowest, _read, _remarks, _row, _variants, sanity_checks
from pabzip.train.score_settings import ConnectivityRecipe, EdgePopupRecipe, GemMinerRecipe

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
        assert values["remarks"] == [f"{path}: not inverted, since it holds no scores"]
        assert text.count("not inverted, since it holds no scores") == 2


def made(folder, recipe, make=find_ticket):
    """Return the ticket that a recipe makes, its recipe, and what the checks make of it by name."""
    make(recipe, output=folder / "made.pt")
    ticket, found = _read(folder / "made.pt", {})
    return ticket, found, dict(_variants(ticket, found, load("digits"), draws=1))


def kept(ticket):
    return {key: ticket.state_dict[key] != 0 for key in ticket.init}


def test_equal_scores_are_not_ranked_by_the_size_of_the_weight(tickets):
    ticket, _ = _read(tickets / "gem.pt", {})
    equal = {key: torch.zeros_like(score) for key, score in ticket.scores.items()}
    half = {
        key: torch.ones_like(value) * (torch.arange(value.numel()).view(value.shape) % 2)
        for key, value in ticket.state_dict.items()
        if key in ticket.init
    }
    lowest = _lowest(replace(ticket, state_dict=half, scores=equal))
    drawn = pabzip.init.seeded_parameters(build_network(FOUND["gem"], load("digits")))
    for key, mask in lowest.items():
        size, chosen = drawn[key].detach().abs().flatten(), mask.flatten()
        assert int(chosen.sum()) == chosen.numel() // 2
        correlation = torch.corrcoef(torch.stack([size, chosen]))[0, 1]
        assert abs(correlation) < 4 / math.sqrt(chosen.numel())


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_inversion_keeps_what_the_search_skipped_and_counts_as_it_did(tmp_path, scope):
    search = SearchRecipe(method="magnitude", scope=scope, skip=("features.0",))
    ticket, _, variants = made(tmp_path, BASE.replace(search=search))
    before, after = kept(ticket), kept(variants["inverted"])
    first, *others = before
    assert before[first].all()
    assert after[first].all()
    assert not any((before[key] & after[key]).any() for key in others)
    if scope == "layer":
        assert all(before[key].sum() == after[key].sum() for key in others)
    total = sum(int(mask.sum()) for mask in before.values())
    assert sum(int(mask.sum()) for mask in after.values()) == total


@pytest.mark.parametrize("method", ["random", "layerwise-random", "smart-ratio"])
def test_random_searches_are_not_inverted(tmp_path, method):
    search = SearchRecipe(method=method, linear_keep_ratio=0.1)
    ticket, recipe, variants = made(tmp_path, BASE.replace(search=search))
    assert "inverted" not in variants
    assert list(_remarks(ticket, recipe)) == [f"not inverted, since {method} chose at random"]


def test_only_what_scores_decide_is_inverted(tmp_path):
    own = EdgePopupRecipe(lr=1.0, frozen=0.5)
    ticket, _, variants = made(tmp_path, BASE.replace(method="edge-popup", edge_popup=own), train)
    before, after = kept(ticket), kept(variants["inverted"])
    for key, part in ticket.seeding.frozen.items():
        drawn = part.marks(ticket.seed, ticket.init[key].stream, 0, before[key].numel())
        frozen = torch.from_numpy(drawn != 0).view(before[key].shape)
        assert frozen.any()
        assert torch.equal(before[key][frozen], after[key][frozen])
        learned = after[key] & ~frozen
        assert int(learned.sum()) == int((before[key] & ~frozen).sum())
        sizes = ticket.scores[key].abs()
        assert sizes[learned].max() <= sizes[~after[key] & ~frozen].min()


@pytest.mark.parametrize("method", ["free-flipping", "free-pruning"])
def test_flips_are_shuffled_and_not_inverted(tmp_path, method):
    own = ConnectivityRecipe(lr=0.05, positive=0.5 if method == "free-flipping" else 0.9)
    ticket, recipe, variants = made(tmp_path, BASE.replace(method=method, connectivity=own), train)
    assert list(variants) == ["ticket", "shuffled", "reinitialized"]
    drawn = pabzip.init.seeded_parameters(build_network(recipe, load("digits")))
    moved = False
    for key in ticket.init:
        own = ticket.state_dict[key] / drawn[key].detach()
        shuffled = variants["shuffled"].state_dict[key] / drawn[key].detach()
        assert int((own < 0).sum()) == int((shuffled < 0).sum()) > 0
        assert int((own == 0).sum()) == int((shuffled == 0).sum())
        moved |= not torch.equal(own < 0, shuffled < 0)
    assert moved
    told = list(_remarks(ticket, recipe))
    if method == "free-flipping":
        assert told == [
            "not inverted, since it prunes nothing",
            "nothing is pruned, so what is shuffled are its flips",
        ]
    else:
        assert told == [
            "not inverted, since it flips signs beside pruning, and holds none of what it pruned"
        ]


@pytest.mark.parametrize(
    ("imp", "told"),
    [
        (ImpRecipe(rounds=1, round_epochs=2, rewind_epoch=1), "went back to epoch 1"),
        (ImpRecipe(rounds=1, round_epochs=1, rewind="rate"), "never went back"),
    ],
)
def test_weights_that_were_not_rewound_to_the_seed_are_told(tickets, tmp_path, imp, told):
    ticket, recipe, _ = made(tmp_path, FOUND["imp"].replace(imp=imp), train)
    assert any(told in remark for remark in _remarks(ticket, recipe))
    cold = list(_remarks(*_read(tickets / "imp.pt", {})))
    assert cold == ["not inverted, since it holds no scores"]


def test_flags_that_were_not_given_decide_nothing(tickets, tmp_path):
    none = {"method": None, "arch": None}
    assert _read(tickets / "gem.pt", none)[1] == _read(tickets / "gem.pt", {})[1]
    content = torch.load(tickets / "gem.pt", weights_only=True)
    content["recipe"]["arch"] = "somewhere:anything"
    torch.save(content, tmp_path / "own.pt")
    with pytest.raises(RecipeError, match="nothing is imported because a file says so"):
        _read(tmp_path / "own.pt", none)
    assert _read(tmp_path / "own.pt", {"arch": "mine:net"})[1].arch == "mine:net"


def test_a_ticket_that_changes_nothing_is_refused(tmp_path):
    find_ticket(
        BASE.replace(keep_ratio=1.0, search=SearchRecipe(method="magnitude")),
        output=tmp_path / "whole.pt",
    )
    with pytest.raises(CheckpointError, match="expected a ticket that prunes or flips weights"):
        _read(tmp_path / "whole.pt", {})


def test_what_cannot_be_checked_is_refused(tickets, tmp_path):
    with pytest.raises(RecipeError, match="expected at least one ticket and one draw"):
        sanity_checks([])
    with pytest.raises(RecipeError, match="expected a method that trains on a mask, found 'dense"):
        sanity_checks([tickets / "gem.pt"], {"method": "dense-sgd"})
    net = pabzip.init_(torch.nn.Sequential(torch.nn.Linear(2, 2)), 0)
    pabzip.save_checkpoint(net, tmp_path / "bare.pt")
    with pytest.raises(CheckpointError, match="bare.pt: expected a ticket with the recipe"):
        sanity_checks([tmp_path / "bare.pt"])

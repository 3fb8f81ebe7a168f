"""From the ticket of a score method to a fine-tuned network, and to files of both."""

from __future__ import annotations

import sys

import pytest
import torch
from click.testing import CliRunner

import pabzip
from pabzip.cli.pack import command
from pabzip.cli.train import command as train_command
from pabzip.data import load
from pabzip.errors import CheckpointError, PackError, SeedError
from pabzip.train import Recipe, build_network, merge, train
from pabzip.train.pruning import apply_ticket
from pabzip.train.score_settings import GemMinerRecipe

GEM = Recipe(
    arch="conv2", arch_options={"width": 4}, method="gem-miner", keep_ratio=0.3, epochs=2,
    gem_miner=GemMinerRecipe(lr=10.0, period=1),
)  # fmt: skip
TUNE = GEM.replace(method="sgd", epochs=1, keep_ratio=0.1)


@pytest.fixture(scope="module")
def gem(tmp_path_factory):
    path = tmp_path_factory.mktemp("gem") / "gem.pt"
    train(GEM, output=path)
    return path


@pytest.fixture(scope="module")
def tuned(gem, tmp_path_factory):
    path = tmp_path_factory.mktemp("tuned") / "tuned.pt"
    return path, train(TUNE, output=path, ticket=gem)


def test_the_checkpoint_of_a_score_method_holds_its_scores(gem):
    checkpoint = pabzip.load_checkpoint(gem)
    assert list(checkpoint.scores) == list(checkpoint.init)
    for name, score in checkpoint.scores.items():
        assert ((score >= 0) & (score <= 1)).all()
        assert torch.equal(score >= 0.5, checkpoint.state_dict[name] != 0)


def test_fine_tuning_begins_where_the_ticket_ended(gem):
    splits, checkpoint = load("digits"), pabzip.load_checkpoint(gem)
    net = build_network(TUNE, splits)
    masks = apply_ticket(net, TUNE, gem)
    for name, value in net.state_dict().items():
        assert torch.equal(value, checkpoint.state_dict[name]), name
    for name, mask in masks.items():
        assert torch.equal(mask, checkpoint.state_dict[name] != 0)


def test_the_survivors_are_trained_and_no_others(gem, tuned):
    path, result = tuned
    ticket, trained = pabzip.load_checkpoint(gem), pabzip.load_checkpoint(path)
    kept = sum(int((ticket.state_dict[name] != 0).sum()) for name in ticket.init)
    assert result.survivors == kept
    assert result.keep_ratio == kept / result.weights != TUNE.keep_ratio
    assert not trained.init
    assert dict(trained.drawn) == dict(ticket.init)
    for name in ticket.init:
        before, after = ticket.state_dict[name], trained.state_dict[name]
        assert torch.equal(before != 0, after != 0)
        assert not torch.equal(before, after)


def test_a_tuned_network_packs_as_it_is_or_as_its_ticket(gem, tuned, tmp_path):
    path, result = tuned
    as_it_is = pabzip.pack(path, tmp_path / "tuned.pabz")
    assert as_it_is["weights"] == 0
    ticket = pabzip.pack(path, tmp_path / "ticket.pabz", ticket=True)
    assert ticket["survivors"] == result.survivors
    assert ticket["bytes"] < as_it_is["bytes"]
    found, tuned_state = pabzip.load_checkpoint(gem), pabzip.load_checkpoint(path).state_dict
    assert "test_accuracy" not in pabzip.open(tmp_path / "ticket.pabz").metadata
    for name, value in pabzip.load_file(tmp_path / "ticket.pabz").items():
        expected = found.state_dict if name in found.init else tuned_state
        assert torch.equal(value, expected[name]), name


def test_the_command_says_which_of_the_two_it_packs(tuned, tmp_path):
    path, result = tuned
    runner = CliRunner()
    told = runner.invoke(command, [str(path), "-o", str(tmp_path / "a.pabz")])
    assert "all tensors dense; --ticket packs the seed and the mask" in told.output
    told = runner.invoke(command, [str(path), "--ticket", "-o", str(tmp_path / "b.pabz")])
    assert f"the ticket at initialization, {result.survivors:,} of" in told.output


def test_the_command_follows_the_ticket_where_no_flag_says_otherwise(gem, tmp_path):
    runner, out = CliRunner(), str(tmp_path / "tuned.pt")
    flags = ["--method", "sgd", "--epochs", "1", "--ticket", str(gem), "-o", out]
    told = runner.invoke(train_command, flags)
    assert told.exit_code == 0, told.output
    settings = pabzip.load_checkpoint(out).settings
    assert (settings["arch"], settings["arch_options"]) == ("conv2", {"width": 4})
    message = "arch: conv2 there, conv4 here; arch_options.width: 4 there, 64 here; train it"
    with pytest.raises(CheckpointError, match=message):
        runner.invoke(train_command, [*flags, "-f", "--arch", "conv4"], catch_exceptions=False)


def test_what_has_no_ticket_is_refused(gem, tmp_path):
    net = pabzip.load_checkpoint(gem)
    with pytest.raises(PackError, match="ticket: expected a checkpoint, found a dict"):
        pabzip.pack(dict(net.state_dict), tmp_path / "x.pabz", ticket=True)
    dense = torch.nn.Linear(2, 2)
    pabzip.init.attach_seeding(dense, pabzip.init.Seeding(0, {}))
    pabzip.save_checkpoint(dense, tmp_path / "dense.pt")
    with pytest.raises(SeedError, match="expected a checkpoint that says how its weights were"):
        pabzip.pack(tmp_path / "dense.pt", tmp_path / "x.pabz", ticket=True)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"arch": "conv4"}, "arch: conv2 there, conv4 here"),
        ({"search": TUNE.search.replace(epoch=1), "epochs": 2}, "search.epoch: 0 there, 1 here"),
    ],
)
def test_another_network_is_refused(gem, changes, problem, tmp_path):
    with pytest.raises(CheckpointError, match=problem):
        train(TUNE.replace(**changes), output=tmp_path / "x.pt", ticket=gem)


def test_weights_of_another_magnitude_are_tuned_from_it(tmp_path):
    found = Recipe(
        arch="lenet-300-100", arch_options={"width": 12}, method="biprop", keep_ratio=0.3, epochs=1
    )
    train(found, output=tmp_path / "mpt.pt")
    ticket = pabzip.load_checkpoint(tmp_path / "mpt.pt")
    train(found.replace(method="sgd"), output=tmp_path / "tuned.pt", ticket=tmp_path / "mpt.pt")
    assert dict(pabzip.load_checkpoint(tmp_path / "tuned.pt").drawn) == dict(ticket.init)
    pabzip.pack(tmp_path / "tuned.pt", tmp_path / "ticket.pabz", ticket=True)
    state = pabzip.load_file(tmp_path / "ticket.pabz")
    for name in ticket.init:
        assert torch.equal(state[name], ticket.state_dict[name])


def test_the_ticket_of_flipped_signs_is_not_made_up(tmp_path):
    flips, tuned = tmp_path / "flips.pt", tmp_path / "tuned.pt"
    train(GEM.replace(method="free-flipping"), output=flips)
    train(TUNE, output=tuned, ticket=flips)
    message = "found none, as after training a ticket with flipped signs; pack the checkpoint"
    with pytest.raises(SeedError, match=message):
        pabzip.pack(tuned, tmp_path / "x.pabz", ticket=True)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    path = tmp_path_factory.mktemp("frozen") / "frozen.pt"
    train(merge(GEM, {"gem_miner": {"frozen": 0.7}}), output=path)
    return path


@pytest.mark.parametrize("method", ["pab-bop", "pab-latent"])
def test_a_frozen_ticket_is_trained_on_by_flips(frozen, method, tmp_path):
    recipe = merge(TUNE, {"method": method, "latent": {"start": 1e-3}, "bop": {"threshold": 0.0}})
    result = train(recipe, output=tmp_path / "net.pt", ticket=frozen)
    ticket, found = pabzip.load_checkpoint(frozen), pabzip.load_checkpoint(tmp_path / "net.pt")
    assert result.flipped > 0.01
    assert found.seeding == pabzip.init.Seeding(ticket.seed, ticket.init)
    pabzip.pack(tmp_path / "net.pt", tmp_path / "net.pabz")
    for name, value in pabzip.load_file(tmp_path / "net.pabz").items():
        assert torch.equal(value, found.state_dict[name]), name


def test_a_frozen_mask_stays_small_after_fine_tuning(frozen, tmp_path):
    train(TUNE, output=tmp_path / "tuned.pt", ticket=frozen)
    ticket, tuned = pabzip.load_checkpoint(frozen), pabzip.load_checkpoint(tmp_path / "tuned.pt")
    assert ticket.seeding.frozen
    assert tuned.drawn_frozen == ticket.seeding.frozen
    before = pabzip.pack(frozen, tmp_path / "found.pabz")
    after = pabzip.pack(tmp_path / "tuned.pt", tmp_path / "ticket.pabz", ticket=True)
    assert after["codes_bytes"] == before["codes_bytes"]


@pytest.mark.parametrize("method", ["pab-bop", "pab-latent", "signsgd"])
def test_the_flips_of_a_ticket_stay_until_training_moves_them(method, tmp_path):
    """A rate of nearly nothing leaves the signs of the ticket, and not those of the seed."""
    flips, still = tmp_path / "flips.pt", tmp_path / "still.pt"
    train(GEM.replace(method="free-flipping"), output=flips)
    rates = {"latent": {"lr": 0.0}, "bop": {"threshold": 1e9}, "signsgd": {"lr": 0.0}}
    found = train(merge(TUNE, {"method": method, **rates}), output=still, ticket=flips)
    ticket, after = (pabzip.load_checkpoint(path) for path in (flips, still))
    assert found.flipped > 0.01
    for name in ticket.init:
        assert torch.equal(after.state_dict[name], ticket.state_dict[name]), name


def test_a_ticket_whose_dense_tensors_do_not_fit_is_refused(monkeypatch, tmp_path):
    module = type(sys)("wide_network")
    module.Net = Wide
    monkeypatch.setitem(sys.modules, "wide_network", module)
    recipe = Recipe(arch="wide_network:Net", arch_options={"extra": 2}, method="gem-miner",
                    keep_ratio=0.3, epochs=1)  # fmt: skip
    path, options = tmp_path / "gem.pt", {"arch_options": {"extra": 3}, "method": "sgd"}
    train(recipe, output=path)
    net = build_network(recipe.replace(**options), load("digits"))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"shape of scale: \[2\] there, \[3\] here"):
        apply_ticket(net, recipe.replace(**options), path)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


class Wide(torch.nn.Module):
    """One seeded layer, and a dense tensor whose shape is an option."""

    def __init__(self, extra):
        super().__init__()
        self.first, self.last = torch.nn.Linear(64, 20), torch.nn.Linear(20, 10)
        self.scale = torch.nn.Parameter(torch.ones(extra))

    def forward(self, x):
        return self.last(torch.relu(self.first(x.flatten(1)))) * self.scale.mean()


def test_images_that_scores_have_seen_are_not_held_out_later(gem, tmp_path):
    with pytest.raises(CheckpointError, match=r"validation: 0.0 there, 0.1 here"):
        train(TUNE.replace(validation=0.1), output=tmp_path / "x.pt", ticket=gem)

"""From the ticket of a score method to a fine-tuned network, and to files of both."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

import pabzip
from pabzip.cli.pack import command
from pabzip.cli.train import command as train_command
from pabzip.data import load
from pabzip.errors import CheckpointError, PackError, SeedError
from pabzip.train import Recipe, build_network, train
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


def test_images_that_scores_have_seen_are_not_held_out_later(gem, tmp_path):
    with pytest.raises(CheckpointError, match=r"validation: 0.0 there, 0.1 here"):
        train(TUNE.replace(validation=0.1), output=tmp_path / "x.pt", ticket=gem)

"""Searches in the midst of training, dropped steps, and tickets that were found before."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from pabzip import data
from pabzip.checkpoint import load_checkpoint
from pabzip.data import Splits
from pabzip.errors import CheckpointError
from pabzip.seeds import weights
from pabzip.train import Callback, EpochStats, Recipe, TrainResult, merge, train
from pabzip.train.run import find_ticket
from pabzip.train.step import dropped


@pytest.fixture(scope="module")
def splits() -> Splits:
    """A tenth of the digits."""
    whole = data.load("digits")

    def part(images: Any, count: int) -> Any:
        return dataclasses.replace(
            images, images=images.images[:count], labels=images.labels[:count]
        )

    return dataclasses.replace(
        whole, train=part(whole.train, 130), test=part(whole.test, 50), augmentation=None
    )


def tiny(**changes: Any) -> Recipe:
    recipe = Recipe(arch="conv2", arch_options={"width": 4}, keep_ratio=0.5, epochs=3,
                    batch_size=32, device="cpu")  # fmt: skip
    return merge(merge(recipe, {"search": {"iterations": 5}}), changes)


class Watch(Callback):
    """Notes the events, and what survives after each epoch."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.stats: list[EpochStats] = []

    def on_search_iteration(self, iteration: int, iterations: int) -> None:
        if iteration == iterations:
            self.events.append("search")

    def on_epoch_end(self, stats: EpochStats) -> None:
        self.events.append("epoch")
        self.stats.append(stats)


def watched(recipe: Recipe, file: Path, splits: Splits) -> tuple[Watch, TrainResult]:
    watch = Watch()
    return watch, train(recipe, output=file, splits=splits, callbacks=[watch])


@pytest.mark.parametrize(("search", "events"), [
    ({"epoch": 0}, ["search", "epoch", "epoch", "epoch"]),
    ({"epoch": 2}, ["epoch", "epoch", "search", "epoch"]),
    ({"epoch": 2, "shots": 2}, ["epoch", "search", "epoch", "search", "epoch"]),
])  # fmt: skip
def test_searches_happen_when_they_are_planned(
    tmp_path: Path, splits: Splits, search: dict[str, Any], events: list[str]
) -> None:
    file = tmp_path / "model.pt"
    watch, result = watched(tiny(search=search, bop={"threshold": 0.0}), file, splits)
    assert watch.events == events
    assert result.survivors == result.weights - int(0.5 * result.weights)
    found = load_checkpoint(file)
    alive = flipped = 0
    for name, spec in found.init.items():
        trained = found.state_dict[name].flatten()
        drawn = torch.from_numpy(weights(found.seed, spec, 0, trained.numel()))
        survives = trained != 0
        assert torch.equal(trained[survives].abs(), drawn[survives].abs())
        assert not trained[~survives].signbit().any()
        alive += int(survives.sum())
        flipped += int((trained[survives] != drawn[survives]).sum())
    assert alive == result.survivors
    assert result.flipped == pytest.approx(flipped / alive)
    assert all(stats.expected_bytes for stats in watch.stats)


def test_a_dense_network_is_larger_than_the_ticket(tmp_path: Path, splits: Splits) -> None:
    watch, _ = watched(tiny(search={"epoch": 1}, keep_ratio=0.05), tmp_path / "m.pt", splits)
    first, second, _ = (stats.expected_bytes for stats in watch.stats)
    assert first is not None
    assert second is not None
    assert second < first


def test_pruned_weights_do_not_come_back(tmp_path: Path, splits: Splits) -> None:
    recipe = tiny(method="sgd", search={"epoch": 1})
    _, result = watched(recipe, tmp_path / "m.pt", splits)
    state = load_checkpoint(tmp_path / "m.pt").state_dict
    names = ["features.0.weight", "features.3.weight", "fc1.weight", "fc2.weight"]
    assert sum(int((state[name] != 0).sum()) for name in names) == result.survivors


def test_signs_of_layers_that_the_search_skips_are_learned(tmp_path: Path, splits: Splits) -> None:
    recipe = tiny(search={"skip": ["features.3"], "epoch": 1}, bop={"threshold": 0.0})
    _, result = watched(recipe, tmp_path / "m.pt", splits)
    found = load_checkpoint(tmp_path / "m.pt")
    searched = skipped = 0
    for name, spec in found.init.items():
        trained = found.state_dict[name].flatten()
        drawn = torch.from_numpy(weights(found.seed, spec, 0, trained.numel()))
        if name == "features.3.weight":
            skipped = trained.numel()
            assert torch.equal(trained.abs(), drawn.abs())
            assert 0 < int((trained != drawn).sum()) < skipped
        else:
            searched += trained.numel()
    assert result.survivors == searched - int(0.5 * searched) + skipped


def test_dropped_steps_are_not_taken(tmp_path: Path, splits: Splits) -> None:
    watch, _ = watched(tiny(drop_ratio=0.5, epochs=4), tmp_path / "m.pt", splits)
    taken = [[step for step in range(5) if not dropped(0, epoch, step, 0.5)] for epoch in range(4)]
    assert {len(steps) for steps in taken} != {5}
    for stats, steps in zip(watch.stats, taken, strict=True):
        samples = sum(32 if step < 4 else 2 for step in steps)
        right = stats.train_accuracy * samples
        assert right == pytest.approx(round(right), abs=1e-6)


def test_a_found_ticket_trains_as_if_searched(tmp_path: Path, splits: Splits) -> None:
    found = tmp_path / "found.pt"
    find_ticket(tiny(), output=found, splits=splits)
    train(tiny(), output=tmp_path / "searched.pt", splits=splits)
    train(tiny(), output=tmp_path / "trained.pt", splits=splits, ticket=found)
    assert (tmp_path / "trained.pt").read_bytes() == (tmp_path / "searched.pt").read_bytes()
    with pytest.raises(CheckpointError, match=r"found\.pt: .*seed: 0 there, 1 here"):
        train(tiny(seed=1), output=tmp_path / "other.pt", splits=splits, ticket=found)
    assert not (tmp_path / "other.pt").exists()

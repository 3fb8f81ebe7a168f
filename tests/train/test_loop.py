"""The whole run: exactness, determinism, isolation, and what happens when it goes wrong."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pabzip
from pabzip import data, models
from pabzip.checkpoint import load_checkpoint, network_from_checkpoint
from pabzip.data import Splits
from pabzip.errors import ArchitectureError, DataError, RecipeError, TrainingError
from pabzip.seeds import weights
from pabzip.train import (
    Callback,
    EpochStats,
    JsonLog,
    Progress,
    ProgressBar,
    Recipe,
    SearchRecipe,
    TrainResult,
    build_network,
    classifier_name,
    evaluate,
    merge,
    train,
)
from pabzip.train.step import steps_per_epoch


def tiny(**changes: Any) -> Recipe:
    """A recipe of a few steps; conv2 has convolutions, batch norm and a dense classifier."""
    recipe = Recipe(
        arch="conv2",
        arch_options={"width": 4},
        keep_ratio=0.5,
        epochs=2,
        batch_size=32,
        device="cpu",
        search=SearchRecipe(iterations=5),
    )
    return merge(recipe, changes)


class Recorder(Callback):
    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_train_start(self, recipe: Recipe, steps: int) -> None:
        self.events.append(steps)

    def on_step_end(self, progress: Progress) -> None:
        self.events.append(progress)

    def on_epoch_end(self, stats: EpochStats) -> None:
        self.events.append(stats)

    def on_train_end(self, result: TrainResult) -> None:
        self.events.append(result)

    def close(self) -> None:
        self.events.append("closed")


@pytest.mark.parametrize("method", ["pab-bop", "pab-bop-psg"])
def test_magnitudes_stay_and_the_mask_has_its_size(
    tmp_path: Path, splits: Splits, method: str
) -> None:
    result = train(tiny(method=method), output=tmp_path / "model.pt", splits=splits)
    found = load_checkpoint(tmp_path / "model.pt")
    survivors = flipped = 0
    for name, spec in found.init.items():
        trained = found.state_dict[name].flatten()
        drawn = torch.from_numpy(weights(found.seed, spec, 0, trained.numel()))
        alive = trained != 0
        assert torch.equal(trained[alive].abs(), drawn[alive].abs())
        assert not trained[~alive].signbit().any()
        survivors += int(alive.sum())
        flipped += int((trained[alive] != drawn[alive]).sum())
    assert result.survivors == survivors == result.weights - int(0.5 * result.weights)
    assert result.flipped == pytest.approx(flipped / survivors)
    assert 0 < result.flipped < 1
    assert "fc3.weight" not in found.init
    fresh = build_network(tiny(), splits).state_dict()
    dense = [name for name in fresh if name not in found.init]
    assert all(not torch.equal(fresh[name], found.state_dict[name]) for name in dense)


def test_the_same_recipe_gives_the_same_bits_and_leaves_global_state(
    tmp_path: Path, splits: Splits
) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    train(tiny(), output=tmp_path / "a.pt", splits=splits)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(7)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode():
            train(tiny(), output=tmp_path / "b.pt", splits=splits)
            assert torch.is_inference_mode_enabled()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    first, second = (load_checkpoint(tmp_path / name) for name in ("a.pt", "b.pt"))
    assert list(first.state_dict) == list(second.state_dict)
    for name, value in first.state_dict.items():
        assert value.dtype == second.state_dict[name].dtype
        assert torch.equal(value, second.state_dict[name])
    train(tiny(seed=1), output=tmp_path / "c.pt", splits=splits)
    other = load_checkpoint(tmp_path / "c.pt").state_dict
    assert not torch.equal(first.state_dict["fc1.weight"], other["fc1.weight"])
    assert not torch.equal(first.state_dict["fc3.bias"], other["fc3.bias"])


def test_a_short_run_on_the_digits_learns_and_tells_the_truth(tmp_path: Path) -> None:
    recipe = merge(
        tiny(arch_options={"width": 16}, epochs=8),
        {
            "search": {"iterations": 20},
            "bop": {"adaptivity_rate": 1e-2, "threshold": 1e-4, "decay_every": 3},
            "sgd": {"milestones": [6]},
        },
    )
    file = tmp_path / "model.pt"
    result = train(recipe, output=file)
    assert result.test_accuracy > 0.9
    test = data.load("digits").test
    checkpoint = load_checkpoint(file)
    again = evaluate(network_from_checkpoint(checkpoint), test)
    assert (again.accuracy, again.loss) == (result.test_accuracy, result.test_loss)
    pabzip.pack(file, tmp_path / "model.pabz")
    packed = evaluate(pabzip.load(tmp_path / "model.pabz"), test)
    assert (packed.accuracy, packed.loss) == (result.test_accuracy, result.test_loss)
    assert checkpoint.results == result.lasting()
    assert checkpoint.metadata()["test_accuracy"] == result.test_accuracy


def costs(layer):
    """What a layer of the log costs."""
    return layer["forward"] + layer["input_gradient"] + layer["weight_gradient"]


def test_callbacks_and_log_hear_everything_in_order(tmp_path: Path, splits: Splits) -> None:
    recorder, log = Recorder(), tmp_path / "log.jsonl"
    result = train(
        tiny(), output=tmp_path / "model.pt", callbacks=[recorder, JsonLog(log)], splits=splits
    )
    kinds = [type(event).__name__ for event in recorder.events]
    epoch = ["Progress", "EpochStats"]
    assert kinds == ["int", *epoch, *epoch, "TrainResult", "str"]
    assert recorder.events[0] == steps_per_epoch(130, 32) == 5
    stats, progress = recorder.events[-3], recorder.events[-4]
    assert (progress.epoch, progress.step) == (2, 5)
    assert (stats.loss, stats.train_accuracy) == (progress.loss, progress.accuracy)
    assert stats.test_accuracy == result.test_accuracy
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line.pop("event") for line in lines] == ["start", "bitops", "epoch", "epoch", "result"]
    assert lines[0]["recipe"]["arch"] == "conv2"
    by_layer = {each["name"]: costs(each) for each in lines[1]["layers"]}
    assert result.layer_bitops == pytest.approx(by_layer)
    assert lines[1]["bitops"] == result.bitops == sum(costs(each) for each in lines[1]["layers"])
    assert (lines[1]["weights"], lines[1]["survivors"]) == (result.weights, result.survivors)
    assert lines[3] == stats.to_dict()
    assert lines[4] == result.to_dict()
    keys = ["arch", "data", "method", "keep_ratio", "epochs", "test_accuracy", "output",
            "seconds", "bitops"]  # fmt: skip
    assert list(lines[4])[:9] == keys
    assert result.output == str(tmp_path / "model.pt")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_shows_on_a_terminal_alone(
    tmp_path: Path, splits: Splits, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    train(tiny(), output=tmp_path / "m.pt", callbacks=[ProgressBar(terminal)], splits=splits)
    shown = terminal.getvalue()
    assert "search 5/5" in shown
    assert all(word in shown for word in ("epoch 2", "loss=", "train=", "flips/step=", "10/10"))
    train(tiny(), output=tmp_path / "m.pt", callbacks=[ProgressBar()], splits=splits)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("samples", "batch", "steps"), [
    (1400, 64, 22), (64, 64, 1), (65, 64, 1), (129, 64, 2), (130, 64, 3), (1, 64, 1), (3, 1, 3),
])  # fmt: skip
def test_an_epoch_uses_every_image_but_a_last_lonely_one(
    samples: int, batch: int, steps: int
) -> None:
    assert steps_per_epoch(samples, batch) == steps


def test_an_infinite_loss_stops_the_run_and_keeps_the_old_file(
    tmp_path: Path, splits: Splits
) -> None:
    file, recorder = tmp_path / "model.pt", Recorder()
    file.write_bytes(b"old")
    recipe = tiny(sgd={"lr": 1e30})
    with pytest.raises(TrainingError, match=r"epoch 1, step [2-4]: expected a finite loss"):
        train(recipe, output=file, callbacks=[recorder], splits=splits)
    assert file.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt"]
    assert recorder.events[-1] == "closed"


def test_an_infinite_gradient_under_a_finite_loss_stops_too(
    tmp_path: Path, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = type(sys)("infinite_gradient")
    module.Net = InfiniteGradient  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "infinite_gradient", module)
    with pytest.raises(
        TrainingError, match=r"epoch 1, step 1: .*loss of [\d.]+ with an infinite gradient"
    ):
        train(tiny(arch="infinite_gradient:Net", arch_options={}), output=tmp_path / "m.pt",
              splits=splits)  # fmt: skip


class InfiniteGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.fc(x.flatten(1))
        # The square root of zero has an infinite slope; times zero that is not a number.
        return logits + ((logits - logits).sum().sqrt() if self.training else 0.0)


@pytest.mark.parametrize(
    "event", ["on_train_start", "on_search_iteration", "on_step_end", "on_epoch_end"]
)
def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, splits: Splits, event: str) -> None:
    class Interrupting(Recorder):
        pass

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    callback = Interrupting()
    setattr(callback, event, interrupt)
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), output=tmp_path / "model.pt", callbacks=[callback], splits=splits)
    assert list(tmp_path.iterdir()) == []
    assert callback.events[-1] == "closed"
    assert torch.equal(state, torch.get_rng_state())


def test_a_place_that_cannot_be_written_fails_before_the_search(
    tmp_path: Path, splits: Splits
) -> None:
    recorder = Recorder()
    with pytest.raises(FileNotFoundError, match="create it first"):
        train(tiny(), output=tmp_path / "no" / "m.pt", callbacks=[recorder], splits=splits)
    with pytest.raises(IsADirectoryError, match="found a directory"):
        train(tiny(), output=tmp_path, callbacks=[recorder], splits=splits)
    assert recorder.events == ["closed", "closed"]


def test_what_does_not_fit_is_refused_early(tmp_path: Path, splits: Splits) -> None:
    file = tmp_path / "m.pt"
    with pytest.raises(ArchitectureError, match=r"expected logits \[1, 10\].*found \[1, 4\]"):
        train(tiny(arch_options={"num_classes": 4}), output=file, splits=splits)
    with pytest.raises(ArchitectureError, match=r"image \[1, 1, 8, 8\] of digits, found Runtime"):
        train(tiny(arch_options={"in_channels": 3}), output=file, splits=splits)
    with pytest.raises(RecipeError, match="augment: expected false for digits"):
        train(tiny(augment=True), output=file, splits=splits)
    with pytest.raises(RecipeError, match=r"device: expected one of .*found 'cuda:99'"):
        train(tiny(device="cuda:99"), output=file, splits=splits)
    with pytest.raises(DataError, match="expected one of .*digits"):
        train(tiny(data="mnst"), output=file)
    assert not file.exists()


def test_what_the_classifier_rule_seeds(splits: Splits) -> None:
    def seeded(**changes: Any) -> list[str]:
        return list(pabzip.seeding(build_network(tiny(**changes), splits)).specs)

    assert classifier_name(models.build("resnet18", width=1)) == "fc"
    assert classifier_name(nn.Conv2d(1, 1, 1)) is None
    convolutions = ["features.0.weight", "features.3.weight"]
    assert seeded() == [*convolutions, "fc1.weight", "fc2.weight"]
    assert seeded(classifier="seeded") == [*convolutions, "fc1.weight", "fc2.weight", "fc3.weight"]
    lenet = ["fc1.weight", "fc2.weight", "fc3.weight"]
    assert seeded(arch="lenet-300-100", arch_options={}) == lenet


def test_augmentation_follows_the_seed(tmp_path: Path, splits: Splits) -> None:
    augmented = dataclasses.replace(splits, augmentation=data.crop_and_flip)
    for name in ("a.pt", "b.pt"):
        train(tiny(augment=True), output=tmp_path / name, splits=augmented)
    train(tiny(), output=tmp_path / "c.pt", splits=augmented)
    first, second, plain = (load_checkpoint(tmp_path / f"{n}.pt").state_dict for n in "abc")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["fc3.weight"], plain["fc3.weight"])

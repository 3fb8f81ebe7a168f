"""Runs with validation images: epochs are measured on these, the test images once, at the end."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pabzip
from pabzip.checkpoint import Checkpoint, load_checkpoint, network_from_checkpoint
from pabzip.data import Images, Splits, hold_out
from pabzip.errors import CheckpointError, RecipeError, TrainingError
from pabzip.train import (
    Callback,
    EpochStats,
    JsonLog,
    ProgressBar,
    Recipe,
    TensorBoard,
    evaluate,
    find_ticket,
    merge,
    to_dict,
    train,
    trainer,
)
from pabzip.train.callbacks.curves import draw_curves
from pabzip.train.evaluation import open_model


def tiny(**changes: Any) -> Recipe:
    """Two epochs of four steps, on 104 images; 26 are held out."""
    recipe = Recipe(arch="conv2", arch_options={"width": 4}, keep_ratio=0.5, epochs=2,
                    batch_size=32, device="cpu", validation=0.2)  # fmt: skip
    return merge(merge(recipe, {"search": {"iterations": 5}}), changes)


class Recorder(Callback):
    def __init__(self) -> None:
        self.epochs: list[EpochStats] = []

    def on_epoch_end(self, stats: EpochStats) -> None:
        self.epochs.append(stats)


def same_tensors(first: Checkpoint, second: Checkpoint) -> bool:
    return list(first.state_dict) == list(second.state_dict) and all(
        torch.equal(value, second.state_dict[name]) for name, value in first.state_dict.items()
    )


def test_epochs_see_validation_images_and_the_end_sees_the_test(
    tmp_path: Path, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, whole = [], trainer.batch_sums

    def counted(model: Any, images: Images, **how: Any) -> Tensor:
        sizes.append(len(images))
        return whole(model, images, **how)

    monkeypatch.setattr(trainer, "batch_sums", counted)
    recorder, file = Recorder(), tmp_path / "model.pt"
    result = train(tiny(), output=file, splits=splits, callbacks=[recorder])
    assert sizes == [26, 26, 50]
    last = recorder.epochs[-1]
    assert (last.part, last.measured) == (
        "validation", (last.validation_loss, last.validation_accuracy)
    )  # fmt: skip
    assert (last.test_loss, last.test_accuracy) == (None, None)
    assert not any(name.startswith("test") for name in last.to_dict())
    checkpoint = load_checkpoint(file)
    net = network_from_checkpoint(checkpoint)
    tested = evaluate(net, splits)
    assert (result.test_loss, result.test_accuracy) == (tested.loss, tested.accuracy)
    held = hold_out(splits, 0.2, seed=0).validation
    validated = evaluate(net, held)
    assert validated.accuracy != tested.accuracy
    assert (result.validation_loss, result.validation_accuracy) == last.measured
    assert last.measured == (validated.loss, validated.accuracy)
    assert checkpoint.results == result.lasting()
    assert checkpoint.metadata()["validation"] == result.validation == 0.2
    assert checkpoint.settings is not None
    assert checkpoint.settings["validation"] == 0.2


@pytest.mark.parametrize("method", ["pab-bop", "dense-sgd-short"])
def test_held_out_images_are_seen_by_no_step_and_no_search(
    tmp_path: Path, splits: Splits, method: str
) -> None:
    recipe = tiny(method=method, search={"method": "snip", "samples": 80})
    train(recipe, output=tmp_path / "a.pt", splits=splits)
    parted = hold_out(splits, 0.2, seed=0)
    train(tiny(method=method, search={"method": "snip", "samples": 80}, validation=0.0),
          output=tmp_path / "b.pt",
          splits=dataclasses.replace(parted, validation=None))  # fmt: skip
    assert isinstance(parted.validation, Images)
    held = {image.tobytes() for image in parted.validation.images.numpy()}
    spoiled = splits.train.images.clone()
    for image in spoiled:
        if image.numpy().tobytes() in held:
            image.fill_(16)
    assert not torch.equal(spoiled, splits.train.images)
    other = dataclasses.replace(splits, train=dataclasses.replace(splits.train, images=spoiled))
    result = train(recipe, output=tmp_path / "c.pt", splits=other)
    first, second, third = (load_checkpoint(tmp_path / f"{name}.pt") for name in "abc")
    assert same_tensors(first, second)
    assert same_tensors(first, third)
    assert first.results is not None
    assert result.validation_loss != first.results["validation_loss"]


def test_a_run_without_says_nothing_of_validation(tmp_path: Path, splits: Splits) -> None:
    recorder, log = Recorder(), tmp_path / "log.jsonl"
    file = tmp_path / "model.pt"
    recipe = tiny(validation=0.0)
    result = train(recipe, output=file, splits=splits, callbacks=[recorder, JsonLog(log)])
    assert (result.test_loss, result.test_accuracy) == recorder.epochs[-1].measured
    assert recorder.epochs[-1].part == "test"
    assert "validation" not in log.read_text()
    assert b"validation" not in file.read_bytes()
    assert "validation" not in to_dict(recipe)
    assert list(recorder.epochs[-1].to_dict()) == [
        "epoch", "epochs", "loss", "train_accuracy", "test_loss", "test_accuracy",
        "flips_per_step", "flipped", "seconds", "expected_bytes",
    ]  # fmt: skip


def test_validation_images_of_ones_own(tmp_path: Path, splits: Splits) -> None:
    recorder, own = Recorder(), hold_out(splits, 0.3, seed=9)
    train(tiny(validation=0.0), output=tmp_path / "m.pt", splits=own, callbacks=[recorder])
    net = network_from_checkpoint(load_checkpoint(tmp_path / "m.pt"))
    assert recorder.epochs[-1].validation_accuracy == evaluate(net, own.validation).accuracy
    with pytest.raises(RecipeError, match="expected 0 for digits, which brings 39 validation"):
        train(tiny(), output=tmp_path / "m.pt", splits=own)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_logs_tell_validation_from_test(tmp_path: Path, splits: Splits) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recorder, terminal, log = Recorder(), Terminal(), tmp_path / "log.jsonl"
    watchers = [recorder, ProgressBar(terminal), JsonLog(log), TensorBoard(tmp_path / "board")]
    result = train(tiny(), output=tmp_path / "m.pt", splits=splits, callbacks=watchers)
    assert "validation=" in terminal.getvalue()
    assert "test=" not in terminal.getvalue()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines[0]["recipe"]["validation"] == 0.2
    assert lines[-2]["validation_accuracy"] == result.validation_accuracy
    assert "test_accuracy" not in lines[-2]
    assert (lines[-1]["test_accuracy"], lines[-1]["validation_accuracy"]) == (
        result.test_accuracy, result.validation_accuracy
    )  # fmt: skip
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert [event.step for event in events.Scalars("accuracy/validation")] == [4, 8]
    (tested,) = events.Scalars("accuracy/test")
    assert (tested.step, tested.value) == (8, pytest.approx(result.test_accuracy))
    legends = [axes.get_legend_handles_labels()[1]
               for axes in draw_curves(recorder.epochs, "title").axes[:2]]  # fmt: skip
    assert legends == [["training, as seen", "validation"]] * 2


class Stop(Callback):
    """Interrupts a run at the last step of its second epoch, or at the end of it."""

    def __init__(self, event: str):
        setattr(self, event, self.stop)

    def stop(self, what: Any) -> None:
        if what.epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("event", ["on_step_end", "on_epoch_end"])
def test_a_resumed_run_writes_the_same_bytes(tmp_path: Path, splits: Splits, event: str) -> None:
    file, whole = tmp_path / "model.pt", tmp_path / "whole.pt"
    recipe = tiny(epochs=3)
    train(recipe, output=whole, splits=splits)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, output=file, splits=splits, save_every="1epoch", callbacks=[Stop(event)])
    train(recipe, output=file, splits=splits, resume=True)
    assert file.read_bytes() == whole.read_bytes()


def test_a_finished_run_that_was_not_tested_is_resumed(
    tmp_path: Path, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, whole = tmp_path / "model.pt", tmp_path / "whole.pt"
    train(tiny(), output=whole, splits=splits)
    measure = trainer.Trainer._evaluate

    def fail(self: Any, part: str) -> Any:
        if part == "test":
            raise KeyboardInterrupt
        return measure(self, part)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_evaluate", fail)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(), output=file, splits=splits, save_every="1epoch")
    train(tiny(), output=file, splits=splits, resume=True)
    assert file.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(("before", "now"), [(0.0, 0.2), (0.2, 0.0), (0.2, 0.25)])
def test_a_run_is_continued_with_the_images_that_it_was_begun_with(
    tmp_path: Path, splits: Splits, before: float, now: float
) -> None:
    file = tmp_path / "model.pt"
    with pytest.raises(KeyboardInterrupt):
        train(tiny(validation=before), output=file, splits=splits, save_every="1epoch",
              callbacks=[Stop("on_step_end")])  # fmt: skip
    with pytest.raises(RecipeError, match=f"validation = {before} then and {now} now"):
        train(tiny(validation=now), output=file, splits=splits, resume=True)


def test_tickets_of_searches_that_see_data_hold_out_too(tmp_path: Path, splits: Splits) -> None:
    recipe = tiny(search={"method": "snip", "samples": 80})
    found = tmp_path / "found.pt"
    find_ticket(recipe, output=found, splits=splits)
    train(recipe, output=tmp_path / "a.pt", splits=splits)
    train(recipe, output=tmp_path / "b.pt", splits=splits, ticket=found)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    with pytest.raises(CheckpointError, match=r"validation: 0\.2 there, 0\.0 here"):
        train(merge(recipe, {"validation": 0.0}), output=tmp_path / "c.pt", splits=splits,
              ticket=found)  # fmt: skip


@pytest.mark.parametrize(("fraction", "message"), [
    (0.001, r"validation: expected a fraction that holds out at least one of the 130 training"),
    (0.8, r"at least a batch of 32 training images left, found 26 of 130 with 0\.8; lower"),
])  # fmt: skip
def test_too_few_images_are_refused_before_anything_is_done(
    tmp_path: Path, splits: Splits, fraction: float, message: str
) -> None:
    for start in (train, find_ticket):
        with pytest.raises(RecipeError, match=message):
            start(tiny(validation=fraction), output=tmp_path / "m.pt", splits=splits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_loss_that_is_not_finite_names_the_images(
    tmp_path: Path, splits: Splits, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    size, whole = {"validation": 26, "test": 50}[part], trainer.batch_sums

    def broken(model: Any, images: Images, **how: Any) -> Tensor:
        sums = whole(model, images, **how)
        return sums * float("nan") if len(images) == size else sums

    monkeypatch.setattr(trainer, "batch_sums", broken)
    epoch = {"validation": 1, "test": 2}[part]
    message = rf"epoch {epoch}, step 4: expected a finite {part} loss, found nan"
    with pytest.raises(TrainingError, match=message):
        train(tiny(), output=tmp_path / "m.pt", splits=splits)


def test_a_packed_file_knows_what_was_held_out(tmp_path: Path, splits: Splits) -> None:
    for changes in ({}, {"method": "sgd"}):
        result = train(tiny(**changes), output=tmp_path / "m.pt", splits=splits)
        pabzip.pack(tmp_path / "m.pt", tmp_path / "m.pabz")
        for name in ("m.pt", "m.pabz"):
            opened = open_model(tmp_path / name, "cpu")
            assert opened.held_out == (0.2, 0)
            held = hold_out(splits, 0.2, seed=0).validation
            assert evaluate(opened.model, held).accuracy == result.validation_accuracy

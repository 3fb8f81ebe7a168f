"""Callbacks by name, a user's own among them; what curves and TensorBoard write."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pabzip.errors import MissingDependencyError, RecipeError
from pabzip.registry import CALLBACKS
from pabzip.train import (
    Curves,
    EpochStats,
    Progress,
    Recipe,
    TensorBoard,
    TrainResult,
    build_callback,
    parse_callback,
    train,
)
from pabzip.train.callbacks.curves import draw_curves

RESULT = TrainResult(
    arch="conv2", data="digits", method="pab-bop", keep_ratio=0.1, epochs=3, test_accuracy=0.9,
    output="model.pt", seconds=1.0, bitops=1.0, layer_bitops={"fc.weight": 1.0}, test_loss=0.3,
    train_accuracy=0.9, weights=100, survivors=10, flipped=0.5, seed=0,
)  # fmt: skip


def epoch(number: int, **changes: Any) -> EpochStats:
    values = {
        "epoch": number, "epochs": 3, "loss": 1 / number, "train_accuracy": 0.5, "test_loss": 0.4,
        "test_accuracy": 0.6, "flips_per_step": 10.0 - number, "flipped": 0.1 * number,
        "seconds": 1.0, "expected_bytes": 7000.0 + number,
    }  # fmt: skip
    return EpochStats(**{**values, **changes})


def test_curves_show_the_past_and_the_present(tmp_path: Path) -> None:
    file = tmp_path / "curves.png"
    curves = Curves(file)
    curves.on_resume((epoch(1),), 3)
    curves.on_train_start(Recipe(), 5)
    curves.on_epoch_end(epoch(2))
    curves.on_train_end(RESULT)
    assert file.read_bytes().startswith(b"\x89PNG\r\n")
    assert "matplotlib.pyplot" not in sys.modules
    figure = draw_curves([epoch(1), epoch(2)], "title")
    drawn = {axes.get_title(): [list(line.get_ydata()) for line in axes.lines]
             for axes in figure.axes}  # fmt: skip
    assert drawn == {
        "loss (nats)": [[1.0, 0.5], [0.4, 0.4]],
        "accuracy (%)": [[50.0, 50.0], [60.0, 60.0]],
        "signs flipped a step": [[9.0, 8.0]],
        "survivors with a flipped sign (%)": [[10.0, 20.0]],
        "expected size of the file (kB)": [[7.001, 7.002]],
    }


def test_no_panel_for_a_size_that_nobody_expects() -> None:
    figure = draw_curves([epoch(1, expected_bytes=None, flipped=0.0)], "title")
    assert len(figure.axes) == 4


def test_an_unwritable_picture_leaves_nothing(tmp_path: Path) -> None:
    curves = Curves(tmp_path / "no" / "curves.png")
    curves.on_train_start(Recipe(), 5)
    curves.on_epoch_end(epoch(1))
    with pytest.raises(FileNotFoundError, match="create it first"):
        curves.on_train_end(RESULT)


@pytest.mark.parametrize(("callback", "module", "name"), [
    (Curves, "matplotlib", "curves"), (TensorBoard, "tensorboard", "tensorboard"),
])  # fmt: skip
def test_what_is_missing_is_named_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, callback: Any, module: str, name: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    watcher = callback(tmp_path / "x")
    message = rf"the callback {name} needs {module}.*pabzip\[train\]"
    with pytest.raises(MissingDependencyError, match=message):
        watcher.on_train_start(Recipe(), 5)
    watcher.close()
    assert list(tmp_path.iterdir()) == []


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_has_each_step_once_after_a_resumption(tmp_path: Path) -> None:
    first = TensorBoard(tmp_path)
    first.on_train_start(Recipe(), 5)
    for number in (1, 2):
        first.on_step_end(Progress(number, 5, 1.0, 0.5, 3.0))
        first.on_epoch_end(epoch(number))
    first.close()
    second = TensorBoard(tmp_path)
    second.on_resume((epoch(1),), 3)
    second.on_train_start(Recipe(), 5)
    for number in (2, 3):
        second.on_step_end(Progress(number, 5, 0.5, 0.5, 3.0))
        second.on_epoch_end(epoch(number, loss=0.25))
    second.close()
    assert scalars(tmp_path, "loss/train") == [(5, 1.0), (10, 0.25), (15, 0.25)]
    assert scalars(tmp_path, "running/loss") == [(5, 1.0), (10, 0.5), (15, 0.5)]
    assert scalars(tmp_path, "ticket/expected_bytes")[-1] == (15, 7003.0)
    assert scalars(tmp_path, "signs/flips_per_step")[0] == (5, 9.0)


OWN = """
from pabzip.registry import register_callback
from pabzip.train import Callback

@register_callback("count-epochs", help="Count epochs.", metavar="FILE", writes="file")
class CountEpochs(Callback):
    def __init__(self, path):
        self.path, self.count = path, 0

    def on_epoch_end(self, stats):
        self.count += 1

    def on_train_end(self, result):
        with open(self.path, "w") as file:
            file.write(f"{self.count} of {result.epochs}")
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module of a user's that registers a callback, imported."""
    (tmp_path / "own_callbacks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("own_callbacks")
    yield
    del sys.modules["own_callbacks"]
    del CALLBACKS._own["count-epochs"]


def test_a_callback_of_ones_own_is_one_file(tmp_path: Path, own_module: None) -> None:
    assert CALLBACKS.names[-1] == "count-epochs"
    file = tmp_path / "epochs.txt"
    own = build_callback(*parse_callback(f"count-epochs={file}"))
    recipe = Recipe(arch="lenet-300-100", epochs=2, method="dense-sgd", device="cpu")
    train(recipe, output=tmp_path / "model.pt", callbacks=[own])
    assert file.read_text() == "2 of 2"


def test_names_and_facts_need_no_torch() -> None:
    script = """
import sys
sys.modules["torch"] = None
from pabzip.train.callbacks import parse_callback
from pabzip.registry import CALLBACKS
metavars = {name: CALLBACKS.facts(name).get("metavar") for name in CALLBACKS}
print(metavars, parse_callback("json-log=a=b.jsonl"), parse_callback("progress"))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == (
        "{'curves': 'FILE.png', 'json-log': 'FILE.jsonl', 'progress': None, "
        "'tensorboard': 'DIR'} ('json-log', 'a=b.jsonl') ('progress', None)\n"
    )


@pytest.mark.parametrize(("text", "message"), [
    ("wandb", r"callback: expected one of curves, json-log, progress, tensorboard, found 'wandb'"),
    ("json-log", r"--callback: expected json-log=FILE\.jsonl, found 'json-log'"),
    ("tensorboard=", r"--callback: expected tensorboard=DIR, found 'tensorboard='"),
    ("progress=1", r"--callback: expected progress, found 'progress=1'"),
    ("curves=a.jpg", r"--callback: expected a name that ends in \.png, found 'a\.jpg'"),
])  # fmt: skip
def test_what_is_no_callback_is_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_callback(text)

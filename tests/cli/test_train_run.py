"""``pabzip train`` over a long time: what is kept, continued and drawn."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

import pabzip.train.trainer
from pabzip.errors import TrainingError
from pabzip.registry import CALLBACKS

TINY = (
    "--arch", "conv2", "--set", "arch_options.width=4", "--epochs", "2",
    "--batch-size", "350", "--set", "search.iterations=3", "--device", "cpu", "--keep-ratio", "0.5",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def failing(monkeypatch):
    """Let the second epoch end with an error of one's choice."""

    def fail_with(error):
        whole = pabzip.train.trainer.Trainer._epoch

        def fail(self):
            if self.state.history:
                raise error
            whole(self)

        monkeypatch.setattr(pabzip.train.trainer.Trainer, "_epoch", fail)
        return lambda: monkeypatch.setattr(pabzip.train.trainer.Trainer, "_epoch", whole)

    return fail_with


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_interrupted_told_and_resumed(folder, run, failing):
    extra = ("--save-every", "1epoch", "--log", "run.jsonl", "--callback", "curves=run.png")
    assert run("train", *TINY, "-o", "whole.pt").exit_code == 0
    mend = failing(KeyboardInterrupt())
    result = run("train", *TINY, *extra)
    assert result.exit_code == 130
    assert result.stderr == (
        "pabzip: the last state is kept in model.pt.progress; --resume continues it\n\n"
        "pabzip: error: interrupted\n"
    )
    assert names(folder) == ["model.pt.progress", "run.jsonl", "whole.pt"]
    mend()

    result = run("train", *TINY)
    assert result.exit_code == 1
    assert "model.pt.progress: holds the state of an unfinished run; continue it" in result.stderr

    result = run("train", *TINY, *extra, "--resume", "--seed", "5")
    assert result.exit_code == 2
    assert "seed = 0 then and 5 now" in result.stderr

    result = run("train", *TINY, *extra, "--resume", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["epochs"] == 2
    assert names(folder) == ["model.pt", "run.jsonl", "run.png", "whole.pt"]
    assert (folder / "model.pt").read_bytes() == (folder / "whole.pt").read_bytes()


def test_validation_is_told_apart_and_measured_again(folder, run):
    held = ("--validation", "0.2", "--log", "run.jsonl")
    result = run("train", *TINY, *held, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    epoch = json.loads((folder / "run.jsonl").read_text().splitlines()[-2])
    assert epoch["validation_accuracy"] == found["validation_accuracy"]
    assert "test_accuracy" not in epoch
    assert run("pack", "model.pt").exit_code == 0
    for source in ("model.pt", "model.pabz"):
        result = run("eval", source, "--part", "validation", "--data", "digits", "--json")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout) == {
            "accuracy": found["validation_accuracy"], "loss": found["validation_loss"],
            "samples": 280,
        }  # fmt: skip
        tested = json.loads(run("eval", source, "--json").stdout)
        assert (tested["accuracy"], tested["samples"]) == (found["test_accuracy"], 397)
    shown = run("eval", "model.pabz", "--part", "validation").stdout
    assert "280 validation images of digits" in shown
    shown = run("train", *TINY, *held, "-f").stdout
    accuracies = f"test accuracy {found['test_accuracy']:.2%}, validation accuracy "
    assert f"model.pt: {accuracies}{found['validation_accuracy']:.2%}, conv2" in shown


@pytest.mark.parametrize(
    ("fraction", "message"),
    [
        ("1", "validation: expected a number at least 0 and below 1, found 1"),
        ("0.9", "at least a batch of 350 training images left, found 140 of 1400 with 0.9"),
    ],
)
def test_a_validation_part_that_cannot_be_is_refused(folder, run, fraction, message):
    result = run("train", *TINY, "--validation", fraction)
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
    assert names(folder) == []


def test_force_begins_again_and_discards_the_state(folder, run, failing):
    mend = failing(TrainingError("epoch 2, step 1: expected a finite loss, found nan"))
    result = run("train", *TINY, "--save-every", "1epoch")
    assert result.exit_code == 4
    assert result.stderr == (
        "pabzip: error: epoch 2, step 1: expected a finite loss, found nan; the state after epoch "
        "1 is kept in model.pt.progress\n"
    )
    mend()
    assert run("train", *TINY, "--force", "--seed", "3").exit_code == 0
    assert names(folder) == ["model.pt"]


def test_other_surroundings_are_a_warning(folder, run, failing):
    mend = failing(KeyboardInterrupt())
    run("train", *TINY, "--save-every", "1epoch")
    mend()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        result = run("train", *TINY, "--resume")
    finally:
        torch.set_num_threads(threads)
    assert result.exit_code == 0
    assert result.stderr.startswith(f"pabzip: model.pt.progress: threads was {threads} when")
    assert result.stderr.count("\n") == 1


def test_a_damaged_state_exits_3(folder, run):
    (folder / "model.pt.progress").write_bytes(b"PK nothing of ours")
    result = run("train", *TINY, "--resume")
    assert result.exit_code == 3
    assert "model.pt.progress: expected the state of an unfinished run" in result.stderr
    assert names(folder) == ["model.pt.progress"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--save-every", "often"), 2, "save_every: expected such as 10min"),
        (("--set", "shards=3"), 2, "shards: expected a power of two"),
        (("--log", "-"), 2, "name them"),
        (
            ("--callback", "curves=run.txt"),
            2,
            "--callback: expected a name that ends in .png, found",
        ),
        (("--log", "model.pt"), 1, "model.pt"),
        (("--callback", "curves=no/run.png"), 1, "no folder"),
    ],
)
def test_what_cannot_be_is_refused_before_training(folder, run, arguments, code, message):
    (folder / "model.pt").touch()
    result = run("train", *TINY, "--force", *arguments)
    assert result.exit_code == code, result.stderr
    assert message in result.stderr


def test_never_keeps_nothing(folder, run, failing):
    failing(KeyboardInterrupt())
    result = run("train", *TINY, "--save-every", "never")
    assert (result.exit_code, result.stderr) == (130, "\npabzip: error: interrupted\n")
    assert names(folder) == []


def test_two_stages_give_what_one_gives(folder, run):
    result = run("train", *TINY, "--search-only", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["output"], found["epochs"]) == ("found.pt", 0)
    assert run("train", *TINY, "--ticket", "found.pt").exit_code == 0
    assert run("train", *TINY, "-o", "whole.pt").exit_code == 0
    assert (folder / "model.pt").read_bytes() == (folder / "whole.pt").read_bytes()

    result = run("train", *TINY, "--ticket", "found.pt", "-o", "x.pt", "--seed", "4")
    assert result.exit_code == 3
    assert "seed: 0 there, 4 here" in result.stderr
    result = run("train", *TINY, "--ticket", "found.pt", "-o", "found.pt", "--force")
    assert result.exit_code == 1
    assert "is the input found.pt itself" in result.stderr


def test_a_search_alone_heeds_no_flag_of_training(folder, run):
    for flag in (("--log", "x"), ("--resume",), ("--ticket", "x"), ("--save-every", "never")):
        result = run("train", *TINY, "--search-only", *flag)
        assert result.exit_code == 2
        assert f"{flag[0]} is for training" in result.stderr
    assert names(folder) == []


@pytest.mark.slow
def test_ten_real_kills_change_nothing(folder):
    command = [sys.executable, "-m", "pabzip.cli", "train", *TINY, "--epochs", "40", "--resume"]
    subprocess.run([*command, "-o", "whole.pt", "-q"], check=True)
    state, chance = folder / "model.pt.progress", random.Random(1)
    for _ in range(10):
        before = state.stat().st_mtime_ns if state.exists() else 0
        with subprocess.Popen([*command, "--save-every", "1steps", "-q"]) as process:
            # Not before the state has moved on, or ten kills might all hit the imports.
            while not state.exists() or state.stat().st_mtime_ns == before:
                assert process.poll() is None
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.2))
            process.kill()
        assert process.returncode == -signal.SIGKILL
    subprocess.run([*command, "-q"], check=True)
    assert (folder / "model.pt").read_bytes() == (folder / "whole.pt").read_bytes()
    assert names(folder) == ["model.pt", "whole.pt"]


def test_resume_spares_files_that_are_no_part_of_the_run(folder, run):
    (folder / "notes.txt").write_text("mine")
    result = run("train", *TINY, "--resume", "--log", "notes.txt")
    assert result.exit_code == 1
    assert "notes.txt" in result.stderr
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_ticket_is_refused_by_a_method_without_masks(folder, run):
    result = run("train", *TINY, "--method", "dense-sgd", "--ticket", "none.pt")
    assert result.exit_code == 2
    assert "expected a method that trains on a mask, found 'dense-sgd'" in result.stderr


def test_search_only_is_for_one_process(folder, run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = run("train", *TINY, "--search-only")
    assert result.exit_code == 2
    assert "--search-only is for one process" in result.stderr


MY_CALLBACK = """
from pathlib import Path
from pabzip.registry import register_callback
from pabzip.train import Callback

@register_callback("last-epoch", help="Note it.", metavar="FILE", writes="file")
class LastEpoch(Callback):
    def __init__(self, path):
        self.path = Path(path)

    def on_epoch_end(self, stats):
        self.path.write_text(str(stats.epoch))
"""


def test_a_callback_of_an_imported_package(folder, run, monkeypatch):
    (folder / "my_callbacks.py").write_text(MY_CALLBACK)
    monkeypatch.setattr(sys, "path", [*sys.path])
    own = ("--import", "my_callbacks", "--callback")
    try:
        result = run("train", *TINY, *own, "last-epoch=last.txt", "--callback", "json-log=a.jsonl")
        assert result.exit_code == 0, result.stderr
        assert (folder / "last.txt").read_text() == "2"
        assert '"event": "result"' in (folder / "a.jsonl").read_text()
        again = run("train", *TINY, *own, "last-epoch=last.txt", "-o", "other.pt")
        assert (again.exit_code, "last.txt" in again.stderr) == (1, True)
        missing = run("train", *TINY, *own, "last-epoch", "--force")
        assert (missing.exit_code, "expected last-epoch=FILE" in missing.stderr) == (2, True)
    finally:
        sys.modules.pop("my_callbacks", None)
        CALLBACKS._own.pop("last-epoch", None)

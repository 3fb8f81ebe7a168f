"""Long runs: what is saved, what a resumption gives, and what it refuses."""

from __future__ import annotations

import contextlib
import errno
import json
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pabzip.checkpoint import load_checkpoint
from pabzip.data import Splits
from pabzip.errors import CheckpointError, RecipeError, TrainingError
from pabzip.registry import METHODS
from pabzip.train import (
    Callback,
    EpochStats,
    JsonLog,
    Recipe,
    SaveEvery,
    SearchRecipe,
    merge,
    train,
)
from pabzip.train.resume import SaveSchedule, check_resume, origin


def tiny(**changes: Any) -> Recipe:
    """Three epochs of five steps, with both schedules decaying on the way."""
    recipe = Recipe(arch="conv2", arch_options={"width": 4}, keep_ratio=0.5, epochs=3,
                    batch_size=32, device="cpu")  # fmt: skip
    few = {"search": {"iterations": 5}, "bop": {"decay_every": 1}, "sgd": {"milestones": [1]}}
    return merge(merge(recipe, few), changes)


class Stop(Callback):
    """Interrupts a run where an epoch's numbers are first read, at its last step."""

    def __init__(self, epoch: int, error: BaseException | None = None):
        self.epoch = epoch
        self.error = error or KeyboardInterrupt()
        self.past: list[Any] = []

    def on_resume(self, history: Sequence[EpochStats], step: int) -> None:
        self.past.append((len(history), step))

    def on_step_end(self, progress: Any) -> None:
        if progress.epoch == self.epoch:
            raise self.error


def interrupted(
    recipe: Recipe, output: Path, splits: Splits, epoch: int, *others: Callback, **how: Any
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(recipe, output=output, splits=splits, callbacks=[Stop(epoch), *others], **how)


SEVERAL = {"search": {"method": "snip", "samples": 40, "epoch": 2, "shots": 2}, "shards": 2,
           "drop_ratio": 0.2}  # fmt: skip


@pytest.mark.parametrize(
    ("every", "changes"),
    [
        *(("3steps", {"method": method}) for method in METHODS if method != "dense-sgd-short"),
        ("1epoch", {}),
        ("0.00001min", {}),
        ("3steps", SEVERAL),
        ("3steps", {**SEVERAL, "method": "pab-latent-psg"}),
        ("3steps", {**SEVERAL, "method": "sgd"}),
        ("3steps", {"precision": "bfloat16", "channels_last": True}),
    ],
)
def test_a_resumed_run_writes_the_same_bytes(
    tmp_path: Path, splits: Splits, every: str, changes: dict[str, Any]
) -> None:
    recipe = tiny(**changes)
    whole, file = tmp_path / "whole.pt", tmp_path / "model.pt"
    train(recipe, output=whole, splits=splits)
    interrupted(recipe, file, splits, 2, save_every=every)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.pt.progress", "whole.pt"]
    interrupted(recipe, file, splits, 3, save_every=every, resume=True)
    watcher = Stop(-1)
    train(recipe, output=file, splits=splits, resume=True, callbacks=[watcher])
    ((epochs, step),) = watcher.past
    assert epochs == 2
    assert step in {"1epoch": {0}, "3steps": {2, 3}, "0.00001min": {4}}[every]
    assert file.read_bytes() == whole.read_bytes()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.pt", "whole.pt"]


class Dropping(nn.Module):
    """Draws at random, and changes a buffer that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, 20), nn.Linear(20, 10)
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += 0.01
        hidden = torch.relu(self.fc1(x.flatten(1)))
        return self.fc2(torch.nn.functional.dropout(hidden, 0.3, self.training)) * (1 + self.seen)


def test_dropout_and_buffers_go_on_where_they_were(
    tmp_path: Path, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = type(sys)("dropping_network")
    module.Net = Dropping  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dropping_network", module)
    recipe = tiny(arch="dropping_network:Net", arch_options={})
    train(recipe, output=tmp_path / "whole.pt", splits=splits)
    interrupted(recipe, tmp_path / "model.pt", splits, 2, save_every="3steps")
    torch.rand(99)
    train(recipe, output=tmp_path / "model.pt", splits=splits, resume=True)
    assert (tmp_path / "model.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()


def test_resume_without_a_state_begins(tmp_path: Path, splits: Splits) -> None:
    train(tiny(), output=tmp_path / "a.pt", splits=splits)
    train(tiny(), output=tmp_path / "b.pt", splits=splits, resume=True)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_a_finished_run_that_was_not_yet_written_is_written(
    tmp_path: Path, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pabzip.train.run

    recipe = tiny(epochs=1)
    whole = train(recipe, output=tmp_path / "whole.pt", splits=splits)
    with monkeypatch.context() as patch:
        patch.setattr(pabzip.train.run, "save_checkpoint", full_disk)
        with pytest.raises(OSError, match="No space left"):
            train(recipe, output=tmp_path / "model.pt", splits=splits, save_every="1epoch")
    assert not (tmp_path / "model.pt").exists()
    result = train(recipe, output=tmp_path / "model.pt", splits=splits, resume=True)
    assert (tmp_path / "model.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()
    assert result.lasting() == whole.lasting()
    assert load_checkpoint(tmp_path / "model.pt").results == whole.lasting()


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_keeps_the_last_state(
    tmp_path: Path, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.pt"
    interrupted(tiny(), file, splits, 2, save_every="3steps")
    before = Path(f"{file}.progress").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_disk)
        with pytest.raises(OSError, match="No space left"):
            train(tiny(), output=file, splits=splits, save_every="1steps", resume=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt.progress"]
    assert Path(f"{file}.progress").read_bytes() == before


def test_a_loss_that_is_not_finite_keeps_the_last_good_state(
    tmp_path: Path, splits: Splits
) -> None:
    recipe = tiny(sgd={"lr": 1e30})
    file = tmp_path / "model.pt"
    with pytest.raises(
        TrainingError,
        match=r"epoch 1, step [2-4]: expected a finite loss.*; the state after (the search|epoch "
        r"1, step 1) is kept in .*model\.pt\.progress$",
    ):
        train(recipe, output=file, splits=splits, save_every="1steps")
    state = torch.load(f"{file}.progress", weights_only=True)["content"]
    assert all(bool(value.isfinite().all()) for value in state["tensors"].values())
    with pytest.raises(TrainingError, match=r"epoch 1, step [2-4]: .*; the state after"):
        train(recipe, output=file, splits=splits, resume=True)
    with pytest.raises(TrainingError, match="; nothing was written"):
        train(recipe, output=tmp_path / "other.pt", splits=splits)


def test_another_recipe_is_refused_with_the_differences(tmp_path: Path, splits: Splits) -> None:
    file = tmp_path / "model.pt"
    interrupted(tiny(), file, splits, 2, save_every="3steps")
    other = tiny(epochs=9, bop={"threshold": 0.5})
    with pytest.raises(
        RecipeError,
        match=r"model\.pt\.progress: expected the recipe that the run was begun with, found "
        r"another: bop\.threshold = 1e-06 then and 0\.5 now; epochs = 3 then and 9 now",
    ):
        train(other, output=file, splits=splits, resume=True)
    assert Path(f"{file}.progress").exists()


@pytest.mark.parametrize(("then", "now"), [(None, 1), (1, None)])
def test_published_rounds_may_be_given_by_number(then: int | None, now: int | None) -> None:
    cpu = torch.device("cpu")
    begun, other = (
        Recipe(search=SearchRecipe(method="snip", iterations=rounds)) for rounds in (then, now)
    )
    saved = origin(begun, cpu)
    check_resume(saved, other, cpu, "model.pt.progress")
    with pytest.raises(RecipeError, match=r"search\.iterations = 1 then and 7 now"):
        check_resume(saved, merge(other, {"search": {"iterations": 7}}), cpu, "model.pt")


def test_another_torch_or_thread_count_is_told(tmp_path: Path, splits: Splits) -> None:
    file = tmp_path / "model.pt"
    interrupted(tiny(), file, splits, 2, save_every="3steps")
    torch.set_num_threads(2)
    with pytest.warns(UserWarning, match=r"threads was 1 when the state was saved and is 2 now"):
        interrupted(tiny(), file, splits, 2, resume=True)
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tiny(), output=file, splits=splits, resume=True)


def test_a_damaged_state_is_refused(tmp_path: Path, splits: Splits) -> None:
    file, state = tmp_path / "model.pt", tmp_path / "model.pt.progress"
    interrupted(tiny(), file, splits, 2, save_every="3steps")
    good, whole = state.read_bytes(), tmp_path / "whole.pt"
    train(tiny(), output=whole, splits=splits)

    def refused(content: bytes, message: str) -> None:
        state.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"model\.pt\.progress: .*{message}"):
            train(tiny(), output=file, splits=splits, resume=True)
        assert state.read_bytes() == content

    for length in range(0, len(good), len(good) // 7):
        refused(good[:length], "found a damaged file .*remove it and begin again without --resume")
    for place in range(9, len(good), len(good) // 60):
        spoilt = bytearray(good)
        spoilt[place] ^= 16
        state.write_bytes(spoilt)
        # A bit that no value depends on may pass; then the result is that of the good state.
        with contextlib.suppress(CheckpointError):
            train(tiny(), output=file, splits=splits, resume=True)
            assert file.read_bytes() == whole.read_bytes()
    torch.save({"weights": torch.zeros(3)}, state)
    refused(state.read_bytes(), "expected the state of an unfinished run, found something else")
    for version in (1, 3):
        torch.save({"format": "pabzip-progress", "version": version}, state)
        message = f"version: expected 2, found {version}; continue with the pabzip that began"
        refused(state.read_bytes(), message)


@pytest.fixture(scope="module")
def multi_prize(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ticket of Biprop, whose weights are of another magnitude than the seed gave them."""
    path = tmp_path_factory.mktemp("ticket") / "ticket.pt"
    train(tiny(method="biprop", epochs=1), output=path, splits=splits)
    return path


@pytest.mark.parametrize("method", ["pab-bop", "pab-latent", "sgd"])
def test_a_resumed_run_keeps_the_record_of_its_ticket(
    tmp_path: Path, splits: Splits, multi_prize: Path, method: str
) -> None:
    recipe, how = tiny(method=method, epochs=2), {"splits": splits, "ticket": multi_prize}
    whole, file = tmp_path / "whole.pt", tmp_path / "model.pt"
    train(recipe, output=whole, **how)
    interrupted(recipe, file, epoch=2, save_every="1epoch", **how)
    train(recipe, output=file, resume=True, **how)
    assert file.read_bytes() == whole.read_bytes()
    found, ticket = load_checkpoint(file), load_checkpoint(multi_prize)
    assert (found.drawn if method == "sgd" else found.init) == ticket.init


def test_another_ticket_is_refused(tmp_path: Path, splits: Splits, multi_prize: Path) -> None:
    recipe, other = tiny(method="sgd", epochs=2), tmp_path / "other.pt"
    train(tiny(method="biprop", epochs=2), output=other, splits=splits)
    for begun, now, message in (
        (multi_prize, other, "expected the ticket that the run was begun with, found another one"),
        (multi_prize, None, "expected the ticket that the run was begun with, found none"),
        (None, other, "expected no ticket, found one"),
    ):
        file = tmp_path / "model.pt"
        interrupted(recipe, file, splits, 2, save_every="1epoch", ticket=begun)
        with pytest.raises(RecipeError, match=rf"model\.pt\.progress: {message}\. Continue as"):
            train(recipe, output=file, splits=splits, resume=True, ticket=now)
        assert Path(f"{file}.progress").exists()


def test_the_log_has_each_epoch_once(tmp_path: Path, splits: Splits) -> None:
    file, log = tmp_path / "model.pt", tmp_path / "log.jsonl"
    interrupted(tiny(), file, splits, 3, JsonLog(log), save_every="2epochs")
    first = log.read_text()
    log.write_text(first + '{"event": "epo')
    interrupted(tiny(), file, splits, 3, JsonLog(log), resume=True)
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:3], lines[2]]))  # an epoch is lost, the last line is cut
    train(tiny(), output=file, splits=splits, resume=True, callbacks=[JsonLog(log)])
    events = [json.loads(line) for line in log.read_text().splitlines()]
    names = [event["event"] for event in events]
    assert names == ["start", "bitops", "epoch", "epoch", "resume", "bitops", "epoch", "result"]
    assert [event["epoch"] for event in events[1:7]] == [1, 1, 2, 3, 3, 3]
    assert events[4]["torch"] == str(torch.__version__)


def test_a_lost_log_begins_again_with_the_past(tmp_path: Path, splits: Splits) -> None:
    file, log = tmp_path / "model.pt", tmp_path / "log.jsonl"
    interrupted(tiny(), file, splits, 2, JsonLog(log), save_every="1epoch")
    log.unlink()
    train(tiny(), output=file, splits=splits, resume=True, callbacks=[JsonLog(log)])
    names = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert names == ["start", "epoch", "resume", "bitops", "epoch", "epoch", "result"]


def test_when_a_save_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("pabzip.train.resume.monotonic", lambda: now[0])
    schedule = SaveSchedule(SaveEvery(steps=3, epochs=2, minutes=1))
    assert [schedule.step_due() for _ in range(3)] == [False, False, True]
    schedule.saved()
    assert [schedule.epoch_due() for _ in range(2)] == [False, True]
    schedule.saved()
    now[0] = 60
    assert schedule.step_due()
    schedule.saved()
    assert not schedule.step_due()
    assert not SaveSchedule(None).step_due()
    assert not SaveSchedule(None).epoch_due()


@pytest.mark.parametrize(("text", "every"), [
    ("10min", SaveEvery(minutes=10.0)),
    ("0.5 minutes", SaveEvery(minutes=0.5)),
    ("500 steps", SaveEvery(steps=500)),
    ("1epoch, 10min", SaveEvery(epochs=1, minutes=10.0)),
])  # fmt: skip
def test_how_often_is_read(text: str, every: SaveEvery) -> None:
    assert SaveEvery.parse(text) == every


@pytest.mark.parametrize("text", ["", "10", "ten min", "1.5steps", "1min,2min", "-1epoch", "0min"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="save_every"):
        SaveEvery.parse(text)


def test_killed_at_random_moments_and_resumed(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_runs.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "7", "5"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["kills"] == 5
    assert report["saved"] >= 1
    assert (tmp_path / "killed.pt").read_bytes() == (tmp_path / "warm" / "killed.pt").read_bytes()
    events = [
        json.loads(line)["event"] for line in (tmp_path / "killed.jsonl").read_text().splitlines()
    ]
    assert events.count("epoch") == 3
    left = [entry.name for entry in tmp_path.iterdir()]
    assert sorted(left) == ["killed.jsonl", "killed.pt", "seconds", "warm"]


def test_a_file_that_is_no_log_is_spared(tmp_path: Path, splits: Splits) -> None:
    file, log = tmp_path / "model.pt", tmp_path / "notes.txt"
    interrupted(tiny(), file, splits, 1, save_every="1epoch")
    log.write_text("mine\n")
    with pytest.raises(FileExistsError, match="holds no log of a run; name another"):
        train(tiny(), output=file, splits=splits, resume=True, callbacks=[JsonLog(log)])
    assert log.read_text() == "mine\n"

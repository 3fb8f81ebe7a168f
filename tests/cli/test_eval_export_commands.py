"""``pabzip eval`` and ``pabzip export``: tickets, checkpoints and exported models."""

from __future__ import annotations

import json
import sys

import pytest
import torch

import pabzip

NETS = """
from torch import nn

def make(hidden=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))
"""


@pytest.fixture
def custom(project, monkeypatch):
    """A ticket and a checkpoint of the user's own network, and its module beside them."""
    monkeypatch.syspath_prepend(str(project.folder))
    (project.folder / "mynets_cli.py").write_text(NETS)
    net = pabzip.models.resolve("mynets_cli:make", {"hidden": 5})
    pabzip.init_(net, seed=3)
    pabzip.save_checkpoint(net, "own.pt")
    pabzip.pack(net, "own.pabz")
    yield project
    sys.modules.pop("mynets_cli", None)


def test_eval_prints_the_stable_keys(project, run):
    result = run("eval", "model.pabz", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert set(found) == {"accuracy", "loss", "samples"}
    assert found["samples"] == 397
    assert 0 <= found["accuracy"] <= 1


def test_ticket_checkpoint_and_stdin_agree_exactly(project, run):
    ticket = run("eval", "model.pabz", "--json").stdout
    assert run("eval", "model.pt", "--data", "digits", "--json").stdout == ticket
    assert run("eval", "-", "--json", stdin=project.ticket.read_bytes()).stdout == ticket


def test_eval_for_people(project, run):
    result = run("eval", "model.pabz")
    assert result.stdout.startswith("model.pabz: accuracy ")
    assert "397 test images of digits" in result.stdout


def test_a_file_that_names_no_data_needs_the_flag(project, run):
    result = run("eval", "model.pt")
    assert result.exit_code == 2
    assert "--data" in result.stderr


def test_a_file_of_a_run_without_validation_has_no_such_part(project, run):
    for source in ("model.pabz", "model.pt"):
        result = run("eval", source, "--data", "digits", "--part", "validation")
        assert result.exit_code == 2
        assert f"{source} does not say which images its training held out" in result.stderr


def test_unknown_data_lists_the_known(project, run):
    result = run("eval", "model.pabz", "--data", "mnst")
    assert result.exit_code == 1
    assert "cifar100, cluttered-digits, digits, " in result.stderr


def test_a_custom_architecture_needs_the_users_word(custom, run):
    for source in ("own.pabz", "own.pt"):
        result = run("eval", source, "--data", "digits")
        assert result.exit_code == 1
        assert "--arch module:callable" in result.stderr


def test_a_custom_architecture_is_measured(custom, run):
    flags = ("--data", "digits", "--json", "--arch", "mynets_cli:make", "--arch-option", "hidden=5")
    ticket = run("eval", "own.pabz", *flags)
    assert ticket.exit_code == 0, ticket.stderr
    assert json.loads(ticket.stdout)["samples"] == 397
    assert run("eval", "own.pt", *flags).stdout == ticket.stdout


def test_a_network_that_does_not_fit_is_refused(custom, run):
    flags = ("--data", "digits", "--arch", "mynets_cli:make", "--arch-option", "hidden=6")
    for source in ("own.pabz", "own.pt"):
        result = run("eval", source, *flags)
        assert result.exit_code == 1, result.stderr
        assert "1.weight" in result.stderr


def test_arch_option_alone_would_be_ignored_and_is_refused(project, run):
    result = run("eval", "model.pabz", "--arch-option", "width=3")
    assert result.exit_code == 2
    assert "--arch-option needs --arch" in result.stderr


def test_eval_leaves_global_state_alone(project, run):
    before = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads()
    assert run("eval", "model.pabz").exit_code == 0
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (torch.get_default_dtype(), torch.get_num_threads())


@pytest.fixture(scope="module")
def exported(tiny_files, tmp_path_factory):
    """One export, made once: tracing takes seconds."""
    from click.testing import CliRunner

    from pabzip.cli import main

    target = tmp_path_factory.mktemp("onnx") / "model.onnx"
    result = CliRunner().invoke(
        main, ["export", str(tiny_files / "model.pabz"), "-o", str(target), "--json"]
    )
    assert result.exit_code == 0, result.stderr
    return target, result


def test_export_json_is_one_object(exported):
    target, result = exported
    found = json.loads(result.stdout)
    assert found["output"] == str(target)
    assert found["bytes"] == target.stat().st_size
    assert found["input_shape"] == [1, 8, 8]
    assert found["difference"] <= found["tolerance"]
    assert result.stderr == ""


def test_the_exported_model_measures_the_same(exported, project, run):
    target, _ = exported
    ticket = json.loads(run("eval", "model.pabz", "--json").stdout)
    onnx = run("eval", target, "--json")
    assert onnx.exit_code == 0, onnx.stderr
    found = json.loads(onnx.stdout)
    assert found["samples"] == ticket["samples"]
    assert found["accuracy"] == ticket["accuracy"]
    assert found["loss"] == pytest.approx(ticket["loss"], abs=1e-4)


def test_export_to_stdout_gives_the_same_bytes(exported, project, run):
    piped = run("export", "-", stdin=project.ticket.read_bytes())
    assert piped.exit_code == 0, piped.stderr
    assert piped.stdout_bytes == exported[0].read_bytes()
    assert "- -> -" in piped.stderr


def test_export_writes_the_name_with_onnx(project, run):
    result = run("export", "model.pabz", "--opset", "20", "--fixed-batch")
    assert result.exit_code == 0, result.stderr
    assert "model.onnx" in project.files()
    assert "opset 20" in result.stdout


def test_export_of_a_custom_architecture(custom, run):
    arch = ("--arch", "mynets_cli:make", "--arch-option", "hidden=5")
    bare = run("export", "own.pabz", *arch)
    assert bare.exit_code == 1
    assert "input" in bare.stderr
    result = run("export", "own.pabz", *arch, "--input-shape", "1x8x8", "--json", "--float16")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["precision"] == "float16"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--opset", "3"), "opset"),
        (("--tolerance", "1e-30"), "parity"),
        (("--input-shape", "3,32,32"), "input_shape"),
    ],
)
def test_an_export_that_fails_leaves_nothing(project, run, arguments, message):
    before = project.files()
    result = run("export", "model.pabz", *arguments)
    assert result.exit_code == 1, result.stdout
    assert message in result.stderr
    assert project.files() == before


@pytest.mark.parametrize("shape", ["8,8", "0,8,8", "a,b,c", "1,8,8,8"])
def test_a_shape_that_is_none_is_a_usage_error(project, run, shape):
    result = run("export", "model.pabz", "--input-shape", shape)
    assert result.exit_code == 2
    assert "not a shape" in result.stderr


def test_eval_of_what_is_no_onnx_model_is_refused(project, run):
    (project.folder / "bad.onnx").write_bytes(b"nothing of the kind")
    result = run("eval", "bad.onnx", "--data", "digits")
    assert result.exit_code == 1
    assert "bad.onnx" in result.stderr
    assert len(result.stderr.splitlines()) == 1

"""``pabzip pack --base``, and what the other commands make of a file of changes."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import pabzip


@pytest.fixture
def tuned(project):
    """``base.safetensors`` and ``tuned.safetensors``, which differs from it by a ternary change."""
    generator = torch.Generator().manual_seed(0)
    base = {
        "a.weight": torch.randn(64, 128, generator=generator).bfloat16(),
        "b.weight": torch.randn(32, 64, generator=generator),
        "b.bias": torch.randn(32, generator=generator),
    }
    signs = torch.randint(-1, 2, (64, 128), generator=generator)
    made = {
        **base,
        "a.weight": base["a.weight"] + (signs * 0.0123).bfloat16(),
        "new": torch.ones(3),
    }
    save_file(base, project.folder / "base.safetensors")
    save_file(made, project.folder / "tuned.safetensors")
    return made


def test_a_fine_tune_goes_there_and_back(project, run, tuned):
    result = run("pack", "tuned.safetensors", "--base", "base.safetensors")
    assert result.exit_code == 0, result.stderr
    assert "tuned.safetensors -> tuned.pabz" in result.stdout
    assert "changes of base.safetensors (2 equal, 1 dense, 1 steps)" in result.stdout
    packed = (project.folder / "tuned.pabz").stat().st_size
    assert packed < 0.25 * 64 * 128 * 2
    assert run("verify", "tuned.pabz", "--base", "base.safetensors").exit_code == 0
    result = run("unpack", "tuned.pabz", "--base", "base.safetensors", "-o", "back.safetensors")
    assert result.exit_code == 0, result.stderr
    back = load_file(project.folder / "back.safetensors")
    assert set(back) == set(tuned)
    assert all(torch.equal(back[name], value) for name, value in tuned.items())
    assert all(back[name].dtype == value.dtype for name, value in tuned.items())


def test_info_needs_no_base(project, run, tuned):
    made = run("pack", "tuned.safetensors", "--base", "base.safetensors", "--json")
    packed = json.loads(made.stdout)
    result = run("info", "tuned.pabz")
    assert result.exit_code == 0, result.stderr
    assert f"{packed['base']}, needed to unpack" in result.stdout
    assert "as the base" in result.stdout
    assert "none of a seed; 3 of 4 tensors are changes of the base" in result.stdout
    found = json.loads(run("info", "tuned.pabz", "--json").stdout)
    assert found["base"] == packed["base"]
    changes = {row["name"]: row.get("change") for row in found["tensors"]}
    assert changes == {"a.weight": "steps", "b.weight": "equal", "b.bias": "equal", "new": None}
    assert run("info", "tuned.pabz", "--plot", "bytes.svg").exit_code == 0


@pytest.mark.parametrize("command", ["unpack", "verify"])
def test_without_its_base_or_on_another_nothing_is_written(project, run, tuned, command):
    assert run("pack", "tuned.safetensors", "--base", "base.safetensors").exit_code == 0
    before = project.files()
    output = ["-o", "back.safetensors"] if command == "unpack" else []
    result = run(command, "tuned.pabz", *output)
    assert result.exit_code == 1
    assert "base: expected the one that the file was packed on, with SHA-256" in result.stderr
    assert "on the command line --base FILE" in result.stderr
    result = run(command, "tuned.pabz", *output, "--base", "tuned.safetensors")
    assert result.exit_code == 1
    assert "base: expected SHA-256" in result.stderr
    result = run(command, "tuned.pabz", *output, "--base", "missing.safetensors")
    assert result.exit_code == 1
    assert "missing.safetensors: No such file" in result.stderr
    assert project.files() == before


def test_the_base_may_be_in_another_form(project, run, tuned):
    base = load_file(project.folder / "base.safetensors")
    torch.save(base, project.folder / "base.pt")
    wide = {name: value.float().numpy() for name, value in base.items()}  # npz has no bfloat16
    np.savez(project.folder / "base.npz", **wide)
    pabzip.pack(base, project.folder / "base.pabz", base={})
    assert run("pack", "tuned.safetensors", "--base", "base.pt").exit_code == 0
    for form in ("safetensors", "npz", "pabz", "pt"):
        result = run("verify", "tuned.pabz", "--base", f"base.{form}")
        assert result.exit_code == 0, result.stderr


@pytest.fixture
def tuned_network(project):
    """``net.pabz``: a network of a known architecture as changes of ``net.pt``."""
    net = pabzip.models.build("lenet-300-100", in_channels=1, image_size=8, width=12)
    torch.save(net.state_dict(), project.folder / "net.pt")
    with torch.no_grad():
        net.fc1.weight.add_(torch.randint(-1, 2, net.fc1.weight.shape) * 0.01)
    pabzip.pack(net, project.folder / "net.pabz", base="net.pt", metadata={"data": "digits"})
    pabzip.pack(net, project.folder / "plain.pabz", base={})
    return net


def test_a_fine_tune_is_measured_and_exported(project, run, tuned_network):
    measured = run("eval", "net.pabz", "--base", "net.pt", "--json")
    assert measured.exit_code == 0, measured.stderr
    plain = run("eval", "plain.pabz", "--data", "digits", "--json")
    assert measured.stdout == plain.stdout
    own = ("--arch", "lenet-300-100", "--arch-option", "in_channels=1", "--arch-option")
    own = (*own, "image_size=8", "--arch-option", "width=12")
    assert run("eval", "net.pabz", "--base", "net.pt", *own, "--json").stdout == plain.stdout
    result = run("export", "net.pabz", "--base", "net.pt", "-o", "net.onnx")
    assert result.exit_code == 0, result.stderr
    assert "agrees with torch" in result.stdout
    for command in ("eval", "export"):
        result = run(command, "net.pabz", *(["-o", "more.onnx"] if command == "export" else []))
        assert result.exit_code == 1
        assert "--base FILE" in result.stderr
    result = run("export", "net.pabz", "--base", "net.pt", "-o", "net.pt", "-f")
    assert "is the input net.pt itself" in result.stderr


@pytest.mark.parametrize("command", ["eval", "export", "unpack", "verify"])
def test_a_base_that_is_not_needed_is_refused(project, run, tuned_network, command):
    before = project.files()
    output = ["-o", "new.onnx"] if command == "export" else []
    result = run(command, "model.pabz", "--base", "net.pt", *output)
    assert result.exit_code == 1
    assert "expected changes of a base, found none, so the file needs no base" in result.stderr
    assert project.files() == before


def test_measuring_a_checkpoint_takes_no_base(project, run, tuned_network):
    result = run("eval", "model.pt", "--base", "net.pt", "--data", "digits")
    assert result.exit_code == 1
    assert "expected a ticket of changes (.pabz) beside a base, found a .pt file" in result.stderr


def test_a_base_of_changes_is_to_be_unpacked_first(project, run, tuned):
    assert run("pack", "tuned.safetensors", "--base", "base.safetensors").exit_code == 0
    result = run("pack", "tuned.safetensors", "--base", "tuned.pabz", "-o", "other.pabz")
    assert result.exit_code == 1
    assert "the base is itself a file of changes; unpack it first" in result.stderr
    result = run("verify", "tuned.pabz", "--base", "tuned.pabz")
    assert result.exit_code == 1
    assert "the base is itself a file of changes; unpack it first" in result.stderr


def test_reading_needs_no_torch(project, run, tuned):
    assert run("pack", "tuned.safetensors", "--base", "base.safetensors").exit_code == 0
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from pabzip.cli import main\n"
        "main(['unpack', 'tuned.pabz', '--base', 'base.safetensors', '-o', 'back.safetensors'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    back = load_file(project.folder / "back.safetensors")
    assert all(torch.equal(back[name], value) for name, value in tuned.items())


def test_what_the_base_does_not_explain_may_be_ternary(project, run, tuned):
    signs = torch.randint(-1, 2, (24, 96), generator=torch.Generator().manual_seed(1))
    save_file({**tuned, "t.weight": signs * 0.25 + 0.0}, project.folder / "more.safetensors")
    result = run("pack", "more.safetensors", "--base", "base.safetensors", "--ternary", "--json")
    assert result.exit_code == 0, result.stderr
    kinds = {row["name"]: row["kind"] for row in json.loads(result.stdout)["tensors"]}
    assert kinds.pop("t.weight") in ("seeded", "ternary")
    assert kinds["a.weight"] == "delta"
    assert run("verify", "more.pabz", "--base", "base.safetensors").exit_code == 0


def test_the_base_is_never_the_output(project, run, tuned):
    result = run(
        "pack", "tuned.safetensors", "--base", "base.safetensors", "-o", "base.safetensors"
    )
    assert result.exit_code == 1
    assert "is the input base.safetensors itself" in result.stderr
    assert run("pack", "tuned.safetensors", "--base", "base.safetensors").exit_code == 0
    where = ["-o", "base.safetensors", "--force"]
    result = run("unpack", "tuned.pabz", "--base", "base.safetensors", *where)
    assert result.exit_code == 1
    assert "is the input base.safetensors itself" in result.stderr

"""``pabzip pack --ternary``, and what the other commands make of ternary and tied tensors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import pabzip


@pytest.fixture
def state(project):
    """A plain state dict in ``state.pt``: ternary by row and by tensor, tied, and dense."""
    rng = np.random.default_rng(0)
    signs = torch.from_numpy(rng.integers(-1, 2, (24, 32)).astype(np.float32))
    scales = torch.from_numpy(rng.uniform(0.1, 2, (24, 1)).astype(np.float32))
    made = {
        "rows.weight": signs * scales + 0.0,
        "bias": torch.arange(24, dtype=torch.float32),
        "whole.weight": signs.T.contiguous() * 0.3 + 0.0,
        "tied.weight": signs * scales + 0.0,
    }
    torch.save(made, project.folder / "state.pt")
    return made


def test_pack_ternary_takes_a_plain_state_dict(project, run, state):
    result = run("pack", "state.pt", "--ternary", "--json")
    assert result.exit_code == 0, result.stderr
    kinds = {row["name"]: row["kind"] for row in json.loads(result.stdout)["tensors"]}
    assert kinds == {
        "rows.weight": "seeded",
        "bias": "dense",
        "whole.weight": "seeded",
        "tied.weight": "tied",
    }
    found = pabzip.load_file(project.folder / "state.pabz", verify=True)
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert run("verify", "state.pabz").exit_code == 0


def test_pack_ternary_from_stdin_equals_the_file(project, run, state):
    assert run("pack", "state.pt", "--ternary").exit_code == 0
    piped = run("pack", "-", "--ternary", stdin=(project.folder / "state.pt").read_bytes())
    assert piped.exit_code == 0, piped.stderr
    assert piped.stdout_bytes == (project.folder / "state.pabz").read_bytes()


def test_pack_ternary_takes_a_checkpoint_too(project, run):
    net = pabzip.models.build("lenet-300-100", in_channels=1, image_size=8, width=12)
    pabzip.init_(net, seed=7, skip=["fc1"])
    with torch.no_grad():
        net.fc1.weight.copy_(net.fc1.weight.sign() * 0.25)
    pabzip.save_checkpoint(net, project.folder / "mixed.pt")
    result = run("pack", "mixed.pt", "--ternary", "--json")
    assert result.exit_code == 0, result.stderr
    kinds = [row["kind"] for row in json.loads(result.stdout)["tensors"]]
    assert kinds.count("seeded") == 3
    loaded = pabzip.load(project.folder / "mixed.pabz")
    assert torch.equal(loaded.fc1.weight, net.fc1.weight)


def test_a_plain_state_dict_needs_no_switch(project, run, state):
    assert run("pack", "state.pt", "--ternary", "-o", "asked.pabz").exit_code == 0
    result = run("pack", "state.pt")
    assert result.exit_code == 0, result.stderr
    found = (project.folder / "state.pabz").read_bytes()
    assert found == (project.folder / "asked.pabz").read_bytes()


def test_without_a_seed_and_ternary_tensors_the_result_says_so(project, run):
    torch.save({"w": torch.randn(4, 4)}, project.folder / "dense.pt")
    result = run("pack", "dense.pt")
    assert result.exit_code == 0, result.stderr
    assert "all tensors dense; dense.pt does not say which seed drew its weights" in result.stdout


def test_nothing_ternary_is_refused(project, run):
    torch.save({"w": torch.randn(4, 4)}, project.folder / "dense.pt")
    result = run("pack", "dense.pt", "--ternary")
    assert result.exit_code != 0
    assert "expected a ternary tensor, found none among 1" in result.stderr
    assert not (project.folder / "dense.pabz").exists()


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "pt"])
def test_unpack_gives_every_tensor_in_full(project, run, state, suffix):
    assert run("pack", "state.pt", "--ternary", "-o", "t.pabz").exit_code == 0
    result = run("unpack", "t.pabz", "-o", f"out.{suffix}")
    assert result.exit_code == 0, result.stderr
    path = project.folder / f"out.{suffix}"
    if suffix == "safetensors":
        from safetensors.torch import load_file

        found = load_file(path)
    elif suffix == "npz":
        with np.load(path) as arrays:
            found = {name: torch.from_numpy(arrays[name]) for name in arrays}
    else:
        found = torch.load(path, weights_only=True)
    assert set(found) == set(state)
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_info_shows_the_tie_and_the_scales(project, run, state):
    assert run("pack", "state.pt", "--ternary").exit_code == 0
    result = run("info", "state.pabz")
    assert result.exit_code == 0, result.stderr
    assert "tied" in result.stdout
    assert "as rows.weight" in result.stdout
    found = json.loads(run("info", "state.pabz", "--json").stdout)
    assert found["breakdown"][0]["dense"] > 0
    assert found["tensors"][3]["target"] == "rows.weight"


def test_info_draws_tied_and_scaled_tensors(project, run, state):
    pytest.importorskip("matplotlib")
    assert run("pack", "state.pt", "--ternary").exit_code == 0
    result = run("info", "state.pabz", "--plot", "out.svg")
    assert result.exit_code == 0, result.stderr
    assert (project.folder / "out.svg").stat().st_size > 1000


def test_bitnet_weights_are_plain_or_as_stored(project, run):
    codes = torch.tensor([[1, -1], [0, 0], [0, 1], [-1, -1]] * 8, dtype=torch.int8)
    pairs = (codes + 1).to(torch.uint8).reshape(4, 8, 2)
    made = {
        "l.weight": pairs[0] | pairs[1] << 2 | pairs[2] << 4 | pairs[3] << 6,
        "l.weight_scale": torch.tensor([2.5], dtype=torch.bfloat16),
    }
    torch.save(made, project.folder / "bitnet.pt")
    assert run("pack", "bitnet.pt", "--ternary").exit_code == 0
    result = run("unpack", "bitnet.pabz", "-o", "plain.pt")
    assert result.exit_code == 1
    assert "l.weight: expected to know whether its codes are divided or multiplied" in result.stderr
    assert not (project.folder / "plain.pt").exists()
    for how, size in (("multiply", 2.5), ("divide", 1 / 2.5)):
        result = run(
            "unpack", "bitnet.pabz", "-o", "plain.pt", "-f", "--bitnet-scale", how, "--json"
        )
        assert json.loads(result.stdout)["tensors"] == 1
        plain = torch.load(project.folder / "plain.pt", weights_only=True)
        assert torch.equal(plain["l.weight"], (codes * torch.tensor(size)).to(torch.bfloat16))
    assert run("unpack", "bitnet.pabz", "-o", "same.pt", "--as-stored").exit_code == 0
    same = torch.load(project.folder / "same.pt", weights_only=True)
    assert list(same) == list(made)
    assert all(torch.equal(same[name], value) for name, value in made.items())
    (project.folder / "config.json").write_text(
        '{"quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear"}}'
    )
    assert run("pack", "bitnet.pt", "--ternary", "-f").exit_code == 0
    result = run("unpack", "bitnet.pabz", "-o", "other.pt", "--bitnet-scale", "divide")
    assert result.exit_code == 1
    assert "expected bitnet_scale to be multiply, as the file says, found divide" in result.stderr
    result = run("unpack", "bitnet.pabz", "-o", "o.pt", "--bitnet-scale", "divide", "--as-stored")
    assert result.exit_code == 2
    assert "expected plain weights, found --as-stored" in result.stderr
    assert not project.files() & {"other.pt", "o.pt"}
    assert run("unpack", "bitnet.pabz", "-o", "plain.pt", "-f").exit_code == 0
    plain = torch.load(project.folder / "plain.pt", weights_only=True)
    assert torch.equal(plain["l.weight"], (codes * torch.tensor(2.5)).to(torch.bfloat16))


@pytest.mark.parametrize("option", [["--drop-negative-zero"], ["--bitnet-scale", "divide"]])
def test_options_of_ternary_tensors_need_ternary_beside_a_seed(project, run, option):
    before = project.files()
    result = run("pack", "model.pt", "-o", "new.pabz", *option)
    assert result.exit_code == 1
    assert "without, of which no tensor is taken for ternary; add ternary (--ternary)" in (
        result.stderr
    )
    assert option[0] in result.stderr
    assert project.files() == before


def test_negative_zeros_are_told(project, run):
    signs = torch.from_numpy(np.random.default_rng(0).integers(-1, 2, (24, 32)).astype(np.float32))
    signs[0, :5] = -0.0
    torch.save({"w": signs}, project.folder / "zeros.pt")
    result = run("pack", "zeros.pt", "--ternary")
    assert "5 ternary weights of -0.0 kept (--drop-negative-zero takes fewer)" in result.stdout
    kept = pabzip.load_file(project.folder / "zeros.pabz")["w"]
    assert torch.signbit(kept[0, :5]).all()
    result = run("pack", "zeros.pt", "--ternary", "-f", "--drop-negative-zero", "--json")
    assert json.loads(result.stdout)["negative_zeros_dropped"] == 5
    assert not torch.signbit(pabzip.load_file(project.folder / "zeros.pabz")["w"][0, :5]).any()

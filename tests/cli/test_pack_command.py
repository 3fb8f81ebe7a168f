"""``pabzip pack``: from checkpoints to files, with every option."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import pabzip

PACK_KEYS = {
    "bytes", "codes_bytes", "dense_bytes", "header_bytes", "weights", "survivors",
    "huffman_bytes", "float32_bytes", "seed", "arch", "sha256", "tensors",
}  # fmt: skip
TENSOR_KEYS = {"name", "shape", "kind", "coder", "bytes", "weights", "survivors"}


def test_pack_writes_the_name_with_pabz(project, run):
    project.ticket.unlink()
    result = run("pack", "model.pt")
    assert result.exit_code == 0, result.stderr
    assert project.files() == {"model.pt", "model.pabz"}
    assert "model.pt -> model.pabz" in result.stdout
    assert "smaller than float32" in result.stdout


def test_pack_tells_of_negative_zeros(project, run):
    saved = torch.load(project.checkpoint, weights_only=True)
    weight = saved["state_dict"]["fc1.weight"]
    pruned = torch.nonzero(weight.view(-1) == 0)[:3, 0]
    weight.view(-1)[pruned] = -0.0
    torch.save(saved, project.checkpoint)
    result = run("pack", "model.pt", "--force")
    assert "3 pruned weights of -0.0 stored as 0" in result.stdout


def test_pack_json_is_one_object_with_the_stable_keys(project, run):
    result = run("pack", "model.pt", "-o", "other.pabz", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert set(found) >= PACK_KEYS
    assert all(set(tensor) >= TENSOR_KEYS for tensor in found["tensors"])
    assert found["bytes"] == (project.folder / "other.pabz").stat().st_size
    assert found["seed"] == 7
    assert found["arch"] == "lenet-300-100"
    assert result.stderr == ""


def test_packed_file_holds_the_checkpoints_weights(project, run):
    assert run("pack", "model.pt", "--force").exit_code == 0
    expected = torch.load(project.checkpoint, weights_only=True)["state_dict"]
    found = pabzip.load_file(project.ticket)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_pack_from_stdin_to_stdout_equals_pack_of_the_file(project, run):
    assert run("pack", "model.pt", "-f").exit_code == 0
    piped = run("pack", "-", stdin=project.checkpoint.read_bytes())
    assert piped.exit_code == 0, piped.stderr
    assert piped.stdout_bytes == project.ticket.read_bytes()
    assert "- -> -" in piped.stderr


def test_pack_to_stdout_excludes_json(project, run):
    result = run("pack", "model.pt", "-o", "-", "--json")
    assert result.exit_code == 2
    assert "both write to stdout" in result.stderr
    assert result.stdout == ""


def test_pack_quiet_prints_nothing(project, run):
    result = run("pack", "model.pt", "-f", "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_pack_coder_huffman_is_the_papers_size(project, run):
    result = run("pack", "model.pt", "-f", "--coder", "huffman", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    seeded = [tensor for tensor in found["tensors"] if tensor["kind"] == "seeded"]
    assert {tensor["coder"] for tensor in seeded} == {"huffman"}
    assert found["huffman_bytes"] == sum(
        (tensor["weights"] + tensor["survivors"] + 7) // 8 for tensor in seeded
    )


def test_pack_unknown_coder_is_refused(project, run):
    result = run("pack", "model.pt", "-f", "--coder", "zip")
    assert result.exit_code in (1, 2)
    assert "zip" in result.stderr
    assert result.stderr.startswith("pabzip: error: ")


def test_pack_half_precision_dense_tensors(project, run):
    result = run("pack", "model.pt", "-f", "--dense-dtype", "bfloat16")
    assert result.exit_code == 0, result.stderr
    state = torch.load(project.checkpoint, weights_only=True)
    found = pabzip.load_file(project.ticket)
    dense = [name for name in state["state_dict"] if name not in state["init"]]
    assert dense
    for name in dense:
        expected = state["state_dict"][name]
        assert torch.equal(found[name], expected.bfloat16().to(expected.dtype)), name


@pytest.fixture
def conv_checkpoint(project):
    """A checkpoint of a network with batch norm, as if it had been trained."""
    net = pabzip.init_(pabzip.models.build("conv2", in_channels=1, image_size=8, width=4), seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.weight.normal_(1, 0.1, generator=generator)
            norm.bias.normal_(0, 0.1, generator=generator)
            norm.running_mean.normal_(0, 1, generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
    pabzip.save_checkpoint(net, project.folder / "conv.pt")
    return net.eval()


@pytest.mark.parametrize("half", [False, True])
def test_pack_fold_bn_keeps_the_outputs(project, run, conv_checkpoint, half):
    more = ("--dense-dtype", "float16") if half else ()
    plain = json.loads(run("pack", "conv.pt", "-o", "plain.pabz", "--json", *more).stdout)
    result = run("pack", "conv.pt", "--fold-bn", "--json", *more)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["dense_bytes"] < plain["dense_bytes"]
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    loaded = pabzip.load("conv.pabz")
    with torch.no_grad():
        expected, found = conv_checkpoint(images), loaded(images)
    assert (found - expected).abs().max() < (2e-2 if half else 1e-5) * expected.abs().max()
    assert all((v == 1).all() for n, v in loaded.named_buffers() if n.endswith("running_var"))
    shown = run("info", "conv.pabz").stdout
    assert any(line.split() == ["folded", "True"] for line in shown.splitlines())
    assert "folded" not in run("info", "plain.pabz").stdout


def test_pack_fold_bn_of_a_network_without_any_is_refused(project, run):
    before = project.ticket.read_bytes()
    result = run("pack", "model.pt", "--fold-bn", "--force")
    assert result.exit_code == 1
    assert "found none; pack without fold_bn" in result.stderr
    assert project.ticket.read_bytes() == before


@pytest.fixture
def altered(project):
    """Rewrite the checkpoint after changing its state dict."""

    def alter(change):
        content = torch.load(project.checkpoint, weights_only=True)
        change(content)
        torch.save(content, project.checkpoint)
        return next(iter(content["init"]))

    return alter


def test_pack_refuses_weights_that_are_not_the_seeds(project, run, altered):
    before = project.ticket.read_bytes()

    def nudge(content):
        weight = content["state_dict"][next(iter(content["init"]))]
        survivors = weight.nonzero()[:3]
        weight[tuple(survivors.T)] *= 1.5

    name = altered(nudge)
    result = run("pack", "model.pt", "--force")
    assert result.exit_code == 1
    assert f"pabzip: error: {name}: " in result.stderr
    assert "found 3 of " in result.stderr
    assert project.ticket.read_bytes() == before
    assert project.files() == {"model.pt", "model.pabz"}


def test_pack_refuses_a_wrong_seed(project, run, altered):
    name = altered(lambda content: content.update(seed=8))
    result = run("pack", "model.pt", "-o", "new.pabz")
    assert result.exit_code == 1
    assert name in result.stderr
    assert "seed 8" in result.stderr
    assert "new.pabz" not in project.files()


def test_pack_refuses_half_precision_weights(project, run, altered):
    def halve(content):
        name = next(iter(content["init"]))
        content["state_dict"][name] = content["state_dict"][name].half()

    name = altered(halve)
    result = run("pack", "model.pt", "-o", "new.pabz")
    assert result.exit_code in (1, 3)
    assert name in result.stderr
    assert "float16" in result.stderr
    assert "new.pabz" not in project.files()


class Malice:
    """Unpickling it would create a file."""

    def __reduce__(self):
        return (open, ("owned", "w"))


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_malicious_checkpoint_is_refused_and_runs_nothing(project, run, wrapped):
    torch.save({"state_dict": Malice()} if wrapped else Malice(), project.checkpoint)
    result = run("pack", "model.pt", "-o", "new.pabz")
    assert result.exit_code == 3
    assert result.stderr.startswith("pabzip: error: model.pt")
    assert project.files() == {"model.pt", "model.pabz"}


@pytest.mark.parametrize("content", [b"", b"\x80", b"not a checkpoint", b"PK\x03\x04 cut"])
def test_what_is_no_checkpoint_exits_3(project, run, content):
    project.checkpoint.write_bytes(content)
    result = run("pack", "model.pt", "-o", "new.pabz")
    assert result.exit_code == 3, result.stderr
    assert "model.pt" in result.stderr
    assert "Traceback" not in result.stderr


def test_pack_of_a_cut_checkpoint_exits_3(project, run):
    whole = project.checkpoint.read_bytes()
    for length in (10, len(whole) // 2, len(whole) - 1):
        project.checkpoint.write_bytes(whole[:length])
        result = run("pack", "model.pt", "-o", "new.pabz")
        assert result.exit_code == 3, (length, result.stderr)


def test_module_prefix_from_data_parallel_is_understood(project, run, altered):
    def prefix(content):
        content["state_dict"] = {f"module.{k}": v for k, v in content["state_dict"].items()}

    altered(prefix)
    result = run("pack", "model.pt", "-f")
    assert result.exit_code == 0, result.stderr
    with pabzip.open(project.ticket) as ticket:
        assert not any(name.startswith("module.") for name in ticket.names)


def test_pack_ternary_takes_a_plain_state_dict(project, run):
    signs = torch.randint(-1, 2, (6, 20), generator=torch.Generator().manual_seed(0)).float()
    state = {"w": signs * torch.arange(1, 7)[:, None], "again": signs.clone(), "tie": signs}
    torch.save(state, project.folder / "state.pt")
    result = run("pack", "state.pt", "--ternary")
    assert result.exit_code == 0, result.stderr
    found = pabzip.load_file(project.folder / "state.pabz", verify=True)
    assert all(torch.equal(found[name], value) for name, value in state.items())
    shown = run("info", "state.pabz", "-v")
    assert shown.exit_code == 0, shown.stderr
    assert "as again" in shown.stdout
    assert "scale of each row" in shown.stdout + shown.stderr
    assert run("pack", "model.pt", "--ternary", "-f").exit_code != 0  # nothing is ternary

"""Half precision and channels last: signs and magnitudes stay float32's, and steps still learn."""

from __future__ import annotations

import copy
import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pabzip
from pabzip import data
from pabzip.search import synflow
from pabzip.train import Recipe, SearchRecipe, train
from pabzip.train.precision import Precision
from pabzip.unmask import Bop, apply_psg

CPU = torch.device("cpu")


def ticket() -> nn.Module:
    """Return a small seeded network with a depthwise convolution, half of it pruned."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 3),
    )
    pabzip.init_(net, 5, skip=["9"])
    synflow(net, 0.5, input_shape=(3, 8, 8), iterations=5)
    return net


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images whose brightest channel is their label."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (24,), generator=generator)
    images = torch.randn(24, 3, 8, 8, generator=generator)
    return images + 1.5 * F.one_hot(labels, 3)[:, :, None, None], labels


@pytest.mark.parametrize("psg", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_learns_and_packs_exactly(name: str, channels_last: bool, psg: bool) -> None:
    net = ticket()
    seeded = pabzip.seeded_parameters(net)
    before = {key: weight.detach().clone() for key, weight in seeded.items()}
    if psg:
        apply_psg(net)
    precision = Precision(name, channels_last, CPU)
    precision.lay_out(net)
    bop = Bop(net, 0.1, 1e-6)
    sgd = torch.optim.SGD([p for p in net.parameters() if p.dim() != 4], 0.1)
    losses, flips = [], 0
    for step in range(12):
        inputs, labels = batch(step)
        net.zero_grad()
        logits = precision.logits(net, inputs)
        assert logits.dtype == torch.float32
        loss = F.cross_entropy(logits, labels)
        precision.scaled(loss).backward()
        gradients = [p.grad for p in net.parameters()]
        assert all(gradient.dtype == torch.float32 for gradient in gradients)
        precision.unscale(gradients)
        bop.step()
        sgd.step()
        losses.append(loss.item())
        flips += int(bop.flips)
    assert flips > 0
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    for key, weight in seeded.items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight.detach().abs(), before[key].abs())
        assert weight.is_contiguous(memory_format=torch.channels_last) or not channels_last
    file = io.BytesIO()
    pabzip.pack(net, file)
    with pabzip.open(io.BytesIO(file.getvalue())) as opened:
        opened.verify()
        for key, weight in seeded.items():
            assert torch.equal(torch.from_numpy(opened.weight(key)), weight.detach())


@pytest.mark.parametrize(("name", "least"), [("bfloat16", 1e-4), ("float16", 1e-5)])
def test_half_precision_computes_in_it_and_stays_close(name: str, least: float) -> None:
    net, (inputs, labels) = ticket(), batch(0)
    found = {}
    for each in ("float32", name):
        precision, trial = Precision(each, False, CPU), copy.deepcopy(net)
        precision.scaled(F.cross_entropy(precision.logits(trial, inputs), labels)).backward()
        gradients = [p.grad for p in trial.parameters()]
        precision.unscale(gradients)
        found[each] = torch.cat([gradient.flatten() for gradient in gradients])
    error = (found[name] - found["float32"]).norm() / found["float32"].norm()
    assert least < float(error) < 0.05


def test_float32_leaves_the_numbers_alone() -> None:
    net, (inputs, _) = ticket(), batch(0)
    plain = Precision("float32", False, CPU)
    loss = torch.tensor(0.3)
    gradient = torch.tensor([float("inf"), 1.0])
    assert plain.scaled(loss) is loss
    plain.unscale([gradient])
    assert gradient.tolist() == [float("inf"), 1.0]
    assert torch.equal(plain.logits(copy.deepcopy(net), inputs), net(inputs))
    assert plain.state_dict() == {}
    plain.load_state_dict({})


def test_channels_last_reaches_weights_and_images() -> None:
    net, seen = ticket(), []
    net[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].stride()))
    precision = Precision("float32", True, CPU)
    precision.lay_out(net)
    precision.logits(net, torch.zeros(2, 3, 8, 8))
    assert seen == [(192, 1, 24, 3)]
    assert net[0].weight.stride() == (27, 1, 9, 3)
    flat = nn.Linear(4, 2)
    assert Precision("float32", True, CPU).logits(flat, torch.zeros(2, 4)).shape == (2, 2)


def test_an_overflow_drops_the_step_and_halves_the_scale() -> None:
    scale = Precision("float16", False, CPU)
    assert float(scale.scaled(torch.tensor(1.0))) == 2.0**10
    sound, spoilt = torch.full((3,), 2.0**11), torch.tensor([1.0, float("inf"), float("nan")])
    scale.unscale([sound])
    assert sound.tolist() == [2.0] * 3
    sound.fill_(1.0)
    scale.unscale([sound, spoilt])
    assert sound.tolist() == spoilt.tolist() == [0.0] * 3
    assert scale.state_dict() == {"scale": 2.0**9, "sound_steps": 0}


def test_the_scale_grows_after_enough_sound_steps_and_resumes() -> None:
    scale = Precision("float16", False, CPU)
    scale.load_state_dict({"scale": 8.0, "sound_steps": 1998})
    for expected in (8.0, 16.0):
        scale.unscale([torch.ones(1)])
        assert scale.state_dict()["scale"] == expected
    assert scale.state_dict()["sound_steps"] == 0
    half = Precision("float16", False, CPU)
    half.load_state_dict({"scale": 4.0, "sound_steps": 3})
    assert half.state_dict() == {"scale": 4.0, "sound_steps": 3}
    assert float(half.scaled(torch.tensor(0.5))) == 2.0


def test_an_overflow_that_no_scale_explains_is_seen() -> None:
    scale = Precision("float16", False, CPU)
    scale.load_state_dict({"scale": 0.5, "sound_steps": 0})
    gradient = torch.tensor([1.0, float("nan")])
    scale.unscale([gradient])
    assert gradient.isnan().any()


@pytest.mark.parametrize(
    "changes",
    [{"precision": "bfloat16", "channels_last": True}, {"precision": "float16"}],
    ids=["bfloat16", "float16"],
)
def test_runs_of_a_recipe_take_it_and_pack(changes: dict[str, Any], tmp_path: Path) -> None:
    recipe = Recipe(
        arch="resnet20", arch_options={"width": 4}, epochs=1, method="pab-bop-psg", keep_ratio=0.5,
        search=SearchRecipe(iterations=3), device="cpu", **changes,
    )  # fmt: skip
    splits = data.load("digits")
    small = dataclasses.replace(
        splits,
        train=dataclasses.replace(
            splits.train, images=splits.train.images[:96], labels=splits.train.labels[:96]
        ),
    )
    result = train(recipe, output=tmp_path / "model.pt", splits=small)
    info = pabzip.pack(tmp_path / "model.pt", tmp_path / "model.pabz")
    assert info["survivors"] == result.survivors
    with pabzip.open(tmp_path / "model.pabz") as opened:
        opened.verify()
    plain = train(
        recipe.replace(precision="float32", channels_last=False),
        output=tmp_path / "plain.pt",
        splits=small,
    )
    assert result.test_loss != plain.test_loss
    assert result.test_loss == pytest.approx(plain.test_loss, rel=0.5)

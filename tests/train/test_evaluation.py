"""Accuracy and loss against a computation by hand; modules and callables alike."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pabzip
from pabzip import data, models
from pabzip.data import Images
from pabzip.errors import DataError
from pabzip.train import Recipe, evaluate, to_dict
from pabzip.train.evaluation import batch_sums, summarized


def some_images(count: int, seed: int = 0) -> Images:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 17, (count, 1, 4, 4), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 3, (count,), generator=generator)
    return Images(pixels, labels, 16, (0.5,), (0.25,))


def small_net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 3))


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_counts_and_losses_are_those_of_one_pass(batch_size: int) -> None:
    net, images = small_net(), some_images(50)
    found = evaluate(net, images, batch_size=batch_size)
    net.eval()
    logits = net(images.inputs()).detach().double()
    assert found.samples == 50
    assert found.accuracy == int((logits.argmax(1) == images.labels).sum()) / 50
    assert found.loss == pytest.approx(float(F.cross_entropy(logits, images.labels)), rel=1e-6)
    assert found.to_dict() == {
        "accuracy": found.accuracy, "loss": found.loss, "samples": 50,
    }  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_parts_add_up_to_the_whole(ranks: int) -> None:
    net, images = small_net(), some_images(50)
    whole = evaluate(net, images, batch_size=8)
    parts = [batch_sums(net, images, batch_size=8, part=(rank, ranks)) for rank in range(ranks)]
    assert summarized(torch.stack(parts).sum(0), 50) == whole
    measured = [(part != 0).any(1).sum() for part in parts]
    assert sum(measured) == 7
    assert max(measured) - min(measured) <= 1


def test_modes_statistics_and_random_state_stay() -> None:
    net = small_net()
    net[2].eval()
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first, second = (evaluate(net, some_images(20)) for _ in range(2))
    assert first == second
    assert net.training
    assert not net[2].training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_numbers_do_not_depend_on_how_weights_lie() -> None:
    torch.manual_seed(5)
    net = nn.Sequential(
        nn.Conv2d(1, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 48, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 3),
    )  # fmt: skip
    seen = []
    net[3].register_forward_hook(lambda module, *_: seen.append(module.weight.stride()))
    images = some_images(300)
    plain = evaluate(net, images)
    weight = net.to(memory_format=torch.channels_last)[3].weight
    strides = weight.stride()
    assert evaluate(net, images) == plain
    assert weight.stride() == strides != (64, 1, 1, 1)
    assert set(seen) == {(64, 1, 1, 1)}
    assert net[3].weight is weight


def test_a_layer_under_two_names_keeps_its_weight() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Flatten(1))
    net.append(net[1]).append(nn.Linear(16, 3))
    order = [0, 1, 3, 2, 4]
    net = nn.Sequential(*(net[place] for place in order)).to(memory_format=torch.channels_last)
    before = list(map(id, net.parameters()))
    evaluate(net, some_images(10))
    assert list(map(id, net.parameters())) == before
    assert all(isinstance(parameter, nn.Parameter) for parameter in net[1]._parameters.values())


def test_a_callable_may_return_an_array() -> None:
    net, images = small_net().eval(), some_images(20)

    def session(inputs: torch.Tensor) -> np.ndarray:
        assert inputs.dtype == torch.float32
        return np.asarray(net(inputs).detach().numpy())

    assert evaluate(session, images) == evaluate(net, images)


def test_batches_of_a_data_loader_count_as_images_do() -> None:
    net, images = small_net(), some_images(50)
    loader = DataLoader(TensorDataset(images.inputs(), images.labels), batch_size=256)
    assert evaluate(net, loader) == evaluate(net, images)
    assert net.training
    small = DataLoader(TensorDataset(images.inputs(), images.labels), batch_size=7)
    assert evaluate(net, small) == evaluate(net, images, batch_size=7)
    with pytest.raises(DataError, match="expected at least one image"):
        evaluate(net, [])


def test_a_file_is_measured_on_the_data_that_it_names(tmp_path: Path) -> None:
    net = pabzip.init_(models.build("lenet-300-100", image_size=8, in_channels=1), seed=3)
    recipe, digits = Recipe(arch="lenet-300-100"), data.load("digits")
    file, ticket = tmp_path / "model.pt", tmp_path / "model.pabz"
    pabzip.save_checkpoint(net, file, settings=to_dict(recipe), results={"data": "digits"})
    pabzip.pack(file, ticket)
    expected = evaluate(net, digits.test)
    assert pabzip.evaluate(file) == pabzip.evaluate(str(ticket)) == expected
    assert pabzip.evaluate(ticket, digits) == pabzip.evaluate(net, "digits") == expected
    assert pabzip.evaluate(file, some_images_like(digits.test)).samples == 5
    with pytest.raises(DataError, match="expected data to measure on, found none"):
        pabzip.evaluate(net)
    pabzip.save_checkpoint(net, file)
    with pytest.raises(DataError, match="no file that names its own; pass images, a DataLoader"):
        pabzip.evaluate(file)


def some_images_like(images: Images) -> Images:
    return dataclasses.replace(images, images=images.images[:5], labels=images.labels[:5])


def test_an_exported_model_is_measured_too(tmp_path: Path) -> None:
    net = pabzip.init_(models.build("lenet-300-100", image_size=8, in_channels=1), seed=3)
    file = tmp_path / "model.onnx"
    pabzip.export_onnx(net, file, input_shape=(1, 8, 8), metadata={"pabzip.data": "digits"})
    found = pabzip.evaluate(file)
    assert found.accuracy == pytest.approx(pabzip.evaluate(net, "digits").accuracy, abs=0.01)


def test_no_images_are_refused() -> None:
    with pytest.raises(DataError, match="expected at least one image"):
        evaluate(small_net(), some_images(0))

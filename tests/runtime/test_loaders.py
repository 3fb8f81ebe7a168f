"""Loading tickets into torch: equal tensors, equal outputs, and networks that do not fit."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

import pabzip
from pabzip.errors import ArchitectureError, FormatError, LimitError


@pytest.fixture(scope="module")
def net() -> nn.Module:
    made = pabzip.models.build("resnet20", in_channels=1, image_size=8, width=4)
    pabzip.init_(made, seed=8, skip=["fc"])
    pabzip.search.synflow(made, keep_ratio=0.3, input_shape=(1, 8, 8), iterations=3)
    return made.eval()


@pytest.fixture(scope="module")
def file(net: nn.Module) -> bytes:
    stream = io.BytesIO()
    pabzip.pack(net, stream)
    return stream.getvalue()


def test_load_gives_the_packed_network(net: nn.Module, file: bytes) -> None:
    loaded = pabzip.load(file, verify=True)
    assert not loaded.training
    assert loaded.pabzip_arch == net.pabzip_arch
    assert pabzip.seeding(loaded) == pabzip.seeding(net)
    expected = net.state_dict()
    for name, value in loaded.state_dict().items():
        assert value.shape == expected[name].shape
        assert torch.equal(value, expected[name])
    images = torch.linspace(-1, 1, 3 * 64).view(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(images), net(images))


def test_a_loaded_network_trains_and_packs_again(file: bytes) -> None:
    loaded = pabzip.load(file)
    loaded.train()(torch.ones(2, 1, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())
    again = io.BytesIO()
    pabzip.pack(pabzip.load(file), again)
    assert again.getvalue() == file


def test_state_dict_has_names_shapes_and_dtypes(net: nn.Module, file: bytes) -> None:
    state = pabzip.load_file(file)
    expected = net.state_dict()
    assert list(state) == list(expected)
    assert {n: (v.shape, v.dtype) for n, v in state.items()} == {
        n: (v.shape, v.dtype) for n, v in expected.items()
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_converts_floating_tensors_alone(
    net: nn.Module, file: bytes, dtype: torch.dtype
) -> None:
    expected = net.state_dict()
    for name, value in pabzip.load_file(file, dtype=dtype).items():
        wanted = expected[name].to(dtype if expected[name].is_floating_point() else None)
        assert value.dtype == wanted.dtype
        assert torch.equal(value, wanted)
    assert next(pabzip.load(file, dtype=dtype).parameters()).dtype == dtype


def test_load_into_copies_in_place(net: nn.Module, file: bytes) -> None:
    twin = pabzip.models.build(*net.pabzip_arch)
    storage = twin.fc.weight.data_ptr()
    assert pabzip.load_into(nn.DataParallel(twin), file).module is twin
    assert twin.fc.weight.data_ptr() == storage
    assert twin.training
    assert torch.equal(twin.fc.weight, net.fc.weight)
    assert pabzip.seeding(twin) == pabzip.seeding(net)


def test_a_network_that_does_not_fit_is_refused_unchanged(file: bytes) -> None:
    wider = pabzip.models.build("resnet20", in_channels=1, image_size=8, width=5)
    before = wider.conv1.weight.detach().clone()
    with pytest.raises(ArchitectureError, match=r"conv1\.weight: expected shape .* in the file"):
        pabzip.load_into(wider, file)
    assert torch.equal(wider.conv1.weight, before)
    with pytest.raises(ArchitectureError, match="tensors of the network are not in the file"):
        pabzip.load_into(nn.Sequential(nn.Linear(2, 2)), file)


def test_a_custom_ticket_says_how_to_load_it() -> None:
    stream = io.BytesIO()
    own = pabzip.init_(nn.Sequential(nn.Linear(3, 2)), seed=1)
    pabzip.pack(own, stream)
    with pytest.raises(ArchitectureError, match="load_into"):
        pabzip.load(stream.getvalue())
    assert torch.equal(
        pabzip.load_into(nn.Sequential(nn.Linear(3, 2)), stream.getvalue())[0].weight,
        own[0].weight,
    )


def test_a_file_that_lies_about_its_architecture_is_refused(net: nn.Module) -> None:
    stream = io.BytesIO()
    lying = pabzip.init_(nn.Sequential(nn.Linear(3, 2)), seed=1)
    lying.pabzip_arch = ("resnet20", net.pabzip_arch[1])
    pabzip.pack(lying, stream)
    with pytest.raises(FormatError, match="header: ResNet.*expected the same tensor names"):
        pabzip.load(stream.getvalue())


def test_a_limit_refuses_before_anything_is_read(file: bytes) -> None:
    with pytest.raises(LimitError, match="max_bytes"):
        pabzip.load(file, max_bytes=1000)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_bits(net: nn.Module, file: bytes) -> None:
    expected = net.state_dict()
    for name, value in pabzip.load_file(file, device="cuda").items():
        assert value.is_cuda
        assert torch.equal(value.cpu(), expected[name])

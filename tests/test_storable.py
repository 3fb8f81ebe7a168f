"""What no file can hold is refused by init_ before it draws, and by pack in the same words."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import pabzip
from pabzip.errors import PackError, SeedError


class Net(nn.Module):
    """A layer to draw, and a place for tensors that stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.rest = nn.Module()
        self.last = nn.Linear(4, 2)


def buffer(value: torch.Tensor, name: str = "x") -> Callable[[Net], None]:
    return lambda net: net.rest.register_buffer(name, value)


class Remembering(nn.Module):
    def get_extra_state(self) -> dict[str, int]:
        return {"a": 1}


def lazy(net: Net) -> None:
    net.rest.add_module("x", nn.LazyBatchNorm1d())


def empty_layer(net: Net) -> None:
    net.rest.add_module("x", nn.Conv1d(4, 4, 0, bias=False))


def extra_state(net: Net) -> None:
    net.rest.add_module("x", Remembering())


def negative_variance(net: Net) -> None:
    net.rest.add_module("x", nn.BatchNorm1d(3))
    net.rest.x.running_var[1] = -1.0


def long_name(net: Net) -> None:
    net.rest.add_module("x" * 1025, nn.PReLU())


def control_character(net: Net) -> None:
    net.rest.add_module("x\n", nn.PReLU())


def quantized(net: Net) -> None:
    buffer(torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8))(net)


with warnings.catch_warnings():  # torch calls nested tensors a prototype
    warnings.simplefilter("ignore")
    JAGGED = torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged)
UNFIT = [
    (
        buffer(torch.ones(2, dtype=torch.complex64)),
        r"rest\.x: expected one of float64.*complex64",
    ),
    (buffer(torch.ones(2).to(torch.float8_e4m3fn)), r"rest\.x: .* found torch\.float8_e4m3fn"),
    (buffer(torch.ones(2, dtype=torch.uint16)), r"rest\.x: .*uint16; convert it"),
    (quantized, r"rest\.x: expected one of .*qint8"),
    (
        buffer(torch.eye(2).to_sparse()),
        r"rest\.x: expected a dense tensor.*sparse_coo",
    ),
    (buffer(torch.ones(2, device="meta")), r"rest\.x: .* on the meta device; give it memory"),
    (buffer(JAGGED), r"rest\.x: expected a plain tensor, found a NestedTensor"),
    (buffer(torch.ones(0, 3)), r"'rest\.x': expected the size of a dimension from 1 .* found 0"),
    (buffer(torch.ones([1] * 33)), r"'rest\.x': expected 0 to 32 dimensions, found 33"),
    (buffer(torch.tensor([1.0, float("nan")])), r"'rest\.x': expected finite values, found 1"),
    (buffer(torch.tensor([float("inf")], dtype=torch.bfloat16)), r"'rest\.x': expected finite"),
    (negative_variance, r"'rest\.x\.running_var': expected variances of at least 0, found 1"),
    (lazy, r"rest\.x\.weight: .* found a lazy one .* run the network once"),
    (empty_layer, r"'rest\.x\.weight': expected the size of a dimension"),
    (extra_state, r"rest\.x\._extra_state: expected a tensor, found dict"),
    (long_name, "expected a name of at most 1024 bytes, found 1037"),
    (control_character, r"expected a name without control characters, found 'rest\.x\\n\.weight'"),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("put", "message"), UNFIT)
def test_init_refuses_what_pack_refuses(put: Callable[[Net], None], message: str) -> None:
    net = Net()
    put(net)
    before = net.first.weight.detach().clone()
    with pytest.raises(SeedError, match=message):
        pabzip.init_(net, 0)
    assert torch.equal(net.first.weight, before)
    with pytest.raises(SeedError, match="call pabzip.init_"):
        pabzip.seeding(net)

    net = pabzip.init_(Net(), 0)
    put(net)
    with pytest.raises(PackError, match=message):
        pabzip.pack(net, io.BytesIO())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_to_draw_are_float32(dtype: torch.dtype) -> None:
    net = Net()
    net.last.to(dtype)
    before = net.first.weight.detach().clone()
    message = (
        rf"init_: last\.weight: .* found {dtype}; call net\.float\(\).*load_into\(.*to\({dtype}\)"
    )
    with pytest.raises(SeedError, match=message):
        pabzip.init_(net, 0)
    assert torch.equal(net.first.weight, before)
    # What stays dense may be of any of these, and comes back so.
    pabzip.init_(net, 0, skip=["last"])
    file = io.BytesIO()
    pabzip.pack(net, file)
    assert torch.equal(pabzip.load_file(file.getvalue())["last.weight"], net.last.weight)


def test_the_way_out_of_half_precision_is_one() -> None:
    net = pabzip.init_(Net().bfloat16().float(), 0)
    file = io.BytesIO()
    pabzip.pack(net, file)
    loaded = pabzip.load_into(Net().to(torch.bfloat16), file.getvalue())
    assert torch.equal(loaded.first.weight, net.first.weight.bfloat16())


def test_a_network_made_half_after_it_was_drawn_is_told_to_stay_float32() -> None:
    net = pabzip.init_(Net(), 0).half()
    with pytest.raises(PackError, match=r"first.weight: .* keep the network float32 until it is"):
        pabzip.pack(net, io.BytesIO())


def test_integer_weights_can_only_be_left_out() -> None:
    net = Net()
    net.last.weight = nn.Parameter(torch.ones(2, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(SeedError, match=r"last\.weight: .* found torch\.int8; leave it out"):
        pabzip.init_(net, 0)
    pabzip.init_(net, 0, skip=["last"])


@pytest.mark.parametrize(
    "compute",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        pytest.param(nn.utils.weight_norm, marks=pytest.mark.filterwarnings("ignore")),
        nn.utils.spectral_norm,
        lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    ],
)
def test_a_computed_weight_is_refused_or_left_dense(compute: Callable[[nn.Module], object]) -> None:
    net = Net()
    compute(net.last)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(SeedError, match=r"last\.weight: .* computed from others .* leave it out"):
        pabzip.init_(net, 0)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    pabzip.init_(net, 0, skip=["last"])
    del before["first.weight"]
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    pabzip.pack(net, io.BytesIO())


def test_a_lazy_network_is_drawn_once_it_has_shapes() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(2))
    before = net[0].weight.detach().clone()
    with pytest.raises(SeedError, match=r"1\.weight: .* found a lazy one"):
        pabzip.init_(net, 0)
    assert torch.equal(net[0].weight, before)
    net(torch.ones(1, 3))
    assert list(pabzip.seeding(pabzip.init_(net, 0)).specs) == ["0.weight", "1.weight"]


def test_a_later_weight_that_has_no_fans_changes_no_earlier_one() -> None:
    net = Net()
    net.rest.register_buffer("x", torch.zeros(5))
    before = net.first.weight.detach().clone()
    with pytest.raises(SeedError, match=r"rest\.x: shape: expected two or more dimensions"):
        pabzip.init_(net, 0, buffers="rest.x")
    assert torch.equal(net.first.weight, before)


def test_values_that_are_replaced_may_be_anything() -> None:
    net = Net()
    with torch.no_grad():
        net.first.weight.fill_(float("nan"))
    net.rest.register_parameter("tied", net.first.weight)
    assert torch.isfinite(pabzip.init_(net, 0).rest.tied).all()


def test_shared_memory_that_is_no_tied_parameter_is_refused() -> None:
    net = Net()
    net.rest.register_parameter("x", nn.Parameter(net.last.weight.data[1]))
    with pytest.raises(SeedError, match=r"shares some with .*; make tied weights one parameter"):
        pabzip.init_(net, 0)
    pabzip.init_(net, 0, skip=["last"])

    net = Net()
    net.last.weight = nn.Parameter(torch.ones(2, 1).expand(2, 4))
    with pytest.raises(SeedError, match=r"last\.weight: .* shares some with itself"):
        pabzip.init_(net, 0)


def test_neighbors_in_one_block_of_memory_are_drawn() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
    block = torch.zeros(24)
    net[0].weight = nn.Parameter(block[:12].view(4, 3))
    net[1].weight = nn.Parameter(block[12:].view(3, 4))
    pabzip.init_(net, 0)
    pabzip.pack(net, io.BytesIO())


def test_a_seeded_weight_that_a_hook_renames_is_missed() -> None:
    net = Net()
    net._register_state_dict_hook(
        lambda _net, state, prefix, _: state.update(y=state.pop(f"{prefix}first.weight"))
    )
    with pytest.raises(SeedError, match=r"first\.weight: expected this seeded weight in the state"):
        pabzip.init_(net, 0)

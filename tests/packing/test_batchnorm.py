"""Batch-norm folding: the same function, seeded weights untouched, and a smaller file."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

import pabzip
from pabzip.errors import PackError
from pabzip.packing.batchnorm import (
    batch_norms,
    check_batch_norms,
    check_network,
    fold,
    fold_checked,
)


def trained_(net: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm weights and statistics as training leaves them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in batch_norms(net).values():
            norm.weight.normal_(1, 0.1, generator=generator)
            norm.bias.normal_(0, 0.1, generator=generator)
            norm.running_mean.normal_(0, 0.5, generator=generator)
            norm.running_var.uniform_(0.1, 2, generator=generator)
            norm.num_batches_tracked.fill_(240)
    return net.eval()


@pytest.fixture
def network() -> nn.Module:
    net = pabzip.models.build("resnet20", width=4, in_channels=1, image_size=8)
    return trained_(pabzip.init_(net, seed=5))


class Own(nn.Module):
    """Every kind of batch norm, in a network that no registry knows."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3))
        self.plane = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, eps=0.1))
        self.space = nn.Sequential(nn.Conv3d(2, 3, 3), nn.BatchNorm3d(3, momentum=None))
        self.spread = nn.SyncBatchNorm(3)

    def forward(self, line: torch.Tensor, plane: torch.Tensor, space: torch.Tensor) -> Any:
        return self.line(line), self.plane(plane), self.spread(self.space(space))


def packed(source: Any, **options: Any) -> tuple[bytes, dict[str, Any]]:
    file = io.BytesIO()
    info = pabzip.pack(source, file, coder="huffman", **options)
    return file.getvalue(), info


def largest_difference(net: nn.Module, other: nn.Module, *inputs: torch.Tensor) -> float:
    """Largest difference of the outputs, relative to the largest output."""
    with torch.no_grad():
        expected, found = net(*inputs), other(*inputs)
    pairs = (
        [(expected, found)]
        if isinstance(expected, torch.Tensor)
        else list(zip(expected, found, strict=True))
    )
    return max(float((f - e).abs().max() / e.abs().max()) for e, f in pairs)


def test_a_folded_file_loads_into_the_ordinary_architecture(network: nn.Module) -> None:
    before = copy.deepcopy(network.state_dict())
    file, info = packed(network, fold_bn=True)
    loaded = pabzip.load(file)
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    assert type(loaded) is type(network)
    assert largest_difference(network, loaded, images) < 1e-5
    for name in pabzip.seeded_parameters(network):
        assert torch.equal(loaded.state_dict()[name], before[name]), name
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    with pabzip.open(file) as ticket:
        assert ticket.metadata == {"folded": True}
    assert info["dense_bytes"] < 0.55 * packed(network)[1]["dense_bytes"]


def test_the_folded_tensors(network: nn.Module) -> None:
    folded = fold(network, network.state_dict())
    assert list(folded) == list(network.state_dict())
    for name, norm in batch_norms(network).items():
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias.double() - norm.running_mean.double() * scale
        assert torch.equal(folded[f"{name}.weight"], (scale * (1 + norm.eps) ** 0.5).float())
        assert torch.equal(folded[f"{name}.bias"], shift.float())
        assert not folded[f"{name}.running_mean"].any()
        assert (folded[f"{name}.running_var"] == 1).all()
        assert folded[f"{name}.num_batches_tracked"] == 0
        assert folded[f"{name}.num_batches_tracked"].dtype == torch.int64


def test_folding_again_changes_nothing_but_rounding(network: nn.Module) -> None:
    once = fold(network, network.state_dict())
    twice = fold(network, once)
    for name, value in once.items():
        torch.testing.assert_close(twice[name], value, rtol=3e-7, atol=0)


@pytest.mark.parametrize(("dense_dtype", "most"), [("float16", 0.02), ("bfloat16", 0.15)])
def test_folding_and_half_precision(network: nn.Module, dense_dtype: str, most: float) -> None:
    file, info = packed(network, fold_bn=True, dense_dtype=dense_dtype)
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    assert largest_difference(network, pabzip.load(file), images) < most
    assert info["dense_bytes"] < packed(network, dense_dtype=dense_dtype)[1]["dense_bytes"]


def test_every_kind_of_batch_norm_of_a_custom_network() -> None:
    net = trained_(pabzip.init_(Own(), seed=1))
    file, _ = packed(net, fold_bn=True, metadata={"data": "mine"})
    loaded = pabzip.load_into(Own(), file).eval()
    generator = torch.Generator().manual_seed(2)
    inputs = [torch.randn(2, 2, *[5] * dimensions, generator=generator) for dimensions in (1, 2, 3)]
    # SyncBatchNorm in evaluation mode is an ordinary batch norm.
    assert largest_difference(net, loaded, *inputs) < 1e-5
    assert all(not norm.running_mean.any() for norm in batch_norms(loaded).values())
    with pabzip.open(file) as ticket:
        assert ticket.metadata == {"data": "mine", "folded": True}


def test_batch_norms_that_cannot_be_folded_stay() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 3, 1),
        nn.BatchNorm2d(3),
        nn.BatchNorm2d(3, affine=False),
        nn.BatchNorm2d(3, track_running_stats=False),
    )
    pabzip.init_(net, seed=1)
    with torch.no_grad():
        net[2].running_mean.fill_(0.5)
    assert list(batch_norms(net)) == ["1"]
    folded = fold(net, net.state_dict())
    assert torch.equal(folded["2.running_mean"], torch.full((3,), 0.5))
    assert torch.equal(folded["3.weight"], torch.ones(3))


def test_a_batch_norm_alone_in_its_module() -> None:
    net = trained_(nn.BatchNorm1d(3))
    folded = fold_checked(net, net.state_dict(), "custom", {}, None)
    assert set(folded) == set(net.state_dict())
    assert (folded["running_var"] == 1).all()


def test_a_batch_norm_used_twice() -> None:
    norm = nn.BatchNorm1d(4)
    net = trained_(
        pabzip.init_(nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 4), norm), seed=1)
    )
    file, _ = packed(net, fold_bn=True)
    state = pabzip.load_file(file)
    assert torch.equal(state["1.weight"], state["3.weight"])
    assert (state["3.running_var"] == 1).all()


def test_a_weight_shared_by_different_batch_norms_is_refused() -> None:
    net = trained_(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)))
    net[2].weight = net[1].weight
    pabzip.init_(net, seed=1)
    with pytest.raises(PackError, match=r"2\.weight: .*shared with 1\.weight.*without fold_bn"):
        packed(net, fold_bn=True)


def test_nothing_to_fold() -> None:
    net = pabzip.init_(pabzip.models.build("lenet-300-100", image_size=8, width=12), seed=1)
    with pytest.raises(PackError, match="expected batch norm .* found none; pack without fold_bn"):
        packed(net, fold_bn=True)


def test_a_wrapped_network(network: nn.Module) -> None:
    assert packed(nn.DataParallel(network), fold_bn=True)[0] == packed(network, fold_bn=True)[0]


def test_the_training_mode_of_the_network_is_left_alone(network: nn.Module) -> None:
    network.train()
    state = torch.random.get_rng_state()
    packed(network, fold_bn=True)
    assert network.training
    assert network.bn1.num_batches_tracked == 240
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_checkpoint_folds_like_its_network(network: nn.Module, tmp_path: Any) -> None:
    pabzip.save_checkpoint(network, tmp_path / "model.pt")
    assert packed(tmp_path / "model.pt", fold_bn=True)[0] == packed(network, fold_bn=True)[0]


def test_a_checkpoint_of_a_custom_architecture_names_the_way_out(tmp_path: Any) -> None:
    net = trained_(pabzip.init_(Own(), seed=1))
    pabzip.save_checkpoint(net, tmp_path / "model.pt")
    with pytest.raises(PackError, match="custom one, .*network_from_checkpoint.*net=network"):
        packed(tmp_path / "model.pt", fold_bn=True)
    checkpoint = pabzip.load_checkpoint(tmp_path / "model.pt")
    rebuilt = pabzip.checkpoint.network_from_checkpoint(checkpoint, net=Own())
    assert packed(rebuilt, fold_bn=True)[0] == packed(net, fold_bn=True)[0]


def test_a_network_that_is_not_the_architecture_it_is_named_for(network: nn.Module) -> None:
    network.extra = nn.BatchNorm2d(2)
    with pytest.raises(PackError, match="expected the tensors of resnet20, .*extra"):
        packed(network, fold_bn=True)


# the checks themselves


def test_a_wrong_scale_is_caught_channel_by_channel(network: nn.Module) -> None:
    original = network.state_dict()
    folded = fold(network, original)
    name = list(batch_norms(network))[3]
    folded[f"{name}.weight"][2] *= 1.01
    with pytest.raises(PackError, match=rf"{name}: .*found 1 of 4 beyond \(channel 2 differs"):
        check_batch_norms(network, original, folded, None)
    check_batch_norms(network, original, folded, "float16")


def test_a_wrong_network_is_caught_by_its_outputs(network: nn.Module) -> None:
    arch, options = network.pabzip_arch
    original = network.state_dict()
    folded = fold(network, original)
    check_network(arch, options, original, folded, None)
    folded["bn1.bias"] += 0.1
    with pytest.raises(PackError, match="outputs of the folded network within 0.001 of the larg"):
        check_network(arch, options, original, folded, None)


def test_a_failed_check_leaves_the_old_file(network: nn.Module, tmp_path: Any) -> None:
    """A mean a hundred million deviations away leaves nothing of the sum of two large terms."""
    target = tmp_path / "model.pabz"
    target.write_bytes(b"old")
    norm = next(iter(batch_norms(network).values()))
    with torch.no_grad():
        norm.running_mean.fill_(1e5)
        norm.running_var.fill_(0)
    with pytest.raises(PackError, match="beyond .*pack without fold_bn"):
        pabzip.pack(network, target, coder="huffman", fold_bn=True)
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["model.pabz"]


def test_a_scale_beyond_float16_is_refused_by_name(network: nn.Module) -> None:
    name, norm = next(iter(batch_norms(network).items()))
    with torch.no_grad():
        norm.weight[1] = 1e6
    with pytest.raises(PackError, match=rf"'{name}\.weight': .*float16, found 1 that overflow"):
        packed(network, fold_bn=True, dense_dtype="float16")


@pytest.mark.parametrize("variance", [float("nan"), float("inf"), -1.0])
def test_statistics_that_are_no_map_are_refused(network: nn.Module, variance: float) -> None:
    norm = next(iter(batch_norms(network).values()))
    with torch.no_grad():
        norm.running_var[0] = variance
        norm.bias[1] = float("nan")
    with pytest.raises(PackError, match="bn1: expected a finite scale and shift .*found [12] of 4"):
        packed(network, fold_bn=True)

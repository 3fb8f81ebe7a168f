"""FSDP in both forms: what works on a rank's part of the weights, and what is refused before."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

import pabzip
from pabzip.errors import ExportError, RecipeError, SearchError, SeedError
from pabzip.search import synflow
from pabzip.supermask import EdgePopup
from pabzip.unmask import Bop, LatentSigns, SignSgd, apply_psg
from pabzip.wrappers import unwrap

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # torch warns of one rank, and of the old form
    pytest.mark.usefixtures("one_process"),
]
Shard = Callable[[nn.Module], nn.Module]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def in_place(net: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for part in (net[2], net):  # type: ignore[index]
        fully_shard(part, mesh=mesh)
    return net


def around(net: nn.Module, *, original: bool = True) -> nn.Module:
    return FullyShardedDataParallel(net, use_orig_params=original, device_id=torch.device("cpu"))


def nested(net: nn.Module) -> nn.Module:
    net[2] = around(net[2])  # type: ignore[index,operator]
    return torch.compile(around(net), backend="eager")  # type: ignore[return-value]


NAMES = ["0.weight", "2.weight", "4.weight"]
SHARDS: dict[str, Shard] = {"fully_shard": in_place, "FSDP": around, "nested FSDP": nested}


@pytest.fixture(params=list(SHARDS))
def shard(request: pytest.FixtureRequest) -> Iterator[Shard]:
    torch._dynamo.reset()
    yield SHARDS[request.param]
    torch._dynamo.reset()


def batches() -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(3)
    return torch.randn(6, 36, generator=drawn), torch.arange(6) % 3


def train(net: nn.Module, *rules: torch.optim.Optimizer, steps: int = 3) -> None:
    inputs, labels = batches()
    net.train()
    for _ in range(steps):
        for rule in rules:
            rule.zero_grad()
        nn.functional.cross_entropy(net(inputs), labels).backward()
        for rule in rules:
            rule.step()


def drawn() -> nn.Module:
    net = pabzip.init_(network(), seed=3)
    synflow(net, 0.5, input_shape=(36,), iterations=3)
    return net


def packed(net: nn.Module) -> bytes:
    file = io.BytesIO()
    pabzip.pack(net, file)
    return file.getvalue()


def test_a_sharded_network_trains_packs_and_loads_as_a_whole_one(shard: Shard) -> None:
    files, flips = [], []
    for wrap in (lambda net: net, shard):
        net = wrap(drawn())
        weights = pabzip.seeded_parameters(net)
        assert list(weights) == list(pabzip.seeding(net).specs) == NAMES
        seeded = {id(weight) for weight in weights.values()}
        dense = [value for value in net.parameters() if id(value) not in seeded]
        bop = Bop(net, 0.5, 0.0)
        train(net, bop, SignSgd(dense, 0.01))
        flips.append(int(bop.flips))
        files.append(packed(net))
        restored = Bop(net, 0.5, 0.0)
        restored.load_state_dict(bop.state_dict())
        train(net, restored, steps=1)
        files.append(packed(net))
        assert pabzip.evaluate(net, [batches()]).samples == 6
    assert files[:2] == files[2:]
    assert flips[0] == flips[1]
    fresh = shard(network())
    assert pabzip.load_into(fresh, files[0]) is fresh
    assert packed(fresh) == files[0]
    whole = pabzip.load_into(network(), files[0])
    assert pabzip.evaluate(fresh, [batches()]) == pabzip.evaluate(whole, [batches()])


def test_psg_reaches_the_layers_of_a_sharded_network(shard: Shard) -> None:
    gradients = []
    for wrap in (lambda net: net, shard):
        net = wrap(drawn())
        handle = apply_psg(net)
        bop = Bop(net, 0.5, 0.0)
        train(net, bop)
        handle.remove()
        train(net, bop)
        gradients.append(packed(net))
    assert gradients[0] == gradients[1]


def test_what_needs_whole_weights_is_refused_before_anything_changes(shard: Shard) -> None:
    net = shard(drawn())
    before = packed(net)
    refused: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (SeedError, "init_: .* draw the network before fully_shard", lambda: pabzip.init_(net, 1)),
        (
            SearchError,
            "the search: .* search before fully_shard",
            lambda: synflow(net, 0.2, input_shape=(36,)),
        ),
        (RecipeError, "LatentSigns: .*: expected a whole weight", lambda: LatentSigns(net)),
        (
            RecipeError,
            "EdgePopup: .*: expected a whole weight, found one that FSDP shards; use Bop",
            lambda: EdgePopup(net, lambda s: torch.optim.SGD(s, 0.1), 0.5),
        ),
        (RecipeError, "Bop: flip_cost: .*expected a whole weight", lambda: Bop(net, flip_cost=0.1)),
        (
            ExportError,
            "exporting to ONNX: .* load the file into the network without FSDP",
            lambda: pabzip.export_onnx(net, io.BytesIO(), input_shape=(1, 6, 6)),
        ),
    ]
    for error, message, call in refused:
        with pytest.raises(error, match=message):
            call()
    assert packed(net) == before


def test_a_forward_pass_before_hides_no_shards(shard: Shard) -> None:
    expected = packed(drawn())
    net = shard(drawn()).eval()
    with torch.no_grad():  # after which fully_shard leaves whole weights in the places of shards
        net(batches()[0])
    assert packed(net) == expected
    with torch.no_grad():
        net(batches()[0])
    with pytest.raises(ExportError, match="expected a whole weight"):
        pabzip.export_onnx(net, io.BytesIO(), input_shape=(1, 6, 6))
    with torch.no_grad():
        net(batches()[0])
    bop = Bop(net, 0.5, 0.0)
    train(net, bop)
    plain = drawn()
    train(plain, Bop(plain, 0.5, 0.0))
    assert packed(net) == packed(plain)


def test_a_flattened_network_packs_but_has_no_weights_to_flip() -> None:
    expected = packed(drawn())
    net = around(drawn(), original=False)
    assert packed(net) == expected
    with pytest.raises(SeedError, match=r"0\.weight: .* use fully_shard, or FSDP with use_orig"):
        Bop(net)
    assert packed(pabzip.load_into(around(network(), original=False), expected)) == expected


def test_psg_stays_on_a_layer_that_was_sharded_with_it() -> None:
    net = drawn()
    handle = apply_psg(net)
    in_place(net)
    with pytest.raises(RecipeError, match="found a FSDPPsgLinear made of one; take PSG off before"):
        handle.remove()
    assert isinstance(unwrap(net)[2], nn.Linear)


def on_two_ranks(rank: int, store: str, file: str) -> None:
    """Train on two ranks, of which each holds a part, and pack; a process of its own."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", rank=rank, world_size=2, init_method=f"file://{store}"
    )
    for name, shard in {"in_place": in_place, "around": around}.items():
        net = shard(drawn())
        train(net, Bop(net, 0.5, 0.0))
        target = f"{file}.{name}.{rank}"
        pabzip.pack(net, target)
        fresh = pabzip.load_into(shard(network()), target)
        pabzip.pack(fresh, f"{target}.loaded")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_pack_what_one_process_does(tmp_path: Path) -> None:
    net = drawn()
    train(net, Bop(net, 0.5, 0.0))
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import torch, test_fsdp\n"
        "if __name__ == '__main__':\n"
        "    torch.multiprocessing.spawn(test_fsdp.on_two_ranks, sys.argv[1:], nprocs=2)\n"
    )
    (tmp_path / "run.py").write_text(code)
    subprocess.run(
        [sys.executable, "run.py", str(tmp_path / "store"), str(tmp_path / "net.pabz")],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    files = sorted(tmp_path.glob("net.pabz.*"))
    assert len(files) == 8
    assert {file.read_bytes() for file in files} == {packed(net)}

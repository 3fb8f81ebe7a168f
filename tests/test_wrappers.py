"""torch.compile, DataParallel, DDP and checkpointing: everything sees the network inside."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DistributedDataParallel

import pabzip
from pabzip.search import apply_masks, grasp, magnitude, random, snip, synflow
from pabzip.search.baselines import MagnitudeScorer
from pabzip.search.driver import iterative_search
from pabzip.search.schedule import PruneGroup
from pabzip.supermask import Biprop, EdgePopup, FreeFlipping, GemMiner, imbalance_signs
from pabzip.train import layer_costs
from pabzip.unmask import Bop, LatentSigns, SignSgd, apply_psg, remove_psg
from pabzip.wrappers import inner_names, unwrap

Wrapper = Callable[[nn.Module], nn.Module]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)
    )


def compiled(net: nn.Module) -> nn.Module:
    return torch.compile(net, backend="eager")  # type: ignore[return-value]


def compiled_in_place(net: nn.Module) -> nn.Module:
    net.compile(backend="eager")
    return net


class Foreign(nn.Module):
    """A wrapper as other libraries have them: a lone child, ``module``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        result: Tensor = self.module(*inputs)
        return result


def compiled_part(net: nn.Module) -> nn.Module:
    net[0] = compiled(net[0])  # type: ignore[operator]
    return net


def wrapped_parts(net: nn.Module) -> nn.Module:
    net[0] = nn.DataParallel(compiled(net[0]))  # type: ignore[operator]
    net[3] = checkpoint_wrapper(net[3])  # type: ignore[operator]
    return compiled(net)


WRAPPERS: dict[str, Wrapper] = {
    "none": lambda net: net,
    "compiled": compiled,
    "compiled in place": compiled_in_place,
    "parallel": nn.DataParallel,
    "distributed": lambda net: DistributedDataParallel(net),
    "compiled distributed": lambda net: compiled(DistributedDataParallel(net)),
    "parallel compiled": lambda net: nn.DataParallel(compiled(net)),
    "compiled part": compiled_part,
    "wrapped parts": wrapped_parts,
}
NAMES = ["0.weight", "3.weight", "5.weight"]

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture(params=list(WRAPPERS))
def wrap(request: pytest.FixtureRequest) -> Iterator[Wrapper]:
    torch._dynamo.reset()
    yield WRAPPERS[request.param]
    torch._dynamo.reset()


def batches() -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(3)
    return torch.randn(6, 1, 6, 6, generator=drawn), torch.arange(6) % 3


def train(net: nn.Module, rule: torch.optim.Optimizer, steps: int = 2) -> None:
    inputs, labels = batches()
    net.train()
    for _ in range(steps):
        rule.zero_grad()
        nn.functional.cross_entropy(net(inputs), labels).backward()
        rule.step()


def packed(net: nn.Module, **options: object) -> bytes:
    file = io.BytesIO()
    pabzip.pack(net, file, **options)  # type: ignore[arg-type]
    return file.getvalue()


def prepared(wrap: Wrapper, before: bool) -> nn.Module:
    """A network drawn from its seed, wrapped before it or after."""
    if before:
        return pabzip.init_(wrap(network()), seed=3)
    return wrap(pabzip.init_(network(), seed=3))


def test_the_network_inside_is_found() -> None:
    net = pabzip.init_(network(), seed=3)
    for name in ("none", "compiled", "parallel", "distributed", "parallel compiled"):
        assert unwrap(WRAPPERS[name](net)) is net
    assert unwrap(Foreign(nn.DataParallel(net))) is net


def test_a_network_that_has_another_as_its_part_is_no_wrapper_of_it() -> None:
    net = Foreign(pabzip.init_(network(), seed=3))
    net.head = nn.Linear(3, 2)
    assert unwrap(net) is net
    with pytest.raises(pabzip.PabzError, match="Foreign: expected a network drawn from a seed"):
        pabzip.pack(net, io.BytesIO())
    own = pabzip.init_(Foreign(network()), seed=3)
    assert unwrap(own) is own
    assert list(pabzip.seeding(own).specs) == [f"module.{name}" for name in NAMES]


@pytest.mark.parametrize("before", [True, False], ids=["wrapped first", "drawn first"])
def test_records_and_parameters_have_the_names_of_the_network_inside(
    wrap: Wrapper, before: bool
) -> None:
    net = prepared(wrap, before)
    assert list(pabzip.seeding(net).specs) == NAMES
    weights = pabzip.seeded_parameters(net)
    assert list(weights) == NAMES
    own = {id(parameter) for parameter in net.parameters()}
    assert all(id(weight) in own for weight in weights.values())
    # A deep copy, as an average of weights takes one, has a record of its own.
    assert list(pabzip.seeding(copy.deepcopy(unwrap(net))).specs) == NAMES


@pytest.mark.parametrize("before", [True, False], ids=["wrapped first", "drawn first"])
def test_from_search_to_file_as_without_a_wrapper(wrap: Wrapper, before: bool) -> None:
    inputs, labels = batches()
    plain, net = pabzip.init_(network(), seed=3), prepared(wrap, before)
    files = []
    for each in (plain, net):
        masks = snip(each, 0.6, example_inputs=inputs, targets=labels)
        assert list(masks) == NAMES
        masks |= synflow(each, 0.4, input_shape=(1, 6, 6), iterations=5)
        handle = apply_psg(each)
        assert list(handle.modules) == ["0", "3", "5"]
        train(each, Bop(each, 0.1, 0.0))
        handle.remove()
        files.append(packed(each))
        assert pabzip.evaluate(each, [(inputs, labels)]).samples == 6
    assert files[0] == files[1]
    fresh = wrap(network())
    assert pabzip.load_into(fresh, files[0]) is fresh
    assert packed(fresh) == files[0]
    for name, value in pabzip.load_file(files[0]).items():
        assert torch.equal(unwrap(fresh).state_dict()[name], value)


RULES = {
    "bop with a price": lambda net: Bop(net, 0.1, 0.0, flip_cost=1e-4),
    "latent": lambda net: LatentSigns(net, 1.0),
    "edge-popup": lambda net: EdgePopup(net, lambda s: torch.optim.SGD(s, 1.0), 0.5),
    "biprop": lambda net: Biprop(net, lambda s: torch.optim.SGD(s, 1.0), 0.5),
    "gem-miner": lambda net: GemMiner(net, lambda s: torch.optim.SGD(s, 1.0), 0.5, epochs=2),
    "free-flipping": lambda net: FreeFlipping(net),
}


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_learns_as_without_a_wrapper(rule: str) -> None:
    files = set()
    for name in ("none", "compiled distributed", "wrapped parts"):
        torch._dynamo.reset()
        net = prepared(WRAPPERS[name], before=False)
        imbalance_signs(net, 0.6)
        train(net, RULES[rule](net))
        files.add(packed(net))
    assert len(files) == 1


def test_every_search_finds_the_same_masks() -> None:
    inputs, labels = batches()
    plain, net = pabzip.init_(network(), seed=3), prepared(wrapped_parts, before=False)
    for search in (grasp, magnitude, random):
        found = []
        for each in (plain, net):
            twin = copy.deepcopy(unwrap(each)) if each is plain else each
            pabzip.init_(twin, seed=3)
            found.append(search(twin, 0.6, example_inputs=inputs, targets=labels))
        assert list(found[0]) == list(found[1]) == NAMES
        assert all(torch.equal(found[0][name], found[1][name]) for name in NAMES)


def test_masks_and_own_scorers_go_by_the_names_inside() -> None:
    net = prepared(WRAPPERS["parallel compiled"], before=True)
    weights = pabzip.seeded_parameters(net)
    groups = [PruneGroup(tuple(weights), 0.5)]
    masks = iterative_search(net, weights, MagnitudeScorer(weights), groups, (1, 6, 6))
    apply_masks(net, {"0.weight": torch.zeros_like(masks["0.weight"])})
    assert not weights["0.weight"].any()
    named = dict(net.named_parameters())
    with pytest.raises(pabzip.PabzError, match=r"of a wrapped network from that of the network in"):
        magnitude(net, 0.5, weights=named)


def test_a_search_runs_what_was_written_and_not_what_is_compiled() -> None:
    calls = []

    class Gated(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            calls.append(torch.compiler.is_compiling())
            return images * torch.sigmoid(images)

    plain = pabzip.init_(nn.Sequential(nn.Conv2d(1, 4, 3), Gated(), nn.Flatten(),
                                       nn.Linear(64, 3)), seed=3)  # fmt: skip
    net = compiled_in_place(copy.deepcopy(plain))
    expected = synflow(plain, 0.3, input_shape=(1, 6, 6), iterations=3)
    calls.clear()
    found = synflow(net, 0.3, input_shape=(1, 6, 6), iterations=3)
    assert len(calls) >= 3
    assert not any(calls)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_psg_changes_the_gradients_of_what_was_compiled_before() -> None:
    inputs, labels = batches()
    gradients = []
    for wrap in (WRAPPERS["none"], compiled, compiled_in_place):
        torch._dynamo.reset()
        net = prepared(wrap, before=False).train()
        for change in (lambda _: None, apply_psg, remove_psg):
            change(net)
            net.zero_grad()
            nn.functional.cross_entropy(net(inputs), labels).backward()
            gradients.append(pabzip.seeded_parameters(net)["0.weight"].grad.clone())
    exact, predicted, again = gradients[:3]
    assert torch.equal(exact, again)
    assert not torch.equal(exact, predicted)
    for place, gradient in enumerate(gradients):
        torch.testing.assert_close(gradient, gradients[place % 3])


def test_an_optimizer_of_all_parameters_works_by_identity() -> None:
    net = prepared(WRAPPERS["compiled distributed"], before=True)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    train(net, SignSgd(net.parameters(), lr=0.5), 1)
    assert all(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_checkpoints_and_folding_see_the_network_inside(wrap: Wrapper) -> None:
    def normed() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                             nn.Linear(64, 3))  # fmt: skip

    torch.manual_seed(0)
    net = normed()
    pabzip.init_(net, seed=3)
    twin = normed()
    twin.load_state_dict(net.state_dict())
    wrapped = pabzip.init_(WRAPPERS["compiled part"](twin), seed=3)
    assert packed(wrapped, fold_bn=True) == packed(net, fold_bn=True)
    one, other = io.BytesIO(), io.BytesIO()
    pabzip.save_checkpoint(net, one)
    pabzip.save_checkpoint(wrapped, other)
    one.seek(0)
    other.seek(0)
    expected, found = pabzip.load_checkpoint(one), pabzip.load_checkpoint(other)
    assert list(found.state_dict) == list(expected.state_dict)
    assert found.seeding == expected.seeding


def test_onnx_of_a_wrapped_network() -> None:
    pytest.importorskip("onnxscript")
    files = []
    for name in ("none", "compiled in place", "compiled distributed", "wrapped parts"):
        torch._dynamo.reset()
        file = io.BytesIO()
        net = prepared(WRAPPERS[name], before=False)
        pabzip.export_onnx(net, file, input_shape=(1, 6, 6))
        files.append(file.getvalue())
    assert files == files[:1] * 4


def test_costs_and_deltas_go_by_the_names_inside() -> None:
    plain, net = pabzip.init_(network(), seed=3), prepared(wrapped_parts, before=False)
    masks = {name: weight != 0 for name, weight in pabzip.seeded_parameters(net).items()}
    assert layer_costs(net, (1, 6, 6), masks) == layer_costs(plain, (1, 6, 6), masks)
    base = nn.DataParallel(copy.deepcopy(plain))
    with torch.no_grad():
        plain[3].bias.add_(0.25)
    files = [io.BytesIO(), io.BytesIO()]
    for each, file in zip((base, base.module), files, strict=True):
        pabzip.pack(plain.state_dict(), file, base=each)
    assert files[0].getvalue() == files[1].getvalue()


class Prepared(nn.Module):
    """A wrapper of the caller's own, which does more than call the network in it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, pixels: Tensor) -> Tensor:
        result: Tensor = self.module(pixels.reshape(-1, 1, 6, 6).mT).flip(1)
        return result


@pytest.mark.parametrize("wrap", [Prepared, lambda net: Prepared(wrapped_parts(net))])
def test_the_forward_of_a_wrapper_of_ones_own_counts(wrap: Wrapper) -> None:
    inner = pabzip.init_(network(), seed=3)
    net = wrap(copy.deepcopy(inner))
    pixels = torch.rand(12, 36, generator=torch.Generator().manual_seed(1))
    shaped = pixels.reshape(-1, 1, 6, 6).mT
    labels = torch.arange(12) % 3
    masks = {name: weight != 0 for name, weight in pabzip.seeded_parameters(net).items()}
    assert list(masks) == NAMES
    costs = layer_costs(net, (36,), masks)
    assert costs == layer_costs(inner, (1, 6, 6), masks)
    found = synflow(net, keep_ratio=0.5, input_shape=(36,))
    expected = synflow(inner, keep_ratio=0.5, input_shape=(1, 6, 6))
    assert list(found) == NAMES
    assert all(torch.equal(found[name], expected[name]) for name in NAMES)
    found = snip(net, keep_ratio=0.3, example_inputs=pixels, targets=labels)
    expected = snip(inner, keep_ratio=0.3, example_inputs=shaped, targets=2 - labels)
    assert all(torch.equal(found[name], expected[name]) for name in NAMES)
    with torch.no_grad():
        right = inner.eval()(shaped).argmax(1) == 2 - labels
    assert pabzip.evaluate(net, [(pixels, labels)]).accuracy == right.double().mean()
    assert packed(net) == packed(inner)


def test_onnx_has_the_forward_of_a_wrapper_of_ones_own() -> None:
    pytest.importorskip("onnxscript")
    net, file = Prepared(pabzip.init_(network(), seed=3)).eval(), io.BytesIO()
    pixels = torch.rand(2, 36, generator=torch.Generator().manual_seed(1))
    pabzip.export_onnx(net, file, example_inputs=pixels)
    session = pytest.importorskip("onnxruntime").InferenceSession(file.getvalue())
    found = session.run(None, {"pixels": pixels.numpy()})[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), net(pixels), rtol=1e-4, atol=1e-4)


def test_a_module_with_a_version_of_its_own_is_loaded_into() -> None:
    class Versioned(nn.Linear):
        _version = 2

        def _load_from_state_dict(self, state_dict, prefix, local_metadata, *others):  # type: ignore[no-untyped-def]
            if local_metadata.get("version") != 2:  # as torchvision's MNASNet does
                raise ValueError("expected a version")
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)

    file = packed(pabzip.init_(Versioned(4, 3), seed=3))
    fresh = pabzip.load_into(nn.DataParallel(Versioned(4, 3)), file)
    assert packed(fresh) == file


def test_states_that_wrappers_named_are_renamed() -> None:
    named = {"module._orig_mod.a._orig_mod.weight": 1, "module._orig_mod.module.b": 2}
    assert inner_names(named) == {"a.weight": 1, "module.b": 2}
    assert inner_names({"module.a": 1, "b": 2}) == {"module.a": 1, "b": 2}
    assert inner_names({"my_orig_mod.a": 1}) == {"my_orig_mod.a": 1}


def test_a_checkpoint_saved_by_the_wrapper_loads() -> None:
    net = pabzip.init_(network(), seed=3)
    nn.init.constant_(net[3].weight, 0.5)
    files = []
    for each in (net, nn.DataParallel(compiled(net))):
        file = io.BytesIO()
        torch.save(each.state_dict(), file)
        file.seek(0)
        target = io.BytesIO()
        pabzip.pack(pabzip.checkpoint.load_state(file), target, ternary=True)
        files.append(target.getvalue())
    assert files[0] == files[1]

"""How a fine-tuned tensor differs from its base's: found, small, and given back bit for bit."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pabzip
from pabzip.errors import BaseFileError
from pabzip.formats import DENSE_TYPES, DeltaTensor
from pabzip.formats.delta_changes import differences, differing
from pabzip.packing.delta import delta_tensor

FLOATS = ("float32", "bfloat16", "float16")


def torch_dtype(dtype: str) -> torch.dtype:
    return getattr(torch, dtype)


def values_of(tensor: torch.Tensor) -> np.ndarray:
    """The values as dense tensors carry them."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


def base_weight(dtype: str, shape: tuple[int, ...] = (48, 256), seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * 0.02).to(torch_dtype(dtype))


def compeft(base: torch.Tensor, kept: float = 0.1, *, rows: bool = False) -> torch.Tensor:
    """The top-k signs of a random task vector times its standard deviation, as merged by torch."""
    change = torch.randn(base.shape, generator=torch.Generator().manual_seed(9)) * 1e-3
    least = change.abs().flatten().kthvalue(int((1 - kept) * change.numel()))[0]
    signs = change.sign() * (change.abs() >= least)
    scale = change.std(dim=1, keepdim=True) if rows else change.std()
    return base + (scale * signs).to(base.dtype)


def found_for(tuned: torch.Tensor, base: torch.Tensor) -> DeltaTensor:
    """The delta of two tensors, which must give the tuned one back."""
    dtype = str(tuned.dtype).removeprefix("torch.")
    found = delta_tensor("w", values_of(tuned), dtype, values_of(base))
    assert found is not None
    assert found.array().tobytes() == values_of(tuned).tobytes()
    assert (found.shape, found.dtype) == (tuple(tuned.shape), dtype)
    return found


@pytest.mark.parametrize("dtype", FLOATS)
def test_nothing_changed(dtype: str) -> None:
    base = base_weight(dtype)
    found = found_for(base.clone(), base)
    assert found.change.form == "equal"
    assert found.parts == ()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows", [False, True])
def test_a_ternary_change(dtype: str, rows: bool) -> None:
    base = base_weight(dtype)
    found = found_for(compeft(base, rows=rows), base)
    assert (found.change.form, found.change.rows, found.change.stored) == ("steps", rows, "int8")
    assert np.abs(found.numbers).max() == 1  # type: ignore[type-var]
    assert found.scales is not None
    assert found.scales.shape == ((48,) if rows else ())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("most", [7, 127])
def test_a_change_of_a_few_bits(dtype: str, rows: bool, most: int) -> None:
    base = base_weight(dtype)
    generator = torch.Generator().manual_seed(3)
    numbers = torch.randint(-most, most + 1, base.shape, generator=generator)
    scale = torch.rand(48, 1, generator=generator) + 1 if rows else torch.tensor(1.37)
    scale = scale * 0.05 / most
    tuned = (base.float() + scale * numbers).to(base.dtype)
    found = found_for(tuned, base)
    assert (found.change.form, found.change.stored) == ("steps", "int8")
    assert found.change.rows == rows
    if dtype == "float32" and not rows:
        assert np.array_equal(found.numbers, numbers.numpy().reshape(-1))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_steps_that_were_rounded_before_they_were_added(dtype: str) -> None:
    base = base_weight(dtype)
    numbers = torch.randint(-7, 8, base.shape, generator=torch.Generator().manual_seed(3))
    tuned = base + (torch.tensor(0.000371) * numbers).to(base.dtype)
    found = found_for(tuned, base)
    assert found.change.form == "steps"
    assert dtype == "float16" or found.change.product == dtype


@pytest.mark.parametrize("dtype", FLOATS)
def test_any_small_change_is_a_difference(dtype: str) -> None:
    base = base_weight(dtype)
    tuned = (base.float() + torch.randn(base.shape) * 1e-5).to(base.dtype)
    found = found_for(tuned, base)
    assert found.change.form == "difference"


@pytest.mark.parametrize("dtype", FLOATS)
def test_another_tensor_is_no_change(dtype: str) -> None:
    tuned, base = base_weight(dtype, seed=1), base_weight(dtype)
    assert delta_tensor("w", values_of(tuned), dtype, values_of(base)) is None


@pytest.mark.parametrize("dtype", list(DENSE_TYPES))
def test_every_type_of_element(dtype: str) -> None:
    rng = np.random.default_rng(4)
    kind = DENSE_TYPES[dtype].numpy
    base = rng.integers(0, 2 if dtype == "bool" else 100, 4000).astype(kind)
    tuned = base.copy()
    tuned[:40] = ~tuned[:40] if dtype == "bool" else tuned[:40] + kind.type(1)
    found = delta_tensor("w", tuned, dtype, base)
    assert found is not None
    assert found.array().tobytes() == tuned.tobytes()
    assert sum(part.values.nbytes for part in found.parts) <= tuned.nbytes


def test_negative_zeros() -> None:
    base = base_weight("float32")
    base[0, :9] = -0.0
    signs = torch.randint(-1, 2, base.shape, generator=torch.Generator().manual_seed(2))
    signs[0, :5] = 0
    added = base + 0.01 * signs  # -0.0 + 0.0 is +0.0
    found = found_for(added, base)
    assert (found.change.form, found.change.everywhere) == ("steps", True)
    kept = torch.where(signs == 0, base, added)
    found = found_for(kept, base)
    assert (found.change.form, found.change.everywhere) == ("steps", False)
    kept[0, 0] = 0.0  # some of them: no sum does that
    assert found_for(kept, base).change.form == "difference"


def test_a_scalar_and_a_vector() -> None:
    one, two = np.array(3.5, np.float32), np.array(3.75, np.float32)
    found = delta_tensor("s", two, "float32", one)
    assert found is None or found.array().tobytes() == two.tobytes()
    assert delta_tensor("s", one.copy(), "float32", one).change.form == "equal"  # type: ignore[union-attr]
    base = np.linspace(-1, 1, 1000, dtype=np.float32)
    tuned = base + np.float32(0.25)
    found = delta_tensor("b", tuned, "float32", base)
    assert found is not None
    assert (found.change.form, found.change.rows) == ("steps", False)


def test_values_that_are_not_finite_are_no_change() -> None:
    base = np.zeros(100, np.float32)
    tuned = base.copy()
    tuned[3] = np.nan
    assert delta_tensor("w", tuned, "float32", base) is None
    found = delta_tensor("w", base, "float32", tuned)  # a base of them serves all the same
    assert found is None or found.array().tobytes() == base.tobytes()


def test_more_than_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked at block by block is found as if it were one."""
    monkeypatch.setattr("pabzip.packing.delta._BLOCK", 700)
    monkeypatch.setattr("pabzip.formats.delta._BLOCK", 500)
    base = base_weight("float32")
    for rows in (False, True):
        found = found_for(compeft(base, rows=rows), base)
        assert (found.change.form, found.change.rows) == ("steps", rows)
    tuned = compeft(base)
    tuned[-1, -1] += 0.5  # seen in the last block alone
    found = found_for(tuned, base)
    assert found.change.rows or found.change.form == "difference"


@pytest.mark.parametrize("dtype", FLOATS)
def test_single_steps_of_a_large_tensor_are_packed_five_a_byte(dtype: str) -> None:
    base = base_weight(dtype, (300, 331))
    found = found_for(compeft(base), base)
    assert (found.change.form, found.change.stored) == ("steps", "trits")
    assert found.numbers is not None
    assert found.numbers.size == 300 * 331 // 5
    small = found_for(compeft(base[:90]), base[:90])
    assert small.change.stored == "int8"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_is_found_gives_the_tensor_back(data: Any) -> None:
    dtype = data.draw(st.sampled_from(FLOATS))
    seed = data.draw(st.integers(0, 2**32 - 1))
    shape = data.draw(st.sampled_from([(3, 40), (120,), (1, 17), (40, 3, 2), (20, 16)]))
    generator = torch.Generator().manual_seed(seed)
    size = 10.0 ** data.draw(st.integers(-6, 3))
    base = (torch.randn(shape, generator=generator) * size).to(torch_dtype(dtype))
    most = data.draw(st.sampled_from([1, 2, 7, 127, 500]))
    numbers = torch.randint(-most, most + 1, shape, generator=generator)
    step = size * 10.0 ** data.draw(st.integers(-5, 0))
    tuned = (base.float() + step * numbers).to(base.dtype)
    found = delta_tensor("w", values_of(tuned), dtype, values_of(base))
    assert found is None or found.array().tobytes() == values_of(tuned).tobytes()


@pytest.mark.parametrize("dtype", list(DENSE_TYPES))
def test_differences_of_any_patterns(dtype: str) -> None:
    rng = np.random.default_rng(1)
    kind = DENSE_TYPES[dtype].numpy
    one, two = (rng.integers(0, 256, 800 * kind.itemsize, dtype=np.uint8) for _ in range(2))
    if dtype == "bool":
        one, two = one & 1, two & 1
    base, tuned = one.view(kind), two.view(kind)
    numbers = differences(base, tuned, dtype)
    assert differing(base, numbers, dtype).tobytes() == tuned.tobytes()


def test_differences_count_places_in_the_order_of_values() -> None:
    base = np.array([1.0, 1.0, 1.0, -0.0, 0.0, -1.0], np.float32)
    up, down = np.float32(np.inf), np.float32(-np.inf)
    tuned = np.array(
        [1.0, np.nextafter(base[1], up), np.nextafter(base[2], down), 0.0, -0.0, -2.0], np.float32
    )
    assert differences(base, tuned, "float32").tolist() == [0, 2, 1, 2, 1, 2 * 2**23 - 1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["difference", "steps", "equal", "more steps"])
def test_large_tensors_are_compared_in_blocks(kind: str, dtype: str) -> None:
    """Beside both tensors, memory holds what is stored, and codes of one byte."""
    rng = np.random.default_rng(2)
    # Odd in size, above many blocks; every changed element but one in ten, so that a sample is.
    base = torch.from_numpy(rng.normal(0, 0.02, (1 << 21) + 77).astype(np.float32))
    base = base.to(torch_dtype(dtype))
    numbers = torch.from_numpy(rng.integers(-1, 2, len(base)) * (rng.random(len(base)) < 0.9))
    if kind == "more steps":
        numbers *= 3
    moved = torch.from_numpy(rng.normal(0, 1e-4, len(base))) if kind == "difference" else numbers
    tuned = (base.float() + moved.float() * (1 if kind == "difference" else 0.0123)).to(base.dtype)
    if kind == "equal":
        tuned = base.clone()
    pair = values_of(tuned), values_of(base)
    found = delta_tensor("w", pair[0][:1000], dtype, pair[1][:1000])  # compiles
    tracemalloc.start()
    found = delta_tensor("w", pair[0], dtype, pair[1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found is not None
    assert found.change.form == kind.split()[-1]
    assert peak < sum(part.values.nbytes for part in found.parts) + len(base) + (16 << 20)
    assert found.array().tobytes() == pair[0].tobytes()


# Whole networks


def network() -> dict[str, torch.Tensor]:
    state = {f"layer{at}.weight": base_weight("float32", seed=at) for at in range(4)}
    state |= {f"layer{at}.bias": base_weight("float32", (48,), seed=9 + at) for at in range(4)}
    return state | {"steps": torch.tensor(7), "tied": state["layer0.weight"]}


def tuned_network() -> dict[str, torch.Tensor]:
    state = dict(network())
    state["layer0.weight"] = compeft(state["layer0.weight"])
    state["layer1.weight"] = compeft(state["layer1.weight"], rows=True)
    state["layer1.bias"] = state["layer1.bias"] + 1e-6
    state["layer2.bias"] = torch.full((48,), 0.125)
    state["steps"] = torch.tensor(8)
    state["tied"] = state["layer0.weight"]
    return state


def packed(tuned: Any, base: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    pabzip.pack(tuned, file, base=base, **options)
    return file.getvalue()


def test_a_network_comes_back_by_every_loader() -> None:
    tuned, base = tuned_network(), network()
    file = packed(tuned, base)
    with pabzip.open(file, base=base) as ticket:
        kinds = {name: ticket.kind(name) for name in ticket.names}
        assert {name for name, kind in kinds.items() if kind == "delta"} >= {
            "layer0.weight", "layer1.weight", "layer3.weight", "layer3.bias", "layer1.bias", "tied",
        }  # fmt: skip
        assert kinds["layer2.bias"] == "dense"
        assert ticket.tied("tied") == "layer0.weight"
        assert ticket.verify() == ticket.info().sha256
        found = ticket.arrays()
        again = io.BytesIO()
        ticket.save(again)
        assert again.getvalue() == file
    loaded = pabzip.load_arrays(file, base=base, verify=True)
    for name, value in pabzip.load_file(file, base=base, verify=True).items():
        assert torch.equal(value, tuned[name]), name
        assert value.numpy().tobytes() == loaded[name].tobytes() == found[name].tobytes()
    with pabzip.open(packed(tuned, {})) as alone, pabzip.open(file) as ticket:
        assert (alone.info().base, alone.kind("layer0.weight")) == (None, "dense")
        assert alone.info().sha256 == ticket.info().sha256  # of the tuned state, whatever its form


def test_load_into_a_network_that_is_the_base() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.BatchNorm1d(32))
    base = {name: value.clone() for name, value in net.state_dict().items()}
    tuned = {**base, "0.weight": compeft(base["0.weight"])}
    file = packed(tuned, net)
    with pytest.raises(BaseFileError, match="expected the one that the file was packed on"):
        pabzip.load_into(net, file)
    assert torch.equal(net[0].weight, base["0.weight"])
    assert pabzip.load_into(net, file, base=net) is net
    assert torch.equal(net[0].weight, tuned["0.weight"])
    with pytest.raises(BaseFileError, match="base: expected SHA-256 .* found .*; give the base"):
        pabzip.load_into(net, file, base=net)  # it is tuned by now


def test_what_did_not_change_costs_only_its_row() -> None:
    rng = np.random.default_rng(0)
    base = {
        f"model.layers.{at}.self_attn.q_proj.weight": torch.from_numpy(
            rng.normal(size=(64, 64)).astype(np.float32)
        )
        for at in range(400)
    }
    file = packed(dict(base), base)
    assert len(file) < 400 * 8


def test_another_shape_or_type_or_name_is_packed_as_without_a_base() -> None:
    base = network()
    tuned = {
        "layer0.weight": base["layer0.weight"][:, :-1].contiguous(),
        "layer1.weight": base["layer1.weight"].half(),
        "new": base["layer2.weight"] * 3,
        "layer3.weight": base["layer3.weight"],
    }
    file = packed(tuned, base)
    with pabzip.open(file, base=base) as ticket:
        kinds = [ticket.kind(name) for name in ticket.names]
    assert kinds == ["dense", "dense", "dense", "delta"]
    for name, value in pabzip.load_file(file, base=base).items():
        assert torch.equal(value, tuned[name])
    without = io.BytesIO()
    pabzip.Ticket(
        seed=0, tensors=[pabzip.DenseTensor("a", np.ones(3, "f4"), *["float32"] * 2)]
    ).save(without)
    with pabzip.open(without.getvalue(), base=base) as ticket:  # a base that nobody asked for
        assert ticket.arrays()["a"].tolist() == [1, 1, 1]


def test_seeded_weights_stay_seeded() -> None:
    net = pabzip.models.build("lenet-300-100", in_channels=1, image_size=8, width=12)
    pabzip.init_(net, seed=7)
    base = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        net.fc1.weight[:] *= -1
        net.fc1.bias += 0.5
    file = packed(net, base)
    with pabzip.open(file, base=base) as ticket:
        kinds = {name: ticket.kind(name) for name in ticket.names}
    assert kinds["fc1.weight"] == "seeded"
    assert kinds["fc1.bias"] == kinds["fc2.bias"] == "delta"
    loaded = pabzip.load(file, base=base, verify=True)
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.parameters(), net.parameters(), strict=True)
    )


def test_a_checkpoint_of_pabzip_is_a_base(tmp_path: Path) -> None:
    net = pabzip.models.build("lenet-300-100", in_channels=1, image_size=8, width=12)
    pabzip.init_(net, seed=7)
    pabzip.save_checkpoint(net, tmp_path / "model.pt")
    tuned = {name: value * 1.00001 for name, value in net.state_dict().items()}
    files = [
        packed(tuned, base)
        for base in (net, tmp_path / "model.pt", pabzip.load_checkpoint(tmp_path / "model.pt"))
    ]
    assert len(set(files)) == 1
    loaded = pabzip.load_file(files[0], base=tmp_path / "model.pt", verify=True)
    assert all(torch.equal(loaded[name], value) for name, value in tuned.items())


def test_a_ternary_tensor_that_the_base_does_not_explain() -> None:
    base = network()
    signs = torch.randint(-1, 2, (48, 256), generator=torch.Generator().manual_seed(0)).float()
    tuned = {**base, "layer0.weight": signs * 0.5 + 0.0}
    file = packed(tuned, base, ternary=True)
    with pabzip.open(file, base=base) as ticket:
        assert ticket.kind("layer0.weight") in ("seeded", "ternary")
        assert ticket.kind("layer1.weight") == "delta"


def test_a_scale_of_packed_ternary_weights_may_be_the_bases() -> None:
    """In transformers' layout a tensor beside the weights scales them, whatever its kind."""
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, 3, (4, 64, 128))
    packed_weight = sum(pairs[at] << (2 * at) for at in range(4)).astype(np.uint8)
    state = {
        "q.weight": torch.from_numpy(packed_weight),
        "q.weight_scale": torch.tensor([1.5], dtype=torch.bfloat16),
    }
    base = {"q.weight_scale": state["q.weight_scale"]}
    file = packed(state, base, ternary=True, bitnet_scale="multiply")
    with pabzip.open(file, base=base) as ticket:
        assert (ticket.kind("q.weight"), ticket.kind("q.weight_scale")) == ("ternary", "delta")
    loaded = pabzip.load_file(file, base=base)
    expected = torch.from_numpy(pairs.reshape(256, 128) - 1) * 1.5 + 0.0
    assert torch.equal(loaded["q.weight"].float(), expected.float())

"""Ternary tensors in every form that they are published in: recognized, packed, and given back."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pabzip
from pabzip.errors import CheckpointError, PackError
from pabzip.formats import DENSE_TYPES, SeededTensor, TernaryTensor
from pabzip.formats.ternary_layouts import FLOATS, INFINITY_BITS
from pabzip.packing.ternary import TernaryPacker, bitnet_scale_of
from pabzip.packing.ternary_scales import find_scales, has_structure
from pabzip.ticket import DenseTensor, Ticket

torch = pytest.importorskip("torch")


def of_codes(codes: np.ndarray, scales: np.ndarray, dtype: str, *, signed: Any = False) -> Any:
    """Bit patterns of codes times positive scales; with ``signed`` zeros have its signs."""
    size = DENSE_TYPES[dtype].itemsize
    bits = np.where(codes == 0, 0, scales).astype(f"<u{size}")
    negative = (codes < 0) | (signed & (codes == 0))
    return (bits | negative.astype(bits.dtype) << (8 * size - 1)).view(DENSE_TYPES[dtype].numpy)


@st.composite
def published(draw: st.DrawFn) -> tuple[np.ndarray, str, int]:
    """Values, dtype, and the number of scales that are needed at most."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from(FLOATS))
    rows, group = draw(st.integers(16, 40)), draw(st.sampled_from([16, 17, 24, 128]))
    groups = draw(st.integers(1, 4))
    shape = (rows, groups * group)
    form = draw(st.sampled_from(["tensor", "rows", "groups", "columns"]))
    counts = {"tensor": (1, 1), "rows": (rows, 1), "groups": (rows, groups), "columns": shape}
    scales = rng.integers(1, INFINITY_BITS[dtype], counts[form])
    if form == "columns":
        scales = np.broadcast_to(scales[:1], shape)
    wide = np.repeat(scales, shape[1] // scales.shape[1], axis=1)
    codes = rng.integers(-1, 2, shape).astype(np.int8)
    codes[0, :3] = 1, -1, 0
    if draw(st.booleans()):
        codes[rng.integers(1, rows)] = 0
    signed = rng.random(shape) < 0.5 if draw(st.booleans()) else False
    number = shape[1] if form == "columns" else int(scales.size)
    return of_codes(codes, np.broadcast_to(wide, shape), dtype, signed=signed), dtype, number


@given(made=published(), threads=st.sampled_from([1, 2]))
@settings(deadline=None, max_examples=150)
def test_every_scale_and_dtype_comes_back(made: tuple[np.ndarray, str, int], threads: int) -> None:
    values, dtype, number = made
    packer = TernaryPacker(threads=threads)
    found: Any = packer.recognize("w", values, dtype)
    bits = values.view(f"<u{values.itemsize}")
    zeros = int(np.count_nonzero(bits == 1 << (8 * values.itemsize - 1)))
    if isinstance(found, SeededTensor):
        assert (dtype, zeros) == ("float32", 0)
    else:
        assert isinstance(found, TernaryTensor)
        assert found.scales is not None
        assert found.scales.size <= number
        assert found.per_byte == (4 if zeros else 5)
    assert found.array(0).tobytes() == values.tobytes()
    assert sum(packer.negative_zeros.values()) == zeros
    file = io.BytesIO()
    Ticket(seed=0, tensors=[found]).save(file)
    with pabzip.open(file.getvalue()) as ticket:
        assert ticket.exact("w").tobytes() == values.tobytes()
    dropped: Any = TernaryPacker(negative_zero="drop").recognize("w", values, dtype)
    held = dropped.array(0).view(bits.dtype)
    assert np.array_equal(held, np.where(bits == 1 << (8 * values.itemsize - 1), 0, bits))


@pytest.mark.parametrize("shape", [(64, 100), (4, 16, 5, 5), (3, 40)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_one_other_weight_makes_a_tensor_dense(shape: tuple[int, ...], dtype: str) -> None:
    rng = np.random.default_rng(1)
    codes = rng.integers(-1, 2, shape)
    values = of_codes(codes, np.full(shape, INFINITY_BITS[dtype] // 2), dtype)
    assert TernaryPacker().recognize("w", values, dtype) is not None
    for place in (0, values.size // 2, values.size - 1):
        for pattern in (1, INFINITY_BITS[dtype], INFINITY_BITS[dtype] + 1):
            other = values.copy()
            other.view(f"<u{values.itemsize}").reshape(-1)[place] = pattern
            assert TernaryPacker().recognize("w", other, dtype) is None


def test_what_stays_dense() -> None:
    rng = np.random.default_rng(1)
    packer = TernaryPacker()
    many = rng.integers(-1, 2, 4096)
    assert packer.recognize("w", many.astype(np.float32), "float32") is None  # one dimension
    assert packer.recognize("w", many.reshape(64, 64).astype(np.float64), "float64") is None
    assert packer.recognize("w", np.zeros((64, 64), np.int8), "int8") is None
    assert packer.recognize("w", np.zeros((64, 64), np.float32), "float32") is None
    assert packer.recognize("w", many.reshape(64, 64).astype(np.int8) * 2, "int8") is None
    late = many.astype(np.int8)
    late[-1] = 2
    assert packer.recognize("w", late.reshape(64, 64), "int8") is None
    assert packer.recognize("w", many[:60].reshape(6, 10).astype(np.int8), "int8") is None
    assert packer.recognize("w", np.ones((2, 3), np.uint16), "bfloat16") is None  # too small
    assert not packer.recognized
    assert packer.recognize("w", many.reshape(64, 64).astype(np.int8), "int8") is not None
    assert packer.recognized == {"w": None}


def test_a_longer_run_is_preferred() -> None:
    codes = np.ones((8, 64), np.int8)
    scales = np.repeat([5, 6], 256).reshape(8, 64)
    found: Any = find_scales(of_codes(codes, scales, "float16").view("<u2").reshape(-1), (8, 64))
    assert (found.run, found.sizes.tolist()) == (256, [5, 6])


def planar(codes: np.ndarray) -> Any:
    """Transformers' own `pack_weights`."""
    bitnet = pytest.importorskip("transformers.integrations.bitnet")
    return bitnet.pack_weights(torch.from_numpy(codes.astype(np.int8)))


@pytest.mark.parametrize(
    ("linear", "how"), [("bitlinear", "divide"), ("autobitlinear", "multiply"), (None, "divide")]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bitnet_checkpoints(tmp_path: Path, linear: str | None, how: str, dtype: Any) -> None:
    rng = np.random.default_rng(4)
    codes = rng.integers(-1, 2, (12, 32)).astype(np.int8)
    scale = torch.tensor([1.734375], dtype=dtype)
    state = {
        "model.q_proj.weight": planar(codes),
        "model.q_proj.weight_scale": scale,
        "model.norm.weight": torch.full((32,), -0.0, dtype=dtype),
        "table": torch.arange(256, dtype=torch.uint8).reshape(16, 16),
        "table_scale": torch.ones(1),  # beside bytes that are no codes
    }
    torch.save(state, tmp_path / "model.pt")
    config: dict[str, Any] = {"quantization_config": {"quant_method": "bitnet"}}
    if linear is not None:
        config["quantization_config"]["linear_class"] = linear
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert bitnet_scale_of(tmp_path / "model.pt") == bitnet_scale_of(tmp_path) == how
    pabzip.pack(tmp_path / "model.pt", tmp_path / "a.pabz", ternary=True)
    stored = pabzip.load_file(tmp_path / "a.pabz", as_stored=True, verify=True)
    assert list(stored) == list(state)
    for name, value in state.items():
        assert stored[name].dtype == value.dtype
        assert (
            stored[name].numpy(force=True).tobytes() == value.numpy(force=True).tobytes()
            if (value.dtype != torch.bfloat16)
            else torch.equal(stored[name].view(torch.int16), value.view(torch.int16))
        )
    plain = pabzip.load_file(tmp_path / "a.pabz")
    assert list(plain) == [name for name in state if name != "model.q_proj.weight_scale"]
    # What the layer computes: unpacked codes, then divided or multiplied by the scale.
    wide = torch.from_numpy(codes).double()
    expected = wide / scale.double() if how == "divide" else wide * scale.double()
    assert torch.equal(plain["model.q_proj.weight"], expected.to(dtype))


def test_bitnet_without_its_configuration(tmp_path: Path) -> None:
    codes = np.random.default_rng(4).integers(-1, 2, (12, 32)).astype(np.int8)
    state = {"l.weight": planar(codes), "l.weight_scale": torch.tensor([2.0])}
    file = io.BytesIO()
    pabzip.pack(state, file, ternary=True)
    with pytest.raises(pabzip.PabzError, match="say it with bitnet_scale"):
        pabzip.load_file(file.getvalue())
    found = pabzip.load_file(file.getvalue(), bitnet_scale="divide")
    assert torch.equal(found["l.weight"], torch.from_numpy(codes) / 2)
    said = io.BytesIO()
    pabzip.pack(state, said, ternary=True, bitnet_scale="multiply")
    assert torch.equal(pabzip.load_file(said.getvalue())["l.weight"], torch.from_numpy(codes) * 2.0)
    with pytest.raises(PackError, match="bitnet_scale: expected 'divide' or 'multiply' or None"):
        pabzip.pack(state, file, ternary=True, bitnet_scale="add")
    for text in ("", "[]", '{"quantization_config": 3}', '{"quantization_config": {}}'):
        (tmp_path / "config.json").write_text(text)
        assert bitnet_scale_of(tmp_path / "x") is None
    assert bitnet_scale_of(tmp_path / "missing" / "x") is None


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_bitnet_scale_of_any_shape(shape: tuple[int, ...]) -> None:
    """Of two dimensions and float32 it is packed as a seeded tensor of one weight."""
    codes = np.random.default_rng(4).integers(-1, 2, (12, 32)).astype(np.int8)
    scale = torch.full(shape, 2.0)
    file = io.BytesIO()
    pabzip.pack({"l.weight": planar(codes), "l.weight_scale": scale}, file, bitnet_scale="divide")
    with Ticket.open(file.getvalue()) as ticket:
        kind = ticket.kind("l.weight_scale")
        assert kind == ("seeded" if len(shape) > 1 else "dense")
        for backend in ("numba", "numpy"):
            found = ticket.plain("l.weight", backend=backend).values
            np.testing.assert_array_equal(found, codes.astype(np.float32) / 2)
    assert torch.equal(pabzip.load_file(file.getvalue())["l.weight"], torch.from_numpy(codes) / 2)


def test_negative_zero_is_kept_or_counted() -> None:
    rng = np.random.default_rng(6)
    codes = rng.integers(-1, 2, (40, 30)).astype(np.float32)
    values = torch.from_numpy(codes * np.float32(0.5))
    values[0, :7] = -0.0
    dense = torch.tensor([[-0.0, 1.5], [0.0, -2.0]])
    state = {"w": values, "dense": dense, "tied": dense.clone(), "v": torch.tensor([-0.0, 0.0])}
    file = io.BytesIO()
    report = pabzip.pack(state, file, ternary=True)
    assert report.negative_zeros_dropped == 0
    found = pabzip.load_file(file.getvalue(), verify=True)
    for name, value in state.items():
        assert torch.equal(found[name].view(torch.int32), value.view(torch.int32))
    net = torch.nn.Module()
    for name, value in state.items():
        net.register_buffer(name, torch.ones_like(value))
    pabzip.load_into(net, file.getvalue())
    assert torch.equal(net.w.view(torch.int32), values.view(torch.int32))
    dropped = io.BytesIO()
    report = pabzip.pack(state, dropped, ternary=True, negative_zero="drop")
    assert report["negative_zeros_dropped"] == 7
    found = pabzip.load_file(dropped.getvalue())
    assert torch.equal(found["w"], values)
    assert not torch.signbit(found["w"][0, :7]).any()
    assert torch.signbit(found["dense"][0, 0])
    with pytest.raises(PackError, match="negative_zero: expected 'keep' or 'drop', found 'lose'"):
        pabzip.pack(state, dropped, ternary=True, negative_zero="lose")


def test_dense_negative_zeros_outlive_folding() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    pabzip.init_(net, seed=0)
    with torch.no_grad():
        net[0].bias.copy_(torch.tensor([-0.0, 0.0, 1.0, -0.0]))
    for options in ({}, {"fold_bn": True}, {"dense_dtype": "bfloat16"}):
        file = io.BytesIO()
        pabzip.pack(net, file, **options)  # type: ignore[arg-type]
        found = pabzip.load_file(file.getvalue())["0.bias"]
        assert torch.signbit(found).tolist() == [True, False, False, True], options


def mask(shape: tuple[int, ...], keep: Any, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    signs = rng.choice(np.array([-0.25, 0.25], np.float32), shape)
    return np.where(rng.random(shape) < keep, signs, np.float32(0))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (mask((256, 300), 0.58), False),
        (mask((256, 300), 0.1), False),
        (mask((128, 64, 3, 3), 0.3), False),
        (mask((256, 300), np.linspace(0.2, 0.4, 256)[:, None]), True),
        (mask((256, 300), np.linspace(0.2, 0.4, 300)), True),
        (mask((128, 64, 3, 3), np.array([0.2, 0.4, 0.2])), True),
        (mask((256, 300), np.arange(256)[:, None] % 8 > 0), True),  # empty rows
    ],
)
def test_structure_decides(values: np.ndarray, expected: bool) -> None:
    assert has_structure(values.view(np.uint32).reshape(-1), values.shape) is expected
    found: Any = TernaryPacker().recognize("w", values, "float32")
    assert isinstance(found, SeededTensor if expected else TernaryTensor)
    assert found.array(0).tobytes() == values.tobytes()


def test_a_mask_with_empty_channels_costs_what_it_did() -> None:
    """The smaller of both forms, which is the seeded one here by far."""
    values = mask((256, 64, 3, 3), 0.2)
    values[np.arange(256) % 5 == 0] = 0
    values[:, np.arange(64) % 7 == 0] = 0
    found: Any = TernaryPacker().recognize("w", values, "float32")
    scale = np.array([0.25], np.float32)
    codes = np.sign(values).astype(np.int8)
    other = TernaryTensor.of_codes("w", codes, scale, dtype="float32")
    sizes = [Ticket(seed=0, tensors=[one]).info().bytes for one in (found, other)]
    assert sizes[0] < 0.93 * sizes[1]


def test_only_some_rows_of_a_large_tensor_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pabzip.packing.ternary_scales._SAMPLE", 1 << 14)
    even, uneven = mask((513, 300), 0.4), mask((513, 300), np.linspace(0.2, 0.6, 300))
    for values, expected in ((even, False), (uneven, True)):
        assert has_structure(values.view(np.uint32).reshape(-1), values.shape) is expected


def gguf_file(path: Path, *, order: int = 1) -> dict[str, Any]:
    gguf = pytest.importorskip("gguf")
    kinds = gguf.GGMLQuantizationType
    rng = np.random.default_rng(2)
    weights = (rng.integers(-1, 2, (6, 512)) * np.float32(0.3)).astype(np.float32)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.name", "tiny")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "ü"])
    written = {
        "tq1": gguf.quants.quantize(weights, kinds.TQ1_0),
        "tq2": gguf.quants.quantize(weights, kinds.TQ2_0),
        "q8": gguf.quants.quantize(weights, kinds.Q8_0),
        "half": weights.astype(np.float16),
        "norm": np.arange(5, dtype=np.float32),
    }
    odd = written["tq2"].copy()
    odd[0, 0] = 0xFF  # bit pairs of 3, which are no code
    written["odd"] = odd
    types = {"tq1": kinds.TQ1_0, "tq2": kinds.TQ2_0, "q8": kinds.Q8_0, "odd": kinds.TQ2_0}
    for name, values in written.items():
        writer.add_tensor(name, values, raw_dtype=types.get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {**written, "weights": weights}


def test_a_gguf_file_comes_back_as_it_was(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from pabzip.cli.app import main

    written = gguf_file(tmp_path / "m.gguf")
    packed, again = str(tmp_path / "m.pabz"), str(tmp_path / "again.gguf")
    result = CliRunner().invoke(main, ["pack", str(tmp_path / "m.gguf"), "--json"])
    assert result.exit_code == 0, result.output
    with pabzip.open(packed) as ticket:
        kinds = {name: ticket.kind(name) for name in ticket.plain_names}
        expected = {name: "dense" for name in written if name != "weights"}
        assert kinds == {**expected, "tq1": "ternary", "tq2": "ternary", "half": "ternary"}
        np.testing.assert_array_equal(ticket.exact("tq1"), written["tq1"])
        size = np.float32(np.float16(0.3))
        for name in ("tq1", "tq2"):
            np.testing.assert_array_equal(ticket.weight(name), np.sign(written["weights"]) * size)
        ticket.verify()
    assert "gguf.header" not in pabzip.load_arrays(packed)
    result = CliRunner().invoke(main, ["unpack", packed, "-o", again])
    assert result.exit_code == 2
    assert "expected --as-stored for a .gguf file" in result.output
    result = CliRunner().invoke(main, ["unpack", packed, "-o", again, "--as-stored"])
    assert result.exit_code == 0, result.output
    assert Path(again).read_bytes() == (tmp_path / "m.gguf").read_bytes()
    assert "not plain weights" not in result.output
    result = CliRunner().invoke(main, ["unpack", packed])
    assert ", 2 of which as bytes of llama.cpp's blocks, not plain weights" in result.output


def test_gguf_files_that_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from pabzip.packing.gguf import HEADER, GgufTensor, gguf_tensors, write_gguf
    from pabzip.packing.sources import Described

    def written(rows: list[GgufTensor]) -> bytes:
        out = io.BytesIO()
        tensors = {one.name: Described(one.dtype, one.values.shape) for one in rows}
        write_gguf(tensors, [one.values for one in rows], out)
        return out.getvalue()

    gguf_file(tmp_path / "m.gguf")
    whole = (tmp_path / "m.gguf").read_bytes()
    for count in (0, 10, 40, len(whole) // 2, len(whole) - 40):
        (tmp_path / "cut.gguf").write_bytes(whole[:count])
        with pytest.raises(CheckpointError, match=r"cut\.gguf: .*expected"):
            gguf_tensors(tmp_path / "cut.gguf")
    # Counts that are not there would keep gguf's own reader busy for ever.
    start, far = b"GGUF" + struct.pack("<IQQ", 3, 0, 1), 2**60
    for declared in (
        struct.pack("<Q", far),
        struct.pack("<Q1sIIQ", 1, b"k", 9, 0, far),
        struct.pack("<Q1sIIQ", 1, b"k", 9, 8, far),
        struct.pack("<Q1sIIQ", 1, b"k", 9, 9, far),
        struct.pack("<Q1sI", 1, b"k", 99),
        struct.pack("<Q1sIIQIQIQIQIQ", 1, b"k", 9, *(9, 1) * 4, 0, 1),
    ):
        (tmp_path / "far.gguf").write_bytes(start + declared + bytes(64))
        with pytest.raises(
            CheckpointError, match=r"far\.gguf: expected a .gguf file, found a fault"
        ):
            gguf_tensors(tmp_path / "far.gguf")
    (tmp_path / "other.gguf").write_bytes(b"\x93NUMPY" + bytes(100))
    with pytest.raises(CheckpointError, match="expected a .gguf file, found a fault"):
        gguf_tensors(tmp_path / "other.gguf")
    rows = gguf_tensors(tmp_path / "m.gguf")
    assert written(rows) == whole
    with pytest.raises(CheckpointError, match=f"of its first tensor {HEADER}; write another"):
        written(rows[1:])
    with pytest.raises(CheckpointError, match="expected tq1 of [0-9]+ bytes, found"):
        written([rows[0], rows[2]])
    with pytest.raises(CheckpointError, match=r"expected all tensors .*found 1 missing"):
        written(rows[:-1])
    # Bytes between tensors that are not 0 would be lost, so such a file is only its tensors.
    marked = bytearray(whole)
    marked[len(whole) - 1] = 1
    (tmp_path / "marked.gguf").write_bytes(marked)
    if len(whole) % 32 == 0 and not whole[-1]:
        assert HEADER not in [one.name for one in gguf_tensors(tmp_path / "marked.gguf")]


def test_a_dense_copy_has_the_same_digest() -> None:
    values = mask((300, 300), 0.3)
    found: Any = TernaryPacker().recognize("w", values, "float32")
    assert isinstance(found, TernaryTensor)
    dense = DenseTensor("w", values, "float32", "float32")
    digests = {Ticket(seed=0, tensors=[one]).sha256() for one in (found, dense)}
    assert len(digests) == 1
    assert replace(found, name="w2").array().tobytes() == values.tobytes()


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(8)
    codes = rng.integers(-1, 2, (48, 1280)).astype(np.int8)
    scales = np.repeat(rng.integers(1, 0x7C00, (48, 10)), 128, axis=1)
    weights = codes.astype(np.float32)
    forms: list[tuple[np.ndarray, str, dict[str, Any]]] = [
        (of_codes(codes, scales, "float16"), "float16", {}),
        (of_codes(codes, scales[:, :1], "bfloat16", signed=codes[::-1] < 0), "bfloat16", {}),
        (codes, "int8", {}),
        (planar(codes.copy()).numpy(), "uint8", {"siblings": {"w_scale": ("bfloat16", (1,))}}),
    ]
    for name in ("TQ1_0", "TQ2_0"):
        blocks = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[name])
        forms.append((blocks, "uint8", {"layout": name.lower()}))
    monkeypatch.setattr("pabzip.seeds.generation._GRAIN", 700)
    for values, dtype, options in forms:
        one, many = (
            TernaryPacker(threads=threads).recognize("w", values, dtype, **options)
            for threads in (1, 9)
        )
        assert isinstance(one, TernaryTensor)
        assert isinstance(many, TernaryTensor)
        assert one.packed.tobytes() == many.packed.tobytes()
        assert many.array(threads=9).tobytes() == values.tobytes()


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.58])
@pytest.mark.parametrize(("rows", "over"), [(300, 0.06), (3000, 0.01), (12000, 0.005)])
def test_codes_cost_their_entropy(keep: float, rows: int, over: float) -> None:
    codes = np.sign(mask((rows, 256), keep)).astype(np.int8)
    found: Any = TernaryPacker().recognize("w", codes, "int8")
    survivors = np.count_nonzero(codes)
    share = survivors / codes.size
    bits = -codes.size * (share * np.log2(share / 2) + (1 - share) * np.log2(1 - share))
    assert Ticket(seed=0, tensors=[found]).info().codes_bytes <= (1 + over) * bits / 8


@pytest.mark.parametrize("how", ["divide", "multiply"])
def test_plain_weights_compute_what_the_layer_does(how: str) -> None:
    """BitLinear divides its outputs by the scale, AutoBitLinear multiplies them by it."""
    bitnet = pytest.importorskip("transformers.integrations.bitnet")
    codes = np.random.default_rng(0).integers(-1, 2, (64, 128)).astype(np.int8)
    state = {"l.weight": planar(codes.copy()), "l.weight_scale": torch.tensor([1.7])}
    file = io.BytesIO()
    pabzip.pack(state, file, ternary=True, bitnet_scale=how)
    kind = bitnet.BitLinear if how == "divide" else bitnet.AutoBitLinear
    net = torch.nn.Module()
    net.l = kind(128, 64, False, dtype=torch.float32)
    if how == "divide":
        pabzip.load_into(net, file.getvalue(), as_stored=True)
    else:  # it holds its weights unpacked
        net.l.weight.data = torch.from_numpy(codes).float()
        net.l.weight_scale.copy_(state["l.weight_scale"])
    inputs = torch.randn(5, 128, generator=torch.Generator().manual_seed(0))
    plain = pabzip.load_file(file.getvalue())["l.weight"]
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        expected = net.l(inputs)
        found = torch.nn.functional.linear(bitnet.ActQuant.apply(inputs), plain)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

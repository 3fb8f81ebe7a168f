"""Ternary tensors in a file: every layout and scaling, bit for bit; and what a reader refuses."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pabzip
from pabzip.errors import ArchitectureError, FormatError, LimitError, PackError
from pabzip.formats import DENSE_TYPES, DeltaTensor, TernaryTensor, TiedTensor
from pabzip.formats.delta_changes import Change
from pabzip.formats.ternary_layouts import FLOATS, LAYOUTS
from pabzip.formats.trits import pack_floats
from pabzip.ticket import DenseTensor, Ticket

LOWEST = {"float32": 1, "float16": 1, "bfloat16": 1}
INFINITE = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}


def zeros_kept(tensor: TernaryTensor, symbols: np.ndarray) -> TernaryTensor:
    """The tensor with four symbols a byte, 3 among them."""
    packed = np.zeros(-(-symbols.size // 4), np.uint8)
    for place, symbol in enumerate(symbols.reshape(-1).tolist()):
        packed[place // 4] |= symbol << 2 * (place % 4)
    return replace(tensor, packed=packed, per_byte=4)


@st.composite
def ternary_tensors(draw: st.DrawFn) -> TernaryTensor:
    layout = draw(st.sampled_from(sorted(LAYOUTS)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.lists(st.integers(1, 13), min_size=1, max_size=3))
    shape[-1] *= {"tq1_0": 54, "tq2_0": 66}.get(layout, 1)
    dtype = draw(st.sampled_from([*FLOATS, "int8"])) if layout == "plain" else "uint8"
    size = {"tq1_0": 54, "tq2_0": 66}.get(layout)
    logical = [*shape[:-1], shape[-1] // size * 256] if size else shape
    if layout == "bitnet":
        logical = [4 * shape[0], *shape[1:]]
    codes = rng.integers(-1, 2, logical).astype(np.int8)
    base = TernaryTensor.of_codes("w", codes)
    if layout == "bitnet":
        scaling = draw(st.sampled_from(["none", "divide", "multiply"]))
        return replace(base, shape=tuple(shape), dtype=dtype, layout=layout, scaling=scaling)
    if dtype == "int8":
        return base
    of = "float16" if layout != "plain" else dtype
    kind = DENSE_TYPES[of].numpy
    columns = layout == "plain" and draw(st.booleans())
    count = codes.size
    runs = [n for n in range(1, count + 1) if count % n == 0]
    run = 256 if layout != "plain" else 0 if columns else draw(st.sampled_from(runs))
    number = shape[-1] if columns else count // run
    bits = rng.integers(LOWEST[of], INFINITE[of], number).astype(f"<u{kind.itemsize}")
    if layout != "plain":
        bits[rng.random(number) < 0.2] = 0
    scaled = replace(
        base,
        shape=tuple(shape),
        dtype=dtype,
        layout=layout,
        scales=bits.view(kind),
        scaling="columns" if columns else "runs",
        run=run,
    )
    if layout == "plain" and draw(st.booleans()):
        return zeros_kept(scaled, rng.integers(0, 4, codes.shape))
    return scaled


def saved(*tensors: Any) -> bytes:
    file = io.BytesIO()
    Ticket(seed=0, tensors=tensors).save(file)
    return file.getvalue()


@given(tensor=ternary_tensors(), threads=st.sampled_from([1, 3]))
@settings(deadline=None, max_examples=150)
def test_a_second_reader_reads_the_same(
    plain_ternary: Any, tensor: TernaryTensor, threads: int
) -> None:
    file = saved(tensor)
    assert file[8] == 3
    with pabzip.open(file) as ticket:
        ticket.verify(threads=threads)
        found: Any = ticket.tensor("w")
        row = found.entry({}).to_row(None)
        scales = b"" if found.scales is None else found.scales.tobytes()
        expected = plain_ternary.decode(row, found.packed.tobytes(), scales)
        exact = ticket.exact("w", threads=threads)
        assert exact.tobytes() == expected
        assert ticket.exact("w", backend="numpy").tobytes() == expected
        assert exact.shape == tensor.shape == ticket.shape("w")
        assert ticket.dtype("w") == tensor.dtype
        codes = [
            {1: 1, 2: -1}.get(one, 0)
            for one in plain_ternary.symbols_of(row, found.packed.tobytes())
        ]
        assert ticket.codes("w").reshape(-1).tolist() == codes
        info = ticket.info()
        assert (info.weights, info.survivors) == (len(codes), np.count_nonzero(codes))
        assert sum(sum(v for k, v in one.items() if k != "name") for one in ticket.breakdown()) == (
            len(file)
        )
        again = io.BytesIO()
        ticket.save(again)
    assert again.getvalue() == file
    # The digest is that of the dense tensor of the same bits.
    dense = DenseTensor("w", exact, tensor.dtype, tensor.dtype)
    if np.isfinite(exact.astype(np.float64)).all() or tensor.dtype == "bfloat16":
        assert Ticket(seed=0, tensors=[dense]).sha256() == info.sha256


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("per_byte", [4, 5])
def test_weights_pack_as_their_codes_do(dtype: str, per_byte: int) -> None:
    """Over more than one piece of the kernels, with a rest."""
    rng = np.random.default_rng(3)
    symbols = rng.integers(0, 4 if per_byte == 4 else 3, 30001).astype(np.uint8)
    kind = DENSE_TYPES[dtype].numpy
    scale = np.full(1, 0x3C12, f"<u{kind.itemsize}").view(kind)
    codes = np.where(symbols == 1, 1, np.where(symbols == 2, -1, 0)).astype(np.int8)
    tensor = TernaryTensor.of_codes("w", codes, scale, dtype=dtype)
    if per_byte == 4:
        tensor = zeros_kept(tensor, symbols)
    bits = tensor.array().view(f"<u{kind.itemsize}")
    packed = np.empty_like(tensor.packed)
    pack_floats(bits, 1 << (8 * kind.itemsize - 1), 1, per_byte, packed)
    assert packed.tobytes() == tensor.packed.tobytes()
    dropped = np.empty(-(-symbols.size // 5), np.uint8)
    pack_floats(bits, 1 << (8 * kind.itemsize - 1), 0, 5, dropped)
    assert dropped.tobytes() == TernaryTensor.of_codes("w", codes).packed.tobytes()


def test_plain_numpy_needs_no_compiled_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    codes = rng.integers(-1, 2, (60, 256)).astype(np.int8)
    base = rng.standard_normal((60, 256), np.float32)
    floats = TernaryTensor.of_codes("f", codes, rng.random(60, np.float32) + 1, dtype="float32")
    symbols = rng.integers(0, 4, codes.shape)
    steps = DeltaTensor(
        "d", codes.shape, "float32", Change("steps", False, "float32", False, "trits"),
        TernaryTensor.of_codes("d", codes).packed, np.array(0.5, np.float32), lambda: base,
    )  # fmt: skip
    held = [floats, replace(zeros_kept(floats, symbols), name="z"), *bitnet("multiply"), steps]
    ticket = Ticket(seed=0, tensors=held)
    expected = ticket.sha256()
    plain = ticket.weight("l.weight")

    def unpack(*_arguments: Any) -> None:
        raise AssertionError("a compiled loop")

    for name in ("floats", "codes", "planes", "blocks", "symbols"):
        monkeypatch.setattr(f"pabzip.formats.trits.unpack_{name}", unpack)
    assert ticket.sha256(backend="numpy") == expected
    np.testing.assert_array_equal(ticket.weight("l.weight", backend="numpy"), plain)
    with pytest.raises(AssertionError, match="a compiled loop"):
        ticket.sha256()


def test_ranges_and_threads_cut_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    codes = rng.integers(-1, 2, (64, 5 * 256)).astype(np.int8)
    plain = TernaryTensor.of_codes("w", codes, rng.random(64 * 5, np.float32) + 1, dtype="float32")
    others = [
        TernaryTensor.of_codes("w", codes, rng.random(1280, np.float32) + 1, dtype="float32"),
        replace(TernaryTensor.of_codes("w", codes), shape=(16, 1280), dtype="uint8",
                layout="bitnet"),
        replace(plain, shape=(64, 5 * 54), dtype="uint8", layout="tq1_0",
                scales=plain.scales.astype("<f2"), run=256),  # type: ignore[union-attr]
        replace(plain, shape=(64, 5 * 66), dtype="uint8", layout="tq2_0",
                scales=plain.scales.astype("<f2"), run=256),  # type: ignore[union-attr]
    ]  # fmt: skip
    whole = [one.array(threads=1).tobytes() for one in (plain, *others)]
    monkeypatch.setattr("pabzip.seeds.generation._GRAIN", 1000)
    monkeypatch.setattr("pabzip.formats.ternary._RANGE", 1000)
    for one, expected in zip((plain, *others), whole, strict=True):
        assert one.array(threads=7).tobytes() == expected
        assert one.array(backend="numpy", threads=7).tobytes() == expected
        assert b"".join(part.tobytes() for part in one.elements(0)) == expected
        np.testing.assert_array_equal(one.codes(threads=5), codes)


def bitnet(scaling: str = "none", scale: float = 1.75, dtype: str = "bfloat16") -> list[Any]:
    codes = np.array([[1, -1], [0, 0], [0, 1], [-1, -1]], np.int8)
    packed = replace(
        TernaryTensor.of_codes("l.weight", codes),
        shape=(1, 2), dtype="uint8", layout="bitnet", scaling=scaling,
    )  # fmt: skip
    wide = np.array([scale], np.float32)
    values = (wide.view(np.uint32) >> 16).astype("<u2") if dtype == "bfloat16" else wide
    return [packed, DenseTensor("l.weight_scale", values.astype(DENSE_TYPES[dtype].numpy), dtype,
                                dtype)]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("scaling", "size"), [("divide", 1 / 1.75), ("multiply", 1.75)])
def test_transformers_layout_as_plain_weights(scaling: str, size: float, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    file = saved(*bitnet(scaling, dtype=dtype))
    expected = np.array([[1, -1], [0, 0], [0, 1], [-1, -1]]) * size + 0.0
    state = pabzip.load_file(file)
    assert list(state) == ["l.weight"]
    assert state["l.weight"].dtype == getattr(torch, dtype)
    rounded = torch.from_numpy(expected).to(state["l.weight"].dtype)
    assert torch.equal(state["l.weight"], rounded)
    assert not torch.signbit(state["l.weight"][1]).any()
    arrays = pabzip.load_arrays(file)
    np.testing.assert_array_equal(arrays["l.weight"], state["l.weight"].to(torch.float32).numpy())
    stored = pabzip.load_file(file, as_stored=True)
    assert stored["l.weight"].dtype == torch.uint8
    # Value + 1 in bit pair i of the rows i * out/4 onwards.
    assert stored["l.weight"].tolist() == [[2 | 1 << 2 | 1 << 4, 0 | 1 << 2 | 2 << 4]]
    assert "l.weight_scale" in stored
    net = torch.nn.Module()
    net.l = torch.nn.Linear(2, 4, bias=False)
    pabzip.load_into(net, file)
    assert torch.equal(net.l.weight, state["l.weight"].to(torch.float32))


def test_the_path_to_a_gpu_makes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    from pabzip.runtime import cuda_state

    monkeypatch.setattr(cuda_state.cuda, "kernel_device", torch.device)
    codes = np.random.default_rng(2).integers(-1, 2, (8, 6)).astype(np.int8)
    scales = np.arange(1, 9, dtype=np.float16)
    tensors = [TernaryTensor.of_codes("h", codes, scales, dtype="float16"), *bitnet("divide")]
    with pabzip.open(saved(*tensors)) as ticket:
        for as_stored in (False, True):
            names = ticket.names if as_stored else ticket.plain_names
            options = {"device": "cpu", "as_stored": as_stored}
            sent = cuda_state.read_tensors(ticket, names, **options)
            expected = pabzip.load_file(saved(*tensors), as_stored=as_stored)
            assert list(sent) == list(expected)
            assert all(torch.equal(sent[name], expected[name]) for name in names)
            assert all(sent[name].dtype == expected[name].dtype for name in names)


def test_what_a_scale_means_is_never_guessed() -> None:
    file = saved(*bitnet())
    with pytest.raises(ArchitectureError, match="to know whether its codes are divided or multi"):
        pabzip.load_arrays(file)
    found = pabzip.load_arrays(file, bitnet_scale="multiply")
    assert found["l.weight"][0, 0] == 1.75
    with pabzip.open(file) as ticket:
        assert ticket.exact("l.weight").dtype == np.uint8
        assert ticket.plain_shape("l.weight") == (4, 2)
        ticket.verify()
    alone = saved(bitnet("divide")[0])
    with pytest.raises(ArchitectureError, match=r"expected one floating value in l\.weight_sc"):
        pabzip.load_arrays(alone)
    with pytest.raises(ArchitectureError, match=r"a weight that bfloat16 holds.*of 0\.0; take the"):
        pabzip.load_arrays(saved(*bitnet("divide", scale=0.0)))


@pytest.mark.parametrize("layout", ["tq1_0", "tq2_0"])
def test_blocks_are_those_of_gguf(layout: str) -> None:
    quants = pytest.importorskip("gguf.quants")
    from gguf import GGMLQuantizationType

    rng = np.random.default_rng(1)
    weights = (rng.integers(-1, 2, (3, 512)) * 0.3).astype(np.float32)
    weights[1, :256] = 0
    kind = GGMLQuantizationType[layout.upper()]
    blocks = quants.quantize(weights, kind)
    codes = np.sign(weights).astype(np.int8)
    scales = np.float16(0.3) * np.array([1, 1, 0, 1, 1, 1], np.float16)
    tensor = replace(
        TernaryTensor.of_codes("w", codes), shape=blocks.shape, dtype="uint8",
        layout=layout, scaling="runs", run=256, scales=scales,
    )  # fmt: skip
    file = saved(tensor)
    with pabzip.open(file) as ticket:
        np.testing.assert_array_equal(ticket.exact("w"), blocks)
        plain = ticket.weight("w")
    assert plain.dtype == np.float16
    np.testing.assert_array_equal(plain.astype(np.float32), quants.dequantize(blocks, kind))


def test_a_tied_and_a_scaled_tensor_load_everywhere() -> None:
    codes = np.array([[1, 0, -1], [0, -1, -1]], np.int8)
    tensor = TernaryTensor.of_codes("a", codes, np.array([0.5], np.float32), dtype="float32")
    file = saved(tensor, TiedTensor("b", "a"), *bitnet("divide"), TiedTensor("c", "l.weight"))
    with pabzip.open(file) as ticket:
        assert (ticket.kind("b"), ticket.tied("b")) == ("ternary", "a")
        assert ticket.plain_names == ("a", "b", "l.weight", "c")
        np.testing.assert_array_equal(ticket.weight("b"), codes * 0.5)
        np.testing.assert_array_equal(ticket.weight("c"), ticket.weight("l.weight"))
        with pytest.raises(KeyError, match="a: expected a seeded tensor, found a ternary one"):
            ticket.spec("a")


SHAPE, DTYPE, DETAIL = 1, 2, 4


def parts_of(take_apart: Callable[[bytes], Any], **changes: Any) -> Any:
    """A file of one tensor of 2 x 4 weights, uncompressed: 2 bytes of codes, 2 float32 scales."""
    codes = np.array([[1, 0, -1, 1], [0, 0, -1, -1]], np.int8)
    scales = np.array([0.5, 0.25], np.float32)
    tensor = TernaryTensor.of_codes("w", codes, scales, dtype="float32")
    parts = take_apart(saved(replace(tensor, **changes)))
    packed = replace(tensor, **changes).packed.tobytes()
    planes = np.frombuffer(scales.tobytes(), np.uint8).reshape(2, 4).T.tobytes()
    parts.payloads = [packed + planes]
    parts.fields["dense"] = [[2, "raw", len(packed + planes)]]
    return parts


def refuse(parts: Any, message: str, error: type[Exception] = FormatError) -> None:
    with pytest.raises(error, match=message), Ticket.open(parts.sign()) as ticket:
        ticket.verify()


def test_the_crafted_file_itself_is_good(take_apart: Callable[[bytes], Any]) -> None:
    with Ticket.open(parts_of(take_apart).sign()) as ticket:
        ticket.verify()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, 243, "tensor 'w': expected bytes of five trits, below 243, found 1 not"),
        (0, 255, "expected bytes of five trits, below 243, found 1 not"),
        (1, 2 + 3 * 2 + 27 * 1, "expected zeros after the last weight's code, found others"),
        (0, 1, "expected 5 codes that are not 0, found 3"),
        (9, 0xFF, "expected finite values, found 1"),
        (8, 0xBF, "expected finite scales above 0, found 1 of 2 that are not"),
    ],
)
def test_fault_12_hostile_values(
    take_apart: Callable[[bytes], Any], place: int, value: int, message: str
) -> None:
    parts = parts_of(take_apart)
    payload = bytearray(parts.payloads[0])
    if place == 9:  # both upper bytes of one scale
        payload[8], payload[6] = 0x7F, 0x80
    else:
        payload[place] = value
    parts.payloads = [bytes(payload)]
    refuse(parts, message)


def test_fault_14_a_scale_of_zero(take_apart: Callable[[bytes], Any]) -> None:
    parts = parts_of(take_apart)
    parts.payloads = [parts.payloads[0][:2] + bytes(8)]
    refuse(parts, "expected finite scales above 0, found 2 of 2 that are not")


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (SHAPE, [], "expected 1 to 32 dimensions, found 0"),
        (SHAPE, [2, 0], "expected the size of a dimension from 1"),
        (SHAPE, [2**30, 2**30], "expected at most 9007199254740991 elements, found more"),
        (SHAPE, [2, 5], "expected the dense sections|expected 10 raw bytes|of 10 weights divide"),
        (DTYPE, "float64", "expected a known dtype of layout plain"),
        (DTYPE, "int8", r"expected a known scaling of int8 \(none\), found 'runs'"),
        (DTYPE, ["float32"], "expected a known dtype of layout plain"),
        (DETAIL, ["plane", 5, 5, "runs", 4], "expected a known layout .*found 'plane'; if"),
        (DETAIL, [["plain"], 5, 5, "runs", 4], "expected a known layout"),
        (DETAIL, ["plain", 3, 5, "runs", 4], "expected the codes a byte from 4 to 5, found 3"),
        (DETAIL, ["plain", 5, 9, "runs", 4], "expected the number of survivors from 0 to 8"),
        (DETAIL, ["plain", 5, True, "runs", 4], "expected the number of survivors from 0 to 8"),
        (DETAIL, ["plain", 5, 5, "runs", 3], "of 8 weights divide into, found runs of 3"),
        (DETAIL, ["plain", 5, 5, "runs", 0], "expected the weights of a run from 1 to 8, found 0"),
        (DETAIL, ["plain", 5, 5, "runs"], "expected layout, codes a byte, survivors, scaling, and"),
        (DETAIL, ["plain", 5, 5, "columns", 4], "expected layout, codes a byte, survivors, scal"),
        (DETAIL, ["plain", 5, 5, "divide"], "expected a known scaling of float32 "),
        (DETAIL, ["plain", 5, 5, "columns"], "expected 18 raw bytes, found 10"),
        (DETAIL, "plain", "expected layout, codes a byte, survivors, scaling, and"),
        (0, "running_var", "expected variances of at least 0, found a ternary tensor"),
        (3, "quaternary", "expected a row of 2, 3, 4, 5, 8 or 9 values, found a list of 5"),
    ],
)
def test_fault_9_hostile_rows(
    take_apart: Callable[[bytes], Any], at: int, value: Any, message: str
) -> None:
    parts = parts_of(take_apart)
    parts.fields["tensors"][0][at] = value
    refuse(parts, message)


@pytest.mark.parametrize(
    ("shape", "detail", "message"),
    [
        ([2, 100], ["tq1_0", 5, 0, "runs", 256], "expected rows of whole blocks of 54 bytes, fou"),
        ([2, 66], ["tq2_0", 5, 0, "runs", 128], "divide into, found runs of 128"),
        ([2, 66], ["tq2_0", 4, 0, "runs", 256], "expected the codes a byte from 5 to 5, found 4"),
        ([2, 66], ["bitnet", 5, 0, "runs", 4], "expected a known scaling of uint8 "),
        ([2**51, 2], ["bitnet", 5, 0, "none"], "expected the number of weights from 1 to"),
    ],
)
def test_fault_9_hostile_layouts(
    take_apart: Callable[[bytes], Any], shape: list[int], detail: list[Any], message: str
) -> None:
    parts = parts_of(take_apart)
    parts.fields["tensors"][0][1:] = [shape, "uint8", "ternary", detail]
    refuse(parts, message)


def test_fault_10_many_weights_in_a_small_file(take_apart: Callable[[bytes], Any]) -> None:
    parts = parts_of(take_apart)
    parts.fields["tensors"][0][1:] = [[2**40], "int8", "ternary", ["plain", 5, 0, "none"]]
    parts.fields["dense"] = [[1, "deflate", 2**32]]
    refuse(parts, "file: expected 4294967[0-9]* bytes, found it cut at")
    with pytest.raises(LimitError, match="of tensors .max_bytes., found 1099511627776 declared"):
        Ticket.open(parts.sign(), max_bytes=2**30)


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_version_is_refused(take_apart: Callable[[bytes], Any], version: int) -> None:
    parts = parts_of(take_apart)
    parts.version = version
    refuse(parts, f"expected format version 3 for what the header holds, found {version}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packed": np.array([250, 0], np.uint8)}, "expected bytes of five trits, below 243"),
        ({"packed": np.zeros(3, np.uint8)}, r"expected 2 packed codes, found \[3\]"),
        ({"packed": np.zeros(2, np.int8)}, "expected a numpy array of uint8, found int8"),
        ({"scales": np.ones(3, np.float32)}, r"expected 2 scales, found \[3\]"),
        ({"scales": -np.ones(2, np.float32)}, "expected finite scales above 0, found 2 of 2"),
        ({"scales": np.array([1, np.nan], np.float32)}, "expected finite scales above 0, found 1"),
        ({"scales": None}, "expected 1 arrays of scales, found none"),
        ({"layout": "tq3_0"}, "expected a known layout"),
        ({"name": "bn.running_var"}, "expected variances of at least 0, found a ternary tensor"),
    ],
)
def test_a_bad_tensor_is_never_written(changes: dict[str, Any], message: str) -> None:
    codes = np.array([[1, 0, -1, 1], [0, 0, -1, -1]], np.int8)
    tensor = TernaryTensor.of_codes("w", codes, np.ones(2, np.float32), dtype="float32")
    with pytest.raises(PackError, match=message):
        saved(replace(tensor, **changes))
    with pytest.raises(FormatError, match="expected codes 0, [+]1 and -1, found 8 others"):
        TernaryTensor.of_codes("w", np.full((2, 4), 2, np.int8))


def test_fault_5_every_bit_that_flips_is_seen() -> None:
    codes = np.array([[1, 0, -1, 1], [0, 0, -1, -1]], np.int8)
    tensor = TernaryTensor.of_codes("w", codes, np.ones(2, np.float32), dtype="float32")
    file = bytearray(saved(tensor, *bitnet("divide")))
    for place in range(8 * len(file)):
        file[place // 8] ^= 1 << place % 8
        with pytest.raises(FormatError), Ticket.open(bytes(file)) as ticket:
            ticket.verify()
        file[place // 8] ^= 1 << place % 8

"""Masks that the seed freezes in part: files hold the codes of the learned places alone."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pabzip.errors import FormatError, PackError
from pabzip.formats import Reader, open_source
from pabzip.seeds import DISTRIBUTIONS, Frozen, InitSpec
from pabzip.seeds.frozen import KEPT, PRUNED, SPLITS, WHOLE
from pabzip.seeds.philox import words
from pabzip.ticket import DenseTensor, SeededTensor, Ticket, TiedTensor

SEED = 2**63 + 29
CODERS = ("huffman", "context", "auto")
FROZEN = 8  # the place of the list in a row


def masked(
    stream: int,
    shape: tuple[int, ...],
    keep: float,
    *,
    ratio: float = 0.7,
    split: str = "proportional",
    flips: float = 0.0,
    distribution: str = "normal",
    frozen: Frozen | None = None,
) -> SeededTensor:
    """A tensor whose learned places are those of the largest random scores; a free one at 0."""
    rng = np.random.default_rng([stream, round(1000 * keep), *shape])
    count = int(np.prod(shape))
    if frozen is None:
        frozen = Frozen.for_keep_ratio(ratio, keep, split)
    if frozen == Frozen(0, 0):
        marks = np.zeros(count, np.int8)
    else:
        marks = frozen.marks(SEED, stream, 0, count)
    scores = np.where(marks == 0, rng.random(count), -1.0)
    wanted = count - int((1.0 - keep) * count) - int((marks == KEPT).sum())
    codes = np.zeros(count, np.int8)
    codes[np.argsort(-scores, kind="stable")[: max(wanted, 0)]] = 1
    codes *= np.where(rng.random(count) < flips, -1, 1).astype(np.int8)
    codes[marks == KEPT], codes[marks == PRUNED] = 1, 0
    held = None if frozen == Frozen(0, 0) else frozen
    spec = InitSpec(distribution, 0.125, stream)
    return SeededTensor(f"w{stream}", spec, codes.reshape(shape), frozen=held)


def small() -> Ticket:
    return Ticket(
        seed=SEED,
        tensors=[
            masked(0, (9, 7), 0.4, flips=0.3),
            DenseTensor("bias", np.arange(3, dtype=np.float32), "float32", "float32"),
            masked(1, (5, 4, 3, 3), 0.5, split="even"),
            TiedTensor("tied", "w1"),
            masked(2, (6, 6), 0.3, ratio=0.0),
            masked(3, (4, 4), 0.5, ratio=1.0),
        ],
        metadata={"method": "edge-popup"},
    )


@pytest.fixture(scope="module", params=["huffman", "context"])
def frozen_file(request: pytest.FixtureRequest, save: Callable[..., bytes]) -> bytes:
    return save(small(), coder=request.param)


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    """The decoder of the ``context`` coder that was written from SPEC.md."""
    path = Path(__file__).parent / "context" / "plain_decoder.py"
    described = importlib.util.spec_from_file_location("pabzip_plain_frozen", path)
    assert described is not None
    assert described.loader is not None
    module = importlib.util.module_from_spec(described)
    sys.modules[described.name] = module
    described.loader.exec_module(module)
    return module


def plain_marks(seed: int, stream: int, count: int, row: list[int]) -> list[int | None]:
    """Return the codes of frozen places, None of a learned one, as SPEC.md says it."""
    found: list[int | None] = []
    for word in words(seed, stream ^ 2**28, 0, count).tolist():
        part = (2 * (word % 2**31) + 1) // 2**16
        found.append(0 if part < row[0] else 1 if part < row[0] + row[1] else None)
    assert [found.count(0), found.count(1)] == row[2:]
    return found


# What is written comes back


@pytest.mark.parametrize("coder", CODERS)
def test_a_ticket_answers_from_a_file_as_in_memory(coder: str, save: Callable[..., bytes]) -> None:
    ticket = small()
    with Ticket.open(save(ticket, coder=coder)) as loaded:
        assert loaded.verify() == loaded.verify(backend="numpy") == ticket.sha256()
        arrays = loaded.arrays(threads=2)
        for name in ticket.names:
            np.testing.assert_array_equal(arrays[name], ticket.weight(name, backend="numpy"))
        for name in ("w0", "w1", "tied", "w2", "w3"):
            np.testing.assert_array_equal(loaded.codes(name), ticket.codes(name))
            assert loaded.mask(name) == ticket.mask(name)
            assert loaded.signs(name) == ticket.signs(name)
            assert loaded.bitstream(name) == ticket.bitstream(name)
            assert loaded.frozen(name) == ticket.frozen(name)
            np.testing.assert_array_equal(loaded.weight(name), loaded.exact(name, backend="numpy"))
        assert loaded.frozen("w0") is not None
        assert loaded.frozen("w2") is None
        with pytest.raises(KeyError, match="expected a seeded tensor"):
            loaded.frozen("bias")
        again = io.BytesIO()
        loaded.save(again, coder=coder)
    assert again.getvalue() == save(ticket, coder=coder)


@pytest.mark.parametrize("coder", CODERS)
def test_sizes_add_up_and_count_the_frozen(coder: str, save: Callable[..., bytes]) -> None:
    ticket, file = small(), save(small(), coder=coder)
    loaded = Ticket.open(file)
    info, parts = loaded.info(), loaded.breakdown()
    assert info["bytes"] == len(file)
    assert sum(value for row in parts for key, value in row.items() if key != "name") == len(file)
    rows = {row["name"]: row for row in info["tensors"]}
    assert "frozen" not in rows["w2"]
    for name in ("w0", "w1", "w3"):
        frozen, codes = ticket.frozen(name), ticket.codes(name)
        assert frozen is not None
        marks = frozen.marks(SEED, ticket.spec(name).stream, 0, codes.size)
        assert rows[name]["frozen"] == np.count_nonzero(marks)
        assert rows[name]["survivors"] == np.count_nonzero(codes)
        learned = codes.reshape(-1)[marks == 0]
        if rows[name]["coder"] == "huffman":
            assert rows[name]["bytes"] == -(-(learned.size + np.count_nonzero(learned)) // 8)


fractions = st.integers(0, WHOLE).flatmap(
    lambda pruned: st.tuples(st.just(pruned), st.integers(0, WHOLE - pruned))
)
shapes = st.sampled_from([(1,), (17,), (6, 5), (1, 40), (8, 3, 3, 3), (8, 4, 3), (24, 18), (2, 32)])


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_frozen_mask_comes_back(
    data: Any, save: Callable[..., bytes], take_apart: Callable[[bytes], Any], plain: ModuleType
) -> None:
    tensors = [
        masked(
            stream,
            data.draw(shapes),
            data.draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])),
            frozen=Frozen(*data.draw(fractions)),
            flips=data.draw(st.sampled_from([0.0, 0.05, 0.5, 1.0])),
            distribution=data.draw(st.sampled_from(DISTRIBUTIONS)),
        )
        for stream in range(data.draw(st.integers(1, 3)))
    ]
    ticket = Ticket(seed=SEED, tensors=tensors)
    for coder in ("huffman", "context"):
        file = save(ticket, coder=coder)
        with Ticket.open(file) as loaded:
            for name in ticket.names:
                np.testing.assert_array_equal(loaded.codes(name), ticket.codes(name))
    parts = take_apart(file)
    rows = parts.fields["tensors"]
    kept = [row[FROZEN][3] if len(row) == 9 else 0 for row in rows]
    side = parts.payloads[0] if parts.fields.get("side") else b""
    payloads = parts.payloads[bool(parts.fields.get("side")) :]
    told = plain.read_side(
        side, [(tuple(row[1]), row[6] - ours) for row, ours in zip(rows, kept, strict=True)]
    )
    for one, row, payload, tensor in zip(told, rows, payloads, tensors, strict=True):
        count = tensor.codes.size
        marks = plain_marks(SEED, row[4], count, row[FROZEN]) if len(row) == 9 else None
        found = plain.decode(one, payload, SEED, tensor.spec, marks)
        assert tensor.codes.reshape(-1).tolist() == found


def test_a_mask_in_several_chunks_that_follows_magnitudes_comes_back(
    save: Callable[..., bytes],
) -> None:
    """The learned part is predicted from the magnitudes of its own places."""
    from pabzip.seeds import magnitudes

    frozen, shape = Frozen.of(0.5, 0.2), (400, 500)
    marks = frozen.marks(SEED, 0, 0, 200_000)
    spec = InitSpec("normal", 0.125, 0)
    drawn = magnitudes(SEED, spec, 0, 200_000)
    codes = (drawn > np.quantile(drawn, 0.8)).astype(np.int8)
    codes[marks == KEPT], codes[marks == PRUNED] = 1, 0
    file = save(
        Ticket(seed=SEED, tensors=[SeededTensor("w", spec, codes.reshape(shape), frozen=frozen)]),
        coder="context",
    )
    assert len(file) < 400  # a threshold, and no bit of the frozen places
    np.testing.assert_array_equal(Ticket.open(file).codes("w").reshape(-1), codes)


# How small


@pytest.mark.parametrize("keep", [0.05, 0.1, 0.3, 0.5, 0.8])
def test_a_mask_frozen_by_seven_tenths_takes_at_most_035_of_the_free_one(
    keep: float, save: Callable[..., bytes]
) -> None:
    """A network of 283,600 weights with random scores."""

    def codes_bytes(ratio: float, coder: str, split: str = "proportional") -> int:
        layers = [(300, 784), (100, 300), (64, 32, 3, 3)]
        tensors = [
            masked(stream, shape, keep, ratio=ratio, split=split)
            for stream, shape in enumerate(layers)
        ]
        ticket = Ticket(seed=SEED, tensors=tensors)
        survivors = sum(int(np.count_nonzero(tensor.codes)) for tensor in tensors)
        count = sum(tensor.codes.size for tensor in tensors)
        assert abs(survivors - keep * count) <= 3
        return int(Ticket.open(save(ticket, coder=coder)).info()["codes_bytes"])

    for coder in ("huffman", "auto"):
        assert codes_bytes(0.7, coder) <= 0.31 * codes_bytes(0.0, coder)
    if keep in (0.3, 0.5):  # by the split of the published code, too, where masks are near half
        assert codes_bytes(0.7, "auto", SPLITS[1]) <= 0.345 * codes_bytes(0.0, "auto")


# Versions


def test_only_files_with_a_frozen_mask_are_of_version_2(
    frozen_file: bytes, small_file: bytes, take_apart: Callable[[bytes], Any]
) -> None:
    assert take_apart(small_file).version == 1
    parts = take_apart(frozen_file)
    assert parts.version == 2
    parts.version = 1
    with pytest.raises(FormatError, match="expected format version 2 for what .*, found 1"):
        Ticket.open(parts.sign())
    parts = take_apart(small_file)
    parts.version = 2
    with pytest.raises(FormatError, match="expected format version 1 for what .*, found 2"):
        Ticket.open(parts.sign())


# Rules


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([], "expected two fractions and two counts of frozen places, found"),
        ([1, 2, 3], "expected two fractions and two counts"),
        ([1, 2, 3, 4, 5], "expected two fractions and two counts"),
        ([-1, 5, 0, 0], "frozen: pruned: expected an integer from 0 to 65536, found -1"),
        ([0, 65537, 0, 0], "frozen: kept: expected an integer from 0 to 65536, found 65537"),
        ([1.5, 5, 0, 0], "frozen: pruned: expected an integer"),
        ([True, 5, 0, 0], "frozen: pruned: expected an integer"),
        ([None, 5, 0, 0], "frozen: pruned: expected an integer"),
        ([40000, 40000, 0, 0], "at most 65536 together, found 40000 and 40000"),
        ([0, 0, 0, 0], "expected a fraction of frozen places above 0, found 0 and 0"),
        ([1, 1, -1, 0], "expected the number of frozen pruned places from 0 to"),
        ([1, 1, 64, 0], "expected the number of frozen pruned places from 0 to"),
        ([1, 1, 0, 2**53], "expected the number of frozen kept places from 0 to"),
        ([1, 1, 0, 1.0], "expected the number of frozen kept places from 0 to"),
        ([1, 1, [], 0], "expected the number of frozen pruned places from 0 to"),
    ],
)
def test_hostile_lists_are_refused(
    change: list[Any], message: str, frozen_file: bytes, take_apart: Callable[[bytes], Any]
) -> None:
    parts = take_apart(frozen_file)
    parts.fields["tensors"][0][FROZEN] = change
    with pytest.raises(FormatError, match=message):
        Ticket.open(parts.sign())


@pytest.mark.parametrize("at", [0, 1, 2, 3])
@pytest.mark.parametrize("step", [-3, -1, 1, 3])
def test_counts_and_fractions_that_are_not_the_seeds_are_refused(
    at: int, step: int, frozen_file: bytes, take_apart: Callable[[bytes], Any], read: Any
) -> None:
    parts = take_apart(frozen_file)
    parts.fields["tensors"][0][FROZEN][at] += step * (4000 if at < 2 else 1)
    with pytest.raises(FormatError, match="expected"):
        read(parts.sign())


def test_another_seed_freezes_other_places(
    frozen_file: bytes, take_apart: Callable[[bytes], Any]
) -> None:
    parts = take_apart(frozen_file)
    parts.fields["seed"] = "1"
    with pytest.raises(
        FormatError, match=r"'w0': expected the seed to prune \d+ and keep \d+ places for good"
    ):
        Ticket.open(parts.sign()).codes("w0")


def test_scales_and_frozen_places_exclude_each_other(
    frozen_file: bytes, take_apart: Callable[[bytes], Any]
) -> None:
    one = masked(0, (4, 6), 0.5)
    spec = InitSpec("signed_constant", 1.0, 0)
    with pytest.raises(PackError, match="expected scales of rows or frozen places, found both"):
        Ticket(
            seed=SEED,
            tensors=[SeededTensor("w", spec, one.codes, np.ones(4, np.float32), one.frozen)],
        )
    parts = take_apart(frozen_file)
    parts.fields["tensors"][0].append(1)
    with pytest.raises(FormatError, match="tensor 0: expected a row of 2, 3, 4, 5, 8 or 9 values"):
        Ticket.open(parts.sign())


def test_codes_that_are_not_the_seeds_are_refused() -> None:
    one = masked(0, (9, 7), 0.4)
    assert one.frozen is not None
    marks = one.frozen.marks(SEED, 0, 0, 63)
    for mark, code in ((KEPT, 0), (KEPT, -1), (PRUNED, 1)):
        codes = one.codes.copy()
        codes.reshape(-1)[np.flatnonzero(marks == mark)[:2]] = code
        with pytest.raises(PackError, match=r"'w0': expected code 0 where seed .* found 2 of \d+"):
            Ticket(seed=SEED, tensors=[SeededTensor("w0", one.spec, codes, frozen=one.frozen)])


def test_every_single_bit_flip_is_refused(frozen_file: bytes, read: Any) -> None:
    damaged = bytearray(frozen_file)
    for bit in range(8 * len(frozen_file)):
        damaged[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises(FormatError):
            read(bytes(damaged))
        damaged[bit >> 3] ^= 1 << (bit & 7)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_damaged_codes_with_right_checksums_are_refused_or_the_same(
    at: int, frozen_file: bytes, take_apart: Callable[[bytes], Any]
) -> None:
    """A range coder has several streams for the same bits; a digest that fits says it is one."""
    parts, refused = take_apart(frozen_file), 0
    payload = parts.payloads[at]
    for bit in range(8 * len(payload)):
        changed = bytearray(payload)
        changed[bit >> 3] ^= 128 >> (bit & 7)
        parts.payloads[at] = bytes(changed)
        refused += not same_ticket(parts.sign())
    assert refused > 7 * len(payload)


def same_ticket(file: bytes) -> bool:
    """Return whether a file reads as `small`; otherwise it must be refused."""
    try:
        with Ticket.open(file) as found:
            return found.verify() == small().sha256()
    except FormatError:
        return False


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**17) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_change_of_a_row_is_refused_or_the_same_ticket(
    data: Any, frozen_file: bytes, take_apart: Callable[[bytes], Any]
) -> None:
    parts = take_apart(frozen_file)
    row = parts.fields["tensors"][data.draw(st.sampled_from([0, 2, 4, 5]), "row")]
    if data.draw(st.booleans(), "inside") and len(row) == 9:
        row[FROZEN][data.draw(st.integers(0, 3))] = data.draw(st.integers(-5, 2**17))
    else:
        row[FROZEN:] = [data.draw(json_values)]
    if parts.fields == take_apart(frozen_file).fields:
        return
    file = parts.sign()
    if same_ticket(file):  # other fractions may freeze the same places of a small tensor
        with Ticket.open(file) as found:
            for name in ("w0", "w1", "w2", "w3"):
                np.testing.assert_array_equal(found.codes(name), small().codes(name))


def test_a_small_file_that_declares_much_is_refused_before_anything_is_drawn(
    take_apart: Callable[[bytes], Any], save: Callable[..., bytes]
) -> None:
    parts = take_apart(save(Ticket(seed=SEED, tensors=[masked(0, (4, 4), 0.5, ratio=1.0)])))
    row = parts.fields["tensors"][0]
    row[1], row[FROZEN][2] = [2**20, 2**20], 2**40 - row[6]
    with pytest.raises(FormatError, match="expected at most 268435456 bytes of tensors"):
        Reader(open_source(parts.sign()))

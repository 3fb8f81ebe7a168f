"""FAULTS 8, 9, 10, 13, 14, each with right checksums (15): one bad header a rule."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pabzip.errors import FormatError, LimitError
from pabzip.seeds import InitSpec
from pabzip.ticket import DenseTensor, SeededTensor, Ticket

CONV, BN_WEIGHT, BATCHES, FC = 0, 1, 3, 4
NAME, SHAPE, DISTRIBUTION, SCALE, STREAM, CODER, SURVIVORS, BYTES = range(8)


def refuse(parts: Any, message: str, error: type[FormatError] = FormatError) -> None:
    with pytest.raises(error, match=message):
        Ticket.open(parts.sign())


# 8: names and keys


def test_fault_8_duplicate_key(parts: Any) -> None:
    text = json.dumps(parts.fields)
    parts.text = text.replace('"seed":', '"seed":"1","seed":').encode()
    refuse(parts, "expected each key once, found 'seed' twice")


def test_fault_8_duplicate_key_in_metadata(parts: Any) -> None:
    parts.text = json.dumps(parts.fields).replace('"note"', '"best"').encode()
    refuse(parts, "found 'best' twice")


@pytest.mark.parametrize("key", ["Seed", "offset", "", "\x00", "x" * 5000])
def test_fault_8_unknown_key(parts: Any, key: str) -> None:
    parts.fields[key] = 0
    refuse(parts, "expected no unknown key, found")


@pytest.mark.parametrize("key", ["arch", "generator", "seed", "sha256", "tensors"])
def test_fault_8_missing_key(parts: Any, key: str) -> None:
    del parts.fields[key]
    refuse(parts, f"expected the key '{key}', found none")


@pytest.mark.parametrize("text", [b'"', b"", b"{", b"{}x", b"nul", b"{'a':1}", b"\xef\xbb\xbf{}"])
def test_fault_8_not_json(parts: Any, text: bytes) -> None:
    parts.text = text
    refuse(parts, "header: expected JSON")


@pytest.mark.parametrize("text", [b"[]", b"null", b"3", b'"x"'])
def test_fault_8_not_an_object(parts: Any, text: bytes) -> None:
    parts.text = text
    refuse(parts, "expected a JSON object")


def test_fault_8_not_utf_8(parts: Any) -> None:
    parts.text = (
        json.dumps(parts.fields)
        .replace("fc.bias", "fc.bi\udcff")
        .encode("utf-8", "surrogateescape")
    )
    refuse(parts, "expected UTF-8")


def test_fault_8_half_a_surrogate_pair(parts: Any) -> None:
    parts.fields["tensors"][CONV][NAME] = "\ud800"  # json.dumps writes the escape
    refuse(parts, "expected a name in UTF-8")


@pytest.mark.parametrize("name", ["", None, 3, ["a"], {"a": 1}])
def test_fault_8_empty_names(parts: Any, name: Any) -> None:
    parts.fields["tensors"][CONV][NAME] = name
    refuse(parts, "tensor 0: expected a name that is not empty")


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "a\x00", "\x7f", "\x9b1m"])
def test_fault_8_control_characters(parts: Any, name: str) -> None:
    parts.fields["tensors"][CONV][NAME] = name
    with pytest.raises(FormatError, match="without control characters") as caught:
        Ticket.open(parts.sign())
    assert str(caught.value).isprintable()


def test_fault_8_long_name(parts: Any) -> None:
    parts.fields["tensors"][CONV][NAME] = "ü" * 513
    refuse(parts, "at most 1024 bytes, found 1026")


def test_fault_8_duplicate_names(parts: Any) -> None:
    parts.fields["tensors"][BN_WEIGHT][NAME] = "conv.weight"
    refuse(parts, "expected each name once, found 'conv.weight' twice")


@pytest.mark.parametrize(
    "row", [[], ["a"], ["a", []], ["a", [], "bool", "bool", 1], {"name": "a"}, "abc", None, 7]
)
def test_fault_8_rows_of_another_form(parts: Any, row: Any) -> None:
    parts.fields["tensors"][2] = row
    refuse(parts, "tensor 2: expected a row of 2, 3, 4, 5, 8 or 9 values")


@pytest.mark.parametrize(
    ("key", "value"),
    [("tensors", {}), ("dense", {}), ("options", []), ("metadata", "x"), ("side", True)],
)
def test_fault_8_values_of_another_type(parts: Any, key: str, value: Any) -> None:
    parts.fields[key] = value
    refuse(parts, f"expected '{key}' to be a")


@pytest.mark.parametrize("value", [[1], {"a": 1}, 2**53, -(2**53)])
def test_fault_8_metadata_is_flat_and_exact(parts: Any, value: Any) -> None:
    parts.fields["metadata"]["note"] = value
    refuse(parts, "metadata 'note': expected")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_fault_14_numbers_that_are_not_finite(parts: Any, value: str) -> None:
    parts.text = json.dumps(parts.fields).replace("0.75", value).encode()
    refuse(parts, f"expected finite numbers, found {value}")


def test_fault_8_numbers_of_very_many_digits(parts: Any) -> None:
    parts.text = json.dumps(parts.fields).replace("0.75", "1" * 100_000).encode()
    refuse(parts, "header: expected JSON, found a fault")


@pytest.mark.parametrize("seed", ["", "-1", "01", "1.0", "٣", "18446744073709551616", 5, None])
def test_fault_8_seed(parts: Any, seed: Any) -> None:
    parts.fields["seed"] = seed
    refuse(parts, "header: (expected the seed|seed: expected)")


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, 0, None])
def test_fault_8_digest(parts: Any, digest: Any) -> None:
    parts.fields["sha256"] = digest
    refuse(parts, "expected the SHA-256 as 64 hexadecimal digits")


# 9: sizes


@pytest.mark.parametrize("size", [0, -1, 2**53, 2**63, 1.0, True, None, "3", [3]])
@pytest.mark.parametrize("row", [CONV, BN_WEIGHT])
def test_fault_9_dimensions(parts: Any, row: int, size: Any) -> None:
    parts.fields["tensors"][row][SHAPE][0] = size
    refuse(parts, "expected the size of a dimension from 1 to 9007199254740991")


@pytest.mark.parametrize("row", [CONV, BN_WEIGHT])
def test_fault_9_products(parts: Any, row: int) -> None:
    parts.fields["tensors"][row][SHAPE] = [2**27, 2**27]
    refuse(parts, "expected at most 9007199254740991 elements")
    parts.fields["tensors"][row][SHAPE] = [2**32, 2**32]  # 0 in 64 bits
    refuse(parts, "expected at most 9007199254740991 elements")


def test_fault_9_sums(parts: Any) -> None:
    for row in (BN_WEIGHT, 2):
        parts.fields["tensors"][row][SHAPE] = [2**50]
    refuse(parts, "expected at most 9007199254740991 bytes of tensors")


@pytest.mark.parametrize("rank", [33, 1000])
def test_fault_9_rank(parts: Any, rank: int) -> None:
    parts.fields["tensors"][BN_WEIGHT][SHAPE] = [1] * rank
    refuse(parts, f"expected 0 to 32 dimensions, found {rank}")


def test_fault_9_a_seeded_tensor_is_no_scalar(parts: Any) -> None:
    parts.fields["tensors"][CONV][SHAPE] = []
    refuse(parts, "expected 1 to 32 dimensions, found 0")


def test_fault_9_number_of_tensors(parts: Any) -> None:
    parts.fields["tensors"] = [["x", [], "bool"]] * ((1 << 17) + 1)
    refuse(parts, "expected at most 131072 tensors, found 131073")


@pytest.mark.parametrize("survivors", [-1, 109, 2**60, 1.5, None, True])
def test_fault_9_survivors(parts: Any, survivors: Any) -> None:
    parts.fields["tensors"][CONV][SURVIVORS] = survivors
    refuse(parts, "expected the number of survivors from 0 to 108")


@pytest.mark.parametrize("length", [-1, 2**53, 0.5, None])
def test_fault_9_payload_lengths(parts: Any, length: Any) -> None:
    parts.fields["tensors"][CONV][BYTES] = length
    refuse(parts, "expected the bytes of codes from 0")
    parts.fields["tensors"][CONV][BYTES] = 1
    parts.fields["dense"][0][2] = length


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ([0, "raw", 1], "number of tensors from 1 to 4"),
        ([5, "raw", 1], "number of tensors from 1 to 4"),
        ([True, "raw", 1], "number of tensors"),
        ([3, "deflate", 30], "expected the dense sections to hold 4 tensors, found 3"),
        ([4, "raw", 30], "expected 48 raw bytes, found 30"),
        ([4, "deflate", 49], "expected at most 48 bytes, found 49"),
        ([4, "deflate", 0], "expected at most 1032 times 0 bytes"),
        ([4, "deflate"], "expected 3 values"),
        ("raw", "expected 3 values"),
    ],
)
def test_fault_9_dense_sections(parts: Any, group: Any, message: str) -> None:
    parts.fields["dense"][0] = group
    refuse(parts, message)


def test_fault_9_a_shared_dense_section_is_small(parts: Any) -> None:
    parts.fields["tensors"][BN_WEIGHT][SHAPE] = [2**18]
    refuse(parts, "expected at most 1048576 bytes in a shared section, found 1048608")


def test_fault_9_a_side_stream_that_nobody_reads(parts: Any) -> None:
    parts.fields["side"] = 3
    parts.payloads.insert(0, b"abc")
    refuse(parts, "expected no side stream without a coder that reads it")


# 10: small files that declare much


def declare_much(parts: Any) -> bytes:
    count = 10**12
    parts.fields["tensors"][CONV][SHAPE] = [10**6, 10**6]
    parts.fields["tensors"][CONV][SURVIVORS] = 0
    parts.fields["tensors"][CONV][BYTES] = count // 8
    file: bytes = parts.sign()
    return file


def test_fault_10_a_tiny_file_that_declares_a_trillion_weights(parts: Any) -> None:
    file = declare_much(parts)
    tracemalloc.start()
    with pytest.raises(LimitError, match=r"at most 1000000 bytes of tensors \(max_bytes\)"):
        Ticket.open(file, max_bytes=10**6)
    with pytest.raises(FormatError, match="found it cut at"):
        Ticket.open(file)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_fault_10_a_trillion_weights_in_a_file_of_holes(parts: Any, tmp_path: Any) -> None:
    path = tmp_path / "m.pabz"
    path.write_bytes(declare_much(parts))
    with path.open("r+b") as stream:
        stream.truncate(10**12 // 8 + 10**4)  # no disk space is taken
    with pytest.raises(LimitError, match=r"m\.pabz: header: expected at most 1000000 bytes"):
        Ticket.open(path, max_bytes=10**6)


def test_fault_10_dense_tensors_expand_by_no_more_than_deflate_can(parts: Any) -> None:
    parts.fields["tensors"][BN_WEIGHT][SHAPE] = [2**17]
    parts.fields["dense"][0][1] = "deflate"
    refuse(parts, "expected at most 1032 times")


def test_fault_10_the_limit_is_the_loaded_state(
    small_file: bytes, make_ticket: Callable[..., Ticket]
) -> None:
    size = 4 * (108 + 10) + 4 * 4 + 4 * 4 + 8 + 4 * 2
    assert make_ticket().info()["float32_bytes"] == size
    Ticket.open(small_file, max_bytes=size)
    with pytest.raises(LimitError, match=f"found {size} declared; raise the limit"):
        Ticket.open(small_file, max_bytes=size - 1)


# 13: names from registries


@pytest.mark.parametrize("name", ["mt19937", "philox4x32-7", "", None, 3])
def test_fault_13_unknown_generator(parts: Any, name: Any) -> None:
    parts.fields["generator"] = name
    refuse(parts, "expected the generator philox4x32-10, found .*upgrade pabzip")


@pytest.mark.parametrize("name", ["os.system", "vgg", "", None, ["resnet18"]])
def test_fault_13_unknown_architecture(parts: Any, name: Any) -> None:
    parts.fields["arch"] = name
    refuse(parts, r"expected a known architecture \(lenet-300-100, .*upgrade pabzip")


@pytest.mark.parametrize("name", ["arithmetic", "", None, 3, ["huffman"]])
def test_fault_13_unknown_coder(parts: Any, name: Any) -> None:
    parts.fields["tensors"][CONV][CODER] = name
    refuse(parts, r"'conv.weight': expected a known coder \(huffman.*upgrade pabzip")


@pytest.mark.parametrize("name", ["cauchy", "kaiming_normal", "", None, 3])
def test_fault_13_unknown_distribution(parts: Any, name: Any) -> None:
    parts.fields["tensors"][CONV][DISTRIBUTION] = name
    refuse(parts, "tensor 0: .*expected")


@pytest.mark.parametrize("name", ["float8", "complex64", "object", "", None, ["bool"]])
def test_fault_13_unknown_dtype(parts: Any, name: Any) -> None:
    parts.fields["tensors"][BN_WEIGHT][2] = name
    refuse(parts, r"'bn.weight': expected a known dtype \(float64")


@pytest.mark.parametrize("name", ["float64", "int8", "", None, 3])
def test_fault_13_unknown_stored_dtype(parts: Any, name: Any) -> None:
    parts.fields["tensors"][BN_WEIGHT].append(name)
    refuse(parts, r"expected a known stored dtype \(float16, bfloat16\)")


def test_fault_13_integers_are_stored_as_they_are(parts: Any) -> None:
    parts.fields["tensors"][BATCHES].append("float16")
    refuse(parts, "expected int64 stored as it is, found it stored as float16")


@pytest.mark.parametrize("name", ["lzma", "", None, 3])
def test_fault_13_unknown_encoding(parts: Any, name: Any) -> None:
    parts.fields["dense"][0][1] = name
    refuse(parts, r"expected a known encoding \(raw, deflate, adaptive, planes\)")


def test_fault_13_nothing_is_imported_for_a_file(parts: Any) -> None:
    parts.fields["arch"] = "this:that"
    before = set(sys.modules)
    refuse(parts, "expected a known architecture")
    assert set(sys.modules) == before


# 14: scales


@pytest.mark.parametrize(
    "bits",
    [
        0x7F800000,  # infinite
        0x7FC00000,  # not a number
        0xBF800000,  # -1
        0,
        1,  # subnormal
        0x5F800001,  # just above 2**64
        2**32,
        -1,
        1.0,
        True,
        None,
    ],
)
def test_fault_14_scales(parts: Any, bits: Any) -> None:
    parts.fields["tensors"][CONV][SCALE] = bits
    refuse(parts, "tensor 0: (scale: expected|expected the scale's 32 bits)")


@pytest.mark.parametrize("stream", [-1, 2**32, 0.0, None, True])
def test_fault_14_streams(parts: Any, stream: Any) -> None:
    parts.fields["tensors"][CONV][STREAM] = stream
    refuse(parts, "tensor 0: (stream: expected|expected distribution and stream)")


def test_any_json_that_keeps_the_rules_is_read(parts: Any) -> None:
    """White space, order of keys and escapes are the writer's business, not the reader's."""
    fields = dict(reversed(parts.fields.items()))
    fields["side"] = 0
    parts.text = json.dumps(fields, indent=2, ensure_ascii=True).encode()
    assert Ticket.open(parts.sign()).verify() == parts.fields["sha256"]


# tied tensors


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["t", "x"], "tensor 't': expected it tied to an earlier tensor, found it tied to 'x'"),
        (["t", "t"], "tied to an earlier tensor, found it tied to 't'"),
        (["t", "fc.bias"], "tied to an earlier tensor, found it tied to 'fc.bias'"),
        (["t", "tie"], "'t': expected it tied to a tensor of its own, found 'tie', .* to 'conv"),
        (["fc.weight", "conv.weight"], "expected each name once, found 'fc.weight' twice"),
        (["t\n", "conv.weight"], "without control characters"),
        (["", "conv.weight"], "expected a name that is not empty"),
        (["a.running_var", "bn.weight"], "expected a variance tied to one, found 'bn.weight'"),
        (["t", 0], "expected a row of 2, 3, 4, 5, 8 or 9 values"),
        ([0, "conv.weight"], "expected a row of 2, 3, 4, 5, 8 or 9 values"),
    ],
)
def test_fault_8_bad_ties(parts: Any, row: Any, message: str) -> None:
    parts.fields["tensors"][FC + 1 : FC + 1] = [["tie", "conv.weight"], row]
    refuse(parts, message)


def test_fault_9_ties_count_in_full(parts: Any) -> None:
    parts.fields["tensors"] += [[f"tie {number}", "conv.weight"] for number in range(100_000)]
    with pytest.raises(LimitError, match="43200"):
        Ticket.open(parts.sign(), max_bytes=2**20)


# scales of rows


@pytest.fixture
def scaled_parts(make_ticket: Any, save: Any, take_apart: Any) -> Any:
    """A file of one tensor with scales, two rows, and a dense one after it."""
    codes = np.array([[1, 0, -1], [1, 1, 0]], dtype=np.int8)
    scales = np.array([0.5, 3.0], dtype=np.float32)
    tensors = [
        SeededTensor("w", InitSpec("signed_constant", 1.0, 0), codes, scales),
        DenseTensor("b", np.array([7.0], np.float32), "float32", "float32"),
    ]
    return take_apart(save(make_ticket(tensors=tensors)))


def test_scales_are_one_more_dense_tensor(scaled_parts: Any) -> None:
    assert scaled_parts.fields["tensors"][0][8] == 1
    assert [row[0] for row in scaled_parts.fields["dense"]] == [2]
    raw = np.array([0.5, 3.0, 7.0], "<f4").view(np.uint8).reshape(3, 4).T.tobytes()
    scaled_parts.fields["dense"] = [[2, "raw", 12]]
    scaled_parts.payloads[-1] = raw
    with Ticket.open(scaled_parts.sign()) as ticket:
        assert np.array_equal(np.abs(ticket.weight("w")), [[0.5, 0, 0.5], [3, 3, 0]])
        assert ticket.weight("b") == [7]
        ticket.verify()


@pytest.mark.parametrize("value", [0, 2, True, 1.0, None, "1", {}])
def test_fault_8_ninth_values(scaled_parts: Any, value: Any) -> None:
    scaled_parts.fields["tensors"][0][8] = value
    refuse(scaled_parts, "tensor 0: expected a 1 for scales of its rows or a list for")


def test_fault_8_scales_without_a_dense_tensor(parts: Any) -> None:
    parts.fields["tensors"][FC][DISTRIBUTION : SCALE + 1] = ["signed_constant", 0x3F800000]
    parts.fields["tensors"][FC].append(1)
    refuse(parts, "expected the dense sections to hold 5 tensors, found 4")


@pytest.mark.parametrize(
    ("place", "value"), [(DISTRIBUTION, "normal"), (SCALE, 0x3F000000), (SCALE, 0x40000000)]
)
def test_fault_8_scales_with_another_spec(scaled_parts: Any, place: int, value: Any) -> None:
    scaled_parts.fields["tensors"][0][place] = value
    refuse(scaled_parts, "tensor 'w': expected signed_constant of scale 1 where rows have scales")


@pytest.mark.parametrize("bad", [0.0, -0.0, -1.0, 2.0**65, 2.0**-65, np.inf, np.nan])
def test_fault_10_scales_out_of_range(scaled_parts: Any, bad: float) -> None:
    raw = np.array([0.5, bad, 7.0], "<f4").view(np.uint8).reshape(3, 4).T.tobytes()
    scaled_parts.fields["dense"] = [[2, "raw", 12]]
    scaled_parts.payloads[-1] = raw
    with Ticket.open(scaled_parts.sign()) as ticket:
        for read in (ticket.weight, ticket.codes, ticket.scales):
            with pytest.raises(FormatError, match="tensor 'w': expected"):
                read("w")

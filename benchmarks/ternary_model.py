"""A ternary language model as large as BitNet b1.58 2B4T: packed, verified, unpacked, compared.

The model is drawn at random, in Hugging Face's layout: sharded safetensors, four weights a byte, a
scale a matrix, a bfloat16 embedding. 42 % of the weights are 0, so that a weight has 1.56 bits of
entropy. Each command is a process of its own, whose seconds and peak memory are measured; rates
are of all ternary weights over the whole command. `unpack` must give every tensor's own bytes.

Sizes of zstd are of the whole checkpoint as one stream, shard after shard.

Source: Ma et al. 2025 (BitNet b1.58 2B4T), Table 1, and its published configuration.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from _shared import Progress, finish, markdown, parser, times
from numpy.typing import NDArray

ZEROS = 0.42
"""Share of the ternary weights that is 0."""


@dataclass(frozen=True, slots=True)
class Size:
    """Sizes of a Llama-like network with norms before each output projection."""

    layers: int
    hidden: int
    intermediate: int
    keys: int
    vocabulary: int


BITNET_2B = Size(layers=30, hidden=2560, intermediate=6912, keys=640, vocabulary=128256)
TINY = Size(layers=3, hidden=256, intermediate=688, keys=64, vocabulary=2048)


@dataclass(frozen=True, slots=True)
class Raw:
    """One tensor of a safetensors file: the name of its type there, shape, bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


def main() -> None:
    """Run the benchmark."""
    arguments = _arguments()
    size = TINY if arguments.quick else BITNET_2B
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="ternary-") as name:
        folder = Path(name)
        steps = 6 if arguments.zstd else 5
        with Progress(steps) as progress:
            progress.step("drawing the model")
            model, weights, entropy = write_model(folder / "model", size, arguments.shard_bytes)
            progress.done()
            runs = {}
            (folder / "again").mkdir()
            packed, again = folder / "model.pabz", folder / "again" / "model.safetensors"
            shard_size = str(arguments.shard_bytes)
            for command, *options in (
                ("pack", model, "-o", packed, "--ternary"),
                ("verify", packed),
                ("unpack", packed, "-o", again, "--as-stored", "--shard-size", shard_size),
            ):
                progress.step(command)
                runs[command] = measured(command, *map(str, options))
                progress.done()
            progress.step("comparing")
            tensors = compare(model, folder / "again")
            progress.done()
            sizes = {"checkpoint": sum(file.stat().st_size for file in shards(model)),
                     "pabz": packed.stat().st_size,
                     "entropy": entropy}  # fmt: skip
            if arguments.zstd:
                progress.step("zstd -19")
                sizes["zstd -19"] = compressed_size(shards(model))
                progress.done()
    _report(arguments, weights, tensors, runs, sizes)


def write_model(folder: Path, size: Size, shard_bytes: int) -> tuple[Path, int, int]:
    """Write a checkpoint, layer by layer, and return its folder, weights, and entropy in bytes.

    The entropy is that of each ternary matrix by its counts, that of the embedding by the counts of
    its exponents and of its signs with mantissas, and the bits of the norms as they are.
    """
    folder.mkdir()
    rng = np.random.default_rng(0)
    shapes = {
        "self_attn.q_proj": (size.hidden, size.hidden),
        "self_attn.k_proj": (size.keys, size.hidden),
        "self_attn.v_proj": (size.keys, size.hidden),
        "self_attn.o_proj": (size.hidden, size.hidden),
        "mlp.gate_proj": (size.intermediate, size.hidden),
        "mlp.up_proj": (size.intermediate, size.hidden),
        "mlp.down_proj": (size.hidden, size.intermediate),
    }
    norms = {
        "input_layernorm": size.hidden,
        "post_attention_layernorm": size.hidden,
        "self_attn.attn_sub_norm": size.hidden,
        "mlp.ffn_sub_norm": size.intermediate,
    }
    weights, bits = 0, 0.0

    def tensors() -> Iterator[tuple[str, Raw]]:
        nonlocal weights, bits
        embedding = bfloat16(rng, (size.vocabulary, size.hidden), 0.02)
        bits += embedding.size * sum(entropy_of(counts) for counts in fields(embedding))
        yield "model.embed_tokens.weight", raw(embedding)
        for layer in range(size.layers):
            for name, shape in shapes.items():
                codes = rng.choice(
                    np.array([0, 1, 2], np.uint8),
                    shape,
                    p=[(1 - ZEROS) / 2, ZEROS, (1 - ZEROS) / 2],
                )
                weights += codes.size
                bits += codes.size * entropy_of(np.bincount(codes.reshape(-1), minlength=3))
                four = codes.reshape(4, -1, shape[1])
                packed = four[0] | four[1] << 2 | four[2] << 4 | four[3] << 6
                prefix = f"model.layers.{layer}.{name}"
                yield f"{prefix}.weight", Raw("U8", packed.shape, packed.data.cast("B"))
                yield f"{prefix}.weight_scale", raw(bfloat16(rng, (1,), 1.0))
                bits += 16
            for name, width in norms.items():
                yield f"model.layers.{layer}.{name}.weight", raw(bfloat16(rng, (width,), 1.0))
                bits += 16 * width
        yield "model.norm.weight", raw(bfloat16(rng, (size.hidden,), 1.0))
        bits += 16 * size.hidden

    write_shards(folder, tensors(), shard_bytes)
    config = {
        "architectures": ["BitNetForCausalLM"],
        "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear"},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder, weights, int(bits / 8)


def bfloat16(rng: np.random.Generator, shape: tuple[int, ...], spread: float) -> NDArray[np.uint16]:
    """Return normal numbers as bfloat16 bit patterns."""
    out = np.empty(shape, dtype=np.uint16)
    for rows in np.array_split(out, max(1, out.size >> 22)):
        drawn = rng.standard_normal(rows.shape, dtype=np.float32) * np.float32(spread)
        rows[...] = drawn.view(np.uint32) >> 16
    return out


def raw(bits: NDArray[np.uint16]) -> Raw:
    """Return bfloat16 bit patterns as a tensor of a file."""
    return Raw("BF16", bits.shape, bits.data.cast("B"))


def fields(bits: NDArray[np.uint16]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return how often bfloat16 bit patterns have each exponent, and each sign and mantissa."""
    exponents, rest = np.zeros(256, dtype=np.int64), np.zeros(256, dtype=np.int64)
    for part in np.array_split(bits.reshape(-1), max(1, bits.size >> 22)):
        exponents += np.bincount((part >> 7) & 0xFF, minlength=256)
        rest += np.bincount((part >> 8) & 0x80 | part & 0x7F, minlength=256)
    return exponents, rest


def entropy_of(counts: NDArray[np.int64]) -> float:
    """Return the bits a symbol has by the symbols' counts."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def write_shards(folder: Path, tensors: Iterator[tuple[str, Raw]], shard_bytes: int) -> None:
    """Write tensors in shards of at most so many bytes, and the index of them."""
    files: list[dict[str, Raw]] = [{}]
    pieces: list[tuple[Path, list[str]]] = []
    filled, total = 0, 0
    for name, tensor in tensors:
        length = len(tensor.data)
        if files[-1] and filled + length > shard_bytes:
            pieces.append(_spool(folder, len(pieces), files[-1]))
            files[-1], filled = {}, 0
        files[-1][name] = tensor
        filled, total = filled + length, total + length
    pieces.append(_spool(folder, len(pieces), files[-1]))
    places = {}
    for number, (file, names) in enumerate(pieces, 1):
        final = f"model-{number:05d}-of-{len(pieces):05d}.safetensors"
        file.rename(folder / final)
        places.update(dict.fromkeys(names, final))
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _spool(folder: Path, number: int, tensors: Mapping[str, Raw]) -> tuple[Path, list[str]]:
    """Write one safetensors file under a name of its own; return it with its tensors' names."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in tensors.items():
        stop = start + len(tensor.data)
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file = folder / f"shard-{number}"
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            stream.write(tensor.data)
    return file, list(tensors)


def shards(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint, in order."""
    return sorted(folder.glob("*.safetensors"))


def tensors_of(folder: Path) -> dict[str, tuple[str, tuple[int, ...], Path, int, int]]:
    """Return type, shape, file, offset and length of each tensor of a checkpoint."""
    found = {}
    for file in shards(folder):
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            start, stop = entry["data_offsets"]
            shape = tuple(entry["shape"])
            found[name] = (entry["dtype"], shape, file, 8 + length + start, stop - start)
    return found


def compare(before: Path, after: Path) -> int:
    """Check that two checkpoints hold the same tensors to the bit; return how many they are."""
    old, new = tensors_of(before), tensors_of(after)
    if sorted(old) != sorted(new):
        raise SystemExit(f"expected the tensors of {before}, found others: {set(old) ^ set(new)}")
    for name, (dtype, shape, file, offset, length) in old.items():
        other = new[name]
        same = (dtype, shape, length) == (other[0], other[1], other[4])
        if not same or _bytes(file, offset, length) != _bytes(other[2], other[3], length):
            raise SystemExit(f"{name}: expected the bytes that were packed, found others")
    return len(old)


def _bytes(file: Path, offset: int, length: int) -> bytes:
    """Return a part of a file."""
    with file.open("rb") as stream:
        stream.seek(offset)
        return stream.read(length)


def measured(*command: str) -> dict[str, float]:
    """Run one command of pabzip; return its seconds and the peak of its memory in bytes."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "pabzip.cli", *command], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status:
        raise SystemExit(f"pabzip {command[0]}: expected exit code 0, found status {status}")
    return {"seconds": seconds, "peak_bytes": usage.ru_maxrss * 1024}


def compressed_size(files: list[Path]) -> int:
    """Return the bytes that zstd makes of files in a row, at level 19 on all cores."""

    class Count:
        """A stream that only counts."""

        written = 0

        def write(self, data: bytes) -> int:
            self.written += len(data)
            return len(data)

    counted = Count()
    with zstandard.ZstdCompressor(level=19, threads=-1).stream_writer(counted) as stream:  # type: ignore[arg-type]
        for file in files:
            with file.open("rb") as source:
                shutil.copyfileobj(source, stream, 1 << 24)
    return counted.written


def _arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    result = parser(__doc__)
    result.add_argument("--folder", type=Path, help="where the model may take 4 GB for a while")
    result.add_argument("--shard-bytes", type=int, default=500_000_000, help="of a shard at most")
    result.add_argument(
        "--zstd", action=argparse.BooleanOptionalAction, default=True,
        help="compress it with zstd -19, too, which takes minutes",
    )  # fmt: skip
    return result.parse_args()


def _report(
    arguments: argparse.Namespace,
    weights: int,
    tensors: int,
    runs: Mapping[str, Mapping[str, float]],
    sizes: Mapping[str, int],
) -> None:
    """Print both tables and write the JSON file."""
    speed = markdown(
        ("command", "seconds", "million weights/s", "peak memory, MiB"),
        [
            (
                name,
                times(run["seconds"]),
                f"{weights / run['seconds'] / 1e6:.0f}",
                f"{run['peak_bytes'] / 2**20:,.0f}",
            )
            for name, run in runs.items()
        ],
    )
    size = markdown(
        ("form", "bytes", "of the checkpoint", "over the entropy"),
        [
            (
                name,
                f"{value:,}",
                f"{value / sizes['checkpoint']:.1%}",
                f"{value / sizes['entropy'] - 1:+.2%}",
            )
            for name, value in sizes.items()
        ],
    )
    result = {
        "weights": weights,
        "tensors": tensors,
        "shard_bytes": arguments.shard_bytes,
        "commands": runs,
        "rates": {name: weights / run["seconds"] for name, run in runs.items()},
        "bytes": sizes,
    }
    title = f"{weights:,} ternary weights in {tensors} tensors, the same bytes after `unpack`"
    finish("ternary_model", arguments, title, f"{speed}\n{size}", result, "safetensors")


if __name__ == "__main__":
    main()

"""From a state dict to a ticket's tensors: seeded, ternary, tied and dense ones.

Packing is where exactness is enforced: each surviving weight must be plus or minus the magnitude
that its seed regenerates, to the bit (DESIGN: "Exactness", rule 6). The codes are read from the
weights themselves, so any loop that prunes and flips signs in place will do.

Ternary weights are 0 and plus or minus one scale, that of the tensor or of each output channel, and
are packed as codes without having had a seed: so they take the coders, the file and the loaders of
any ticket.

Tied weights have several names and are stored once. A state dict lists a shared weight under each
of its names. Tensors are compared by their bits, not by their place in memory, so ties are found
after checkpoints and moves between devices, too.

Source: for ternary weights, Ternary Weight Networks (Li, Zhang, Liu 2016), Section 2.1 (a scale a
filter); BitNet b1.58 (Ma et al. 2024), Section 2 (a scale a matrix).
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Mapping
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pabzip.checkpoint import Checkpoint, File, load_state
from pabzip.errors import PackError
from pabzip.formats import Base, Tensor
from pabzip.init import Seeding
from pabzip.packing.base import open_file
from pabzip.packing.delta import change_of
from pabzip.seeds import Frozen, InitSpec, weights
from pabzip.seeds.frozen import KEPT, PRUNED
from pabzip.seeds.spec import MAX_SCALE, MIN_SCALE
from pabzip.storable import check_state, dense_from_torch
from pabzip.ticket import SeededTensor, TiedTensor

LEAST_ROW = 16
"""Fewer weights a row than this do not pay for a scale of their own."""


def state_tensors(
    state: Mapping[str, torch.Tensor],
    record: Seeding,
    ternary: bool,
    base: Base | None = None,
) -> list[Tensor]:
    """Check every tensor of a state dict, and return them as a ticket's, in the same order.

    With a ``base``, what is not seeded is kept as a change of its tensors where that is small.
    """
    check_state(state, record.specs)
    tensors: list[Tensor] = []
    ties, specs = find_ties(state, record.specs)
    frozen = {ties.get(name, name): found for name, found in record.frozen.items()}
    taken = {spec.stream for spec in record.specs.values()}
    streams = (stream for stream in count() if stream not in taken)
    stream, recognized = next(streams), 0
    for name, value in state.items():
        if name in ties:
            tensors.append(TiedTensor(name, ties[name]))
        elif name in specs:
            codes = read_codes(name, value, record.seed, specs[name])
            if name in frozen:
                check_frozen(name, codes, record.seed, specs[name], frozen[name])
            tensors.append(SeededTensor(name, specs[name], codes, frozen=frozen.get(name)))
        else:
            dense = dense_from_torch(name, value)
            tensor: Tensor | None = None if base is None else change_of(dense, base)
            if tensor is None and ternary:
                tensor = ternary_tensor(name, dense.values, record.seed, stream)
                if tensor is not None:
                    stream, recognized = next(streams), recognized + 1
            tensors.append(tensor or dense)
    # What was packed so before has a spec of its own on record by now.
    known = any(spec.distribution == "signed_constant" for spec in record.specs.values())
    if ternary and not recognized and not known and base is None:
        raise PackError(
            f"expected a ternary tensor, found none among {len(tensors)}: float32, of two or more "
            "dimensions, each value 0 or plus or minus one scale, of the tensor or of each row; "
            "pack the quantized weights, not those that training keeps beside them"
        )
    return tensors


def read_codes(name: str, weight: torch.Tensor, seed: int, spec: InitSpec) -> np.ndarray:
    """Read the codes of one weight, float32: 0 pruned, +1 sign kept, -1 sign flipped.

    Raises:
        PackError: a survivor's magnitude is not the seed's, bit for bit.
    """
    found = np.ascontiguousarray(weight.detach().cpu().numpy()).reshape(-1)
    drawn = weights(seed, spec, 0, found.size)
    survivors = found != 0  # not-a-number counts as a survivor, and is then refused
    differs = survivors & (np.abs(found).view(np.uint32) != np.abs(drawn).view(np.uint32))
    count = int(np.count_nonzero(differs))
    if count:
        first = int(np.argmax(differs))
        raise PackError(
            f"{name}: expected every surviving weight to be plus or minus the magnitude drawn "
            f"from seed {seed}, found {count} of {int(np.count_nonzero(survivors))} that differ "
            f"(the first at index {first}: {float(found[first])!r} instead of "
            f"+-{abs(float(drawn[first]))!r}); unmasking may only flip signs: check the seed, "
            "or leave a weight that is trained otherwise dense with init_(..., skip=...)"
        )
    flipped = np.signbit(found) != np.signbit(drawn)
    codes = np.where(flipped, np.int8(-1), np.int8(1))
    codes[~survivors] = 0
    return codes.reshape(tuple(weight.shape))


def check_frozen(
    name: str, codes: NDArray[np.int8], seed: int, spec: InitSpec, frozen: Frozen
) -> None:
    """Check that frozen places hold what the seed says: 0 where it prunes, +1 where it keeps.

    Raises:
        PackError: some do not.
    """
    marks = frozen.marks(seed, spec.stream, 0, codes.size)
    held = codes.reshape(-1)
    wrong = ((marks == PRUNED) & (held != 0)) | ((marks == KEPT) & (held != 1))
    count = int(np.count_nonzero(wrong))
    if count:
        first = int(np.argmax(wrong))
        found = "flipped" if held[first] < 0 else "kept" if held[first] else "pruned"
        expected = "pruned" if marks[first] == PRUNED else "kept"
        raise PackError(
            f"{name}: expected the frozen part of its mask as seed {seed} fixes it, found {count} "
            f"of {int(np.count_nonzero(marks))} places that differ (the first at index {first}: "
            f"{found} instead of {expected}); train it by a score method with the same freezing, "
            "or attach a Seeding without frozen masks (pabzip.attach_seeding)"
        )


def load_any(source: File) -> Checkpoint | dict[str, torch.Tensor]:
    """Read a checkpoint, or tensors by name from a file of any form that may be a base.

    Raises:
        CheckpointError: a stream that holds neither checkpoint nor state dict.
        BaseFileError: a file of no form that is known.
    """
    if not isinstance(source, str | os.PathLike):
        return load_state(source)
    with open(source, "rb") if os.path.isfile(source) else io.BytesIO() as file:
        if zipfile.is_zipfile(file) and not os.fspath(source).endswith(".npz"):
            return load_state(source)
    opened = open_file(source)
    state = {}
    for name in opened.names:
        found = opened.read(name)
        assert found is not None
        values = np.array(found[1], order="C")
        if found[0] == "bfloat16":
            state[name] = torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
        else:
            state[name] = torch.from_numpy(values)
    opened.close()
    return state


def ternary_scales(values: NDArray[Any]) -> NDArray[np.float32] | None:
    """Return the scales of a tensor (rows, ...) whose values are all 0 or plus or minus its scale.

    They are float32: of no dimension if one is enough; (rows,) if each row has its own, 1 for a row
    of zeros, which needs rows of at least `LEAST_ROW` weights; None if the tensor is not ternary,
    not float32, all zeros, or a scale is out of an init spec's range.
    """
    if values.dtype != np.float32 or values.ndim < 2 or values.size == 0:
        return None
    sizes = np.abs(values.reshape(len(values), -1))
    rows = sizes.max(axis=1)  # not-a-number spreads, and is then refused
    active = rows[rows != 0]
    if not active.size or not np.all((active >= MIN_SCALE) & (active <= MAX_SCALE)):
        return None
    if not np.all((sizes == 0) | (sizes == rows[:, None])):
        return None
    if np.all(active == active[0]):
        return np.asarray(active[0], dtype=np.float32)
    if sizes.shape[1] < LEAST_ROW:
        return None
    return np.where(rows == 0, np.float32(1), rows).astype(np.float32)


def ternary_tensor(name: str, values: NDArray[Any], seed: int, stream: int) -> SeededTensor | None:
    """Return a ternary tensor with the codes that give it; None if it is not ternary.

    ``values`` are as for `ternary_scales`; -0.0 counts as 0, and loads as +0.0.
    """
    scales = ternary_scales(values)
    if scales is None:
        return None
    spec = InitSpec("signed_constant", float(scales) if scales.ndim == 0 else 1.0, stream)
    drawn = weights(seed, spec, 0, values.size).reshape(values.shape)
    codes = (np.sign(values) * np.sign(drawn)).astype(np.int8)
    return SeededTensor(name, spec, codes, scales if scales.ndim else None)


def find_ties(
    state: Mapping[str, Any], specs: Mapping[str, InitSpec]
) -> tuple[dict[str, str], dict[str, InitSpec]]:
    """Find tensors of two or more dimensions that equal an earlier one, bit for bit.

    Two weights that are seeded by different specs are no tie, even if they are equal now (both
    pruned to nothing, say): training on tells them apart.

    Returns of each second name the first name, which is no second name itself; and the init specs
    of the others. Where a first name has none and a second has one, it passes to the first: an
    embedding that shares the weight of a seeded Linear after it.
    """
    targets: dict[str, str] = {}
    found = dict(specs)
    firsts: dict[tuple[Any, ...], list[str]] = {}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or value.dim() < 2:
            continue
        data = _bytes(value)
        key = (tuple(value.shape), value.dtype, zlib.crc32(data.data))
        for first in firsts.setdefault(key, []):
            differ = first in found and name in specs and found[first] != specs[name]
            if not differ and np.array_equal(_bytes(state[first]), data):
                targets[name] = first
                if name in specs:
                    found.setdefault(first, found.pop(name))
                break
        else:
            firsts[key].append(name)
    return targets, found


def _bytes(value: torch.Tensor) -> NDArray[np.uint8]:
    """Return a tensor's bytes, uint8 of one dimension."""
    flat = value.detach().cpu().contiguous().reshape(-1)
    return np.asarray(flat.view(torch.uint8).numpy())

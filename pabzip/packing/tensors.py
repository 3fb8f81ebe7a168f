"""From a state dict to a ticket's tensors: seeded, ternary, tied and dense ones.

Packing is where exactness is enforced: each surviving weight must be plus or minus the magnitude
that its seed regenerates, to the bit (DESIGN: "Exactness", rule 6). The codes are read from the
weights themselves, so any loop that prunes and flips signs in place will do.

Ternary weights are packed as codes without having had a seed (`pabzip.packing.ternary`).

Tied weights have several names and are stored once. A state dict lists a shared weight under each
of its names. Tensors are compared by their bits, not by their place in memory, so ties are found
after checkpoints and moves between devices, too.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Mapping
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
from pabzip.packing.ternary import NO_TERNARY, TernaryPacker
from pabzip.seeds import Frozen, InitSpec, weights
from pabzip.seeds.frozen import KEPT, PRUNED
from pabzip.storable import check_state, dense_from_torch
from pabzip.ticket import SeededTensor, TiedTensor


def state_tensors(
    state: Mapping[str, torch.Tensor],
    record: Seeding,
    packer: TernaryPacker | None,
    base: Base | None = None,
) -> list[Tensor]:
    """Check every tensor of a state dict, and return them as a ticket's, in the same order.

    Tensors that are not seeded are stored as codes where ``packer`` recognizes them. With a
    ``base`` they are kept as a change of its tensors where that is small.
    """
    check_state(state, record.specs)
    tensors: list[Tensor] = []
    ties, specs = find_ties(state, record.specs)
    frozen = {ties.get(name, name): found for name, found in record.frozen.items()}
    siblings = {
        name: (str(value.dtype).removeprefix("torch."), tuple(value.shape))
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }
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
            found: Tensor | None = None if base is None else change_of(dense, base)
            if found is None and packer:
                found = packer.recognize(name, dense.values, dense.dtype, siblings=siblings)
            tensors.append(found or dense)
    # What was packed so before has a spec of its own on record by now.
    known = any(spec.distribution == "signed_constant" for spec in record.specs.values())
    if packer and not packer.recognized and not known and base is None:
        raise PackError(NO_TERNARY.format(len(tensors)))
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

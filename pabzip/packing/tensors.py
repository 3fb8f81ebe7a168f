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

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pabzip.errors import PackError
from pabzip.formats import Tensor
from pabzip.init import Seeding
from pabzip.packing.ternary import NO_TERNARY, TernaryPacker
from pabzip.seeds import Frozen, InitSpec, weights
from pabzip.seeds.frozen import KEPT, PRUNED
from pabzip.ticket import DenseTensor, SeededTensor, TiedTensor


def state_tensors(
    state: Mapping[str, torch.Tensor], record: Seeding, packer: TernaryPacker | None
) -> list[Tensor]:
    """Check every tensor of a state dict, and return them as a ticket's, in the same order.

    Tensors that are not seeded are stored as codes where ``packer`` recognizes them.
    """
    missing = [name for name in record.specs if name not in state]
    if missing:
        raise PackError(
            f"{missing[0]}: expected this seeded weight in the state, found "
            f"{', '.join(list(state)[:4])}, ...; was the network changed after init_?"
        )
    tensors: list[Tensor] = []
    ties, specs = find_ties(state, record.specs)
    frozen = {ties.get(name, name): found for name, found in record.frozen.items()}
    siblings = {
        name: (str(value.dtype).removeprefix("torch."), tuple(value.shape))
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise PackError(
                f"{name}: expected a tensor, found {type(value).__name__}; extra state cannot be "
                "stored in a .pabz file, keep it outside the network's state_dict"
            )
        if name in ties:
            tensors.append(TiedTensor(name, ties[name]))
        elif name in specs:
            codes = read_codes(name, value, record.seed, specs[name])
            if name in frozen:
                check_frozen(name, codes, record.seed, specs[name], frozen[name])
            tensors.append(SeededTensor(name, specs[name], codes, frozen=frozen.get(name)))
        else:
            dense = dense_from_torch(name, value)
            found = packer and packer.recognize(name, dense.values, dense.dtype, siblings=siblings)
            tensors.append(found or dense)
    # What was packed so before has a spec of its own on record by now.
    known = any(spec.distribution == "signed_constant" for spec in record.specs.values())
    if packer and not packer.recognized and not known:
        raise PackError(NO_TERNARY.format(len(tensors)))
    return tensors


def read_codes(name: str, weight: torch.Tensor, seed: int, spec: InitSpec) -> np.ndarray:
    """Read the codes of one weight: 0 pruned, +1 sign kept, -1 sign flipped.

    Raises:
        PackError: ``weight`` is not float32, or a survivor's magnitude is not the seed's, bit for
            bit.
    """
    if weight.dtype != torch.float32:
        raise PackError(
            f"{name}: expected a float32 seeded weight, found {weight.dtype}; half precision "
            "loses the magnitudes' bits: pack the float32 network and convert when loading"
        )
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


def dense_from_torch(name: str, value: torch.Tensor) -> DenseTensor:
    """Copy a torch tensor into a `DenseTensor`; bfloat16 travels as uint16 bit patterns."""
    value = value.detach().cpu().contiguous()
    dtype = str(value.dtype).removeprefix("torch.")
    if value.dtype == torch.bfloat16:
        value = value.view(torch.int16)
        return DenseTensor(name, value.numpy().view(np.uint16).copy(), dtype, dtype)
    return DenseTensor(name, value.numpy().copy(), dtype, dtype)


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

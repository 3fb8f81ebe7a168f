"""From a checkpoint's tensors to a ticket's: seeded, tied, changed, ternary and dense ones.

Packing is where exactness is enforced: each surviving weight must be plus or minus the magnitude
that its seed regenerates, to the bit (DESIGN: "Exactness", rule 6). The codes are read from the
weights themselves, so any loop that prunes and flips signs in place will do.

Tensors without a seed become changes of a base that is given (`pabzip.packing.delta`), codes where
they are ternary (`pabzip.packing.ternary`), and dense tensors otherwise.

Tied weights have several names and are stored once. A state dict lists a shared weight under each
of its names. Tensors are compared by their bits, not by their place in memory, so ties are found
after checkpoints and moves between devices, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import PackError
from pabzip.formats import Base, Tensor
from pabzip.init import Seeding
from pabzip.packing.delta import change_of
from pabzip.packing.sources import Source, check_described
from pabzip.packing.ternary import NO_TERNARY, TernaryPacker
from pabzip.seeds import Frozen, InitSpec, weights
from pabzip.seeds.frozen import KEPT, PRUNED
from pabzip.ticket import DenseTensor, SeededTensor, TiedTensor

_HEAD_BYTES = 4096
_NEGATIVE_ZERO = np.uint32(1 << 31)


class StateTensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint as a ticket's, in the same order; each is made when asked for.

    Args:
        source: where they come from.
        record: how seeded weights were drawn.
        packer: packs other tensors as codes where they are ternary; None packs none so.
        base: packs tensors that are not seeded as changes of its own, where that is small.

    Attributes:
        sizes: bytes of each tensor as it is read.
        negative_zeros: how many pruned weights of each seeded tensor that was asked for were -0.0,
            by name; they are stored as pruned, and load as 0.

    Raises:
        PackError: a seeded weight is missing, or a tensor cannot be stored. Each tensor that is
            asked for may raise it, too.
    """

    def __init__(
        self,
        source: Source,
        record: Seeding,
        packer: TernaryPacker | None = None,
        base: Base | None = None,
    ):
        missing = [name for name in record.specs if name not in source.tensors]
        if missing:
            raise PackError(
                f"{missing[0]}: expected this seeded weight in the state, found "
                f"{', '.join(list(source.tensors)[:4])}, ...; was the network changed after init_?"
            )
        check_described(source)
        self._source, self._record, self._packer, self._base = source, record, packer, base
        self._ties, self._specs = find_ties(source, record.specs)
        self._frozen = {self._ties.get(name, name): found for name, found in record.frozen.items()}
        self._layouts = getattr(source, "layouts", {})
        self.negative_zeros: dict[str, int] = {}
        self.sizes = {name: described.nbytes for name, described in source.tensors.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.tensors)

    def __len__(self) -> int:
        return len(self._source.tensors)

    def __getitem__(self, name: str) -> Tensor:
        if name in self._ties:
            return TiedTensor(name, self._ties[name])
        dtype = self._source.tensors[name].dtype
        values = self._source.read(name)
        if name not in self._specs:
            return self._unseeded(name, values, dtype)
        seed, spec, frozen = self._record.seed, self._specs[name], self._frozen.get(name)
        codes = read_codes(name, values, dtype, seed, spec)
        zeros = np.count_nonzero(values.view(np.uint32) == _NEGATIVE_ZERO)
        if zeros:
            self.negative_zeros[name] = int(zeros)
        if frozen is not None:
            check_frozen(name, codes, seed, spec, frozen)
        return SeededTensor(name, spec, codes, frozen=frozen)

    def _unseeded(self, name: str, values: NDArray[Any], dtype: str) -> Tensor:
        """Return the kind of tensor that holds these values best."""
        dense = DenseTensor(name, values, dtype, dtype)
        found: Tensor | None = None if self._base is None else change_of(dense, self._base)
        if found is None and self._packer is not None:
            layout = self._layouts.get(name)
            found = self._packer.recognize(
                name, values, dtype, siblings=self._source.tensors, layout=layout
            )
        return found or dense

    def require_ternary(self) -> None:
        """Refuse a checkpoint in which nothing ternary was recognized, once all of it was read."""
        # What was packed so before has a spec of its own on record by now.
        specs = self._record.specs.values()
        known = any(spec.distribution == "signed_constant" for spec in specs)
        packer = self._packer
        if packer and not packer.recognized and not known and self._base is None:
            raise PackError(NO_TERNARY.format(len(self)))


def read_codes(
    name: str, weight: NDArray[Any], dtype: str, seed: int, spec: InitSpec
) -> NDArray[np.int8]:
    """Read the codes of one weight: 0 pruned, +1 sign kept, -1 sign flipped.

    Raises:
        PackError: ``dtype`` is not float32, or a survivor's magnitude is not the seed's, bit for
            bit.
    """
    from pabzip.storable import check_seeded_dtype  # of torch, which seeded weights come with

    check_seeded_dtype(name, dtype)
    found = weight.reshape(-1)
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
    return codes.reshape(weight.shape)


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


def find_ties(
    source: Source, specs: Mapping[str, InitSpec]
) -> tuple[dict[str, str], dict[str, InitSpec]]:
    """Find tensors of two or more dimensions that equal an earlier one, bit for bit.

    Only tensors whose type, shape and first bytes equal those of another are read here.

    Two weights that are seeded by different specs are no tie, even if they are equal now (both
    pruned to nothing, say): training on tells them apart.

    Returns of each second name the first name, which is no second name itself; and the init specs
    of the others. Where a first name has none and a second has one, it passes to the first: an
    embedding that shares the weight of a seeded Linear after it.
    """
    alike = _groups(source.tensors, lambda name: source.tensors[name])
    large = (names for names in alike if len(source.tensors[names[0]].shape) >= 2)
    heads = (group for names in large for group in _groups(names, partial(_head, source)))
    targets: dict[str, str] = {}
    found = dict(specs)
    for group in (same for names in heads for same in _groups(names, partial(_digest, source))):
        firsts: list[str] = []
        for name in group:
            for first in firsts:
                if first in found and name in specs and found[first] != specs[name]:
                    continue
                targets[name] = first
                if name in specs:
                    found.setdefault(first, found.pop(name))
                break
            else:
                firsts.append(name)
    return targets, found


def _groups(names: Iterable[str], key: Callable[[str], object]) -> list[list[str]]:
    """Return names whose keys are equal, in their order, where there are several."""
    groups: dict[object, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _head(source: Source, name: str) -> bytes:
    """Return what tells most tensors apart: their first bytes."""
    return source.head(name, _HEAD_BYTES)


def _digest(source: Source, name: str) -> bytes:
    """Return the SHA-256 of a tensor's values, which no two different tensors share."""
    values = source.read(name)
    return hashlib.sha256(values.reshape(-1).view(np.uint8).data).digest()

"""Cases for the decoding kernels; run as a script it answers under the interpreter.

``TRITON_INTERPRET`` counts only if it is set before triton is imported, hence a process of its own.
Prints one JSON object of what was found.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.formats.coder import Coded
from pabzip.formats.context import geometry as layout
from pabzip.formats.context.decoder import ContextDecoder
from pabzip.runtime.cuda_state import launch, read_tensors
from pabzip.runtime.decode_tables import CodedTensor
from pabzip.seeds import Frozen, InitSpec, magnitudes
from pabzip.seeds.frozen import KEPT, PRUNED
from pabzip.ticket import DenseTensor, SeededTensor, Ticket

SEED = 2**63 + 12345
CHUNK_WEIGHTS = 3000
"""Active weights a chunk here, so that small tensors have several; each has several pieces."""

DTYPES = (None, "float16", "bfloat16")


def tensors() -> list[SeededTensor]:
    """Return tensors that need every way of telling masks and signs."""
    random = np.random.default_rng(5)
    made: list[SeededTensor] = []

    def add(
        name: str, shape: tuple[int, ...], mask: NDArray[np.bool_], flips: float,
        distribution: str = "normal", scale: float = 0.05,
    ) -> None:  # fmt: skip
        codes = mask.reshape(shape) * np.where(random.random(shape) < flips, -1, 1)
        spec = InitSpec(distribution, float(np.float32(scale)), 2**32 - 1 - len(made))
        made.append(SeededTensor(name, spec, codes.astype(np.int8)))

    def size(shape: tuple[int, ...], distribution: str = "normal") -> NDArray[np.float64]:
        spec = InitSpec(distribution, 1.0, 2**32 - 1 - len(made))
        drawn = magnitudes(SEED, spec, 0, int(np.prod(shape)))
        return drawn.astype(np.float64).reshape(shape) * 2.0**-28

    def product(shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """A mask as SynFlow finds it: by magnitude times a factor a row and a column."""
        factors = [np.exp(0.8 * random.standard_normal(n)) for n in shape]
        score = size(shape) * factors[0][:, None, None] * factors[1][:, None] * factors[2]
        return score > 2.5

    add("product", (40, 30, 9), product((40, 30, 9)), 0.5)
    add("threshold", (24, 175), size((24, 175)) > 1.5, 0.5)
    columns = random.random((6, 1, 4, 1)) < 0.6  # of the six groups that the 24 rows before feed
    grouped = columns & (size((6, 4, 4, 9)) > 0.3)
    add("grouped", (24, 4, 3, 3), grouped, 0.0)
    add("even", (20, 25), random.random((20, 25)) < 0.3, 0.4, "uniform", 1e-5)
    add("few flips", (30, 60), size((30, 60)) > 1.6, 0.03)
    add("all, kept", (11, 7), np.ones((11, 7), bool), 0.0, "signed_constant", 1e-6)
    add("all, plain", (50, 101), np.ones((50, 101), bool), 0.5, "uniform", 3.0)
    add("empty", (5, 6, 1, 1), np.zeros((5, 6, 1, 1), bool), 0.0)
    add("one", (1,), np.ones(1, bool), 1.0)
    return made


def ticket_bytes(coder: str = "context") -> bytes:
    """Return a file of all tensors, with dense ones between."""
    values = np.linspace(-3, 3, 7, dtype=np.float32)
    dense = [
        DenseTensor("bias", values, "float32", "float32"),
        DenseTensor("brain", np.arange(7, dtype=np.uint16) * 999, "bfloat16", "bfloat16"),
        DenseTensor("steps", np.array(9, dtype=np.int64), "int64", "int64"),
    ]
    out = io.BytesIO()
    seeded = tensors()
    Ticket(seed=SEED, tensors=[*seeded[:3], *dense, *seeded[3:]]).save(out, coder=coder)
    return out.getvalue()


def frozen_bytes() -> bytes:
    """Return a file of two tensors, of which the seed freezes the mask of one."""
    free = tensors()[1]
    frozen = Frozen.of(0.5, 0.3)
    spec = InitSpec("normal", 0.125, 3)
    codes = np.resize(np.array([0, 1, -1, 0], np.int8), 12 * 17)
    marks = frozen.marks(SEED, spec.stream, 0, codes.size)
    codes[marks == KEPT], codes[marks == PRUNED] = 1, 0
    held = SeededTensor("frozen", spec, codes.reshape(12, 17), frozen=frozen)
    out = io.BytesIO()
    Ticket(seed=SEED, tensors=[free, held]).save(out, coder="context")
    return out.getvalue()


def features(data: bytes) -> set[str]:
    """Return how a file codes masks and signs, and whether it has chunks and groups."""
    found = set()
    with Ticket.open(data) as ticket:
        for name, coded in _coded(ticket):
            description = _decoder(coded).descriptions[name]
            if description.active.count():
                found |= {description.mask.name, f"signs {description.signs}"}
            if len(description.survivors) > 1:
                found.add("chunks")
            if description.active.layout.groups > 1:
                found.add("groups")
    return found


def differing(
    data: bytes, device: str, dtype: str | None, names: tuple[str, ...] | None = None
) -> list[str]:
    """Return the tensors that ``device`` makes otherwise than numba, to the bit."""
    with Ticket.open(data) as ticket:
        names = names or ticket.names
        wanted = None if dtype is None else getattr(torch, dtype)
        made = read_tensors(ticket, names, device=device, dtype=wanted)
        assert tuple(made) == names
        return [name for name in names if not _same(ticket, name, made[name].cpu(), dtype)]


def _same(ticket: Ticket, name: str, made: torch.Tensor, dtype: str | None) -> bool:
    """Return whether a tensor is that of the CPU, in shape, type and bits."""
    if name == "brain":
        exact = torch.from_numpy(ticket.dense(name).values.view(np.int16)).view(torch.bfloat16)
    else:
        exact = torch.from_numpy(np.array(ticket.weight(name)))
    if dtype is not None and exact.is_floating_point():
        exact = exact.to(getattr(torch, dtype))
    alone = made.untyped_storage().nbytes() == made.nbytes
    return alone and made.dtype == exact.dtype and made.shape == exact.shape and (
        made.reshape(-1).view(torch.uint8).tolist() == exact.reshape(-1).view(torch.uint8).tolist()
    )  # fmt: skip


def disagreements(device: str) -> tuple[list[str], list[str]]:
    """Damage payloads in many ways; return where GPU and CPU differ, and all the reports."""
    differ, reports = [], set()
    for what, name, coded in _damaged():
        found = [_on_cpu(name, coded), _on_device(name, coded, device)]
        reports.add(found[0])
        if found[0] != found[1]:
            differ.append(f"{what}: {found}")
    return differ, sorted(reports)


def _damaged() -> Iterator[tuple[str, str, Coded]]:
    """Yield tensors whose payload, or the description of it, is wrong."""
    random = np.random.default_rng(3)
    data = ticket_bytes()
    for name in ("threshold", "few flips"):
        for number in range(6):
            with Ticket.open(data) as ticket:
                coded = dict(_coded(ticket))[name]
            payload = bytearray(coded.payload)
            payload[random.integers(len(payload))] ^= 1 << random.integers(8)
            yield f"{name}, flip {number}", name, Coded(coded.entry, bytes(payload), coded.decoder)
    for name, change in [("few flips", 1), ("few flips", -1), ("all, kept", 1)]:
        with Ticket.open(data) as ticket:
            coded = dict(_coded(ticket))[name]
        _decoder(coded).descriptions[name].survivors[0] += change
        yield f"{name}, survivors {change:+}", name, coded
    for name in ("threshold", "product", "all, kept"):
        with Ticket.open(data) as ticket:
            coded = dict(_coded(ticket))[name]
        sizes = _decoder(coded).descriptions[name].coded_bytes
        sizes[0] += 1
        payload = bytearray(coded.payload)
        payload.insert(int(sizes[0]) - 1, 0)
        yield f"{name}, a zero more", name, Coded(coded.entry, bytes(payload), coded.decoder)
    with Ticket.open(data) as ticket:
        coded = dict(_coded(ticket))["one"]
    yield "one, padding", "one", Coded(coded.entry, b"\x81", coded.decoder)
    yield "one, cut", "one", Coded(coded.entry, b"", coded.decoder)


def _on_cpu(name: str, coded: Coded) -> str:
    """Return what numba says of a payload."""
    try:
        out = np.zeros(coded.entry.count, dtype=np.float32)
        for task in coded.decoder.weights(coded.entry, coded.payload, out):
            task()
    except FormatError as error:
        return error.problem
    return "fine"


def _on_device(name: str, coded: Coded, device: str) -> str:
    """Return what the kernels say of a payload."""
    description = _decoder(coded).descriptions[name]
    out = torch.zeros(coded.entry.count, device=device)
    job = CodedTensor(coded.entry, description, coded.payload, out.data_ptr())
    try:
        launch(SEED, [job], torch.device(device), torch.float32)()
    except FormatError as error:
        return error.problem if error.place == f"tensor {name!r}" else str(error)
    return "fine"


def _coded(ticket: Ticket) -> Iterator[tuple[str, Coded]]:
    """Yield the seeded tensors of a file as it has them."""
    for name in ticket.names:
        if ticket.kind(name) == "seeded":
            coded = ticket.coded(name)
            assert coded is not None
            yield name, coded


def _decoder(coded: Coded) -> ContextDecoder:
    """Return the decoder, which is the context coder's."""
    assert isinstance(coded.decoder, ContextDecoder)
    return coded.decoder


if __name__ == "__main__":
    layout.CHUNK_WEIGHTS = CHUNK_WEIGHTS
    context = ticket_bytes()
    differ, reports = disagreements("cpu")
    answer: dict[str, Any] = {
        "features": sorted(features(context)),
        "differing": [differing(context, "cpu", dtype) for dtype in DTYPES],
        "double": differing(context, "cpu", "float64", ("one", "steps", "bias")),
        "nothing active": differing(context, "cpu", None, ("empty",)),
        "huffman": differing(ticket_bytes("huffman"), "cpu", "bfloat16"),
        "frozen": [differing(frozen_bytes(), "cpu", dtype) for dtype in DTYPES],
        "disagreements": differ,
        "reports": reports,
    }
    json.dump(answer, sys.stdout)

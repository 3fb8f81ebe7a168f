"""FAULT 17: a file of the ``context`` coder decodes to what it did when it was written.

An encoder may choose better some day, so what is compared is what the file decodes to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pabzip.seeds import InitSpec, magnitudes
from pabzip.ticket import SeededTensor, Ticket

EXPECTED = Path(__file__).parents[2] / "expected"
NAME = "v1-context"
SEED = 2**64 - 59


def scattered(count: int, salt: int) -> np.ndarray:
    """Numbers in 0 to 1 by arithmetic that no library can change."""
    mixed = np.arange(count, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(salt * 40503)
    mixed = (mixed ^ (mixed >> np.uint64(15))) * np.uint64(2246822519) % np.uint64(2**32)
    return (mixed >> np.uint64(8)).astype(np.float64) / 2**24


def seeded(
    name: str,
    shape: tuple[int, ...],
    stream: int,
    *,
    kind: str = "normal",
    spread: float | None = None,
    keep: float = 0.3,
    flips: float = 0.5,
    empty: tuple[int, int] = (0, 0),
) -> SeededTensor:
    """A tensor whose mask follows row and column factors, or nothing where ``spread`` is None."""
    spec, count = InitSpec(kind, 2.0**-4, stream), int(np.prod(shape))
    scores = scattered(count, stream).reshape(shape)
    if spread is not None:
        scores = np.log2(magnitudes(SEED, spec, 0, count, backend="numpy")).reshape(shape)
        rows, columns = (np.sin(np.arange(1, size + 1) ** 2) * spread for size in shape[:2])
        scores = scores + rows.reshape(-1, *[1] * (len(shape) - 1))
        scores += columns.reshape(1, -1, *[1] * (len(shape) - 2))
    mask = scores >= np.quantile(scores, 1 - keep) if keep else np.zeros(shape, dtype=bool)
    mask[: empty[0]] = False
    mask[:, : empty[1]] = False
    signs = np.where(scattered(count, stream + 1000).reshape(shape) < flips, -1, 1)
    return SeededTensor(name, spec, (mask * signs).astype(np.int8))


def every_mode() -> Ticket:
    return Ticket(
        seed=SEED,
        tensors=[
            seeded("conv1", (24, 3, 3, 3), 0, spread=0.0),
            seeded("conv2", (24, 24, 3, 3), 1, spread=0.6, empty=(5, 0)),
            seeded("conv3", (24, 24, 3, 3), 2, spread=0.6, empty=(0, 5), flips=0.04),
            seeded("grouped", (24, 6, 3, 3), 3, kind="uniform", keep=0.2, flips=0.0),
            seeded("depthwise", (24, 1, 5), 4, kind="signed_constant", keep=1.0, flips=0.5),
            seeded("dead", (24, 24, 1, 1), 5, keep=0.0),
            seeded("flattened", (30, 24 * 16), 6, spread=0.5, keep=0.1, flips=0.1),
            seeded("chunks", (1000, 160), 7, keep=0.02, flips=1.0),
            seeded("one", (1, 1), 8, keep=1.0),
        ],
        metadata={"purpose": "golden"},
    )


def described(ticket: Ticket) -> dict[str, Any]:
    """What the golden file must decode to."""
    return {
        "seed": str(ticket.seed),
        "state_sha256": ticket.sha256(backend="numpy"),
        "codes_sha256": {
            name: hashlib.sha256(ticket.codes(name).tobytes()).hexdigest() for name in ticket.names
        },
    }


def test_fault_17_the_golden_file_decodes(
    regenerate_expected: bool,
    save: Callable[..., bytes],
    take_apart: Callable[[bytes], Any],
    plain: ModuleType,
) -> None:
    path, text = EXPECTED / f"{NAME}.pabz", EXPECTED / f"{NAME}.json"
    if regenerate_expected:
        path.write_bytes(save(every_mode(), coder="context"))
        provenance = {
            "format_version": 1,
            "written_by": "tests/formats/context/test_context_golden.py, every_mode()",
            "regenerate_with": "pytest tests/formats --regenerate-expected",
            "file_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        with Ticket.open(path) as ticket:
            written = json.dumps(provenance | described(ticket), indent=1)
        text.write_text(written + "\n", encoding="utf-8")
    expected = json.loads(text.read_text(encoding="utf-8"))
    file = path.read_bytes()
    assert hashlib.sha256(file).hexdigest() == expected["file_sha256"]
    with Ticket.open(file) as ticket:
        assert ticket.verify(threads=2) == expected["state_sha256"]
        assert described(ticket).items() <= expected.items()
        codes = {name: ticket.codes(name) for name in ticket.names}

    parts = take_apart(file)
    rows = parts.fields["tensors"]
    assert {row[5] for row in rows} == {"context"}
    told = plain.read_side(parts.payloads[0], [(tuple(row[1]), row[6]) for row in rows])
    assert {one.mode for one in told if one.rows} == {0, 1, 2, 3}
    assert {one.signs for one in told if one.rows} == {0, 1, 2}
    assert max(len(one.chunks) for one in told) > 2
    for one, row, payload in zip(told, rows, parts.payloads[1:], strict=True):
        scale = float(np.array(row[3], np.uint32).view(np.float32))
        spec = InitSpec(row[2], scale, row[4])
        found = plain.decode(one, payload, int(parts.fields["seed"]), spec)
        assert codes[row[0]].reshape(-1).tolist() == found


def test_the_golden_ticket_is_still_what_is_written(save: Callable[..., bytes]) -> None:
    """Today's encoder makes a file of the same state, whatever its bytes."""
    expected = json.loads((EXPECTED / f"{NAME}.json").read_text(encoding="utf-8"))
    with Ticket.open(save(every_mode(), coder="context")) as ticket:
        assert ticket.verify() == expected["state_sha256"]

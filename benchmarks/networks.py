"""Which networks work with pabzip, by what is done with them: the table of docs/networks.md.

Each row is drawn, searched by every method, unmasked by Bop, with predictive gradients and without,
packed, loaded and exported. A cell is "yes" after a check of what came of it, or "refused" with
what our error says, where it is one of ours, raised before anything changed. All else is a failure,
and the script ends with 1: another package's exception, a weight that is not plus or minus the
seed's, a mask of another size, a file that pack refuses after init_ took the network, or one that
does not come back bit for bit.

The networks have random weights and are cut down; what works on these works on large ones.
"""

from __future__ import annotations

import copy
import io
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _networks import Row, rows
from _shared import Progress, finish, parser
from torch import Tensor, nn

import pabzip
from pabzip.calls import named_tensors
from pabzip.errors import ExportError, PabzError, RecipeError, SearchError, SeedError
from pabzip.seeds import InitSpec
from pabzip.unmask import Bop, apply_psg
from pabzip.wrappers import full_state, is_sharded, unwrap

PAGE = Path(__file__).resolve().parents[1] / "docs" / "networks.md"
SEARCHES = ("synflow", "snip", "grasp", "magnitude", "random")
COLUMNS = ("init_", *SEARCHES, "Bop", "PSG", "pack", "load", "ONNX")
KEEP_RATIO = 0.5
ROUNDS = 5  # of SynFlow, whose published number is 100
NONE = "-"


class FailureError(Exception):
    """Something came out that should not have."""


class Cells:
    """What came of one row, by column.

    Attributes:
        found: ``"yes"``, ``"refused: ..."``, ``"FAILURE: ..."`` or ``"-"``, by column.
        traces: of the failures, by column.
    """

    def __init__(self) -> None:
        self.found: dict[str, str] = dict.fromkeys(COLUMNS, NONE)
        self.traces: dict[str, str] = {}

    def run(self, column: str, step: Callable[[], object], *errors: type[PabzError]) -> bool:
        """Do one thing, and note what came of it; ``errors`` are those that may refuse it."""
        try:
            step()
        except errors as error:
            self.found[column] = f"refused: {error}"
        except Exception as error:
            self.found[column] = f"FAILURE: {type(error).__name__}: {' '.join(str(error).split())}"
            self.traces[column] = traceback.format_exc()
        else:
            self.found[column] = "yes"
        return self.found[column] == "yes"


def call(net: nn.Module, inputs: Any) -> Any:
    """Return what the network returns for a batch."""
    if isinstance(inputs, Mapping):
        return net(**inputs)
    return net(*inputs) if isinstance(inputs, tuple) else net(inputs)


def loss_of(row: Row, net: nn.Module) -> Tensor:
    """Return the loss of the row's batch."""
    returned = call(net, row.inputs)
    if row.targets is None:
        own: Tensor = returned.loss
        return own
    if row.output is not None:
        returned = row.output(returned)
    outputs = returned if isinstance(returned, Tensor) else returned.logits
    return (row.loss or F.cross_entropy)(outputs, row.targets)


def answers(row: Row, net: nn.Module) -> list[Tensor]:
    """Return the network's outputs in evaluation mode."""
    net.eval()
    with torch.no_grad():
        found = [tensor.clone() for _, tensor in named_tensors(call(net, row.inputs))]
    net.train()
    return found


@lru_cache(maxsize=1)
def first(row: Row) -> nn.Module:
    """Make the network of a row once; the last one's is let go of."""
    torch.manual_seed(0)
    return row.build()


def built(row: Row) -> nn.Module:
    """Return a network with the same random weights every time."""
    try:
        return copy.deepcopy(first(row))
    except Exception:  # what is wrapped already may not let itself be copied
        first.cache_clear()
        return first(row)


def drawn(row: Row) -> nn.Module:
    """Make the network, and draw its weights from a seed."""
    return pabzip.init_(built(row), seed=7, **row.init)


def wrapped(row: Row, net: nn.Module) -> nn.Module:
    """Put on what the row has around its network."""
    return net if row.wrap is None else row.wrap(net)


def bits(tensor: Tensor) -> bytes:
    """Return a tensor's bytes; +0.0 and -0.0 differ."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Say whether two states are the same, names, shapes, dtypes and bits."""
    return list(one) == list(other) and all(
        one[name].shape == other[name].shape
        and one[name].dtype == other[name].dtype
        and bits(one[name]) == bits(other[name])
        for name in one
    )


def check(right: bool, problem: str) -> None:
    """Raise unless all is right."""
    if not right:
        raise FailureError(problem)


def state_of(net: nn.Module) -> dict[str, Tensor] | None:
    """Return a copy of the network's state; None of one that has no values yet."""
    if any(isinstance(value, nn.parameter.UninitializedParameter) for value in net.parameters()):
        return None
    return {name: value.clone() for name, value in full_state(net).items()}


def draw(row: Row) -> None:
    """Draw the network's weights; if that is refused, nothing may have changed."""
    net = built(row)
    before = state_of(net)
    try:
        pabzip.init_(net, seed=7, **row.init)
    except SeedError:
        check(before is None or same(before, state_of(net) or {}), "refused, but weights changed")
        raise
    check(bool(pabzip.seeded_parameters(net)), "no weight is seeded")


def options_of(row: Row) -> dict[str, Any]:
    """Return what a search is called with, as a user would."""
    found = {"example_inputs": row.inputs, "targets": row.targets, "loss": row.loss,
             "output": row.output}  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def search(row: Row, method: str) -> None:
    """Search, and check the masks; if it is refused, no weight may have changed."""
    net = wrapped(row, drawn(row))
    before = state_of(net) or {}
    options = options_of(row)
    if method == "synflow":
        options["iterations"] = ROUNDS
    try:
        masks = getattr(pabzip.search, method)(net, KEEP_RATIO, **options)
    except SearchError:
        check(same(before, state_of(net) or {}), "refused, but weights changed")
        raise
    weights = pabzip.seeded_parameters(net)
    check(list(masks) == list(weights), f"masks of {list(masks)}, weights {list(weights)}")
    whole = sum(weight.numel() for weight in weights.values())
    kept = sum(int(mask.sum()) for mask in masks.values())
    check(kept == whole - int((1 - KEEP_RATIO) * whole), f"{kept} survivors of {whole}")
    expected = dict(before)
    firsts = {id(weight): name for name, weight in weights.items()}
    for name, weight in unwrap(net).named_parameters(remove_duplicate=False):
        if id(weight) in firsts:
            expected[name] = before[name].masked_fill(~masks[firsts[id(weight)]], 0.0)
    check(same(expected, state_of(net) or {}), "other than the pruned weights changed")
    check(
        all(bool(torch.isfinite(t).all()) for t in answers(row, net) if t.is_floating_point()),
        "outputs that are not finite",
    )


def flip(row: Row, net: nn.Module, steps: int) -> None:
    """Take steps of Bop, and check that signs flip and nothing else does."""
    before = state_of(net) or {}
    bop = Bop(net, adaptivity_rate=1.0, threshold=0.0)
    flips = 0
    net.train()
    torch.manual_seed(1)
    for _ in range(steps):
        net.zero_grad()
        loss = loss_of(row, net)
        check(bool(torch.isfinite(loss)), f"a loss of {loss}")
        loss.backward()  # type: ignore[no-untyped-call]
        bop.step()
        flips += int(bop.flips)
    net.zero_grad()
    check(flips > 0, "no sign flipped")
    after = state_of(net) or {}
    for name in pabzip.seeding(net).specs:
        check(torch.equal(before[name].abs(), after[name].abs()), f"{name}: magnitudes changed")


def predictive(row: Row) -> None:
    """Take a step with predictive gradients."""
    net = wrapped(row, drawn(row))
    handle = apply_psg(net)
    try:
        check(bool(handle.modules), "no layer has predictive gradients")
        flip(row, net, 1)
    finally:
        handle.remove()


def record(net: nn.Module) -> tuple[int, dict[str, InitSpec]]:
    """Return the seed and the specs; a tied weight goes by the first of its names."""
    found, names = pabzip.seeding(net), {}
    known = {**dict(unwrap(net).named_buffers()), **dict(unwrap(net).named_parameters())}
    shared = {id(tensor): name for name, tensor in known.items()}
    for name, tensor in unwrap(net).named_parameters(remove_duplicate=False):
        names[name] = shared[id(tensor)]
    return found.seed, {names.get(name, name): spec for name, spec in found.specs.items()}


def load(row: Row, net: nn.Module, data: bytes) -> None:
    """Load the file into a new network, and check state, record and outputs."""
    fresh = wrapped(row, built(row))
    pabzip.load_into(fresh, data, verify=True)
    check(same(full_state(net), full_state(fresh)), "the state is another one")
    check(record(fresh) == record(net), "the record is another one")
    for one, other in zip(answers(row, net), answers(row, fresh), strict=True):
        check(torch.equal(one, other), "outputs differ")
    again = io.BytesIO()
    pabzip.pack(fresh, again)
    check(again.getvalue() == data, "packed again it is another file")


def export(row: Row, net: nn.Module) -> None:
    """Export to ONNX, which compares the outputs with torch's."""
    image = isinstance(row.inputs, Tensor) and row.inputs.dim() == 4 and row.output is None
    logits = image and row.loss is None
    inputs = {"input_shape": row.inputs.shape[1:]} if logits else {"example_inputs": row.inputs}
    if isinstance(row.inputs, Mapping):  # a deployed network is given no labels
        without = {name: value for name, value in row.inputs.items() if name != "labels"}
        if getattr(getattr(unwrap(net), "config", None), "is_encoder_decoder", False):
            without["decoder_input_ids"] = row.inputs["labels"]
        inputs = {"example_inputs": without}
    report = pabzip.export_onnx(net, io.BytesIO(), **inputs)
    check(report.difference <= report.tolerance, "outputs differ")


def measured(row: Row) -> tuple[Cells, float | None]:
    """Do everything with one network; return the cells and the seeded share of its parameters."""
    cells = Cells()
    if not cells.run("init_", lambda: draw(row), SeedError):
        return cells, None
    for method in SEARCHES:
        cells.run(method, lambda method=method: search(row, method), SearchError)  # type: ignore[misc]
    net = drawn(row)
    seeded = sum(weight.numel() for weight in pabzip.seeded_parameters(net).values())
    share = seeded / sum(parameter.numel() for parameter in net.parameters())
    if cells.found["random"] == "yes" or is_sharded(wrapped(row, drawn(row))):
        pabzip.search.random(net, KEEP_RATIO)
    net = wrapped(row, net)
    cells.run("Bop", lambda: flip(row, net, 3), RecipeError)
    cells.run("PSG", lambda: predictive(row), RecipeError)
    file = io.BytesIO()
    if cells.run("pack", lambda: pabzip.pack(net, file)):
        cells.run("load", lambda: load(row, net, file.getvalue()))
    cells.run("ONNX", lambda: export(row, net), ExportError)
    return cells, share


@contextmanager
def one_process() -> Iterator[None]:
    """Be a process group of this process alone, for DistributedDataParallel and FSDP."""
    if torch.distributed.is_initialized():
        yield
        return
    distributed: Any = torch.distributed
    store = distributed.HashStore()
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def page(result: Mapping[str, Any]) -> str:
    """Return the table as docs/networks.md has it, with what refusals say below it."""
    notes: list[str] = []

    def cell(text: str) -> str:
        if not text.startswith("refused: "):
            return "FAILURE" if text.startswith("FAILURE") else text
        said = text.removeprefix("refused: ")
        if said not in notes:
            notes.append(said)
        return f"refused [{notes.index(said) + 1}]"

    lines = [f"| network | seeded | {' | '.join(COLUMNS)} |", f"|---|--:|{'---|' * len(COLUMNS)}"]
    for row in result["networks"]:
        share = NONE if row["seeded"] is None else f"{row['seeded']:.0%}"
        found = " | ".join(cell(row["cells"][column]) for column in COLUMNS)
        lines.append(f"| {row['network']} | {share} | {found} |")
    listed = "\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1))
    return (
        "# Networks that were tried\n\n"
        f"{len(result['networks'])} networks with random weights, each cut down in width or depth, "
        "made by `python benchmarks/networks.py` with the versions of "
        "[its results](../benchmarks/results/networks.json).\n\n"
        "- *seeded*: the share of the parameters that the seed draws.\n"
        "- *init_* and the searches (keep ratio 0.5): drawn, pruned to the exact count, outputs "
        "finite.\n"
        "- *Bop*: three steps flip signs and change no magnitude; *PSG*: one with predictive "
        "gradients.\n"
        "- *pack* and *load*: a new network gets the same state, bit for bit, gives the same "
        "outputs and packs to the same file.\n"
        "- *ONNX*: exported, and ONNX Runtime agrees with torch.\n"
        "- *refused [n]*: the error says why and the way out, before anything has changed. "
        "A dash: not tried, as the row was refused before.\n\n" + "\n".join(lines) + "\n\n"
        f"What the refusals say:\n\n{listed}\n"
    )


def main() -> None:
    """Measure the rows that were asked for, write the table and the JSON."""
    arguments = parser(__doc__)
    arguments.add_argument("--third", action="store_true", help="the rows that run with the tests")
    arguments.add_argument("--only", action="append", help="rows whose name holds this text")
    arguments.add_argument("--page", type=Path, help=f"write the table here (for all rows: {PAGE})")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch and others warn of deprecations of their own
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    chosen = [
        row for row in rows()
        if (row.third or not (given.third or given.quick))
        and (not given.only or any(text in row.name for text in given.only))
    ]  # fmt: skip
    missing = sorted({row.package for row in chosen if find_spec(row.package) is None})
    chosen = [row for row in chosen if row.package not in missing]
    found: list[dict[str, Any]] = []
    failures = 0
    progress = Progress(len(chosen))
    with one_process():
        for row in chosen:
            progress.step(row.name)
            torch._dynamo.reset()
            begin = time.process_time()
            cells, share = measured(row)
            seconds = time.process_time() - begin
            said = [f"{row.name}: {seconds:.1f} s of one core"]
            for column, text in cells.found.items():
                if text.startswith("FAILURE"):
                    failures += 1
                    said.append(f"  {column}: {text[:300]}")
            progress.done("\n".join(said))
            found.append({"network": row.name, "seeded": share, "seconds": round(seconds, 1),
                          "cells": cells.found, "traces": cells.traces})  # fmt: skip
    progress.close()
    result = {
        "keep_ratio": KEEP_RATIO,
        "left_out": [f"rows that need {name}, which is not installed" for name in missing],
        "failures": failures,
        "networks": [{k: v for k, v in row.items() if k != "traces"} for row in found],
    }
    text = page(result)
    whole = not (given.third or given.quick or given.only or missing)
    target = given.page or (PAGE if whole else None)
    if target is not None:
        target.write_text(text, encoding="utf-8")
    packages = [name for name in ("torch", "torchvision", "transformers") if find_spec(name)]
    given.quick = not whole
    finish("networks", given, "Networks", text, result, *packages)
    for traced in found:
        for column, trace in traced["traces"].items():
            print(f"\n{traced['network']}, {column}:\n{trace}")
    if failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

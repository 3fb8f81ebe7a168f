"""Train by every method of the paper, on the same mask and loop, and compare what comes of it.

Each run is what a user types: ``pabzip train``, ``pack``, ``verify``, ``eval``. The accuracy of the
packed file must be that of training, or the benchmark fails. ``--study digits`` covers all methods
on the embedded digits; ``--study cluttered-digits`` asks how far a ticket stays behind SGD on the
same mask, and what the start of Bop's moving average does to it. With ``--folder`` a study of hours
that was interrupted goes on where it stood.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _runs import in_parallel, pabzip
from _shared import Progress, finish, heading, kibibytes, machine, markdown, parser


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the table: a method with the flags that set it apart."""

    title: str
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Study:
    """What is trained: the flags that all rows share, and the rows."""

    title: str
    flags: tuple[str, ...]
    variants: tuple[Variant, ...]


def _method(name: str, *flags: str, note: str = "") -> Variant:
    """Return the row of a method."""
    return Variant(f"{name}{note}", ("--method", name, *flags))


# Ten epochs in place of the paper's two hundred, on a network of half its width: what fits an hour
# on two cores. So wide a network does not leave its first plateau where many signs flip at once, as
# they do at adaptivity rates from 1e-4 up to the paper's 1e-3, even with an average from zero. The
# rate falls where the learning rate falls: before, many flips do no harm; after, few are needed.
_CLUTTERED = (
    "--data cluttered-digits --arch resnet18 --set arch_options.width=32 --keep-ratio 0.5 "
    "--epochs 10 --batch-size 64 --set augment=false --precision bfloat16 --set channels_last=true "
    "--lr 0.05 --set sgd.milestones=[6,9] --adaptivity-rate 3e-5 --threshold 1e-6 "
    "--set bop.decay_every=6 --set bop.decay_ratio=0.2"
)

METHODS = (
    "dense-sgd", "dense-sgd-short", "sgd", "signsgd",
    "pab-latent", "pab-latent-psg", "pab-bop", "pab-bop-psg",
)  # fmt: skip

STUDIES = {
    "digits": Study(
        "Every method on the digits, ResNet-20 of width 8, keep 0.1",
        ("--data", "digits"),
        tuple(_method(name) for name in METHODS),
    ),
    "cluttered-digits": Study(
        "Cluttered digits, ResNet-18 of width 32, keep 0.5, 10 epochs",
        tuple(_CLUTTERED.split()),
        (
            _method("sgd"),
            _method("pab-bop-psg", "--set", "bop.start=zero", note=", average starts at zero"),
            _method("pab-bop-psg", "--set", "bop.start=first-gradient", note=", as published"),
        ),
    ),
}

_QUICK = ("--epochs", "1", "--set", "search.iterations=3")


def main() -> None:
    """Run the benchmark."""
    arguments = _arguments()
    study = STUDIES[arguments.study]
    variants = [
        variant
        for variant in study.variants
        if arguments.only is None or any(text in variant.title for text in arguments.only)
    ]
    flags = (*study.flags, *(_QUICK if arguments.quick else ()), *_chosen(arguments))
    tasks = [(variant, seed) for variant in variants for seed in range(arguments.seeds)]
    progress = Progress(len(tasks))
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)

        def work(task: tuple[Variant, int]) -> dict[str, Any]:
            variant, seed = task
            name = folder / f"{study.variants.index(variant)}-{seed}"
            found = _run(name, (*flags, *variant.flags, "--seed", str(seed)), arguments.threads)
            progress.step(f"{variant.title}, seed {seed}: {found['accuracy']:.2%}")
            progress.done()
            return found

        runs = in_parallel(work, tasks, arguments.jobs)
    progress.close()
    rows = [
        _row(variant, [run for run, task in zip(runs, tasks, strict=True) if task[0] == variant])
        for variant in variants
    ]
    facts = machine("torch")
    result = {"machine": facts, "study": arguments.study, "flags": list(flags), "rows": rows}
    name = "methods" if arguments.study == "digits" else f"methods-{arguments.study}"
    finish(name, arguments, result, heading(study.title, facts) + _table(rows))


def _arguments() -> argparse.Namespace:
    """Read the command line."""
    result = parser(__doc__)
    result.add_argument("--study", choices=STUDIES, default="digits", help="what is trained")
    result.add_argument(
        "--only", metavar="TEXT", action="append", help="rows with this in their title; repeatable"
    )
    result.add_argument("--seeds", type=int, default=1, help="runs of each row, seeds from 0")
    result.add_argument("--jobs", type=int, default=1, help="runs at a time")
    result.add_argument("--threads", type=int, default=1, help="threads of torch in each run")
    result.add_argument(
        "--folder", type=Path, help="keep the runs there, and go on with those that are there"
    )
    result.add_argument(
        "flags", nargs="*", help="further flags of `pabzip train`, after --, for all rows"
    )
    return result.parse_args()


def _chosen(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Return the flags of `pabzip train` that the caller added; they win over the study's."""
    named = {"--arch": arguments.arch, "--keep-ratio": arguments.keep_ratio}
    given = [str(part) for flag in named.items() if flag[1] is not None for part in flag]
    return (*given, *arguments.flags)


def _run(name: Path, flags: Sequence[str], threads: int) -> dict[str, Any]:
    """Train, pack, verify and evaluate; return what a row needs."""
    checkpoint, ticket = name.with_suffix(".pt"), name.with_suffix(".pabz")
    trained = _trained(checkpoint, flags, threads)
    packed = pabzip("pack", checkpoint, "-o", ticket, "--force", threads=threads)
    verified = pabzip("verify", ticket, threads=threads)
    tested = pabzip("eval", ticket, threads=threads)
    if not verified["ok"] or tested["accuracy"] != trained["test_accuracy"]:
        raise RuntimeError(
            f"{' '.join(flags)}: expected the file to be as accurate as training, "
            f"{trained['test_accuracy']}, found {tested['accuracy']}"
        )
    return {
        "accuracy": tested["accuracy"],
        "bytes": packed["bytes"],
        "bitops": trained["bitops"],
        "epochs": trained["epochs"],
        "seconds": trained["seconds"],
        "survivors": trained["survivors"],
        "weights": trained["weights"],
    }


def _trained(checkpoint: Path, flags: Sequence[str], threads: int) -> dict[str, Any]:
    """Train, or go on with what an earlier call left; return what the run says of itself."""
    record = checkpoint.with_suffix(".json")
    if record.exists():
        kept: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        if kept["flags"] != list(flags):
            raise RuntimeError(
                f"{record}: expected a run with the flags {' '.join(flags)}, found one with "
                f"{' '.join(kept['flags'])}; name another --folder"
            )
        return kept
    checkpoint.unlink(missing_ok=True)
    trained = pabzip("train", *flags, "-o", checkpoint, "--resume", threads=threads)
    record.write_text(json.dumps({**trained, "flags": list(flags)}), encoding="utf-8")
    return trained


def _row(variant: Variant, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one row: means over the seeds, and every run."""
    keys = ("accuracy", "bytes", "bitops", "epochs", "seconds")
    means = {key: statistics.fmean(run[key] for run in runs) for key in keys}
    return {"method": variant.title, "flags": list(variant.flags), **means, "runs": list(runs)}


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table for people."""
    columns = ["method", "accuracy", "BitOPs a step", "epochs", "file, KiB"]
    cells = [
        [
            row["method"],
            f"{row['accuracy']:.2%}",
            f"{row['bitops'] / 1e9:.2f} G",
            f"{row['epochs']:.0f}",
            kibibytes(row["bytes"]),
        ]
        for row in rows
    ]
    return markdown(columns, cells)


if __name__ == "__main__":
    main()

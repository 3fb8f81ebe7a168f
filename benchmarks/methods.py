"""Train by every method of the paper, on the same mask and loop, and compare what comes of it.

Each run is what a user types: ``pabzip train``, ``pack``, ``verify``, ``eval``. The accuracy of the
packed file must be that of training, or the benchmark fails. ``--study digits`` covers the methods
of Peek-a-Boo on the embedded digits; ``--study tickets`` all ways to a ticket, on one Conv-4;
``--study cluttered-digits`` asks how far a ticket stays behind SGD on the same mask, and what the
start of Bop's moving average does to it. With ``--folder`` a study of hours that was interrupted
goes on where it stood. Settings are chosen with ``-- --validation 0.1``: the table then has the
accuracy on these held-out training images too, beside that on the test images.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _shared import Progress, finish, kibibytes, markdown, parser

from pabzip import Ticket


@dataclass(frozen=True, slots=True)
class Study:
    """What is trained: flags of `pabzip train` for all rows, and those of each row by its title."""

    title: str
    flags: str
    rows: Mapping[str, str]


# Ten epochs in place of the paper's two hundred, on a network of half its width: what fits an hour
# on two cores. So wide a network does not leave its first plateau where many signs flip at once, as
# they do at adaptivity rates from 1e-4 up to the paper's 1e-3, even with an average from zero. The
# rate falls where the learning rate falls: before, many flips do no harm; after, few are needed.
_CLUTTERED = (
    "--data cluttered-digits --arch resnet18 --set arch_options.width=32 --keep-ratio 0.5 "
    "--epochs 10 --batch-size 64 --set augment=false --set precision=bfloat16 "
    "--set channels_last=true --set sgd.lr=0.05 --set sgd.milestones=[6,9] "
    "--set bop.adaptivity_rate=3e-5 --set bop.threshold=1e-6 --set bop.decay_every=6 "
    "--set bop.decay_ratio=0.2"
)

METHODS = (
    "dense-sgd", "dense-sgd-short", "sgd", "signsgd",
    "pab-latent", "pab-latent-psg", "pab-bop", "pab-bop-psg",
)  # fmt: skip

STUDIES = {
    "digits": Study(
        "Every method on the digits, ResNet-20 of width 8, keep 0.1",
        "--data digits",
        {name: f"--method {name}" for name in METHODS},
    ),
    "tickets": Study(
        "Tickets at initialization and trained ones, Conv-4 of width 32 on the digits, 30 epochs",
        "--data digits --arch conv4 --set arch_options.width=32 "
        "--set arch_options.head_batch_norm=true --set arch_options.bias=false "
        "--set arch_options.affine=false --set classifier=seeded --epochs 30",
        {
            "dense-sgd": "--method dense-sgd",
            "sgd, keep 0.1": "--method sgd --keep-ratio 0.1",
            "sgd, smart ratios, keep 0.1": (
                "--method sgd --keep-ratio 0.1 --set search.method=smart-ratio "
                "--set search.ratio_form=vgg --set search.linear_keep_ratio=0.05"
            ),
            "magnitude pruning, keep 0.1": (
                "--method imp --keep-ratio 0.1 --set imp.rounds=3 --set imp.round_epochs=10"
            ),
            "rate rewinding, keep 0.1": (
                "--method imp --keep-ratio 0.1 --set imp.rounds=3 --set imp.round_epochs=10 "
                "--set imp.rewind=rate"
            ),
            "pab-latent, keep 0.1": "--method pab-latent --keep-ratio 0.1",
            "pab-bop, keep 0.1": "--method pab-bop --keep-ratio 0.1",
            "edge-popup, keep 0.1": "--method edge-popup --keep-ratio 0.1",
            "edge-popup, keep 0.05": "--method edge-popup --keep-ratio 0.05",
            "edge-popup, global, keep 0.05": (
                "--method edge-popup --keep-ratio 0.05 --set edge_popup.scope=global"
            ),
            "edge-popup, global, gradual, keep 0.05": (
                "--method edge-popup --keep-ratio 0.05 --set edge_popup.scope=global "
                "--set edge_popup.gradual=true"
            ),
            "gem-miner, keep 0.05": "--method gem-miner --keep-ratio 0.05 --set gem_miner.lr=2",
            "edge-popup, 70 % frozen, keep 0.3": (
                "--method edge-popup --keep-ratio 0.3 --set edge_popup.frozen=0.7"
            ),
            "edge-popup, keep 0.3": "--method edge-popup --keep-ratio 0.3",
            "biprop, MPT-1/32, keep 0.2": "--method biprop --keep-ratio 0.2",
            "biprop, MPT-1/32 + BN, keep 0.2": (
                "--method biprop --keep-ratio 0.2 --set arch_options.affine=true"
            ),
            "biprop, MPT-1/1, keep 0.4": (
                "--method biprop --keep-ratio 0.4 --set arch_options.binary_activations=true"
            ),
            "free-pruning": "--method free-pruning",
            "minimal-pruning": "--method minimal-pruning",
            "free-flipping": "--method free-flipping",
            "minimal-flipping": "--method minimal-flipping",
        },
    ),
    "cluttered-digits": Study(
        "Cluttered digits, ResNet-18 of width 32, keep 0.5, 10 epochs",
        _CLUTTERED,
        {
            "sgd": "--method sgd",
            "pab-bop-psg, average starts at zero": "--method pab-bop-psg --set bop.start=zero",
            "pab-bop-psg, average starts at the first gradient": (
                "--method pab-bop-psg --set bop.start=first-gradient"
            ),
        },
    ),
}

_QUICK = "--epochs 1 --set search.iterations=3"


def main() -> None:
    """Run the benchmark."""
    arguments = _arguments()
    study = STUDIES[arguments.study]
    named = {"--arch": arguments.arch, "--keep-ratio": arguments.keep_ratio}
    given = [str(part) for flag in named.items() if flag[1] is not None for part in flag]
    quick = _QUICK.split() if arguments.quick else []
    flags = [*study.flags.split(), *quick, *given, *arguments.flags]
    shown = ("accuracy", "bytes", "bitops", "epochs", "seconds", "survivors", "weights")
    rows = []
    for title, found in run_study(
        study.rows, flags, arguments.seeds, jobs=arguments.jobs, threads=arguments.threads,
        folder=arguments.folder, only=arguments.only,
    ).items():  # fmt: skip
        measured = [*shown, *(["validation_accuracy"] if "validation" in found[0] else [])]
        runs = [{key: run[key] for key in measured} for run in found]
        means = {key: statistics.fmean(run[key] for run in runs) for key in shown[:5]}
        rows.append({"method": title, "flags": study.rows[title].split(), **means, "runs": runs})
    result = {"study": arguments.study, "flags": flags, "rows": rows}
    name = "methods" if arguments.study == "digits" else f"methods-{arguments.study}"
    finish(name, arguments, study.title, _table(rows), result, "torch")


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


def run_study(
    rows: Mapping[str, str],
    flags: Sequence[str],
    seeds: int,
    *,
    jobs: int,
    threads: int = 1,
    folder: Path | None = None,
    only: Sequence[str] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Return what became of every run of a study, by the row's title, seed after seed.

    ``rows`` and ``flags`` are as in `Study`, all else is as on the command line.
    """
    titles = [title for title in rows if only is None or any(text in title for text in only)]
    tasks = [(title, seed) for title in titles for seed in range(seeds)]
    with tempfile.TemporaryDirectory() as scratch, Progress(len(tasks)) as progress:
        kept = folder or Path(scratch)
        kept.mkdir(parents=True, exist_ok=True)

        def work(task: tuple[str, int]) -> dict[str, Any]:
            title, seed = task
            name = kept / f"{list(rows).index(title)}-{seed}"
            found = _run(name, [*flags, *rows[title].split(), "--seed", str(seed)], threads)
            progress.done(f"{title}, seed {seed}: {found['bytes']} bytes, {found['accuracy']:.2%}")
            return found

        with ThreadPoolExecutor(jobs) as pool:
            runs = list(pool.map(work, tasks))
    return {title: runs[at * seeds : (at + 1) * seeds] for at, title in enumerate(titles)}


def _run(name: Path, flags: Sequence[str], threads: int) -> dict[str, Any]:
    """Train, pack, verify and evaluate; return all that the commands say of the run."""
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
    with Ticket.open(ticket) as held:
        signs = sum(row["signs"] for row in held.breakdown())
    sizes = {"bytes": packed["bytes"], "sign_bytes": signs}
    return {**trained, "accuracy": tested["accuracy"], **sizes}


def _trained(checkpoint: Path, flags: Sequence[str], threads: int) -> dict[str, Any]:
    """Train, or go on with what an earlier call left; return what run and last epoch say."""
    record, log = checkpoint.with_suffix(".json"), checkpoint.with_suffix(".jsonl")
    if record.exists():
        kept: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        if kept["flags"] != list(flags):
            raise RuntimeError(
                f"{record}: expected a run with the flags {' '.join(flags)}, found one with "
                f"{' '.join(kept['flags'])}; name another --folder"
            )
        return kept
    trained = pabzip(
        "train", *flags, "-o", checkpoint, "--log", log, "-f", "--resume", threads=threads
    )
    events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    last = next(event for event in reversed(events) if event["event"] == "epoch")
    trained = {**last, **trained}
    record.write_text(json.dumps({**trained, "flags": list(flags)}), encoding="utf-8")
    return trained


def pabzip(*arguments: object, threads: int = 1) -> dict[str, Any]:
    """Run one command with ``--json`` and return the object that it prints.

    A training run's result depends on the number of ``threads`` that torch may use.

    Raises:
        RuntimeError: the command failed; the message is what it wrote to stderr.
    """
    command = [sys.executable, "-m", "pabzip.cli", *map(str, arguments), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[3:])}: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _accuracy(runs: Sequence[dict[str, Any]], name: str) -> str:
    """Return the mean over the seeds of the accuracy of that name, and how far they spread."""
    found = [run[name] for run in runs]
    mean = f"{statistics.fmean(found):.2%}"
    return mean if len(found) == 1 else f"{mean} ({min(found):.2%} to {max(found):.2%})"


def _mean_ratio(runs: Sequence[dict[str, Any]], one: str, other: str) -> float:
    """Return the mean over the seeds of what one figure is to another."""
    return statistics.fmean(run[one] / run[other] for run in runs)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table for people."""
    accuracies = {"accuracy": "accuracy"}
    if "validation_accuracy" in rows[0]["runs"][0]:
        accuracies = {"validation accuracy": "validation_accuracy", "test accuracy": "accuracy"}
    columns = ["method", *accuracies, "kept", "BitOPs a step", "epochs", "file, KiB"]
    columns += ["bits a weight", "seconds"]
    cells = [
        [
            row["method"],
            *(_accuracy(row["runs"], name) for name in accuracies.values()),
            f"{_mean_ratio(row['runs'], 'survivors', 'weights'):.1%}",
            f"{row['bitops'] / 1e9:.2f} G",
            f"{row['epochs']:.0f}",
            kibibytes(row["bytes"]),
            f"{8 * _mean_ratio(row['runs'], 'bytes', 'weights'):.2f}",
            f"{row['seconds']:.0f}",
        ]
        for row in rows
    ]
    return markdown(columns, cells)


if __name__ == "__main__":
    main()

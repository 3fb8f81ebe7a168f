"""Accuracy against bytes: Bop that weighs flips by the bits they cost, and plain Bop.

Every run trains a ticket on the digits, packs it and takes the file's size. Plain Bop moves along
its curve by its threshold, ours by its flip cost; the published start is there for comparison.
The settings below were settled on by trying others on the same seeds and test images (ResNet-20's
flip costs at a threshold of 1e-4 did worse than plain Bop), so the best points flatter every rule.
With ``--arch`` the results file keeps what it has of the other networks.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _rate_aware_picture import PUBLISHED, RATE_AWARE, THRESHOLDS, draw
from _shared import Progress, finish, heading, machine, markdown, parser

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "rate-aware.png"
TOLERANCE = 2.5 / 397
"""Accuracy that counts as equal: two of the 397 test images."""


@dataclass(frozen=True, slots=True)
class Point:
    """A setting of Bop.

    Attributes:
        rule: the curve that it belongs to.
        start: what the moving average begins with.
        threshold: tau.
        flip_cost: lambda.
    """

    rule: str
    start: str
    threshold: float
    flip_cost: float = 0.0


@dataclass(frozen=True, slots=True)
class Network:
    """A network and what is tried on it.

    Attributes:
        arch: of `pabzip.models.names`; its recipe is `pabzip.train.default_recipe`.
        seeds: runs of each point.
        points: settings of Bop.
        epochs: None for the recipe's own; with fewer, every schedule shrinks alike.
    """

    arch: str
    seeds: int
    points: tuple[Point, ...]
    epochs: int | None = None


def curves(
    starts: Sequence[float], thresholds: Sequence[float], costs: Sequence[float], at: float
) -> tuple[Point, ...]:
    """Return the points of all curves: plain Bop's thresholds by its start, and flip costs.

    The flip costs are tried at one threshold, ``at``.
    """
    return (
        *(Point(PUBLISHED, "first-gradient", threshold) for threshold in starts),
        *(Point(THRESHOLDS, "zero", threshold) for threshold in thresholds),
        *(Point(RATE_AWARE, "zero", at, cost) for cost in costs),
    )


FULL = (
    Network(
        "lenet-300-100",
        3,
        curves([1e-6, 1e-4], [1e-4, 3e-4, 1e-3, 3e-3], [3e-5, 6e-5, 1.2e-4, 2.4e-4, 4.8e-4], 1e-4),
    ),
    Network(
        "resnet20",
        2,
        curves([1e-4], [1e-4, 3e-3, 1e-2, 3e-2], [3e-5, 1e-4, 3e-4, 1e-3], 1e-2),
    ),
)
QUICK = (Network("lenet-300-100", 1, curves([1e-4], [1e-3], [3e-4], 1e-4), epochs=2),)


def main() -> None:
    """Train all runs, average over seeds, print, write and draw."""
    target = parser(__doc__)
    target.add_argument("--workers", type=int, default=1, help="runs at a time, a thread each")
    target.add_argument("--picture", type=Path, help="PNG of the curves; not of a quick run")
    arguments = target.parse_args()
    networks = [
        dataclasses.replace(network, seeds=1 if arguments.quick else network.seeds)
        for network in (QUICK if arguments.quick else FULL)
        if arguments.arch in (None, network.arch)
    ]
    if not networks:
        target.error(f"--arch: expected one of {', '.join(n.arch for n in FULL)}")
    runs = _train_all(networks, arguments.keep_ratio, arguments.workers)
    facts = machine("torch")
    found = [{**_summary(network, runs[network.arch]), "machine": facts} for network in networks]
    kept = _others(arguments.results / "rate_aware.json", networks) if arguments.arch else []
    found = sorted([*kept, *found], key=lambda network: network["arch"])
    result = {"tolerance": TOLERANCE, "networks": found}
    picture = arguments.picture or (None if arguments.quick else PICTURE)
    if picture is not None:
        draw(found, picture)
    title = heading("Bytes against accuracy on the digits", facts)
    finish("rate_aware", arguments, result, title + "\n".join(map(_table, found)))


def _others(file: Path, networks: Sequence[Network]) -> list[dict[str, Any]]:
    """Return what an earlier run found of the networks that this one leaves out."""
    if not file.exists():
        return []
    tried = {network.arch for network in networks}
    earlier = json.loads(file.read_text(encoding="utf-8"))["networks"]
    return [found for found in earlier if found["arch"] not in tried]


def _train_all(
    networks: Sequence[Network], keep_ratio: float | None, workers: int
) -> dict[str, list[dict[str, Any]]]:
    """Return the numbers of every run, by architecture."""
    jobs = [
        (network.arch, network.epochs, keep_ratio, point, seed)
        for network in networks
        for seed in range(network.seeds)
        for point in network.points
    ]
    progress = Progress(len(jobs))
    found: dict[str, list[dict[str, Any]]] = {network.arch: [] for network in networks}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        waiting = {pool.submit(train_one, *job): job for job in jobs}
        for future in as_completed(waiting):
            arch, _, _, point, seed = waiting[future]
            run = future.result()
            found[arch].append(run)
            progress.step(
                f"{arch}, seed {seed}: {point.rule}, threshold {point.threshold:g}, flip cost "
                f"{point.flip_cost:g}: {run['bytes']} bytes, {run['test_accuracy']:.2%}"
            )
            progress.done()
    progress.close()
    return found


def _one_thread() -> None:
    """Leave the other cores to the other workers."""
    import torch

    torch.set_num_threads(1)


def train_one(
    arch: str, epochs: int | None, keep_ratio: float | None, point: Point, seed: int
) -> dict[str, Any]:
    """Train, pack and measure one ticket."""
    import pabzip
    from pabzip.checkpoint import load_checkpoint, network_from_checkpoint
    from pabzip.train import ExpectedBytes, default_recipe, train

    recipe = default_recipe(arch)
    epochs = epochs or recipe.epochs
    part = epochs / recipe.epochs
    milestones = (max(1, round(at * part)) for at in recipe.sgd.milestones)
    bop = recipe.bop.replace(
        start=point.start,
        threshold=point.threshold,
        flip_cost=point.flip_cost,
        decay_every=max(1, round(recipe.bop.decay_every * part)),
    )
    recipe = recipe.replace(
        seed=seed,
        epochs=epochs,
        keep_ratio=keep_ratio or recipe.keep_ratio,
        device="cpu",
        bop=bop,
        sgd=recipe.sgd.replace(milestones=tuple(sorted(set(milestones)))),
    )
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, file = Path(folder) / "model.pt", Path(folder) / "model.pabz"
        result = train(recipe, output=checkpoint)
        info = pabzip.pack(checkpoint, file)
        with pabzip.open(file) as ticket:
            signs = sum(row["signs"] for row in ticket.breakdown())
        net = network_from_checkpoint(load_checkpoint(checkpoint))
    masks = {name: weight != 0 for name, weight in pabzip.seeded_parameters(net).items()}
    return {
        **dataclasses.asdict(point),
        "seed": seed,
        "bytes": info["bytes"],
        "sign_bytes": signs,
        "expected_bytes": ExpectedBytes(net, masks, recipe).bytes(),
        "flipped": result.flipped,
        "test_accuracy": result.test_accuracy,
        "test_loss": result.test_loss,
        "survivors": info["survivors"],
        "epochs": epochs,
    }


def _summary(network: Network, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a network's runs, their means, and what is saved at equal accuracy."""
    points = []
    for point in network.points:
        same = [run for run in runs if all(run[k] == v for k, v in _fields(point).items())]
        measured = ("bytes", "sign_bytes", "flipped", "test_accuracy", "test_loss")
        means = {name: statistics.fmean(run[name] for run in same) for name in measured}
        spread = statistics.stdev(run["test_accuracy"] for run in same) if len(same) > 1 else 0.0
        points.append({**_fields(point), **means, "test_accuracy_deviation": spread})
    plain = [point for point in points if point["rule"] != RATE_AWARE]
    best = max(plain, key=lambda point: (point["test_accuracy"], -point["bytes"]))
    least = best["test_accuracy"] - TOLERANCE
    return {
        "arch": network.arch,
        "seeds": network.seeds,
        "epochs": runs[0]["epochs"],
        "survivors": statistics.fmean(run["survivors"] for run in runs),
        "bytes_without_signs": statistics.fmean(run["bytes"] - run["sign_bytes"] for run in runs),
        "points": points,
        "best_plain": best,
        "smallest_equal": {
            rule: min(
                (p for p in points if p["rule"] == rule and p["test_accuracy"] >= least),
                key=lambda point: point["bytes"],
                default=None,
            )
            for rule in (PUBLISHED, THRESHOLDS, RATE_AWARE)
        },
        "expected_bytes_error": max(abs(r["expected_bytes"] / r["bytes"] - 1) for r in runs),
        "runs": sorted(runs, key=lambda run: (run["seed"], run["bytes"])),
    }


def _fields(point: Point) -> dict[str, Any]:
    """Return a point's settings by name."""
    return dataclasses.asdict(point)


def _table(found: dict[str, Any]) -> str:
    """Return one network's points for people."""
    columns = ["rule", "threshold", "flip cost", "flipped", "sign bytes", "file bytes", "accuracy"]
    rows = [
        [
            point["rule"],
            f"{point['threshold']:g}",
            f"{point['flip_cost']:g}" if point["flip_cost"] else "",
            f"{point['flipped']:.1%}",
            f"{point['sign_bytes']:,.0f}",
            f"{point['bytes']:,.0f}",
            f"{point['test_accuracy']:.2%} ± {point['test_accuracy_deviation']:.2%}",
        ]
        for point in sorted(found["points"], key=lambda point: -point["bytes"])
    ]
    seeds = f"{found['seeds']} seed{'s' if found['seeds'] > 1 else ''}"
    lines = [f"{found['arch']}, {found['epochs']} epochs, {seeds}\n\n{markdown(columns, rows)}\n"]
    for rule, point in found["smallest_equal"].items():
        if point is not None:
            lines.append(
                f"Smallest within {TOLERANCE:.1%} of plain Bop's best accuracy, {rule}: "
                f"{point['bytes']:,.0f} bytes, {point['sign_bytes']:,.0f} of them signs.\n"
            )
    lines.append(f"Expected bytes: off by {found['expected_bytes_error']:.2%} at most.\n")
    return "".join(lines)


if __name__ == "__main__":
    main()

"""Accuracy against bytes: Bop that weighs flips by the bits they cost, and plain Bop.

Every run trains a ticket on the digits, packs it and takes the file's size. Plain Bop moves along
its curve by its threshold, ours by its flip cost; the published start is there for comparison.
Which point is the best, and which are as good, is said by training images that are held out; test
accuracy is what is told of them. The settings below are older than that: they were settled on by
trying others on the same seeds and test images (ResNet-20's flip costs at a threshold of 1e-4 did
worse than plain Bop), and the recorded results chose on the test images too, so their best points
flatter every rule.
With ``--arch`` the results file keeps what it has of the other networks.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _shared import finish, machine, markdown, parser
from methods import run_study

Point = dict[str, Any]
"""A setting of Bop, and later what was measured at it: the curve it belongs to as ``rule``, the
``start`` of its moving average, ``threshold`` (tau) and ``flip_cost`` (lambda)."""

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "rate-aware.png"
VALIDATION = "0.1"
"""Fraction of the training images held out to choose by."""
TOLERANCE = 2.5 / 397
"""Accuracy that counts as equal: two of 397 images, as many as the test has."""

PUBLISHED = "Bop, start at first gradient"
THRESHOLDS = "Bop, start at zero"
RATE_AWARE = "rate-aware Bop"

_STYLES = {
    PUBLISHED: {"color": "#6b6b6b", "marker": "s", "linestyle": "none"},
    THRESHOLDS: {"color": "#d1731f", "marker": "o", "linestyle": "-"},
    RATE_AWARE: {"color": "#1b62b0", "marker": "D", "linestyle": "-"},
}


def curves(
    starts: Sequence[float], thresholds: Sequence[float], costs: Sequence[float], at: float
) -> list[Point]:
    """Return the points of all curves: plain Bop's thresholds by its start, and flip costs.

    The flip costs are tried at one threshold, ``at``.
    """
    every = [
        *((PUBLISHED, "first-gradient", threshold, 0.0) for threshold in starts),
        *((THRESHOLDS, "zero", threshold, 0.0) for threshold in thresholds),
        *((RATE_AWARE, "zero", at, cost) for cost in costs),
    ]
    names = ("rule", "start", "threshold", "flip_cost")
    return [dict(zip(names, each, strict=True)) for each in every]


# Seeds and points by network, which is trained by its own recipe.
FULL = {
    "lenet-300-100": (
        3,
        curves([1e-6, 1e-4], [1e-4, 3e-4, 1e-3, 3e-3], [3e-5, 6e-5, 1.2e-4, 2.4e-4, 4.8e-4], 1e-4),
    ),
    "resnet20": (2, curves([1e-4], [1e-4, 3e-3, 1e-2, 3e-2], [3e-5, 1e-4, 3e-4, 1e-3], 1e-2)),
}
QUICK = {"lenet-300-100": (1, curves([1e-4], [1e-3], [3e-4], 1e-4))}
QUICK_FLAGS = ("--epochs", "2", "--set", "sgd.milestones=[1]", "--set", "bop.decay_every=1")


def main() -> None:
    """Train all runs, average over seeds, print, write and draw."""
    target = parser(__doc__)
    target.add_argument("--workers", type=int, default=1, help="runs at a time, a thread each")
    target.add_argument("--picture", type=Path, help="PNG of the curves; not of a quick run")
    arguments = target.parse_args()
    plan = QUICK if arguments.quick else FULL
    chosen = [arch for arch in plan if arguments.arch in (None, arch)]
    if not chosen:
        target.error(f"--arch: expected one of {', '.join(FULL)}")
    flags = ["--data", "digits", "--device", "cpu", "--validation", VALIDATION]
    flags += QUICK_FLAGS if arguments.quick else ()
    if arguments.keep_ratio:
        flags += ["--keep-ratio", str(arguments.keep_ratio)]
    facts = machine("torch")
    found = []
    for arch in chosen:
        seeds, points = plan[arch]
        runs = _train(arch, points, seeds, flags, arguments.workers)
        found.append({**_summary(arch, points, seeds, runs), "machine": facts})
    earlier = arguments.results / "rate_aware.json"
    if arguments.arch and earlier.exists():
        kept = json.loads(earlier.read_text(encoding="utf-8"))["networks"]
        found += [network for network in kept if network["arch"] not in chosen]
    found.sort(key=lambda network: network["arch"])
    result = {"tolerance": TOLERANCE, "networks": found}
    picture = arguments.picture or (None if arguments.quick else PICTURE)
    if picture is not None:
        draw(found, picture)
    title = "Bytes against accuracy on the digits"
    finish("rate_aware", arguments, title, "\n".join(map(_table, found)), result, "torch")


def _train(
    arch: str, points: Sequence[Point], seeds: int, flags: Sequence[str], workers: int
) -> list[Point]:
    """Return the numbers of every run of a network, each beside its point."""
    named: dict[str, Point] = {}
    rows: dict[str, str] = {}
    for point in points:
        title = "{rule}, threshold {threshold:g}, flip cost {flip_cost:g}".format_map(point)
        settings = ("start", "threshold", "flip_cost")
        rows[f"{title}, {arch}"] = " ".join(f"--set bop.{key}={point[key]}" for key in settings)
        named[f"{title}, {arch}"] = point
    measured = (
        "seed", "bytes", "sign_bytes", "expected_bytes", "flipped", "test_accuracy", "test_loss",
        "survivors", "epochs", "validation_accuracy",
    )  # fmt: skip
    found = run_study(rows, ["--arch", arch, *flags], seeds, jobs=workers)
    return [
        {**named[title], **{key: run[key] for key in measured}}
        for title, runs in found.items()
        for run in runs
    ]


def _summary(
    arch: str, settings: Sequence[Point], seeds: int, runs: Sequence[Point]
) -> dict[str, Any]:
    """Return a network's runs, their means, and what is saved at equal accuracy."""
    points = []
    for setting in settings:
        same = [run for run in runs if setting.items() <= run.items()]
        measured = (
            "bytes", "sign_bytes", "flipped", "test_accuracy", "test_loss", "validation_accuracy",
        )  # fmt: skip
        means = {name: statistics.fmean(run[name] for run in same) for name in measured}
        spread = statistics.stdev(run["test_accuracy"] for run in same) if len(same) > 1 else 0.0
        points.append({**setting, **means, "test_accuracy_deviation": spread})
    plain = [point for point in points if point["rule"] != RATE_AWARE]
    best = max(plain, key=lambda point: (point["validation_accuracy"], -point["bytes"]))
    least = best["validation_accuracy"] - TOLERANCE
    return {
        "arch": arch,
        "seeds": seeds,
        "epochs": runs[0]["epochs"],
        "survivors": statistics.fmean(run["survivors"] for run in runs),
        "bytes_without_signs": statistics.fmean(run["bytes"] - run["sign_bytes"] for run in runs),
        "points": points,
        "best_plain": best,
        "smallest_equal": {
            rule: min(
                (p for p in points if p["rule"] == rule and p["validation_accuracy"] >= least),
                key=lambda point: point["bytes"],
                default=None,
            )
            for rule in (PUBLISHED, THRESHOLDS, RATE_AWARE)
        },
        "expected_bytes_error": max(abs(r["expected_bytes"] / r["bytes"] - 1) for r in runs),
        "runs": sorted(runs, key=lambda run: (run["seed"], run["bytes"])),
    }


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
                f"Smallest within {TOLERANCE:.1%} of plain Bop's best validation accuracy, {rule}: "
                f"{point['bytes']:,.0f} bytes, {point['sign_bytes']:,.0f} of them signs, test "
                f"accuracy {point['test_accuracy']:.2%}.\n"
            )
    lines.append(f"Expected bytes: off by {found['expected_bytes_error']:.2%} at most.\n")
    return "".join(lines)


def draw(networks: Sequence[dict[str, Any]], target: Path) -> None:
    """Draw test error against file size to a PNG, one panel a network.

    Each point is a mean over seeds, with the deviation as a bar.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    figure = Figure(figsize=(5.4 * len(networks), 4.7), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, found in zip(
        figure.subplots(1, len(networks), squeeze=False)[0], networks, strict=True
    ):
        for rule, style in _STYLES.items():
            _curve(axes, [point for point in found["points"] if point["rule"] == rule], style, rule)
        axes.axvline(found["bytes_without_signs"], color="#9a9a9a", linestyle=":", linewidth=1)
        axes.annotate(
            "no flips at all", (found["bytes_without_signs"], 1.0), (4, -4),
            xycoords=("data", "axes fraction"), textcoords="offset points", va="top", fontsize=8,
            color="#6b6b6b",
        )  # fmt: skip
        axes.set_yscale("log")
        axes.margins(x=0.14)
        bars = [(1 - p["test_accuracy"], p["test_accuracy_deviation"]) for p in found["points"]]
        ticks = [0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8]
        low = max(min(error - bar for error, bar in bars) * 0.9, 1e-3)
        high = max(error + bar for error, bar in bars) * 1.1
        axes.set_ylim(low, high)
        axes.yaxis.set_major_locator(FixedLocator([t for t in ticks if low <= t <= high]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        ours = next(p for p in found["points"] if p["rule"] == RATE_AWARE)
        told = f"{found['survivors']:,.0f} surviving weights, rate-aware at τ = "
        axes.set_title(f"{found['arch']}\n{told}{_short(ours['threshold'])}", fontsize=10)
        axes.set_xlabel("bytes of the .pabz file")
        axes.grid(alpha=0.25, linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.axes[0].set_ylabel("test error on digits")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=160)


def _curve(axes: Any, points: Sequence[dict[str, Any]], style: dict[str, Any], rule: str) -> None:
    """Draw one rule's points, each labeled with what was turned."""
    points = sorted(points, key=lambda point: point["bytes"])
    axes.errorbar(
        [point["bytes"] for point in points],
        [1 - point["test_accuracy"] for point in points],
        yerr=[point["test_accuracy_deviation"] for point in points],
        label=rule, markersize=5, linewidth=1.5, elinewidth=0.8, capsize=2, **style,
    )  # fmt: skip
    side = -1 if rule == RATE_AWARE else 1
    for at, point in enumerate(points):
        name, value = ("λ", point["flip_cost"]) if point["flip_cost"] else ("τ", point["threshold"])
        axes.annotate(
            f"{name} = {_short(value)}", (point["bytes"], 1 - point["test_accuracy"]),
            (7 * side, 3 if (len(points) - at) % 2 else -8), textcoords="offset points",
            ha="left" if side > 0 else "right", fontsize=7, color=style["color"],
        )  # fmt: skip


def _short(value: float) -> str:
    """Return a number as 1.2e-4."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


if __name__ == "__main__":
    main()

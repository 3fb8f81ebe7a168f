"""The picture of `rate_aware`: test error against file size, one panel a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

PUBLISHED = "Bop, start at first gradient"
THRESHOLDS = "Bop, start at zero"
RATE_AWARE = "rate-aware Bop"

_STYLES = {
    PUBLISHED: {"color": "#6b6b6b", "marker": "s", "linestyle": "none"},
    THRESHOLDS: {"color": "#d1731f", "marker": "o", "linestyle": "-"},
    RATE_AWARE: {"color": "#1b62b0", "marker": "D", "linestyle": "-"},
}


def draw(networks: Sequence[dict[str, Any]], target: Path) -> None:
    """Draw the mean of each point, with the deviation over seeds as a bar.

    Args:
        networks: as the benchmark's JSON has them.
        target: PNG to write.
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

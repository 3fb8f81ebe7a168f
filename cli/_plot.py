"""The picture of `pabzip info --plot`.

Three panels: the whole file against the same file in the paper's code, on one scale; the layers of
this file; and, on a scale of their own, the same layers in the paper's code.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from pabzip._optional import require
from pabzip.cli._output import printable, ratio, size
from pabzip.formats.report import PARTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MOST_BARS = 56
"""Beyond this many, small neighbors share a bar."""

FRAMING = "header, checksums"
"""Label of what belongs to no tensor."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: a seeded or ternary weight with the dense tensors that follow it, or several such.

    Bytes by part count ``parts`` here, and ``paper`` in the paper's Huffman code, where dense
    tensors and header are as they are.
    """

    label: str
    parts: Mapping[str, int]
    paper: Mapping[str, int]

    @property
    def total(self) -> int:
        """Bytes here."""
        return sum(self.parts.values())

    @property
    def paper_total(self) -> int:
        """Bytes with the paper's Huffman code."""
        return sum(self.paper.values())


def bars(info: Mapping[str, Any]) -> list[Bar]:
    """Return the bars of a file, in its order, from the values of ``pabzip info --json``.

    Batch norm and biases come right after the weight that they belong to, so they join its bar.
    """
    groups: list[list[Bar]] = []
    after_seeded = False
    for tensor, row in zip(info["tensors"], info["breakdown"][:-1], strict=True):
        seeded = tensor["survivors"] is not None
        if tensor["kind"] == "tied":
            continue  # takes no bytes
        if after_seeded and not seeded:
            groups[-1].append(_tensor_bar(tensor, row))
        else:
            groups.append([_tensor_bar(tensor, row)])
        after_seeded = after_seeded or seeded
    layers = [_joined(group, "+{} dense") for group in groups]
    framing = _parts(info["breakdown"][-1])
    return [*_few(layers), Bar(FRAMING, framing, framing)]


def total(shown: Sequence[Bar], label: str = "all") -> Bar:
    """Return several bars as one."""
    return Bar(
        label,
        {part: sum(bar.parts[part] for bar in shown) for part in PARTS},
        {part: sum(bar.paper[part] for bar in shown) for part in PARTS},
    )


def _joined(run: Sequence[Bar], others: str) -> Bar:
    """Return neighbors as one bar under the first one's name; ``others`` words how many follow."""
    name = run[0].label
    return total(run, name if len(run) == 1 else f"{name} {others.format(len(run) - 1)}")


def _tensor_bar(tensor: Mapping[str, Any], row: Mapping[str, Any]) -> Bar:
    """Return one tensor's own bar."""
    parts = _parts(row)
    if tensor["survivors"] is None:
        return Bar(tensor["name"], parts, parts)
    signs = round(tensor["survivors"] / 8)
    size = (tensor["weights"] + tensor["survivors"] + 7) // 8
    paper = {**dict.fromkeys(PARTS, 0), "mask": size - signs, "signs": signs}
    paper["dense"] = parts["dense"]  # scales of rows
    return Bar(tensor["name"], parts, paper)


def _few(layers: Sequence[Bar]) -> list[Bar]:
    """Join small neighbors, up to the smallest size that leaves at most `MOST_BARS`."""
    if len(layers) <= MOST_BARS:
        return list(layers)
    low, high = 0, sum(layer.total for layer in layers)
    while low < high:
        middle = (low + high) // 2
        if len(_runs(layers, middle)) <= MOST_BARS:
            high = middle
        else:
            low = middle + 1
    return [_joined(run, "and {} more") for run in _runs(layers, low)]


def _runs(layers: Sequence[Bar], limit: int) -> list[list[Bar]]:
    """Split layers into runs of at most ``limit`` bytes each; a larger layer is a run by itself."""
    runs: list[list[Bar]] = []
    held = 0
    for layer in layers:
        if runs and held + layer.total <= limit:
            runs[-1].append(layer)
            held += layer.total
        else:
            runs.append([layer])
            held = layer.total
    return runs


def _parts(row: Mapping[str, Any]) -> dict[str, int]:
    """Return the bytes of a row without its name."""
    return {part: row[part] for part in PARTS}


# Different with any color vision, and in gray, too.
_COLORS = {
    "mask": "#d1495b",
    "factors": "#edae49",
    "signs": "#8fb8de",
    "dense": "#3d6b8c",
    "header": "#5b5b66",
}
_INK, _FAINT = "#22272e", "#8b949e"
_WIDTH = 11.0  # inches
_RIGHT = 0.97  # share of the width where panels end
_BAR = 0.235  # inches a bar
_TITLE, _TOTALS, _LEGEND, _GAP, _AXIS = 0.85, 0.6, 0.3, 0.52, 0.62  # inches from top to bottom
_LABEL_LIMIT = 44


def draw(info: Mapping[str, Any]) -> Figure:
    """Draw a file from the values of ``pabzip info --json``."""
    require("matplotlib", extra="train", purpose="drawing a picture")
    from matplotlib.figure import Figure

    shown = bars(info)
    whole = total(shown)
    tall = _BAR * len(shown)
    height = _TITLE + _TOTALS + _LEGEND + _GAP + tall + _AXIS
    figure = Figure(figsize=(_WIDTH, height), dpi=150, facecolor="white")
    longest = max(len("paper's Huffman"), *(len(_short(bar.label)) for bar in shown))
    left = 0.03 + longest * 0.0064
    middle = left + 0.66 * (_RIGHT - left)

    def panel(begin: float, end: float, bottom: float, inches: float) -> Axes:
        """Add axes; across in shares of the width, upwards in inches."""
        return figure.add_axes((begin, bottom / height, end - begin, inches / height))

    _title(figure, info, height)
    _draw_totals(panel(left, _RIGHT, height - _TITLE - _TOTALS, _TOTALS), whole)
    _draw_legend(figure, whole, left, 1 - (_TITLE + _TOTALS) / height)
    here = panel(left, middle - 0.02, _AXIS, tall)
    sizes = [size(bar.total) for bar in shown]
    _draw_layers(here, [bar.parts for bar in shown], sizes, gap=0.01, room=1.14)
    _plain_axes(here, [_short(bar.label) for bar in shown], range(len(shown)))
    here.set_title("this file, layer by layer", loc="left", fontsize=9.5, color=_INK)
    paper = panel(middle + 0.02, _RIGHT, _AXIS, tall)
    ratios = [
        "" if bar.paper_total == bar.total else ratio(bar.paper_total, bar.total) for bar in shown
    ]
    remark = ", on a scale of its own"
    _draw_layers(paper, [bar.paper for bar in shown], ratios, gap=0.02, room=1.25, remark=remark)
    _plain_axes(paper, [], [])
    paper.set_title("paper's Huffman (times this file)", loc="left", fontsize=9.5, color=_INK)
    return figure


def save(info: Mapping[str, Any], file: BinaryIO, image_type: str) -> None:
    """Draw a file, as `draw` does, and write it as one of `pabzip.cli.info.IMAGE_TYPES`."""
    figure = draw(info)
    # Without a date, so that the same file gives the same picture at any time.
    dated = {"png": None, "svg": "Date", "pdf": "CreationDate"}[image_type]
    metadata = None if dated is None else {dated: None}
    with warnings.catch_warnings():
        # A name may hold a character that the font does not have; it shows as a box.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(file, format=image_type, metadata=metadata)


def _title(figure: Figure, info: Mapping[str, Any], height: float) -> None:
    """Write what the file is, how large it is, and against what."""
    head = f"{info['arch']}: {size(info['bytes'])}"
    if info["float32_bytes"] > info["bytes"]:
        head += f", {ratio(info['float32_bytes'], info['bytes'])} smaller than float32"
    line = f"tensors: {len(info['tensors'])}"
    if info["weights"]:
        line += f"; weights: {info['weights']:,}, {info['survivors'] / info['weights']:.1%} kept"
        line += f"; their codes: {size(info['codes_bytes'])}"
    if info["huffman_bytes"] > info["codes_bytes"]:
        times = ratio(info["huffman_bytes"], info["codes_bytes"])
        line += f", {times} smaller than by the paper's Huffman"
    figure.text(0.025, 1 - 0.36 / height, head, color=_INK, size=16, weight="bold")
    figure.text(0.025, 1 - 0.6 / height, line, color=_INK, size=9.5)


def _draw_legend(figure: Figure, whole: Bar, left: float, top: float) -> None:
    """Draw the legend: each part with its bytes."""
    from matplotlib.patches import Patch

    figure.legend(
        handles=[
            Patch(color=_COLORS[part], label=f"{part}  {size(whole.parts[part])}")
            for part in PARTS
            if whole.parts[part]
        ],
        loc="upper left",
        bbox_to_anchor=(left, top),
        borderaxespad=0.4,
        borderpad=0,
        ncols=len(PARTS),
        frameon=False,
        handlelength=1,
        handleheight=1,
        columnspacing=1.6,
        fontsize=9,
        labelcolor=_INK,
    )


def _draw_totals(axes: Axes, whole: Bar) -> None:
    """Draw the file and the same file in the paper's code on one scale."""
    _stack(axes, [1, 0], [whole.parts, whole.paper], height=0.72)
    longest = max(whole.total, whole.paper_total) or 1
    for y, count in ((1, whole.total), (0, whole.paper_total)):
        axes.text(count + 0.008 * longest, y, size(count), va="center", fontsize=9, color=_INK)
    _plain_axes(axes, ["this file", "paper's Huffman"], [1, 0])
    axes.set_xlim(0, 1.1 * longest)
    axes.set_ylim(-0.5, 1.5)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def _draw_layers(
    axes: Axes,
    held: Sequence[Mapping[str, int]],
    texts: Sequence[str],
    *,
    gap: float,
    room: float,
    remark: str = "",
) -> None:
    """Draw bars from top to bottom, a text after each, over an axis in bytes or KiB.

    ``gap`` and ``room`` count in lengths of the longest bar.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    lengths = [sum(parts.values()) for parts in held]
    longest = max(lengths) or 1
    _stack(axes, range(len(held)), held)
    for y, (length, text) in enumerate(zip(lengths, texts, strict=True)):
        axes.text(length + gap * longest, y, text, va="center", fontsize=7.5, color=_INK)
    axes.set_ylim(len(held) - 0.5, -0.5)
    end = room * longest
    axes.set_xlim(0, end)
    unit, unit_name = (1024, "KiB") if end > 2048 else (1, "bytes")
    steps = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=True).tick_values(0, end / unit)
    axes.set_xticks([step * unit for step in steps if step * unit <= end])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / unit:,.0f}"))
    axes.set_xlabel(unit_name + remark, fontsize=8, color=_INK)
    axes.grid(axis="x", color="#e4e8ec", linewidth=0.8)
    axes.set_axisbelow(True)


def _stack(
    axes: Axes, places: Sequence[int], held: Sequence[Mapping[str, int]], height: float = 0.78
) -> None:
    """Draw one stacked bar a place."""
    begin = [0] * len(places)
    for part in PARTS:
        widths = [parts[part] for parts in held]
        axes.barh(places, widths, height, begin, color=_COLORS[part], linewidth=0)
        begin = [at + width for at, width in zip(begin, widths, strict=True)]


def _plain_axes(axes: Axes, labels: Sequence[str], places: Sequence[int]) -> None:
    """Label the bars, and take away what is no information."""
    axes.set_yticks(places, [printable(label).replace("\n", " ") for label in labels])
    for text in axes.get_yticklabels():
        text.set_parse_math(False)  # a name may hold a dollar sign
    axes.tick_params(axis="y", length=0, labelsize=8, labelcolor=_INK)
    axes.tick_params(axis="x", length=3, labelsize=8, color=_FAINT, labelcolor=_INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_FAINT)


def _short(label: str) -> str:
    """Return a label that fits beside the bars; the middle of a long name is left out."""
    if len(label) <= _LABEL_LIMIT:
        return label
    half = (_LABEL_LIMIT - 3) // 2
    return f"{label[:half]}...{label[-half:]}"

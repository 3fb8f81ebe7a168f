"""Which bars the picture of a file shows: a layer each, small neighbours together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pabzip.formats.breakdown import PARTS

MOST_BARS = 56
"""Beyond this many, small neighbours share a bar."""

FRAMING = "header, checksums"
"""Label of what belongs to no tensor."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: a seeded weight with the dense tensors that follow it, or several such.

    Attributes:
        label: what it holds.
        parts: bytes here, by part.
        paper: bytes by part in the paper's Huffman code, dense tensors and header as they are.
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
    """Return the bars of a file, in its order.

    Batch norm and biases come right after the weight that they belong to, so they join its bar.

    Args:
        info: the values of ``pabzip info --json``.
    """
    groups: list[list[Bar]] = []
    after_seeded = False
    for tensor, row in zip(info["tensors"], info["breakdown"][:-1], strict=True):
        seeded = tensor["kind"] == "seeded"
        if tensor["kind"] == "tied":
            continue  # takes no bytes
        if after_seeded and not seeded:
            groups[-1].append(_tensor_bar(tensor, row))
        else:
            groups.append([_tensor_bar(tensor, row)])
        after_seeded = after_seeded or seeded
    layers = [_layer(group) for group in groups]
    framing = _parts(info["breakdown"][-1])
    return [*_joined(layers), Bar(FRAMING, framing, framing)]


def total(shown: Sequence[Bar]) -> Bar:
    """Return all bars as one."""
    return _sum("all", shown)


def _tensor_bar(tensor: Mapping[str, Any], row: Mapping[str, Any]) -> Bar:
    """Return one tensor's own bar."""
    parts = _parts(row)
    if tensor["kind"] != "seeded":
        return Bar(tensor["name"], parts, parts)
    signs = round(tensor["survivors"] / 8)
    size = (tensor["weights"] + tensor["survivors"] + 7) // 8
    paper = {**dict.fromkeys(PARTS, 0), "mask": size - signs, "signs": signs}
    paper["dense"] = parts["dense"]  # scales of rows
    return Bar(tensor["name"], parts, paper)


def _layer(group: Sequence[Bar]) -> Bar:
    """Join a weight and the dense tensors after it."""
    if len(group) == 1:
        return group[0]
    return _sum(f"{group[0].label} +{len(group) - 1} dense", group)


def _joined(layers: Sequence[Bar]) -> list[Bar]:
    """Join small neighbours, up to the smallest size that leaves at most `MOST_BARS`."""
    if len(layers) <= MOST_BARS:
        return list(layers)
    low, high = 0, sum(layer.total for layer in layers)
    while low < high:
        middle = (low + high) // 2
        if len(_runs(layers, middle)) <= MOST_BARS:
            high = middle
        else:
            low = middle + 1
    return [
        run[0] if len(run) == 1 else _sum(f"{run[0].label} and {len(run) - 1} more", run)
        for run in _runs(layers, low)
    ]


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


def _sum(label: str, together: Sequence[Bar]) -> Bar:
    """Return the sum of several bars."""
    return Bar(
        label,
        {part: sum(bar.parts[part] for bar in together) for part in PARTS},
        {part: sum(bar.paper[part] for bar in together) for part in PARTS},
    )


def _parts(row: Mapping[str, Any]) -> dict[str, int]:
    """Return the bytes of a row without its name."""
    return {part: row[part] for part in PARTS}

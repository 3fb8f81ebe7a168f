"""Bit operations of a training step beside those that Peek-a-Boo prints, and where they part.

Counts Tables 1, 2 and 5 of the paper (CIFAR, one sample, SynFlow masks, Kaiming normal). The masks
of WideResNet-28-10 take minutes each and are found in fewer iterations.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from _shared import Progress, finish, markdown, parser
from _tickets import SHAPE, Network, synflow_masks

from pabzip.train import PsgRecipe, layer_costs, method_costs

WIDE = Network("wideresnet28", (("late_stride", True),))


@dataclass(frozen=True, slots=True)
class Row:
    """One network of a table of the paper.

    ``iterations`` are SynFlow's, ``printed`` are operations in units of 10^12 by method, ``bits``
    those of inputs, weights and output gradients.
    """

    table: str
    network: Network
    keep_ratio: float
    iterations: int
    printed: Mapping[str, float]
    bits: tuple[int, int, int] = (8, 8, 16)


def rows(*, quick: bool) -> list[Row]:
    """Return the rows of the paper's tables; a short search of the first for a quick run."""
    resnet18 = Network("resnet18")
    table1 = {"dense-sgd": 1.71, "edge-popup": 1.20, "pab-bop": 0.72, "pab-bop-psg": 0.30}
    if quick:
        return [Row("1", resnet18, 0.1, 5, table1)]
    deeper = {"dense-sgd": 3.99, "edge-popup": 2.79, "pab-bop": 1.32, "pab-bop-psg": 0.55}
    wide10 = {"dense-sgd": 18.28, "edge-popup": 12.80, "pab-bop": 4.86, "pab-bop-psg": 2.03}
    wide100 = {"dense-sgd": 18.28, "edge-popup": 12.80, "pab-bop": 10.10, "pab-bop-psg": 4.20}
    table5 = {
        (4, 4, 4): 0.25, (4, 4, 8): 0.25, (8, 8, 8): 0.27, (8, 8, 16): 0.30, (16, 16, 16): 0.36,
        (16, 16, 32): 0.48,
    }  # fmt: skip
    return [
        Row("1", resnet18, 0.1, 100, table1),
        Row("1", Network("resnet50"), 0.1, 100, deeper),
        Row("2, CIFAR-10", WIDE, 0.1, 30, wide10),
        Row("2, CIFAR-100", WIDE, 0.3, 30, wide100),
        *(
            Row("5", resnet18, 0.1, 100, {"pab-bop-psg": printed}, bits)
            for bits, printed in table5.items()
        ),
    ]


def measured(row: Row, arguments: argparse.Namespace, progress: Progress) -> list[dict[str, Any]]:
    """Return one case a printed number of a row."""
    progress.step(f"{row.network}, keep {row.keep_ratio:g}")
    found = synflow_masks(
        row.network, row.keep_ratio, arguments, progress, iterations=row.iterations
    )
    masks = {name: torch.from_numpy(mask) for name, mask in found.items()}
    inputs, weights, gradients = row.bits
    psg = PsgRecipe(input_bits=inputs, weight_bits=weights, gradient_bits=gradients)
    net = row.network.build()
    costs = method_costs(net, SHAPE, masks, psg=psg)
    ours = {name: float(sum(cost.total for cost in layers)) for name, layers in costs.items()}
    # Edge-popup keeps a fraction of each layer in the forward pass; the paper counts both backward
    # products as dense.
    ours["edge-popup"] = sum(
        0.1 * cost.forward + cost.input_gradient + cost.weight_gradient
        for cost in layer_costs(net, SHAPE)
    )
    progress.done()
    return [
        {
            "table": row.table,
            "network": str(row.network),
            "keep_ratio": row.keep_ratio,
            "search_iterations": row.iterations,
            "bits": list(row.bits),
            "method": method,
            "ours": ours[method],
            "paper": printed * 1e12,
            "ratio": ours[method] / (printed * 1e12),
        }
        for method, printed in row.printed.items()
    ]


def table(cases: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown table."""
    columns = ["table", "network", "keep", "method", "bits"]
    columns += ["ours, Tr", "paper, Tr", "ours / paper"]
    lines = [
        [
            case["table"],
            case["network"],
            f"{case['keep_ratio']:g}",
            case["method"],
            ", ".join(str(bits) for bits in case["bits"]),
            f"{case['ours'] / 1e12:.3f}",
            f"{case['paper'] / 1e12:.2f}",
            f"{case['ratio']:.3f}",
        ]
        for case in cases
    ]
    return markdown(columns, lines)


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__, cache=True).parse_args()
    every = rows(quick=arguments.quick)
    chosen = [
        row
        for row in every
        if arguments.arch in (None, row.network.arch)
        and arguments.keep_ratio in (None, row.keep_ratio)
    ]
    if not chosen:
        has = ", ".join(f"{row.network.arch} at {row.keep_ratio:g}" for row in every)
        raise SystemExit(f"bitops_table: no such row; the tables have {has}")
    with Progress(len(chosen)) as progress:
        cases = [case for row in chosen for case in measured(row, arguments, progress)]
    title = "Bit operations of one training step of one sample"
    finish("bitops_table", arguments, title, table(cases), {"cases": cases}, "torch")


if __name__ == "__main__":
    main()

"""What a training step costs, told on stderr before the first one is taken."""

from __future__ import annotations

import sys

from pabzip.cli.bitops_tables import short
from pabzip.train.costing import StepCosts
from pabzip.train.observers import Observer


class CostRemark(Observer):
    """Writes a line before the first step and after each later search.

    Args:
        layers: add a line for each layer.
    """

    def __init__(self, *, layers: bool):
        self._layers = layers

    def counted(self, costs: StepCosts) -> None:
        """Write the line, past a progress bar if there is one."""
        from tqdm import tqdm

        lines = [
            f"pabzip: from epoch {costs.epoch} on {costs.survivors:,} of {costs.weights:,} weights "
            f"train, at {short(costs.bitops)} bit operations a step and sample"
        ]
        if self._layers:
            lines += [
                f"  {layer.name}: {short(layer.total)}, {layer.kept:.2%} kept"
                for layer in costs.layers
            ]
        tqdm.write("\n".join(lines), file=sys.stderr)

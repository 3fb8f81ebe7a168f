"""Recurrent layers while synaptic flow is measured: one step after the other, all gates open."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pabzip.search.gates import Gates


def recurrent_layer(gates: Gates, values: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Return what recurrent layers give; arguments as ``nn.LSTM`` and its like pass them on."""
    packed = isinstance(rest[0], Tensor) and not rest[0].is_floating_point()
    if packed:
        (state, weights, _, layers, _, _, both), batch_first = rest[1:], False
        lengths = rest[0].tolist()  # of each step: how many samples have it, the longest first
    else:
        state, weights, _, layers, _, _, both, batch_first = rest
    hidden, cell = state if isinstance(state, tuple) else (state, None)
    sequence = values.transpose(0, 1) if batch_first else values
    directions = 2 if both else 1
    size = len(weights) // (layers * directions)
    ends = []
    for layer in range(layers):
        outputs = []
        steps = list(torch.split(sequence, lengths) if packed else sequence)
        for number in range(layer * directions, (layer + 1) * directions):
            backwards = number % directions == 1
            now = hidden[number], None if cell is None else cell[number]
            found = []
            for step in reversed(steps) if backwards else steps:
                own = weights[number * size : (number + 1) * size]
                first, cells = now[0][: len(step)], None if now[1] is None else now[1][: len(step)]
                ahead = _step(gates, step, first, cells, *own)
                found.append(ahead[0])
                now = _after(now[0], ahead[0]), _after(now[1], ahead[1])
            outputs.append(
                (torch.cat if packed else torch.stack)(found[::-1] if backwards else found)
            )
            ends.append(now)
        sequence = torch.cat(outputs, -1)
    result = sequence.transpose(0, 1) if batch_first else sequence
    last = (torch.stack(parts) for parts in zip(*ends, strict=True) if parts[0] is not None)
    return result, *last


def _after(before: Any, ahead: Any) -> Any:
    """Return the state of all samples after a step that only the first ones have, if any."""
    if ahead is None or len(before) == len(ahead):
        return ahead
    return torch.cat([ahead, before[len(ahead) :]])


def recurrent_cell(gates: Gates, values: Tensor, state: Any, *weights: Any) -> Any:
    """Return what a recurrent cell gives; arguments as of ``nn.LSTMCell`` and its like."""
    hidden, cell = (state, None) if isinstance(state, Tensor) else state
    hidden, cell = _step(gates, values, hidden, cell, *weights)
    return hidden if cell is None else (hidden, cell)


def _step(
    gates: Gates,
    values: Tensor,
    hidden: Tensor,
    cell: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    weight_hr: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the hidden state and the cell after one step.

    LSTM: the cell gains the candidate, and is the hidden state. GRU: the hidden state gains the
    candidate. A plain cell: its sum alone.
    """
    from_input = F.linear(values, weight_ih, bias_ih)
    from_hidden = F.linear(hidden, weight_hh, bias_hh)
    number = from_input.shape[-1] // weight_hh.shape[-1]

    def through(gate: Tensor, value: Tensor) -> Tensor:
        return gates.through(lambda opened: opened * value, gate, 1.0)

    if cell is not None:
        into, forget, candidate, out = (from_input + from_hidden).chunk(4, -1)
        cell = through(forget, cell) + through(into, candidate)
        hidden = through(out, cell)
        return hidden if weight_hr is None else F.linear(hidden, weight_hr), cell
    if number == 1:
        return from_input + from_hidden, None
    parts, before = from_input.chunk(3, -1), from_hidden.chunk(3, -1)
    candidate = parts[2] + through(parts[0] + before[0], before[2])
    update = parts[1] + before[1]
    return through(update, hidden) + through(update, candidate), None

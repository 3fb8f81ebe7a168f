"""Ternary tickets that are loaded and packed again, and states that DataParallel renamed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pabzip
from pabzip.formats.seeded import scale_range


def net_of(*, rows: bool) -> nn.Module:
    """Two ternary layers, the first with a scale for the tensor or for each row."""
    net = nn.Sequential(nn.Linear(20, 6), nn.Linear(6, 3))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in (net[0], net[1]):
            layer.weight.copy_(torch.randint(-1, 2, layer.weight.shape, generator=generator))
            layer.weight.mul_(0.3).add_(0.0)
        if rows:
            net[0].weight.mul_(torch.arange(1, 7).view(-1, 1))
    return net


def packed(source: object) -> bytes:
    stream = io.BytesIO()
    pabzip.pack(source, stream, ternary=True)  # type: ignore[arg-type]
    return stream.getvalue()


@pytest.mark.parametrize("rows", [False, True])
def test_what_was_loaded_packs_to_the_same_file(rows: bool) -> None:
    file = packed(net_of(rows=rows))
    twin = pabzip.load_into(net_of(rows=not rows), file)
    on_record = list(pabzip.seeding(twin).specs)
    assert on_record == (["1.weight"] if rows else ["0.weight", "1.weight"])
    assert packed(twin) == file


def test_the_prefix_of_data_parallel_is_understood(tmp_path: Path) -> None:
    net = net_of(rows=True)
    torch.save(nn.DataParallel(net).state_dict(), tmp_path / "state.pt")
    assert packed(tmp_path / "state.pt") == packed(net) == packed(nn.DataParallel(net))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 7),
    size=st.integers(1, 7),
    start=st.integers(0, 48),
    count=st.integers(0, 49),
)
def test_any_range_has_the_scales_of_its_rows(rows: int, size: int, start: int, count: int) -> None:
    whole = np.arange(1, rows * size + 1, dtype=np.float32)
    scales = 2.0 ** np.arange(rows, dtype=np.float32)
    start = min(start, len(whole))
    part = whole[start : start + count].copy()
    scale_range(part, scales, size, start)
    everything = (whole.reshape(rows, size) * scales[:, None]).reshape(-1)
    assert np.array_equal(part, everything[start : start + count])

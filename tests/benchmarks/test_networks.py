"""A third of the networks of docs/networks.md, tried again; and what counts as a failure there."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import pabzip
from pabzip.errors import SearchError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def networks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("networks")


def table() -> dict[str, list[str]]:
    """What docs/networks.md says of each network, without the numbers of the notes."""
    found = {}
    for line in (ROOT / "docs" / "networks.md").read_text("utf-8").splitlines():
        if line.startswith("| ") and not line.startswith("| network "):
            name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            found[name] = [re.sub(r" \[\d+\]", "", cell) for cell in cells]
    return found


def test_a_third_of_the_table_is_as_the_page_says(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "networks.py", "--third", "--results", tmp_path],
        capture_output=True, text=True, timeout=580, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "networks-quick.json").read_text("utf-8"))
    assert found["failures"] == 0
    said = table()
    assert len(said) >= 40
    assert len(found["networks"]) >= (18 if not found["left_out"] else 12)
    for row in found["networks"]:
        cells = ["refused" if c.startswith("refused: ") else c for c in row["cells"].values()]
        assert cells == said[row["network"]][1:], row["network"]


def test_a_foreign_exception_a_silent_fault_and_our_own_error_are_told_apart(networks):
    cells = networks.Cells()

    def foreign():
        raise KeyError("weight")

    def ours():
        raise SearchError("layer collapse: nothing is left")

    assert not cells.run("synflow", foreign, SearchError)
    assert not cells.run("snip", ours, SearchError)
    assert not cells.run("pack", ours)  # what init_ took may not be refused by pack
    assert not cells.run("load", lambda: networks.check(False, "the state is another one"))
    assert cells.run("ONNX", lambda: None)
    assert cells.found["synflow"] == "FAILURE: KeyError: 'weight'"
    assert cells.found["snip"] == "refused: layer collapse: nothing is left"
    assert cells.found["pack"].startswith("FAILURE: SearchError: layer collapse")
    assert cells.found["load"] == "FAILURE: FailureError: the state is another one"
    assert (cells.found["ONNX"], cells.found["grasp"]) == ("yes", "-")


def test_a_search_that_changes_more_than_it_says_is_a_failure(networks, monkeypatch):
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4))

    row = networks.Row("own", build, torch.ones(4, 6), torch.arange(4))
    networks.search(row, "magnitude")
    proper = pabzip.search.magnitude

    def careless(net, keep_ratio, **options):
        masks = proper(net, keep_ratio, **options)
        with torch.no_grad():
            net[0].bias.add_(1.0)
        return masks

    monkeypatch.setattr(pabzip.search, "magnitude", careless)
    with pytest.raises(networks.FailureError, match="other than the pruned weights changed"):
        networks.search(row, "magnitude")

    def halfway(net, keep_ratio, **options):
        with torch.no_grad():
            net[0].weight.zero_()
        raise SearchError("too late")

    monkeypatch.setattr(pabzip.search, "magnitude", halfway)
    with pytest.raises(networks.FailureError, match="refused, but weights changed"):
        networks.search(row, "magnitude")


def test_minus_zero_is_another_state(networks):
    one, other = {"a": torch.zeros(2)}, {"a": -torch.zeros(2)}
    assert networks.same(one, {"a": torch.zeros(2)})
    assert not networks.same(one, other)
    assert not networks.same(one, {"a": torch.zeros(2, 1)})
    assert not networks.same(one, {"b": torch.zeros(2)})

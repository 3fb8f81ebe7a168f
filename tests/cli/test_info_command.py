"""``pabzip info``: its numbers, its tables, and what a file may not put on the terminal."""

from __future__ import annotations

import json

import numpy as np
import pytest

import pabzip
from pabzip.seeds import Frozen, InitSpec
from pabzip.seeds.frozen import KEPT
from pabzip.ticket import SeededTensor, Ticket

KEYS = {
    "bytes", "codes_bytes", "dense_bytes", "header_bytes", "weights", "survivors",
    "huffman_bytes", "float32_bytes", "seed", "arch", "sha256", "base",
    "negative_zeros_dropped", "tensors",
}  # fmt: skip


def test_info_json_equals_the_tickets(project, run):
    result = run("info", "model.pabz", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert set(found) == {*KEYS, "breakdown"}
    with pabzip.open(project.ticket) as ticket:
        assert found.pop("breakdown") == ticket.breakdown()
        assert found == json.loads(json.dumps(dict(ticket.info())))
    assert found["bytes"] == project.ticket.stat().st_size


def test_info_shows_where_the_bytes_go(project, run):
    rows = json.loads(run("info", "model.pabz", "--json").stdout)["breakdown"]
    assert [row["name"] for row in rows[:-1]] == list(pabzip.open(project.ticket).names)
    assert rows[-1]["name"] is None
    parts = ("mask", "factors", "signs", "dense", "header")
    size = project.ticket.stat().st_size
    assert sum(row[part] for row in rows for part in parts) == size
    lines = run("info", "model.pabz").stdout.splitlines()
    title = next(line.split() for line in lines if line.startswith("tensor "))
    assert title[-8:] == ["mask", "factors", "signs", "dense", "bytes", "weights", "survivors",
                          "kept"]  # fmt: skip
    assert lines[-1].split() == [
        "all",
        *(f"{sum(row[part] for row in rows):,}" for part in parts[:-1]),
        f"{size:,}",
    ]
    assert lines[-2].split()[:3] == ["header,", "checksums", f"{rows[-1]['header']:,}"]


def test_info_for_people(project, run):
    result = run("info", "model.pabz")
    assert result.exit_code == 0, result.stderr
    with pabzip.open(project.ticket) as ticket:
        names, info = ticket.names, ticket.info()
    assert all(name in result.stdout for name in names)
    assert info["sha256"] in result.stdout
    assert "lenet-300-100" in result.stdout
    assert f"{info['bytes']:,} bytes" in result.stdout
    assert "keep ratio 0." in result.stdout
    assert "\x1b" not in result.stdout


def test_info_reads_stdin(project, run):
    piped = run("info", "-", "--json", stdin=project.ticket.read_bytes())
    assert json.loads(piped.stdout) == json.loads(run("info", "model.pabz", "--json").stdout)


def test_info_verbose_tells_how_weights_are_drawn(project, run):
    result = run("info", "model.pabz", "-v", "--json")
    json.loads(result.stdout)
    assert "normal, scale " in result.stderr
    assert "stream 0" in result.stderr


def test_names_and_metadata_cannot_drive_the_terminal(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile = "[red]\u202eevil"
    tensor = pabzip.SeededTensor(
        hostile, pabzip.InitSpec("normal", 0.5, 0), np.ones((2, 2), np.int8)
    )
    pabzip.Ticket(seed=1, tensors=[tensor]).save("x.pabz")
    result = run("info", "x.pabz")
    assert result.exit_code == 0, result.stderr
    assert "\u202e" not in result.stdout
    assert "[red]" in result.stdout


def test_a_ticket_without_seeded_weights(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = np.zeros(3, np.float32)
    pabzip.Ticket(seed=1, tensors=[pabzip.DenseTensor("bias", values, "float32", "float32")]).save(
        "dense.pabz"
    )
    result = run("info", "dense.pabz")
    assert result.exit_code == 0, result.stderr
    assert "bias" in result.stdout


def test_max_bytes_refuses_a_large_file(project, run):
    for command in ("info", "verify", "unpack"):
        result = run(command, "model.pabz", "--max-bytes", "1k")
        assert result.exit_code == 3, command
        assert "model.pabz" in result.stderr
        assert "1024" in result.stderr
        assert run(command, "model.pabz", "--max-bytes", "1GiB").exit_code == 0


@pytest.mark.parametrize("text", ["", "12 parsecs", "-1", "1e9", "k"])
def test_a_size_that_is_none_is_a_usage_error(project, run, text):
    result = run("info", "model.pabz", f"--max-bytes={text}")
    assert result.exit_code == 2
    assert "not a size" in result.stderr


def test_info_counts_what_the_seed_freezes(project, run):
    frozen = Frozen.of(0.5, 0.2)
    marks = frozen.marks(3, 0, 0, 600)
    codes = np.where(marks == 0, np.resize([0, 1], 600), marks == KEPT).astype(np.int8)
    tensor = SeededTensor("w", InitSpec("normal", 0.5, 0), codes.reshape(20, 30), frozen=frozen)
    Ticket(seed=3, tensors=[tensor]).save("frozen.pabz")
    count = int(np.count_nonzero(marks))
    shown = " ".join(run("info", "frozen.pabz").stdout.split())
    assert f"frozen {count} weights, pruned or kept by the seed, without codes" in shown
    (row,) = json.loads(run("info", "frozen.pabz", "--json").stdout)["tensors"]
    assert row["frozen"] == count
    assert "frozen" not in run("info", "model.pabz").stdout

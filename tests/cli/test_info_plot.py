"""``pabzip info --plot``: the picture of where the bytes go."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest

import pabzip
from pabzip.cli._plot import FRAMING, MOST_BARS, bars, draw, total

PARTS = ("mask", "factors", "signs", "dense", "header")


def info_of(ticket, coder="auto"):
    file = io.BytesIO()
    ticket.save(file, coder=coder)
    with pabzip.open(file.getvalue()) as opened:
        return {**opened.info(), "breakdown": opened.breakdown()}


def many(count, *, dense_each=0):
    """Weights of growing size, ``dense_each`` dense tensors after each."""
    rng = np.random.default_rng(0)
    tensors = []
    for at in range(count):
        codes = rng.integers(-1, 2, (8, 10 + 3 * at)).astype(np.int8)
        tensors.append(
            pabzip.SeededTensor(f"layer{at}.weight", pabzip.InitSpec("normal", 0.5, at), codes)
        )
        tensors += [
            pabzip.DenseTensor(f"norm{at}.{part}", np.ones(8, np.float32), "float32", "float32")
            for part in range(dense_each)
        ]
    return pabzip.Ticket(seed=1, tensors=tensors)


@pytest.mark.parametrize(
    ("name", "start"), [("out.png", b"\x89PNG\r\n"), ("out.SVG", b"<?xml"), ("out.pdf", b"%PDF-")]
)
def test_plot_writes_the_image_that_its_name_says(project, run, name, start):
    result = run("info", "model.pabz", "--plot", name)
    assert result.exit_code == 0, result.stderr
    assert (project.folder / name).read_bytes().startswith(start)
    assert result.stdout == run("info", "model.pabz").stdout


def test_the_same_file_gives_the_same_picture(project, run):
    for name in ("a.png", "b.png"):
        assert run("info", "model.pabz", "--plot", name, "--json").exit_code == 0
    assert (project.folder / "a.png").read_bytes() == (project.folder / "b.png").read_bytes()


def test_plot_to_stdout(project, run):
    result = run("info", "model.pabz", "--plot", "-")
    assert result.stdout_bytes.startswith(b"\x89PNG")
    assert "sha256" in result.stderr
    refused = run("info", "model.pabz", "--plot", "-", "--json")
    assert refused.exit_code == 2
    assert "--json" in refused.stderr


def test_plot_refuses_what_it_cannot_write(project, run):
    before = project.files()
    result = run("info", "model.pabz", "--plot", "out.bmp")
    assert result.exit_code == 2
    assert "out.bmp: expected a name that ends in .png, .svg, .pdf" in result.stderr
    (project.folder / "old.png").write_bytes(b"old")
    result = run("info", "model.pabz", "--plot", "old.png")
    assert result.exit_code == 1
    assert "--force" in result.stderr
    assert (project.folder / "old.png").read_bytes() == b"old"
    assert run("info", "model.pabz", "--plot", "old.png", "-f").exit_code == 0
    assert (project.folder / "old.png").read_bytes().startswith(b"\x89PNG")
    assert project.files() == before | {"old.png"}


def test_without_matplotlib_the_way_out_is_named(project, run, monkeypatch):
    before = project.files()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("info", "model.pabz", "--plot", "out.png")
    assert result.exit_code == 1
    assert "matplotlib" in result.stderr
    assert "pip install 'pabzip[train]'" in result.stderr
    assert project.files() == before
    assert run("info", "model.pabz").exit_code == 0


def test_a_weight_and_the_dense_tensors_after_it_share_a_bar():
    info = info_of(many(3, dense_each=2))
    shown = bars(info)
    assert [bar.label for bar in shown] == [
        "layer0.weight +2 dense", "layer1.weight +2 dense", "layer2.weight +2 dense", FRAMING,
    ]  # fmt: skip
    own = info["breakdown"]
    assert shown[0].parts["dense"] == own[1]["dense"] + own[2]["dense"]
    assert shown[0].parts["signs"] == own[0]["signs"]


@pytest.mark.parametrize("count", [1, MOST_BARS, MOST_BARS + 1, 150, 400])
def test_bars_hold_every_byte_and_stay_few(count):
    info = info_of(many(count), "huffman")
    shown = bars(info)
    assert len(shown) <= MOST_BARS + 1
    assert total(shown).total == info["bytes"]
    paper = info["huffman_bytes"] + info["dense_bytes"] + info["header_bytes"]
    assert total(shown).paper_total == paper
    if count > MOST_BARS:
        assert len(shown) > MOST_BARS // 2
        sizes = [bar.total for bar in shown[:-1]]
        assert max(sizes) < 4 * np.mean(sizes)


def test_dense_tensors_alone():
    values = np.arange(3, dtype=np.float32)
    tensors = [pabzip.DenseTensor(name, values, "float32", "float32") for name in ("a", "b")]
    info = info_of(pabzip.Ticket(seed=1, tensors=tensors))
    assert [bar.label for bar in bars(info)] == ["a", "b", FRAMING]
    draw(info)


def test_the_picture_says_what_it_shows():
    info = info_of(many(5, dense_each=1))
    figure = draw(info)
    words = " ".join(text.get_text() for text in figure.texts)
    assert info["arch"] in words
    assert "smaller than float32" in words
    assert f"{info['weights']:,}" in words
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {entry.split()[0] for entry in legend} <= set(PARTS)
    totals, here, paper = figure.axes
    labels = [text.get_text() for text in totals.get_yticklabels()]
    assert labels == ["this file", "paper's Huffman"]
    drawn = sum(patch.get_width() for patch in here.patches)
    assert drawn == info["bytes"]
    drawn = sum(patch.get_width() for patch in paper.patches)
    assert drawn == info["huffman_bytes"] + info["dense_bytes"] + info["header_bytes"]


def test_names_cannot_break_the_picture(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["$\\frac{1}{$", "\u202eevil", "\u4e2d\u6587", "_" * 300, "a$b"]
    spec = pabzip.InitSpec("normal", 0.5, 0)
    tensors = [pabzip.SeededTensor(name, spec, np.ones((2, 2), np.int8)) for name in names]
    pabzip.Ticket(seed=1, tensors=tensors).save("x.pabz")
    for name in ("x.png", "x.svg", "x.pdf"):
        result = run("info", "x.pabz", "--plot", name, "--json")
        assert result.exit_code == 0, result.stderr
        assert result.stderr == ""
        json.loads(result.stdout)

"""What README.md and docs/ say: commands and links exist, numbers are those that were measured."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pabzip.cli import main

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))
    if page.name != "CHANGELOG.md"
)


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)


def commands(page):
    """Yield every command of ours on a page, as words: in shell blocks and between backticks."""
    shell = "\n".join(blocks(page, "bash"))
    lines = shell.replace("&&", "\n").replace("-m -- pabzip.cli", "\npabzip").splitlines()
    lines += re.findall(r"`(pabzip [a-z][^`]*)`", re.sub(r"\s+", " ", page.read_text("utf-8")))
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[:1] == ["pabzip"]:
            yield words[1:]


def scripts(page):
    return re.findall(r"python (\S+\.py)", page.read_text("utf-8"))


def links(page):
    found = re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8"))
    return [link for link in found if "://" not in link]


def cases(find):
    """Return what is found on each page, as parameters of a test: the page and the finding."""
    return [
        pytest.param(page, found, id=f"{page.name}: {found}")
        for page in PAGES
        for found in find(page)
    ]


@pytest.mark.parametrize(("page", "words"), cases(commands))
def test_every_command_and_flag_exists(page, words):
    command, context = main, click.Context(main)
    while isinstance(command, click.Group) and words:
        name, *words = words
        command = command.get_command(context, name)
        assert command is not None, name
        context = click.Context(command, parent=context)
    command.make_parser(context).parse_args(list(words))  # raises NoSuchOption


def test_every_setting_exists():
    text = " ".join(page.read_text("utf-8") for page in PAGES)
    keys = set(re.findall(r"--set\s+([a-z_.]+)=", text))
    assert len(keys) > 5
    listed = CliRunner().invoke(main, ["train", "--list-settings"]).stdout
    unlisted = {key for key in keys if not re.search(rf"\b{re.escape(key)}\b", listed)}
    # The first stands for any; the second is an option of one architecture.
    assert unlisted <= {"section.key", "arch_options.width"}


@pytest.mark.parametrize("text", [text for page in PAGES for text in blocks(page, "toml")])
def test_every_recipe_is_one(text, tmp_path):
    from pabzip.train.recipes import read_recipe

    (tmp_path / "run.toml").write_text(text, encoding="utf-8")
    assert read_recipe(tmp_path / "run.toml").bop.flip_cost == 1e-4


@pytest.mark.parametrize(("page", "link"), cases(links))
def test_every_link_leads_to_a_file(page, link):
    assert (page.parent / link).exists()


@pytest.mark.parametrize(("page", "script"), cases(scripts))
def test_every_script_exists(page, script):
    assert (ROOT / script).exists()


@pytest.mark.parametrize("code", [code for page in PAGES for code in blocks(page, "python")])
def test_python_compiles_and_names_what_exists(code):
    import pabzip

    compile(code, "docs", "exec")
    for dotted in re.findall(r"\bpabzip((?:\.[A-Za-z_]\w*)+)", code):
        found = pabzip
        for name in dotted[1:].split("."):
            found = getattr(found, name)


@pytest.mark.parametrize(
    ("page", "results"),
    [("README.md", "methods"), ("docs/training.md", "methods-cluttered-digits")],
)
def test_the_tables_of_methods_are_what_was_measured(page, results):
    text = (ROOT / "benchmarks" / "results" / f"{results}.json").read_text("utf-8")
    lines = (ROOT / page).read_text("utf-8").splitlines()
    for row in json.loads(text)["rows"]:
        (line,) = (line for line in lines if line.startswith(f"| {row['method']} |"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        size = row["bytes"] / 1024
        found = [100 * run["accuracy"] for run in row["runs"]]
        spread = f" ({min(found):.2f} to {max(found):.2f})" if len(found) > 1 else ""
        assert cells[1] == f"{100 * row['accuracy']:.2f} %{spread}"
        assert cells[2] == f"{row['bitops'] / 1e9:.{2 if row['bitops'] < 1e10 else 1}f} G"
        assert cells[-1] == (f"{size:,.1f}" if size >= 10 else f"{size:.2f}")


def test_the_table_of_codes_is_what_was_measured():
    found = json.loads((ROOT / "benchmarks/results/codec_size.json").read_text("utf-8"))["cases"]
    sizes = {round(case["coders"]["auto"] / 1024, 1) for case in found}
    text = (ROOT / "docs/format-and-size.md").read_text("utf-8")
    told = {float(size) for size in re.findall(r"\*\*(\d+\.\d)\*\*", text)}
    assert len(told) == 8
    assert told <= sizes


def test_the_table_of_dense_tensors_is_what_was_measured():
    found = json.loads((ROOT / "benchmarks/results/dense_coding.json").read_text("utf-8"))["cases"]
    text = (ROOT / "docs/format-and-size.md").read_text("utf-8")
    lines = [line for line in text.splitlines() if re.search(r"\*\*0\.\d{4}\*\*", line)]
    for line, row in zip(lines, found, strict=True):
        cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
        coders = ("planes", "zstd -3", "zstd -19", "deflate -9")
        shares = [f"{row['sizes'][name] / row['bytes']:.4f}" for name in coders]
        assert [cells[1], *cells[3:6]] == shares
        if cells[2]:
            assert cells[2] == f"{row['entropy'] / row['bytes']:.4f}"
        speeds = [row["speeds"][name] / 1e6 for name in ("planes, encode 1", "planes, decode 1")]
        assert cells[6:8] == [f"{speed:.0f}" for speed in speeds]
        assert float(cells[8]) == pytest.approx(row["speeds"]["deflate -9, encode"] / 1e6, rel=0.04)


def test_the_tables_of_a_ternary_model_are_what_was_measured():
    found = json.loads((ROOT / "benchmarks/results/ternary_model.json").read_text("utf-8"))
    text = (ROOT / "docs/format-and-size.md").read_text("utf-8")
    assert f"{found['weights']:,} ternary weights" in text
    for size in found["bytes"].values():
        assert f"| {size:,} | {size / found['bytes']['checkpoint']:.1%} |" in text
    for command, run in found["commands"].items():
        rate, peak = found["rates"][command] / 1e6, run["peak_bytes"] / 2**20
        assert f"| `{command}` | {run['seconds']:.1f} | {rate:.0f} | {peak:,.0f} |" in text

"""Packages that need torch say so in our own words, and how to get it, where there is none."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
import pabzip
from pabzip.errors import MissingDependencyError

def message(code):
    try:
        exec(code)
    except MissingDependencyError as error:
        assert isinstance(error, ImportError) and isinstance(error, pabzip.PabzError)
        return str(error)
    return f"no error: {code}"
"""


def run(code: str) -> list[str]:
    found = subprocess.run(
        [sys.executable, "-c", BLOCKED + code], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()


@pytest.mark.parametrize(
    ("code", "subject", "extra"),
    [
        ("pabzip.search", "pabzip.search", "torch"),
        ("pabzip.search.synflow", "pabzip.search", "torch"),
        ("from pabzip.search import snip", "pabzip.search", "torch"),
        ("import pabzip.unmask", "pabzip.unmask", "torch"),
        ("pabzip.unmask.Bop", "pabzip.unmask", "torch"),
        ("pabzip.supermask.Biprop", "pabzip.supermask", "torch"),
        ("pabzip.data.batches", "pabzip.data.batches", "train"),
        ("from pabzip.data import hold_out", "pabzip.data.hold_out", "train"),
        ("pabzip.data.load('digits')", "pabzip.data.load", "train"),
        ("pabzip.models.build('lenet300')", "pabzip.models.build", "torch"),
        ("pabzip.train.train", "pabzip.train.train", "train"),
        ("from pabzip.train import evaluate", "pabzip.train.evaluate", "train"),
        ("pabzip.evaluate", "pabzip.evaluate", "torch"),
        ("pabzip.load_checkpoint", "pabzip.load_checkpoint", "torch"),
        ("pabzip.init_(None, 0)", "pabzip.init_", "torch"),
        ("pabzip.seeding(None)", "a network", "torch"),
        (
            "import io; pabzip.pack(io.BytesIO(b'\\x80\\x02'), 'x.pabz')",
            "packing a torch checkpoint (<stream>)",
            "torch",
        ),
        ("pabzip.load('x.pabz')", "pabzip.load", "torch"),
    ],
)
def test_the_error_names_what_needs_torch_and_the_command(
    code: str, subject: str, extra: str
) -> None:
    expected = f"{subject} needs torch, which is not installed; run: pip install 'pabzip[{extra}]'"
    assert run(f"print(message({code!r}))") == [expected]


def test_names_and_what_is_known_of_them_need_no_torch() -> None:
    code = (
        "print('digits' in pabzip.data.names(), pabzip.data.geometry('digits').num_classes)\n"
        "print('resnet18' in pabzip.models.names(), pabzip.models.input_shape('resnet18'))\n"
        "print(pabzip.train.Recipe().seed)"
    )
    assert run(code) == ["True 10", "True (3, 32, 32)", "0"]


def test_another_missing_module_is_not_blamed_on_torch() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = __import__("pabzip").data.nonsense

"""Reading a ticket in an environment that has numpy and numba alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy

import pabzip

BLOCKER = """
import sys

class Blocker:
    missing = {"torch", "torchvision", "onnx", "onnxruntime", "sklearn", "triton"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture
def bare(project, tmp_path, spawn):
    """Run the command line as a process in which torch and its friends are not installed."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCKER)

    def start(*arguments, **options):
        return spawn(*arguments, extra_env={"PYTHONPATH": str(tmp_path / "site")}, **options)

    return start


def test_info_and_verify(project, bare):
    info = bare("info", "model.pabz", "--json")
    assert info.returncode == 0, info.stderr
    verify = bare("verify", "model.pabz", "--json")
    assert verify.returncode == 0, verify.stderr
    assert json.loads(verify.stdout) == {"ok": True, "sha256": json.loads(info.stdout)["sha256"]}


def test_unpack_safetensors_and_npz(project, bare):
    expected = pabzip.load_arrays(project.ticket)
    assert bare("unpack", "model.pabz").returncode == 0
    found = safetensors.numpy.load_file(project.folder / "model.safetensors")
    assert set(found) == set(expected)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert bare("unpack", "model.pabz", "-o", "model.npz").returncode == 0
    with np.load(project.folder / "model.npz") as archive:
        assert all(np.array_equal(archive[name], expected[name]) for name in expected)


def test_pack_ternary_weights_and_unpack_them_as_stored(project, bare):
    codes = np.random.default_rng(0).integers(-1, 2, (64, 40)).astype(np.int8)
    pairs = (codes + 1).astype(np.uint8).reshape(4, 16, 40)
    state = {
        "half": codes.astype(np.float16),
        "l.weight": pairs[0] | pairs[1] << 2 | pairs[2] << 4 | pairs[3] << 6,
        "l.weight_scale": np.array([0.5], np.float32),
    }
    safetensors.numpy.save_file(state, project.folder / "t.safetensors")
    assert bare("pack", "t.safetensors", "--bitnet-scale", "multiply").returncode == 0
    options = ("-o", "s.safetensors", "--as-stored")
    assert bare("unpack", "t.pabz", *options).returncode == 0
    stored = safetensors.numpy.load_file(project.folder / "s.safetensors")
    assert {name: one.tobytes() for name, one in stored.items()} == {
        name: one.tobytes() for name, one in state.items()
    }
    assert bare("unpack", "t.pabz", "-o", "p.npz").returncode == 0
    with np.load(project.folder / "p.npz") as archive:
        assert sorted(archive) == ["half", "l.weight"]
        np.testing.assert_array_equal(archive["l.weight"], codes * np.float32(0.5))


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("train", "-o", "new.pt"), "train"),
        (("pack", "model.pt", "-o", "new.pabz"), "torch"),
        (("eval", "model.pabz"), "train"),
        (("export", "model.pabz"), "torch"),
        (("unpack", "model.pabz", "-o", "new.pt"), "torch"),
    ],
)
def test_the_rest_names_what_to_install(project, bare, arguments, extra):
    before = project.files()
    result = bare(*arguments)
    assert result.returncode == 1
    message = result.stderr.decode()
    assert message.startswith("pabzip: error: ")
    assert f"pip install 'pabzip[{extra}]'" in message
    assert len(message.splitlines()) == 1
    assert project.files() == before

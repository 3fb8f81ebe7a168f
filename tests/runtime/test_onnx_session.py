"""Sessions from tickets and files, and the state of the installation."""

from importlib import metadata

import numpy as np
import pytest
import torch

import pabzip
from pabzip import models
from pabzip.errors import ExportError, MissingDependencyError
from pabzip.export import build_onnx
from pabzip.export.onnx import load_session
from pabzip.runtime.onnx_session import open_onnx, session_logits

OPTIONS = {"in_channels": 1, "image_size": 4}


@pytest.fixture(scope="module")
def net():
    return pabzip.init_(models.build("lenet-300-100", **OPTIONS), seed=11).eval()


@pytest.fixture(scope="module")
def path(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("session") / "model.pabz"
    pabzip.pack(net, path)
    return path


@pytest.fixture(scope="module")
def fixed(net):
    return build_onnx(net, input_shape=(1, 4, 4), dynamic_batch=False).data


def images(count):
    return np.random.default_rng(0).standard_normal((count, 1, 4, 4), dtype=np.float32)


def pretend_installed(monkeypatch, *distributions):
    def version(name):
        if name in distributions:
            return "1.0"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)


def test_session_of_a_ticket_gives_the_logits_of_torch(net, path):
    session = load_session(path)
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert session.get_modelmeta().custom_metadata_map["pabzip.seed"] == "11"
    batch = images(5)
    with torch.no_grad():
        expected = net(torch.from_numpy(batch)).numpy()
    found = session_logits(session)(batch)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert list(path.parent.iterdir()) == [path]


def test_session_takes_the_options_of_an_export(net, path):
    session = load_session(
        path.read_bytes(), net=net, input_shape=(1, 4, 4), float16=True, opset=20
    )
    with torch.no_grad():
        expected = net(torch.from_numpy(images(3))).numpy()
    difference = np.abs(session_logits(session)(images(3)) - expected).max()
    assert 0 < difference <= 5e-3 * np.abs(expected).max()


def test_session_of_a_damaged_file_is_refused(path):
    with pytest.raises(pabzip.FormatError):
        load_session(path.read_bytes()[:-1])


def test_exported_file_opens_by_path_and_by_bytes(fixed, tmp_path):
    (tmp_path / "model.onnx").write_bytes(fixed)
    by_path = session_logits(open_onnx(tmp_path / "model.onnx"))(images(2))
    assert np.array_equal(by_path, session_logits(open_onnx(fixed))(images(2)))


def test_images_are_converted_to_float32(fixed):
    logits = session_logits(open_onnx(fixed))
    assert np.array_equal(logits(images(2)), logits(images(2).astype(np.float64)))


@pytest.mark.parametrize("shape", [(2, 1, 4, 5), (1, 4, 4), (2, 16)])
def test_images_of_another_shape_are_refused(fixed, shape):
    with pytest.raises(ExportError, match=r"expected images of shape \['N', 1, 4, 4\], found"):
        session_logits(open_onnx(fixed))(np.zeros(shape, np.float32))


def test_no_images_do_not_fit_a_fixed_batch(fixed):
    with pytest.raises(ExportError, match="a multiple of the fixed batch of 1, found 0 images"):
        session_logits(open_onnx(fixed))(images(0))


def test_what_is_no_model_is_refused_by_name(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(ExportError, match=r"model\.onnx: expected a model that ONNX Runtime"):
        open_onnx(tmp_path / "model.onnx")
    with pytest.raises(FileNotFoundError):
        open_onnx(tmp_path / "missing.onnx")


def test_a_model_cannot_make_us_read_another_file(fixed, tmp_path):
    import onnx

    model = onnx.load_from_string(fixed)
    weight = model.graph.initializer[0]
    (tmp_path / "secret").write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="secret")
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="expected a model that ONNX Runtime"):
        open_onnx(tmp_path / "model.onnx")


@pytest.mark.parametrize("provider", ["MadeUpProvider", ("MadeUpProvider", {"device_id": 0})])
def test_provider_that_is_not_there_is_refused(path, fixed, provider):
    expected = (
        r"expected some of .*CPUExecutionProvider.*found 'MadeUpProvider'.*pabzip\[onnx-gpu\]"
    )
    for make in (
        lambda: load_session(path, providers=[provider]),
        lambda: open_onnx(fixed, providers=[provider]),
    ):
        with pytest.raises(MissingDependencyError, match=expected):
            make()


def test_both_runtimes_at_once_are_refused_with_the_fix(fixed, monkeypatch):
    pretend_installed(monkeypatch, "onnxruntime", "onnxruntime-gpu")
    expected = r"found both .*pip uninstall onnxruntime onnxruntime-gpu, then pip install 'pabzip\["
    with pytest.raises(MissingDependencyError, match=expected):
        open_onnx(fixed)


@pytest.mark.parametrize("distribution", ["onnxruntime", "onnxruntime-gpu"])
def test_either_runtime_alone_is_fine(fixed, monkeypatch, distribution):
    pretend_installed(monkeypatch, distribution)
    assert open_onnx(fixed).get_outputs()[0].name == "logits"

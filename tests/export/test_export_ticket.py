"""Files: networks of the registry and tickets, metadata, and what a failure leaves behind."""

import io
import json

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import pabzip
from pabzip import models
from pabzip.errors import ArchitectureError, ExportError, MissingDependencyError
from pabzip.export import build as exporting
from pabzip.export import export_onnx, export_ticket
from pabzip.runtime.onnx_session import open_onnx, session_logits

ARCHITECTURES = {
    "lenet-300-100": {"in_channels": 1, "image_size": 8},
    "conv2": {"width": 4, "image_size": 8},
    "resnet20": {"width": 2},
    "resnet18": {"width": 2, "num_classes": 3},
}


def packed(name, options, folder, **settings):
    """Pack a pruned, partly flipped network of the registry; return its path and the network."""
    net = models.build(name, **options)
    pabzip.init_(net, seed=2**63 + 9)
    with torch.no_grad():
        for weight in pabzip.seeded_parameters(net).values():
            weight.view(-1)[::3] = 0
            weight.view(-1)[1::3] *= -1
    path = folder / f"{name}.pabz"
    pabzip.pack(net, path, **settings)
    return path, net.eval()


@pytest.fixture(scope="module")
def ticket(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ticket")
    return packed("conv2", ARCHITECTURES["conv2"], folder, metadata={"data": "digits", "epochs": 3})


@pytest.fixture
def custom(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    pabzip.init_(net, seed=4)
    pabzip.pack(net, tmp_path / "custom.pabz")
    return tmp_path / "custom.pabz", net


def disagree(monkeypatch):
    """Make ONNX Runtime answer wrongly."""
    honest = exporting.session_logits

    def wrong(session):
        run = honest(session)
        return lambda images: run(images) + np.float32(7)

    monkeypatch.setattr(exporting, "session_logits", wrong)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ticket_of_the_registry_is_exported_whole(name, tmp_path):
    path, net = packed(name, ARCHITECTURES[name], tmp_path)
    target = tmp_path / "model.onnx"
    report = export_ticket(path, target)
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "model.onnx"}
    assert report.bytes == target.stat().st_size
    onnx.checker.check_model(str(target), full_check=True)
    shape = models.input_shape(name, ARCHITECTURES[name])
    assert report.input_shape == shape
    images = np.random.default_rng(1).standard_normal((6, *shape), dtype=np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(images)).numpy()
    found = session_logits(open_onnx(target))(images)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert np.array_equal(found.argmax(axis=1), expected.argmax(axis=1))


@pytest.fixture(scope="module")
def exported(ticket, tmp_path_factory):
    """One export of the ticket, compared on samples of the caller."""
    target = tmp_path_factory.mktemp("exported") / "model.onnx"
    with torch.random.fork_rng(devices=[]):
        samples = torch.randn(70, 3, 8, 8)
    return target, export_ticket(ticket[0], target, samples=samples)


def test_model_remembers_its_ticket(ticket, exported):
    model = onnx.load(exported[0])
    found = {p.key: p.value for p in model.metadata_props}
    assert (model.producer_name, model.producer_version) == ("pabzip", pabzip.__version__)
    assert found["pabzip.seed"] == str(2**63 + 9)
    assert found["pabzip.arch"] == "conv2"
    assert json.loads(found["pabzip.arch_options"])["width"] == 4
    with pabzip.open(ticket[0]) as opened:
        assert found["pabzip.sha256"] == opened.verify()
    assert (found["pabzip.data"], found["pabzip.epochs"]) == ("digits", "3")


def test_samples_of_the_caller_are_compared(exported):
    assert exported[1].samples == 70


def test_bytes_and_streams_serve_as_well_as_paths(ticket, exported):
    stream = io.BytesIO()
    export_ticket(ticket[0].read_bytes(), stream)
    assert stream.getvalue() == exported[0].read_bytes()


def test_network_is_exported_without_a_ticket(ticket, exported):
    stream = io.BytesIO()
    report = export_onnx(ticket[1], stream, input_shape=(3, 8, 8), float16=True)
    assert report.bytes == len(stream.getvalue()) < exported[1].bytes
    assert not onnx.load_from_string(stream.getvalue()).metadata_props


@pytest.mark.parametrize("old", [None, b"the old file"])
def test_disagreement_names_the_difference_and_leaves_the_old_file(
    ticket, tmp_path, monkeypatch, old
):
    target = tmp_path / "model.onnx"
    if old is not None:
        target.write_bytes(old)
    disagree(monkeypatch)
    with pytest.raises(ExportError, match=r"parity: .*found a difference of .*nothing was written"):
        export_ticket(ticket[0], target)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([] if old is None else [old])


def test_write_that_fails_leaves_the_old_file(ticket, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="found a directory"):
        export_onnx(ticket[1], tmp_path / "folder", input_shape=(3, 8, 8))
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("link", [None, "symlink_to", "hardlink_to"])
def test_ticket_is_never_overwritten_by_its_export(custom, tmp_path, link):
    path, net = custom
    before = path.read_bytes()
    target = path
    if link is not None:
        target = tmp_path / "other.onnx"
        getattr(target, link)(path)
    with pytest.raises(ExportError, match="expected a target other than the ticket"):
        export_ticket(path, target, net=net, input_shape=(1, 4, 4))
    assert path.read_bytes() == before


def test_custom_architecture_takes_a_network_and_a_shape(custom, tmp_path):
    path, net = custom
    fresh = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    before = fresh[0].weight.detach().clone()
    export_ticket(path, tmp_path / "model.onnx", net=fresh, input_shape=(1, 4, 4))
    assert torch.equal(fresh[0].weight, before)
    images = torch.ones(2, 1, 4, 4)
    found = session_logits(open_onnx(tmp_path / "model.onnx"))(images.numpy())
    np.testing.assert_allclose(found, net(images).detach().numpy(), atol=1e-5)


def test_custom_architecture_without_network_or_shape_is_refused(custom, tmp_path):
    path, net = custom
    with pytest.raises(ArchitectureError, match=r"found a custom one; pass net="):
        export_ticket(path, tmp_path / "model.onnx", input_shape=(1, 4, 4))
    with pytest.raises(ExportError, match=r"expected input_shape=\(C, H, W\) for a custom"):
        export_ticket(path, tmp_path / "model.onnx", net=net)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_damaged_ticket_is_a_format_error(tmp_path):
    (tmp_path / "bad.pabz").write_bytes(b"not a ticket")
    with pytest.raises(pabzip.FormatError, match=r"bad\.pabz"):
        export_ticket(tmp_path / "bad.pabz", tmp_path / "model.onnx")


@pytest.mark.parametrize("module", ["onnx", "onnx_ir", "onnxscript", "onnxruntime"])
def test_missing_package_names_the_extra(ticket, tmp_path, monkeypatch, module):
    import importlib

    real = importlib.import_module

    def without(name, package=None):
        if name == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    expected = rf"needs {module}, which is not installed; run: pip install 'pabzip\[onnx\]'"
    with pytest.raises(MissingDependencyError, match=expected):
        export_ticket(ticket[0], tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []

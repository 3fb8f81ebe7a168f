"""Graphs of small networks: numbers, shapes, options, and what an export leaves alone."""

import copy
import random
import subprocess
import sys
import warnings

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pabzip.errors import ExportError
from pabzip.export import build_onnx, graph
from pabzip.runtime.onnx_session import open_onnx, session_logits

SHAPE = (3, 8, 8)


class Residual(nn.Module):
    """Convolution, batch norm, a residual branch, a classifier."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.branch = nn.Conv2d(6, 6, 3, padding=1)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(6, 4)

    def forward(self, images):
        out = F.relu(self.norm(self.conv(images)))
        out = F.relu(out + self.branch(out))
        return self.classifier(self.dropout(out.mean(dim=(2, 3))))


class Resized(nn.Module):
    """Operators whose float32 inputs the standard fixes, casts, and constants made on the way."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, images):
        out = F.interpolate(self.norm(self.conv(images)), scale_factor=1.3, mode="bilinear")
        out = torch.where(out > 0.3, out, torch.full_like(out, -0.1))
        return F.log_softmax(out.mean(dim=(2, 3)).float(), dim=1)


@pytest.fixture(scope="module")
def original():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = Residual()
        net.norm.running_mean.normal_()
        net.norm.running_var.uniform_(0.5, 2.0)
    return net


@pytest.fixture
def net(original):
    return copy.deepcopy(original)


@pytest.fixture(scope="module")
def built(original):
    return build_onnx(original, input_shape=SHAPE, metadata={"purpose": "test"})


def images(count, shape=SHAPE):
    return np.random.default_rng(5).standard_normal((count, *shape), dtype=np.float32)


def torch_logits(net, batch):
    with torch.no_grad():
        return net.eval()(torch.from_numpy(batch)).numpy()


@pytest.mark.parametrize("count", [1, 2, 7])
def test_model_computes_what_torch_computes_at_any_batch(net, built, count):
    found = session_logits(open_onnx(built.data))(images(count))
    assert found.shape == (count, 4)
    np.testing.assert_allclose(found, torch_logits(net, images(count)), rtol=0, atol=1e-5)


def test_model_is_valid_and_holds_every_weight_itself(built):
    model = onnx.load_from_string(built.data)
    onnx.checker.check_model(model, full_check=True)
    assert {w.data_location for w in model.graph.initializer} == {onnx.TensorProto.DEFAULT}
    assert (model.producer_name, model.opset_import[0].version) == ("pabzip", graph.DEFAULT_OPSET)
    assert {p.key: p.value for p in model.metadata_props} == {"purpose": "test"}
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, logits.name) == ("images", "logits")
    assert image.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert logits.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert built.report.bytes == len(built.data)
    assert built.report.difference <= 1e-6 < built.report.tolerance == 1e-4


@pytest.mark.parametrize("trace", [b"pkg.", b".py", b"stack_trace", b"Residual"])
def test_model_holds_no_trace_of_the_source(built, trace):
    assert trace not in built.data


def test_export_leaves_all_else_alone_and_gives_the_same_bytes_again(net, built):
    net.train()
    net.conv.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    filters = list(warnings.filters)
    states = random.getstate(), repr(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    assert build_onnx(net, input_shape=SHAPE, metadata={"purpose": "test"}).data == built.data
    assert random.getstate() == states[0]
    assert repr(np.random.get_state()) == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    assert torch.is_grad_enabled()
    assert warnings.filters == filters
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_fixed_batch_is_run_image_by_image(net):
    built = build_onnx(net, input_shape=SHAPE, dynamic_batch=False)
    session = open_onnx(built.data)
    assert session.get_inputs()[0].shape == [1, *SHAPE]
    found = session_logits(session)(images(3))
    np.testing.assert_allclose(found, torch_logits(net, images(3)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("opset", [20, 23])
def test_opset_is_the_one_asked_for(net, opset):
    built = build_onnx(net, input_shape=SHAPE, opset=opset)
    assert onnx.load_from_string(built.data).opset_import[0].version == opset == built.report.opset


@pytest.mark.parametrize("opset", [0, 17, 24, True, "18"])
def test_opset_out_of_range_is_refused(net, opset):
    with pytest.raises(ExportError, match="opset: expected 18 to 23, found"):
        build_onnx(net, input_shape=SHAPE, opset=opset)


def test_opset_that_torch_did_not_write_is_refused(net, monkeypatch):
    monkeypatch.setattr(graph, "OPSETS", range(13, 24))
    with pytest.raises(ExportError, match=r"opset: expected 13, found that torch .* wrote 18"):
        build_onnx(net, input_shape=SHAPE, opset=13)


def test_float16_halves_the_weights_and_keeps_float32_ends(net):
    built = build_onnx(net, input_shape=SHAPE, float16=True)
    model = onnx.load_from_string(built.data)
    onnx.checker.check_model(model, full_check=True)
    kinds = {w.name: w.data_type for w in model.graph.initializer}
    assert kinds["classifier.weight"] == onnx.TensorProto.FLOAT16
    assert onnx.TensorProto.FLOAT not in kinds.values()
    session = open_onnx(built.data)
    assert session.get_inputs()[0].type == session.get_outputs()[0].type == "tensor(float)"
    expected = torch_logits(net, images(5))
    found = session_logits(session)(images(5))
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).max() <= 5e-3 * np.abs(expected).max()
    assert (built.report.precision, built.report.tolerance) == ("float16", 1e-2)


def test_float16_leaves_float32_where_the_standard_demands_it():
    built = build_onnx(Resized(), input_shape=(3, 9, 9), float16=True)
    model = onnx.load_from_string(built.data)
    onnx.checker.check_model(model, full_check=True)
    (resize,) = [node for node in model.graph.node if node.op_type == "Resize"]
    kinds = {w.name: w.data_type for w in model.graph.initializer}
    assert kinds[resize.input[2]] == onnx.TensorProto.FLOAT
    assert kinds["conv.weight"] == onnx.TensorProto.FLOAT16


def test_float16_refuses_weights_beyond_its_range(net):
    with torch.no_grad():
        net.classifier.bias[1] = 1e5
    with pytest.raises(ExportError, match=r"classifier\.bias: expected values within .* found 1 "):
        build_onnx(net, input_shape=SHAPE, float16=True)


def test_float16_refuses_activations_beyond_its_range(net):
    with torch.no_grad():
        net.branch.weight.fill_(2e4)
        net.classifier.weight.mul_(1e-3)
    # The CPU's logits would be right: only the values on the way tell.
    with pytest.raises(ExportError, match=r"conv2d_1: expected values within .*float16=False"):
        build_onnx(net, input_shape=SHAPE, float16=True)


def test_half_precision_network_under_autocast_is_exported_in_float32(net):
    expected = torch_logits(net.to(torch.bfloat16).float(), images(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        built = build_onnx(net.to(torch.bfloat16), input_shape=SHAPE)
    assert net.conv.weight.dtype == torch.bfloat16
    found = session_logits(open_onnx(built.data))(images(2))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_export_prints_nothing_even_on_first_use():
    program = (
        "import torch; from torch import nn; from pabzip.export import build_onnx\n"
        "net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))\n"
        "build_onnx(net, input_shape=(1, 4, 4))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("shape", [(8, 8), (1, 3, 8, 8), (3, 0, 8), (3, 8.0, 8)])
def test_input_shape_must_be_that_of_one_image(net, shape):
    with pytest.raises(ExportError, match=r"input_shape: expected three positive integers"):
        build_onnx(net, input_shape=shape)


def test_network_that_refuses_the_shape_is_named(net):
    with pytest.raises(ExportError, match=r"Residual: expected a network that takes images of"):
        build_onnx(net, input_shape=(1, 8, 8))


def test_network_without_plain_logits_is_refused():
    with pytest.raises(ExportError, match=r"expected one tensor of logits \[1, classes\], found"):
        build_onnx(nn.Conv2d(3, 2, 3), input_shape=SHAPE)


def test_network_whose_logits_are_not_finite_is_refused(net):
    with torch.no_grad():
        net.classifier.bias[0] = float("nan")
    with pytest.raises(ExportError, match="expected finite logits, found NaN or infinity"):
        build_onnx(net, input_shape=SHAPE)


def test_network_that_cannot_be_copied_is_refused(net):
    net.cached = net.conv.weight * 2
    with pytest.raises(ExportError, match="expected a network that can be copied"):
        build_onnx(net, input_shape=SHAPE)


def test_network_that_cannot_be_translated_is_refused():
    class Solver(nn.Module):
        def forward(self, images):
            return torch.linalg.eigvalsh(images[:, 0] + images[:, 0].mT)

    with pytest.raises(ExportError, match=r"Solver: torch\.onnx\.export failed: "):
        build_onnx(Solver(), input_shape=(1, 4, 4))


def test_network_that_branches_on_its_batch_is_caught():
    class Branching(nn.Module):
        def forward(self, images):
            return images.flatten(1) * (2 if len(images) > 3 else 1)

    with pytest.raises(ExportError, match="dynamic_batch=False"):
        build_onnx(Branching(), input_shape=(1, 2, 2))
    built = build_onnx(Branching(), input_shape=(1, 2, 2), dynamic_batch=False)
    assert built.report.difference == 0


def test_model_larger_than_one_file_is_refused(net, monkeypatch):
    monkeypatch.setattr(graph, "MAX_MODEL_BYTES", 1000)
    with pytest.raises(ExportError, match="at most 1,000 bytes, the limit of one ONNX file"):
        build_onnx(net, input_shape=SHAPE)


@pytest.mark.parametrize("tolerance", [0, -1e-4, 1, float("nan")])
def test_tolerance_out_of_range_is_refused(net, tolerance):
    with pytest.raises(ExportError, match="tolerance: expected a number between 0 and 1"):
        build_onnx(net, input_shape=SHAPE, tolerance=tolerance)

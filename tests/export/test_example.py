"""Export by an example: any inputs and outputs, open axes, and what the check finds."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pabzip
from pabzip.errors import ExportError
from pabzip.export import build_onnx, export_onnx, export_ticket
from pabzip.export.onnx import load_session
from pabzip.export.parity import Case, check_outputs
from pabzip.runtime.onnx_session import open_onnx, session_logits

TOKENS = torch.tensor([[3, 1, 4, 1, 5], [2, 6, 0, 3, 5]])


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


class Towers(nn.Module):
    """Floating inputs, one nested, and a bool; floats, integers and a scalar come out."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, left, rest, mask=None, *, scale=1.0):
        total = self.left(left) * scale + self.right(rest["parts"][0])
        if mask is not None:
            total = total.masked_fill(mask, float("-inf"))
        return {
            "sum": total, "best": (total.argmax(1), {"first": total[:, 0]}), "left": left * 2,
            "loss": total[:, 0].abs().mean(), "cache": object(), "none": None,
        }  # fmt: skip


class Tagger(nn.Module):
    """An embedding and a recurrent layer, logits for each token."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.rnn = nn.LSTM(4, 3, batch_first=True)
        self.head = nn.Linear(3, 5)

    def forward(self, tokens):
        return self.head(self.rnn(self.embedding(tokens))[0])


def numpy(values):
    return {name: value.numpy() for name, value in values.items()}


def test_nested_inputs_and_outputs_by_name_at_any_batch():
    net = Towers().eval()
    rest = {"parts": [torch.randn(2, 2), "text"]}
    mask = torch.tensor([[False, False, True, False]] * 2)
    built = build_onnx(net, example_inputs={"left": torch.randn(2, 3), "rest": rest, "mask": mask,
                                            "scale": 3.0})  # fmt: skip
    onnx.checker.check_model(onnx.load_from_string(built.data), full_check=True)
    session = open_onnx(built.data)
    left, right, mask = torch.randn(5, 3), torch.randn(5, 2), torch.rand(5, 4) > 2
    mask[3, 1] = True
    found = session.run(None, {"left": left.numpy(), "rest.parts.0": right.numpy(),
                               "mask": mask.numpy()})  # fmt: skip
    with torch.no_grad():
        expected = net(left, {"parts": [right]}, mask, scale=3.0)
    names = ["sum", "best.0", "best.1.first", "left.out", "loss"]
    assert [value.name for value in session.get_outputs()] == names == built.report.outputs
    assert built.report.inputs == {
        "left": ["batch", 3], "rest.parts.0": ["batch", 2], "mask": ["batch", 4]
    }  # fmt: skip
    expected = [expected["sum"], *expected["best"][:1], expected["sum"][:, 0], left * 2,
                expected["loss"]]  # fmt: skip
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=0, atol=1e-5)
    assert built.report.input_shape is None
    assert built.report.samples == 3  # the example, a batch of 1 and one of 3
    initializers = {value.name for value in onnx.load_from_string(built.data).graph.initializer}
    assert {name.split(".")[0] for name in initializers if "." in name} == {"left", "right"}
    with pytest.raises(
        ExportError, match=r"one float32 input, found left tensor\(float\), rest.pa"
    ):
        session_logits(session)


@pytest.fixture(scope="module")
def tagger():
    return pabzip.init_(Tagger(), 3, only=["head"]).eval()


def test_token_ids_with_open_lengths_from_a_ticket(tagger, tmp_path):
    pabzip.pack(tagger, tmp_path / "tagger.pabz")
    options = {"example_inputs": TOKENS, "dynamic_axes": {"tokens": {-1: "length"}}}
    with pytest.raises(ExportError, match=r"for a custom architecture, .* or example_inputs="):
        load_session(tmp_path / "tagger.pabz", net=Tagger())
    target = tmp_path / "tagger.onnx"
    report = export_ticket(
        tmp_path / "tagger.pabz", target, net=Tagger(), output_names=["scores"], **options
    )
    assert report.samples == 5  # two other batches, and half and double the length
    session = open_onnx(target)
    (tokens,), (scores,) = session.get_inputs(), session.get_outputs()
    assert (tokens.name, tokens.type, tokens.shape) == (
        "tokens",
        "tensor(int64)",
        ["batch", "length"],
    )
    assert (scores.name, scores.shape) == ("scores", ["batch", "length", 5])
    other = torch.randint(0, 7, (3, 11))
    with torch.no_grad():
        expected = tagger(other).numpy()
    np.testing.assert_allclose(session.run(None, {"tokens": other.numpy()})[0], expected, atol=1e-5)
    assert session.get_modelmeta().custom_metadata_map["pabzip.seed"] == "3"


def test_segmentation_of_images_of_any_even_size():
    class Segmentation(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 2, stride=2)

        def forward(self, images):
            if images.shape[2] % 4:
                raise ValueError("sides must be multiples of 4")
            return {"out": F.interpolate(self.conv(images), size=images.shape[2:]), "aux": images}

    net = Segmentation().eval()
    built = build_onnx(
        net, example_inputs=torch.randn(1, 2, 8, 8), output=lambda returned: returned["out"],
        dynamic_axes={"images": {2: "height", 3: "width"}}, output_names=["classes"],
    )  # fmt: skip
    assert built.report.outputs == ["classes"]
    images = torch.randn(2, 2, 12, 20)
    found = open_onnx(built.data).run(None, {"images": images.numpy()})[0]
    np.testing.assert_allclose(found, net(images)["out"].detach().numpy(), rtol=0, atol=1e-5)


def test_fixed_batch_float16_and_other_names():
    net = nn.Linear(3, 2)
    built = build_onnx(
        net.to(torch.bfloat16), example_inputs=(torch.randn(4, 3).double(),), dynamic_batch=False,
        float16=True, input_names=["weight"], samples=[torch.ones(4, 3)],
    )  # fmt: skip
    assert built.report.inputs == {"weight": [4, 3]}
    assert (built.report.samples, built.report.precision) == (2, "float16")
    assert net.weight.dtype == torch.bfloat16


class Odd(nn.Module):
    """Does what it is told."""

    def __init__(self, how):
        super().__init__()
        self.layer, self.how = nn.Linear(3, 2), how

    def forward(self, x, y=None):
        return self.how(self, x)


PAIR = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("how", "options", "problem"),
    [
        (lambda net, x: object(), {}, r"expected tensors in what the network returns, found obj"),
        (lambda net, x: net.layer(x) / 0 * 0, {}, r"in the output 'output', found NaN from torch"),
        (lambda net, x: net.layer(x[:, :2]), {}, r"that takes inputs of shape \(2, 3\), f"),
        (lambda net, x: net.layer(x.view(2, 3)), {}, r"'batch' at other sizes than 2, .*=False"),
        (None, {"example_inputs": [PAIR]}, r"example_inputs: expected a tensor, .* found li"),
        (None, {"example_inputs": None}, r"Odd: expected input_shape=.* found neither"),
        (None, {"input_shape": (1, 2, 3)}, r"expected input_shape=.* found both"),
        (None, {"input_names": ["a", "b"]}, r"input_names: expected 1 different names for the in"),
        (None, {"output_names": ["x"]}, r"output_names: .* the outputs output, which no input has"),
        (None, {"dynamic_axes": {"z": {0: "n"}}}, r"expected names among x, found 'z'"),
        (None, {"dynamic_axes": {"x": {2: "n"}}}, r"expected axes of 'x', which has 2"),
        (None, {"dynamic_axes": {"x": {1: "n m"}}}, r"with identifiers as names, found 1: 'n m'"),
        (None, {"dynamic_axes": {"x": {1: "batch"}}}, r"one size above 0 for the axis 'batch'"),
        (None, {"samples": [(PAIR, PAIR)]}, r"samples\[0\]: expected the same arguments as in exa"),
        (lambda net, x: net.layer(x).clamp_min(x.shape[1]), {"dynamic_axes": {"x": {1: "n"}}},
         r"'n' at other sizes than 3, found that .* it left out of dynamic_axes"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_refused_before_it_is_traced(how, options, problem):
    net = Odd(how or (lambda net, x: net.layer(x)))
    with pytest.raises(ExportError, match=problem):
        build_onnx(net, **{"example_inputs": PAIR, **options})


def test_network_that_branches_on_an_open_axis_is_caught(tmp_path):
    net = Odd(lambda net, x: net.layer(x) * (2 if len(x) > 1 else 1))
    with pytest.raises(ExportError, match=r"found a difference .* x \[1, 3\]"):
        export_onnx(net, tmp_path / "odd.onnx", example_inputs=PAIR)
    assert not list(tmp_path.iterdir())


class Session:
    """Answers with what it is given."""

    def __init__(self, found):
        self.found = found

    def get_outputs(self):
        return [type("Value", (), {"name": "out"})]

    def run(self, names, inputs):
        return [self.found]


INFINITE = np.float32([[1, np.inf], [-np.inf, 2]])


@pytest.mark.parametrize(
    ("expected", "found", "problem"),
    [
        (np.float32([1, 2]), np.float32([1, 2.0001]), None),
        (np.float32([1, 2]), np.float32([1, 2.0004]), r"'out' within 0.0001 of torch's.* \[3\]"),
        (INFINITE, INFINITE, None),
        (INFINITE, -INFINITE, "found a difference of inf"),
        (np.float32([1, 2]), np.float32([1, np.nan]), "found a difference of inf"),
        (np.float32(3), np.float32(3), None),
        (np.float32([]), np.float32([]), None),
        (np.int64([1, 2]), np.int64([1, 2]), None),
        (np.int64([1, 2]), np.int64([1, 3]), "'out' equal to torch's"),
        (np.float32([0, 0]), np.float32([0, 0.01]), "found a difference of 0.01"),
        (np.float32([1, 2]), np.float32([[1, 2]]), r"of shape \[2\] for x \[3\], found \[1, 2\]"),
    ],
)  # fmt: skip
def test_comparison_of_one_output(expected, found, problem):
    cases = [Case({"x": np.zeros(3)}, {"out": expected})]
    if problem is None:
        assert check_outputs(Session(found), cases, tolerance=1e-4) <= 1e-4
        return
    with pytest.raises(ExportError, match=problem):
        check_outputs(Session(found), cases, tolerance=1e-4)


def test_transformers_bert_with_open_lengths():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        vocab_size=50, num_labels=3,
    )  # fmt: skip
    net = transformers.BertForSequenceClassification(config).eval()
    tokens = torch.randint(0, 50, (2, 8))
    mask = torch.ones_like(tokens)
    mask[1, 5:] = 0
    lengths = {name: {1: "length"} for name in ("input_ids", "attention_mask")}
    batch = {"input_ids": tokens, "attention_mask": mask}
    built = build_onnx(net, example_inputs=batch, dynamic_axes=lengths)
    assert built.report.outputs == ["logits"]
    other = {"input_ids": torch.randint(0, 50, (3, 13)), "attention_mask": torch.ones(3, 13).long()}
    other["attention_mask"][0, 4:] = 0
    with torch.no_grad():
        expected = net(**other).logits.numpy()
    np.testing.assert_allclose(
        open_onnx(built.data).run(None, numpy(other))[0], expected, atol=1e-5
    )


def test_same_bytes_again_without_a_trace_of_the_source_even_in_loops():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag = nn.EmbeddingBag(7, 3)

        def forward(self, tokens):
            return self.bag(tokens)

    net = Bag()
    data = build_onnx(net, example_inputs=TOKENS).data
    assert "Loop" in {node.op_type for node in onnx.load_from_string(data).graph.node}
    assert data == build_onnx(net, example_inputs=TOKENS).data
    for trace in (b"pkg.", b".py", b"stack_trace", b"Bag"):
        assert trace not in data

"""ResNet-18 at a tenth of its weights: the sizes of the paper's Table 1, from our own search."""

from __future__ import annotations

import io

import pytest
import torch

import pabzip


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    made = pabzip.models.build("resnet18")
    pabzip.init_(made, seed=3)
    pabzip.search.synflow(made, keep_ratio=0.1, input_shape=(3, 32, 32), iterations=100)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in pabzip.seeded_parameters(made).values():
            weight.mul_(torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1)
    return made


@pytest.mark.slow
def test_the_papers_code_takes_the_papers_size(net: torch.nn.Module) -> None:
    report = pabzip.pack(net, io.BytesIO(), coder="huffman")
    assert report["weights"] == 11_164_352
    assert abs(report["survivors"] - 1_116_435) <= 1
    assert round(report["huffman_bytes"] / 2**20, 3) == 1.464  # Table 1 prints 1.46 MB
    assert report["codes_bytes"] == report["huffman_bytes"]


@pytest.mark.slow
def test_the_context_coder_takes_a_tenth_of_it(net: torch.nn.Module) -> None:
    file = io.BytesIO()
    report = pabzip.pack(net, file)
    assert {row["coder"] for row in report["tensors"] if row["kind"] == "seeded"} == {"context"}
    assert report["codes_bytes"] <= 145.5 * 1024
    loaded = pabzip.load_file(file.getvalue(), verify=True)
    assert all(torch.equal(loaded[name], value) for name, value in net.state_dict().items())

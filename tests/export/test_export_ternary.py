"""A ternary ticket exports to ONNX with its scales: outputs are those of the network."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch

import pabzip
from pabzip.export import export_ticket
from pabzip.runtime.onnx_session import open_onnx


def test_a_ternary_ticket_exports(tmp_path: Path) -> None:
    net = pabzip.models.build("lenet-300-100", in_channels=1, image_size=8, width=20).eval()
    with torch.no_grad():
        for layer in (net.fc1, net.fc2):
            scales = torch.linspace(0.05, 0.2, len(layer.weight)).view(-1, 1)
            layer.weight.copy_(layer.weight.sign() * scales)
    stream = io.BytesIO()
    pabzip.pack(net, stream, ternary=True)
    with pabzip.open(stream.getvalue()) as ticket:
        assert ticket.scales("fc1.weight") is not None
    export_ticket(stream.getvalue(), tmp_path / "m.onnx")
    images = np.linspace(-1, 1, 2 * 64, dtype=np.float32).reshape(2, 1, 8, 8)
    found = open_onnx(tmp_path / "m.onnx").run(None, {"images": images})[0]
    with torch.no_grad():
        expected = net(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)

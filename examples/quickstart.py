"""The whole way of the data in Python.

Train a ticket on handwritten digits, pack it, load it back bit for bit, and run it in ONNX Runtime.

    python examples/quickstart.py [FOLDER]

FOLDER takes model.pt, model.pabz and model.onnx; by default a temporary folder, removed at the end.
Needs ``pip install 'pabzip[all]'``; takes about a minute on two cores.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import pabzip
from pabzip.data import batches
from pabzip.export import export_ticket
from pabzip.runtime.onnx_session import open_onnx, session_logits
from pabzip.train import ProgressBar, default_recipe, evaluate, train


def main(folder: Path) -> None:
    """Run every step in ``folder`` and print what it gives."""
    checkpoint, ticket, exported = (folder / f"model.{ending}" for ending in ("pt", "pabz", "onnx"))

    result = train(default_recipe(), output=checkpoint, callbacks=[ProgressBar()])
    print(f"trained  {result.arch}: {result.test_accuracy:.2%} of the test digits")

    report = pabzip.pack(checkpoint, ticket)
    print(
        f"packed   {report['weights']:,} weights, {report['survivors']:,} of them kept, into "
        f"{report['bytes']:,} bytes ({report['float32_bytes'] / report['bytes']:.0f} times smaller "
        "than float32)"
    )

    net = pabzip.load(ticket, verify=True)
    trained = pabzip.load_checkpoint(checkpoint).state_dict
    loaded = net.state_dict()
    assert list(loaded) == list(trained)
    # Pruned weights may be -0.0 in training and are +0.0 when loaded; all else is equal to the bit.
    assert all(torch.equal(loaded[name], trained[name]) for name in trained)
    print("loaded   every weight equal to the trained one, bit for bit")

    test = pabzip.data.load("digits").test
    found = evaluate(net, test)
    assert found.accuracy == result.test_accuracy
    print(f"checked  {found.accuracy:.2%} of {found.samples} test digits, as in training")

    export_ticket(ticket, exported)
    inputs = torch.cat([images for images, _ in batches(test, 128)])
    logits = session_logits(open_onnx(exported))(inputs.numpy())
    with torch.no_grad():
        expected = net(inputs).numpy()
    same = int((logits.argmax(1) == expected.argmax(1)).sum())
    difference = float(np.abs(logits - expected).max())
    assert same == len(test)
    assert difference < 1e-4
    print(f"exported ONNX Runtime gives the same class on all {same} and logits within 1e-4")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        target.mkdir(parents=True, exist_ok=True)
        main(target)

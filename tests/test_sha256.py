"""One .pabz file, one SHA-256: whatever regenerates it, with however many threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pabzip
from pabzip.ticket import Ticket


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    made = pabzip.models.build("conv2", in_channels=1, image_size=8, width=6)
    pabzip.init_(made, seed=2**63 + 11, skip=["classifier"] if hasattr(made, "classifier") else [])
    pabzip.search.synflow(made, keep_ratio=0.2, input_shape=(1, 8, 8), iterations=5)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in pabzip.seeded_parameters(made).values():
            weight.mul_(torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1)
    return made


@pytest.fixture(scope="module", params=["huffman", "context"])
def file(request: pytest.FixtureRequest, net: torch.nn.Module, tmp_path_factory) -> Path:  # type: ignore[no-untyped-def]
    path = Path(tmp_path_factory.mktemp("digest")) / f"{request.param}.pabz"
    pabzip.pack(net, path, coder=request.param)
    return path


def _triton(file: Path, device: str, **environment: str) -> str:
    script = Path(__file__).with_name("triton_state.py")
    return subprocess.run(
        [sys.executable, str(script), str(file), device],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    ).stdout.strip()


def test_one_digest_everywhere(file: Path, net: torch.nn.Module) -> None:
    pytest.importorskip("triton")
    with Ticket.open(file) as ticket:
        stored = ticket.info()["sha256"]
        found = {
            "numpy": ticket.sha256(backend="numpy"),
            "numba, 1 thread": ticket.sha256(backend="numba", threads=1),
            "numba, 2 threads": ticket.sha256(backend="numba", threads=2),
            "triton, interpreted": _triton(file, "cpu", TRITON_INTERPRET="1"),
        }
    assert found == dict.fromkeys(found, stored)


def test_the_trained_state_is_what_is_loaded(file: Path, net: torch.nn.Module) -> None:
    trained, loaded = net.state_dict(), pabzip.load_file(file, verify=True)
    assert list(loaded) == list(trained)
    assert all(torch.equal(loaded[name], trained[name]) for name in trained)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_digest(file: Path) -> None:
    with Ticket.open(file) as ticket:
        assert _triton(file, "cuda") == ticket.info()["sha256"]

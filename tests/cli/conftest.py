"""A tiny packed network, and ways to run the command line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pabzip.cli import main


@dataclass(frozen=True)
class Project:
    """A folder with ``model.pt`` and ``model.pabz`` of one tiny network, and the current one."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "model.pt"

    @property
    def ticket(self) -> Path:
        return self.folder / "model.pabz"

    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


def tiny_network():
    """An 8x8 LeNet with pruned weights and flipped signs."""
    import torch

    import pabzip

    net = pabzip.models.build("lenet-300-100", in_channels=1, image_size=8, width=12)
    pabzip.init_(net, seed=7)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in pabzip.seeded_parameters(net).values():
            codes = torch.randint(-1, 2, weight.shape, generator=generator)
            weight.mul_(codes)
            weight[codes == 0] = 0.0
    return net


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import pabzip

    folder = tmp_path_factory.mktemp("tiny")
    net = tiny_network()
    pabzip.save_checkpoint(net, folder / "model.pt")
    pabzip.pack(net, folder / "model.pabz", metadata={"data": "digits"})
    return folder


@pytest.fixture
def project(tiny_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A fresh copy of the files in the current folder."""
    folder = tmp_path / "project"
    shutil.copytree(tiny_files, folder)
    monkeypatch.chdir(folder)
    return Project(folder)


@pytest.fixture
def run() -> Callable[..., Result]:
    """Run the command line in this process."""

    def invoke(*arguments: object, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)

    return invoke


@pytest.fixture
def spawn() -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Run the command line as a process of its own; keyword arguments are `subprocess.run`'s."""

    def start(*arguments: object, **options: object) -> subprocess.CompletedProcess[bytes]:
        environment = {**os.environ, **options.pop("extra_env", {})}
        options.setdefault("stdout", subprocess.PIPE)
        command = [sys.executable, "-m", "pabzip.cli", *map(str, arguments)]
        return subprocess.run(
            command, stderr=subprocess.PIPE, timeout=120, env=environment, check=False, **options
        )

    return start

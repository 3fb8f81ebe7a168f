"""Bop's Triton kernel: interpreted on the CPU, compiled for Hopper, run where there is a GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

triton = pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("triton_bop_cases.py")


def test_interpreter_takes_the_papers_step():
    process = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", str(SCRIPT)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert len(found) >= 9
    assert not any(found.values()), found


@pytest.mark.gpu
def test_gpu_takes_the_papers_step():
    described = importlib.util.spec_from_file_location("pabzip_triton_bop_cases", SCRIPT)
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    assert not any(module.problems("cuda").values())


@pytest.mark.gpu
@pytest.mark.parametrize("start", ["first-gradient", "zero"])
def test_gpu_and_cpu_flip_alike(start):
    from pabzip.unmask import Bop

    drawn = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0))
    here, there = nn.Parameter(drawn.clone()), nn.Parameter(drawn.cuda())
    one, other = Bop([here], 0.01, 1e-6, start), Bop([there], 0.01, 1e-6, start)
    for step in range(5):
        gradient = torch.randn(3, 5000, generator=torch.Generator().manual_seed(step)) * 1e-4
        here.grad, there.grad = gradient, gradient.cuda()
        one.step()
        other.step()
        assert int(one.flips) == int(other.flips) > 0
        assert torch.equal(here.detach(), there.detach().cpu())


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("any_average", [False, True])
def test_compiles_for_hopper_with_the_one_fusion_that_torch_has(
    dtype, any_average, tmp_path, monkeypatch
):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pabzip.unmask.triton_bop import bop_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    signature = {
        "weights": f"*{dtype}", "averages": "*fp32", "gradients": f"*{dtype}", "flips": "*i64",
        "count": "i64", "keep": "fp32", "rate": "fp32", "threshold": "fp32",
        "ANY": "constexpr", "BLOCK": "constexpr",
    }  # fmt: skip
    aligned = {(place,): [["tt.divisibility", 16]] for place in range(5)}
    source = ASTSource(bop_kernel, signature, {"ANY": any_average, "BLOCK": 1024}, aligned)
    target = GPUTarget("cuda", 90, 32)
    ptx = triton.compile(source, target, options={"enable_fp_fusion": False}).asm["ptx"]
    assert re.search(r"\bfma\.rn\.f32\b", ptx)
    assert re.search(r"\bmul(\.rn)?\.f32\b", ptx)
    assert not re.search(r"\badd(\.\w+)*\.f32\b", ptx)
    assert not re.search(r"\.ftz\b", ptx)
    assert "ld.global.v4" in ptx

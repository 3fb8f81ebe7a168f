"""The Triton kernel: interpreted on the CPU, compiled for Hopper, run where there is a GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pabzip.errors import SeedError
from pabzip.seeds import InitSpec, pack_codes

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("triton_cases.py")
SPEC = InitSpec("normal", 1.0, 0)


@pytest.fixture(scope="module")
def triton_cases() -> ModuleType:
    """The module of cases, which is no test module of its own."""
    described = importlib.util.spec_from_file_location("pabzip_triton_cases", SCRIPT)
    assert described is not None
    assert described.loader is not None
    module = importlib.util.module_from_spec(described)
    sys.modules[described.name] = module  # triton reads a kernel's source through its module
    described.loader.exec_module(module)
    return module


def _interpreted(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run Python with Triton's interpreter switched on."""
    return subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", *arguments],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_interpreter_gives_numpys_bits(triton_cases: ModuleType) -> None:
    process = _interpreted([str(SCRIPT)])
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert found.pop("far blocks agree") is True
    assert found == {case.name: triton_cases.expected_digest(case) for case in triton_cases.cases()}


@pytest.mark.gpu
def test_gpu_gives_numpys_bits(triton_cases: ModuleType) -> None:
    for case in triton_cases.cases():
        assert triton_cases.kernel_digest(case, "cuda") == triton_cases.expected_digest(case), case
    assert triton_cases.far_blocks_agree("cuda")


@pytest.mark.gpu
def test_gpu_beyond_two_to_the_32_elements() -> None:
    from pabzip.seeds import cuda, weights

    count = 2**32 + 4096 + 3
    packed = torch.full((-(-count // 4),), 0b01010101, dtype=torch.uint8, device="cuda")
    made = cuda.regenerate(5, SPEC, packed, (count,), dtype=torch.float16, device="cuda")
    start = count - 5000
    expected = weights(5, SPEC, start, count).astype(np.float16)
    assert np.array_equal(made[start:].cpu().numpy(), expected)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_compiles_for_hopper_without_fused_arithmetic(
    dtype: str, kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pabzip.seeds.cuda import regenerate_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    signature = {
        "packed": "*u8",
        "table": "*u32",
        "out": f"*{dtype}",
        "count": "i64",
        "stream": "i32",
        "key_0": "i32",
        "key_1": "i32",
        "factor": "fp32",
        "KIND": "constexpr",
        "BLOCKS": "constexpr",
    }
    aligned = {(place,): [["tt.divisibility", 16]] for place in range(4)}
    source = ASTSource(regenerate_kernel, signature, {"KIND": kind, "BLOCKS": 512}, aligned)
    options = {"enable_fp_fusion": False}
    ptx = triton.compile(source, GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    assert not re.search(r"\b(fma|add|sub)(\.\w+)*\.f(16|32|64|16x2)\b", ptx)
    assert "st.global.v4.b32" in ptx  # full-width, contiguous stores
    if kind != 2:
        assert "cvt.rn.f32.u32" in ptx  # unsigned, to nearest even


@pytest.mark.parametrize("dtype", ["fp32", "fp64", "fp16", "bf16"])
@pytest.mark.parametrize("fraction", [False, True])
def test_drawing_compiles_for_hopper_without_fused_arithmetic(
    dtype: str, fraction: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pabzip.seeds.cuda import draw_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    signature = {"table": "*u32", "out": f"*{dtype}", "count": "i64", "skip": "i32"}
    signature |= {"first_block": "i64", "stream": "i32", "key_0": "i32", "key_1": "i32"}
    signature |= {"factor": "fp32", "KIND": "constexpr", "FRACTION": "constexpr"}
    signature["BLOCKS"] = "constexpr"
    constants = {"KIND": 0, "FRACTION": fraction, "BLOCKS": 512}
    source = ASTSource(draw_kernel, signature, constants)
    options = {"enable_fp_fusion": False}
    ptx = triton.compile(source, GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    assert not re.search(r"\b(fma|add|sub)(\.\w+)*\.f(16|32|64|16x2)\b", ptx)


REFUSED = """
import numpy, torch
from pabzip.errors import SeedError
from pabzip.seeds import InitSpec, cuda
spec, good = InitSpec("normal", 1.0, 0), numpy.zeros(2, numpy.uint8)
for packed, dtype, device in [
    (good, torch.float64, "cpu"),
    (good, torch.float32, "meta"),
    (numpy.zeros(3, numpy.uint8), torch.float32, "cpu"),
    (numpy.zeros(2, numpy.int8), torch.float32, "cpu"),
]:
    try:
        cuda.regenerate(0, spec, packed, (2, 3), dtype=dtype, device=device)
    except SeedError as error:
        print(error)
print(tuple(cuda.regenerate(0, spec, good[:0], (0, 3), device="cpu").shape))
"""


def test_bad_arguments_are_refused_and_empty_tensors_are_not() -> None:
    process = _interpreted(["-c", REFUSED])
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == [
        "dtype: expected one of torch.float32, torch.float16, torch.bfloat16, found torch.float64",
        "device: expected a CUDA device, found meta; pabzip.seeds.regenerate serves the CPU",
        "packed codes: expected 2 bytes of dtype uint8, found 3 of torch.uint8",
        "packed codes: expected 2 bytes of dtype uint8, found 2 of torch.int8",
        "(0, 3)",
    ]


def test_cpu_is_refused_without_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    from pabzip.seeds import cuda

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    packed = pack_codes(np.ones(4, dtype=np.int8))
    with pytest.raises(SeedError, match=r"found cpu; pabzip.seeds.regenerate serves the CPU"):
        cuda.regenerate(0, SPEC, packed, (4,), device="cpu")


def test_missing_triton_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden: Any = None
    monkeypatch.setitem(sys.modules, "triton", hidden)
    monkeypatch.delitem(sys.modules, "pabzip.seeds.cuda", raising=False)
    from pabzip.errors import MissingDependencyError

    with pytest.raises(MissingDependencyError, match=r"triton is not installed.*pabzip\[torch\]"):
        importlib.import_module("pabzip.seeds.cuda")

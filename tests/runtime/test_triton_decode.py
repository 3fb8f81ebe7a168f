"""The decoding kernels: interpreted on the CPU, compiled for Hopper, run where there is a GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("triton_decode_cases.py")
EVERY_WAY = {
    *("ALL", "EVEN", "THRESHOLD", "FACTORS"),
    *("signs 0", "signs 1", "signs 2", "chunks", "groups"),
}
REPORTS = [
    "expected as many survivors as the side stream says, found another number",
    "expected every coded byte of a chunk to be needed, found some left over",
    "expected zero padding after the last sign, found a bit set",
    "expected 1 bytes of chunks, found 0",
]


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of cases, which is no test module of its own, with its small chunks."""
    from pabzip.formats.context import geometry

    described = importlib.util.spec_from_file_location("pabzip_triton_decode_cases", SCRIPT)
    assert described is not None
    assert described.loader is not None
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    monkeypatch.setattr(geometry, "CHUNK_WEIGHTS", module.CHUNK_WEIGHTS)
    return module


def test_interpreter_gives_numbas_bits_and_reports() -> None:
    process = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", str(SCRIPT)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert set(found["features"]) == EVERY_WAY
    assert found["differing"] == [[], [], []]
    assert found["double"] == []
    assert found["nothing active"] == []
    assert found["huffman"] == []
    assert found["frozen"] == [[], [], []]
    assert found["disagreements"] == []
    assert set(REPORTS) <= set(found["reports"])


@pytest.mark.gpu
def test_gpu_gives_numbas_bits(cases: ModuleType) -> None:
    data = cases.ticket_bytes()
    assert cases.features(data) == EVERY_WAY
    for dtype in cases.DTYPES:
        assert cases.differing(data, "cuda", dtype) == []
    assert cases.differing(cases.ticket_bytes("huffman"), "cuda", "bfloat16") == []


@pytest.mark.gpu
def test_gpu_reports_damage_as_the_cpu_does(cases: ModuleType) -> None:
    differ, reports = cases.disagreements("cuda")
    assert differ == []
    assert set(REPORTS) <= set(reports)


@pytest.mark.gpu
def test_gpu_loads_a_network(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Prints how long it took, bytes to weights; nothing is asserted of that."""
    import pabzip
    from pabzip.models import build

    net = build("resnet18")
    pabzip.init_(net, seed=0)
    sizes = {name: net.get_parameter(name).detach().abs() for name in pabzip.seeding(net).specs}
    masks = {
        name: size > size.flatten().kthvalue(int(0.9 * size.numel())).values
        for name, size in sizes.items()
    }
    signs = torch.Generator().manual_seed(1)
    for name, size in sizes.items():
        flips = torch.randint(0, 2, size.shape, generator=signs)
        net.get_parameter(name).data.mul_(1 - 2 * flips)
    pabzip.search.apply_masks(net, masks)
    pabzip.pack(net, tmp_path / "net.pabz", coder="context")
    data = (tmp_path / "net.pabz").read_bytes()
    seconds = []
    for _ in range(10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        state = pabzip.load_file(data, device="cuda")
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    for name, expected in pabzip.load_file(data).items():
        assert torch.equal(state[name].cpu(), expected), name
    with capsys.disabled():
        middle, best = statistics.median(seconds), min(seconds)
        figures = f"median {1e3 * middle:.2f} ms, best {1e3 * best:.2f} ms"
        print(f"\nResNet-18, bytes to weights on the GPU: {figures}")  # noqa: T201


SIGNATURES = {
    "predict_kernel": "chunks *i64, chunk_of *i32, rows *i64, places *i64, place_offsets *i32, "
    "chances *i32, table *u32, fractions *i16, bucket_of *u8, key_0 i32, key_1 i32, fates *u8, "
    "entries *i32, listed *i32, certain *i32",
    "decode_kernel": "data *u8, chunks *i64, entries *i32, listed *i32, certain *i32, fates *u8, "
    "before *i64, statuses *i32",
    "write_kernel": "data *u8, chunks *i64, chunk_of *i32, rows *i64, places *i64, table *u32, "
    "fates *u8, before *i64, key_0 i32, key_1 i32, DTYPE constexpr",
}


@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [
        ("predict_kernel", None),
        ("decode_kernel", None),
        ("write_kernel", "float32"),
        ("write_kernel", "float16"),
        ("write_kernel", "bfloat16"),
    ],
)
def test_compiles_for_hopper(
    kernel: str, dtype: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pabzip.runtime import triton_decode_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {} if dtype is None else {"DTYPE": getattr(tl, dtype)}
    signature = dict(argument.split() for argument in SIGNATURES[kernel].split(", "))
    source = ASTSource(getattr(triton_decode_kernels, kernel), signature, constants)
    options = {"enable_fp_fusion": False, "num_warps": 1 if kernel == "decode_kernel" else 4}
    ptx = triton.compile(source, GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    assert not re.search(r"\b(fma|add|sub)(\.\w+)*\.f(16|32|64|16x2)\b", ptx)
    if dtype is not None:
        assert "cvt.rn.f32.u32" in ptx  # unsigned, to nearest even
    if kernel == "decode_kernel":  # the sequential loop stays in one warp, in registers
        assert "bar.sync" not in ptx
        assert "st.local" not in ptx

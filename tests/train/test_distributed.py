"""Several processes train as one does: the same bits, or a clear refusal."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pabzip
from pabzip.errors import RecipeError
from pabzip.train import Recipe, merge
from pabzip.train.build import sharded
from pabzip.train.distributed import ProcessGroup, bounds
from pabzip.train.precision import Precision
from pabzip.train.step import BatchGradients, step_seed, tree_sum

SCRIPT = Path(__file__).with_name("distributed_runs.py")
TINY = {
    "arch": "conv2", "arch_options": {"width": 4}, "keep_ratio": 0.5, "epochs": 2,
    "batch_size": 350, "shards": 4, "search": {"iterations": 5},
    "bop": {"adaptivity_rate": 0.01, "threshold": 1e-4},
}  # fmt: skip


def free_port() -> str:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def run(
    ranks: int, output: Path, changes: dict[str, Any], fault: str = ""
) -> list[tuple[int, dict[str, Any], str]]:
    """Start ``ranks`` processes as torchrun does; return exit code, result and stderr of each.

    What a process that failed wrote is passed on: pytest shows it where a test fails.
    """
    port = free_port()
    command = [sys.executable, str(SCRIPT), str(output), json.dumps(changes), fault]
    processes = []
    for rank in range(ranks):
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks,
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
        plain = {name: value for name, value in os.environ.items() if name != "RANK"}
        if ranks > 1:
            plain |= {name: str(value) for name, value in environment.items()}
        processes.append(
            subprocess.Popen(
                command, env=plain, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    found = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        lines = [line for line in out.splitlines() if line.startswith("{")]
        if process.returncode != 0:
            sys.stderr.write(f"a process ended with {process.returncode}:\n{err}\n")
        found.append((process.returncode, json.loads(lines[-1]) if lines else {}, err))
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of the recipe."""
    file = tmp_path_factory.mktemp("alone") / "model.pt"
    assert [code for code, *_ in run(1, file, TINY)] == [0]
    return file


def test_two_processes_write_what_one_writes(tmp_path: Path, alone: Path) -> None:
    file = tmp_path / "model.pt"
    found = run(2, file, TINY)
    assert [code for code, *_ in found] == [0, 0], found
    assert found[0][1] == found[1][1]
    assert file.read_bytes() == alone.read_bytes()
    digests = [pabzip.pack(source, tmp_path / "model.pabz")["sha256"] for source in (file, alone)]
    assert digests[0] == digests[1]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "model.pabz", "model.pt", "model.pt.jsonl"
    ]  # fmt: skip
    logs = [Path(f"{source}.jsonl").read_text().splitlines() for source in (file, alone)]
    steps = [[json.loads(line).get("flips_per_step") for line in log] for log in logs]
    assert steps[0] == steps[1]
    assert steps[0][2] > 0


def test_two_processes_hold_out_the_same_images(tmp_path: Path) -> None:
    changes = {**TINY, "validation": 0.3, "epochs": 1}
    alone, file = tmp_path / "alone.pt", tmp_path / "model.pt"
    assert [code for code, *_ in run(1, alone, changes)] == [0]
    found = run(2, file, changes)
    assert [code for code, *_ in found] == [0, 0], found
    assert found[0][1] == found[1][1]
    assert file.read_bytes() == alone.read_bytes()
    epoch = json.loads(Path(f"{file}.jsonl").read_text().splitlines()[-2])
    assert epoch["validation_loss"] == found[0][1]["validation_loss"]


@pytest.mark.slow
def test_learned_tickets_and_rounds_of_pruning_too(tmp_path: Path) -> None:
    gem = {"method": "gem-miner", "gem_miner": {"lr": 10.0, "period": 1}}
    tuned = {"method": "sgd", "epochs": 1, "ticket": str(tmp_path / "1.gem.pt")}
    rounds = {"method": "imp", "epochs": 1, "imp": {"rounds": 1, "round_epochs": 1}}
    for name, changes in (("gem", gem), ("tuned", tuned), ("imp", rounds)):
        for ranks in (1, 2):
            found = run(ranks, tmp_path / f"{ranks}.{name}.pt", {**TINY, **changes})
            assert [code for code, *_ in found] == [0] * ranks
        one, two = (tmp_path / f"{ranks}.{name}.pt" for ranks in (1, 2))
        assert one.read_bytes() == two.read_bytes(), name


def test_four_processes_and_an_interruption_change_nothing(tmp_path: Path, alone: Path) -> None:
    file = tmp_path / "model.pt"
    found = run(4, file, TINY, "interrupt")
    assert all(code != 0 for code, *_ in found)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "model.pt.jsonl", "model.pt.progress"
    ]  # fmt: skip
    assert [code for code, *_ in run(2, file, TINY)] == [0, 0]
    assert file.read_bytes() == alone.read_bytes()


@pytest.mark.parametrize(("fault", "message"), [
    ("seed", "the recipe: expected the same on all 2 ranks, found another than rank 0's on rank 1"),
    ("mask", "the ticket after the search: expected the same on all 2 ranks, found another than "
     "rank 0's on rank 1"),
    ("resume", "what the run was given besides it: expected the same on all 2 ranks, found another "
     "than rank 0's on rank 1"),
])  # fmt: skip
def test_ranks_that_differ_are_named(tmp_path: Path, fault: str, message: str) -> None:
    found = run(2, tmp_path / "model.pt", TINY, fault)
    assert [code for code, *_ in found] == [4, 4]
    assert all(message in result["error"] for _, result, _ in found)
    assert not (tmp_path / "model.pt").exists()


def test_torchrun_itself(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
        "-m", "--", "pabzip.cli", "train", "--device", "cpu", "--arch", "conv2", "--set",
        "arch_options.width=4", "--epochs", "1", "--set", "search.iterations=3",
        "--log", "run.jsonl", "--json",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epochs"] == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.pt", "run.jsonl"]
    header = json.loads((tmp_path / "run.jsonl").read_text().splitlines()[0])
    assert header["recipe"]["shards"] == 2


def test_a_shard_of_one_image_is_no_matter_for_batch_norm() -> None:
    cpu = torch.device("cpu")
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3))
    gradients = BatchGradients(net, 0, 4, ProcessGroup(), Precision("float32", False, cpu))
    message = (
        r"batch_size: expected two images or more in each shard .* found 1 with shards = 4; raise "
        r"batch_size or lower shards"
    )
    with pytest.raises(RecipeError, match=message):
        gradients(torch.ones(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64), 4, 1, 1)


def test_nothing_of_the_group_is_left_behind() -> None:
    script = """
import weakref
import torch.distributed as dist
from pabzip.train.distributed import process_group
with process_group("cpu"):
    group = weakref.ref(dist.group.WORLD)
    import torch.distributed.nn
print(group())
"""
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **alone}, capture_output=True,
        text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout == "None\n"


def test_a_crashed_rank_ends_the_run(tmp_path: Path) -> None:
    (first, result, _), (second, *_) = run(2, tmp_path / "model.pt", TINY, "crash")
    assert (first, second) == (4, 9)
    assert "rank 0, adding up: expected an answer from every other rank" in result["error"]
    assert "the state after the search is kept in" in result["error"]
    assert not (tmp_path / "model.pt").exists()


def test_unless_told_otherwise_each_process_has_a_shard(tmp_path: Path) -> None:
    quick = {**TINY, "epochs": 1}
    together, alone = tmp_path / "together.pt", tmp_path / "alone.pt"
    assert [code for code, *_ in run(2, together, {**quick, "shards": 0})] == [0, 0]
    assert [code for code, *_ in run(1, alone, {**quick, "shards": 2})] == [0]
    assert together.read_bytes() == alone.read_bytes()


def test_processes_that_are_no_power_of_two() -> None:
    three = ProcessGroup()
    three.size = 3
    message = (
        r"shards: expected a power of two, such as 2, 4 or 8, found 3, one for each process; start "
        r"torchrun with --nproc-per-node of 1, 2, 4, \.\.\., at most the batch size"
    )
    with pytest.raises(RecipeError, match=message):
        sharded(Recipe(), three)
    assert sharded(Recipe(), ProcessGroup()).shards == 1
    assert sharded(Recipe(shards=4), three).shards == 4


def test_processes_must_divide_the_shards(tmp_path: Path) -> None:
    found = run(2, tmp_path / "model.pt", {**TINY, "shards": 1})
    assert all(
        "shards: expected a multiple of the 2 processes, which must be a power of two, found 1; "
        "leave it out, set shards = 2, or start torchrun with" in result["error"]
        for _, result, _ in found
    )


@pytest.mark.parametrize("samples", [4, 5, 9, 100, 350])
@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_shards_cover_a_batch_and_nest_in_those_of_a_rank(samples: int, shards: int) -> None:
    ends = [bounds(samples, shards, shard) for shard in range(shards)]
    assert ends[0][0] == 0
    assert ends[-1][1] == samples
    assert all(first[1] == second[0] for first, second in pairwise(ends))
    sizes = [end - begin for begin, end in ends]
    assert max(sizes) - min(sizes) <= 1
    for ranks in (ranks for ranks in (1, 2, 4, 8) if shards % ranks == 0):
        for rank in range(ranks):
            own = [bounds(samples, shards, shard) for shard in range(*bounds(shards, ranks, rank))]
            assert (own[0][0], own[-1][1]) == bounds(samples, ranks, rank)


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_the_sum_is_a_tree(count: int) -> None:
    values = torch.rand(8, 3, generator=torch.Generator().manual_seed(0))[:count] * 1e8 + 0.1

    def copies() -> Iterator[torch.Tensor]:
        yield from (value.clone() for value in values)

    def expected(part: torch.Tensor) -> torch.Tensor:
        half = len(part) // 2
        return part[0] if len(part) == 1 else expected(part[:half]) + expected(part[half:])

    assert torch.equal(tree_sum(copies()), expected(values))


def test_every_place_has_a_seed_of_its_own() -> None:
    places = {step_seed(7, epoch, step, shard)
              for epoch in range(5) for step in range(50) for shard in range(4)}  # fmt: skip
    assert len(places) == 1000
    assert all(0 <= seed < 2**63 for seed in places)


@pytest.mark.parametrize(("shards", "message"), [
    (3, "shards: expected a power of two, such as 2, 4 or 8, found 3"),
    (-1, "shards: expected a whole number of 0 or more, found -1"),
    (128, "shards: expected a whole number from 0 to 64, the batch size, found 128"),
])  # fmt: skip
def test_shards_out_of_range_are_refused(shards: int, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        merge(Recipe(batch_size=64), {"shards": shards})

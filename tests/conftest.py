"""What tests share: the switch that rewrites golden files, the rule for GPU tests, one process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--regenerate-expected``: golden files in tests/expected change by no other way."""
    parser.addoption(
        "--regenerate-expected",
        action="store_true",
        help="rewrite the golden files in tests/expected from the present code",
    )


@pytest.fixture(scope="session")
def regenerate_expected(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be rewritten rather than compared."""
    return bool(request.config.getoption("--regenerate-expected"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where there is no CUDA device; torch is loaded for them alone."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    """A process group of this process alone, for DistributedDataParallel and FSDP."""
    import torch

    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    yield
    torch.distributed.destroy_process_group()

"""Which steps are dropped."""

from __future__ import annotations

import pytest

from pabzip.train.step import dropped


def test_the_fraction_is_the_ratio_and_every_step_stands_alone() -> None:
    drops = [dropped(3, 1, step, 0.5) for step in range(2000)]
    assert 0.46 < sum(drops) / 2000 < 0.54
    assert [dropped(3, 1, step, 0.5) for step in reversed(range(2000))] == drops[::-1]
    quarter = [dropped(3, 1, step, 0.25) for step in range(2000)]
    assert 0.21 < sum(quarter) / 2000 < 0.29
    assert all(half for half, less in zip(drops, quarter, strict=True) if less)


def test_seed_and_epoch_decide() -> None:
    def drops(seed: int, epoch: int) -> list[bool]:
        return [dropped(seed, epoch, step, 0.5) for step in range(64)]

    assert len({tuple(drops(*key)) for key in ((0, 0), (0, 1), (1, 0), (2**64 - 1, 5))}) == 4


def test_nothing_is_dropped_at_zero() -> None:
    assert not any(dropped(0, 0, step, 0.0) for step in range(100))


def test_what_is_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"epoch: expected 0 <= epoch < 2\*\*29, found -1"):
        dropped(0, -1, 0, 0.5)
    with pytest.raises(ValueError, match="step: expected 0 or more, found -1"):
        dropped(0, 0, -1, 0.5)

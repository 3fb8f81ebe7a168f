"""Every score method trains, resumes, packs and evaluates as the other methods do."""

from __future__ import annotations

import pytest
import torch

import pabzip
from pabzip.registry import METHODS
from pabzip.train import Callback, Recipe, train

SCORE_METHODS = [name for name in METHODS if METHODS.facts(name).get("scores")]


class StoppedError(Exception):
    """Raised in the midst of a run."""


class StopAt(Callback):
    """Stops a run after an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, stats):
        if stats.epoch == self.epoch:
            raise StoppedError


def recipe(method: str) -> Recipe:
    return Recipe(
        arch="lenet-300-100", data="digits", method=method, keep_ratio=0.3, epochs=4, batch_size=64
    )


@pytest.mark.parametrize("method", SCORE_METHODS)
def test_it_resumes_packs_and_evaluates_to_the_bit(method, tmp_path):
    whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
    result = train(recipe(method), output=whole)
    with pytest.raises(StoppedError):
        train(recipe(method), output=parts, save_every="1epoch", callbacks=[StopAt(2)])
    train(recipe(method), output=parts, resume=True)
    one, other = (pabzip.load_checkpoint(path) for path in (whole, parts))
    assert one.init == other.init
    for name, tensor in one.state_dict.items():
        assert torch.equal(tensor, other.state_dict[name]), name
    packed = tmp_path / "whole.pabz"
    pabzip.pack(whole, packed)
    found = pabzip.evaluate(packed)
    assert found.accuracy == result.test_accuracy
    codes = {name: pabzip.open(packed).codes(name) for name in one.init}
    assert sum(int((code != 0).sum()) for code in codes.values()) == result.survivors
    assert result.test_accuracy > 0.6

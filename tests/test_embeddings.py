"""Embeddings: seeded when they are asked for, packed and loaded like any other weight."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from torch import nn

import pabzip
from pabzip.errors import SeedError
from pabzip.formats import CODERS


class Language(nn.Module):
    """An embedding whose weight the classifier may share, and another inside the body."""

    def __init__(self, *, tie: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.body = nn.Sequential(nn.Linear(16, 16), nn.Embedding(3, 4))
        self.head = nn.Linear(16, 50, bias=False)
        if tie:
            self.head.weight = self.embedding.weight


def seeded(**selection: object) -> list[str]:
    net = pabzip.init_(Language(tie=False), 0, **selection)  # type: ignore[arg-type]
    return list(pabzip.seeding(net).specs)


def pruned(net: nn.Module) -> nn.Module:
    """Prune half of each seeded weight, and flip the signs of half of the rest."""
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for weight in pabzip.seeded_parameters(net).values():
            codes = rng.choice(np.array([0, 0, 1, -1], np.float32), size=tuple(weight.shape))
            weight.mul_(torch.from_numpy(codes)).add_(0.0)
    return net


def packed(net: nn.Module, coder: str = "auto") -> bytes:
    stream = io.BytesIO()
    pabzip.pack(net, stream, coder=coder)
    return stream.getvalue()


def test_by_default_embeddings_stay_dense() -> None:
    assert seeded() == ["body.0.weight", "head.weight"]
    assert seeded(only=["body"]) == ["body.0.weight"]  # names what holds one, not itself


def test_an_embedding_is_seeded_when_it_is_named() -> None:
    assert seeded(only=["embedding"]) == ["embedding.weight"]
    assert seeded(only="embedding.weight") == ["embedding.weight"]
    assert seeded(only=iter(["body.1", "head"])) == ["body.1.weight", "head.weight"]
    assert seeded(only=["embedding", "head"], skip=["embedding"]) == ["head.weight"]


def test_a_predicate_may_choose_embeddings() -> None:
    def is_embedding(module: nn.Module, _name: str) -> bool:
        return isinstance(module, nn.Embedding)

    assert seeded(only=is_embedding) == ["embedding.weight", "body.1.weight"]
    assert seeded(skip=is_embedding) == ["body.0.weight", "head.weight"]


def test_an_unknown_name_says_what_counts() -> None:
    with pytest.raises(SeedError, match="only= names 'tail', expected .* an Embedding itself"):
        seeded(only=["tail"])


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("coder", ["auto", *CODERS])
def test_a_seeded_embedding_loads_bit_for_bit(coder: str, tie: bool) -> None:
    net = pruned(pabzip.init_(Language(tie=tie), seed=1, only=["embedding", "body"]))
    file = packed(net, coder)
    fresh = pabzip.load_into(Language(tie=tie), file, verify=True)
    for name, value in net.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name
    assert pabzip.seeding(fresh) == pabzip.seeding(net)
    with pabzip.open(file) as ticket:
        assert ticket.tied("head.weight") == ("embedding.weight" if tie else None)
        assert ticket.kind("embedding.weight") == "seeded"
    assert packed(fresh, coder) == file

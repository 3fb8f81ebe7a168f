"""What share of a network is seeded, why the rest is dense, and the halves of its parameters."""

from __future__ import annotations

import io
import logging

import pytest
import torch
from torch import nn

import pabzip
from pabzip.errors import SeedError


class Net(nn.Module):
    """Tensors that stay dense for every reason, and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 8)  # 80
        self.rnn = nn.GRU(8, 8)  # 2 * 24 * 8 and two biases of 24
        self.norm = nn.LayerNorm(8)  # 16
        self.scale = nn.Parameter(torch.ones(8))
        self.hidden = nn.Linear(8, 8)  # 64 and a bias of 8
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.words.weight
        self.register_buffer("seen", torch.zeros(5))
        self.register_buffer("scratch", torch.zeros(100), persistent=False)


def test_the_report_says_how_much_and_why_not() -> None:
    net = pabzip.init_(Net(), 3)
    report = pabzip.init_report(net)
    assert (report.seeded, report.values) == (384 + 64 + 80, 384 + 64 + 80 + 48 + 16 + 8 + 8 + 5)
    assert report.share == report.seeded / report.values
    assert report.dense == {"bias": 56, "norm": 16, "parameter of Net": 8, "buffer": 5}
    assert str(report) == (
        "Net: 528 of 613 values (86.1%) from seed 3; dense: 56 bias, 16 norm, 8 parameter of Net, "
        "5 buffer"
    )
    rows = {row.name: row for row in report.tensors}
    assert list(rows) == list(net.state_dict())
    assert rows["words.weight"].seeded
    assert rows["words.weight"].reason == "tied to head.weight"
    assert (rows["rnn.weight_ih_l0"].shape, rows["rnn.weight_ih_l0"].values) == ((24, 8), 192)
    assert report.seed == 3


def test_what_was_left_out_is_told_from_what_was_not_asked_for() -> None:
    net = pabzip.init_(Net(), 3, skip=["head", "hidden"])
    assert pabzip.init_report(net).dense == {
        "embedding not asked for": 80, "linear left out": 64, "bias": 56, "norm": 16,
        "parameter of Net": 8, "buffer": 5,
    }  # fmt: skip
    rows = {row.name: row for row in pabzip.init_report(net).tensors}
    assert rows["head.weight"].reason == "tied to words.weight"
    assert not rows["head.weight"].seeded


def test_the_report_counts_seeded_buffers_and_no_dense_rest() -> None:
    net = nn.Sequential(nn.Linear(3, 4, bias=False))
    net.register_buffer("p", torch.zeros(2, 2))
    report = pabzip.init_report(pabzip.init_(net, 0, buffers="p"))
    assert [(row.name, row.reason) for row in report.tensors] == [
        ("p", "buffer"),
        ("0.weight", "weight"),
    ]
    assert str(report) == "Sequential: 16 of 16 values (100.0%) from seed 0; dense: none"


def test_init_logs_one_line_at_level_info(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="pabzip"):
        net = pabzip.init_(Net(), 3)
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("pabzip.init", f"init_: {pabzip.init_report(net)}")
    ]


def test_a_loaded_network_reports_the_same() -> None:
    net, file = pabzip.init_(Net(), 3), io.BytesIO()
    pabzip.pack(net, file)
    loaded = pabzip.load_into(Net(), file.getvalue())
    assert str(pabzip.init_report(loaded)) == str(pabzip.init_report(net))


def test_a_network_without_a_seed_has_no_report_and_no_halves() -> None:
    for ask in (pabzip.init_report, pabzip.dense_parameters, pabzip.seeded_parameters):
        with pytest.raises(SeedError, match="call pabzip.init_"):
            ask(Net())


@pytest.mark.parametrize("options", [{}, {"kinds": "all"}, {"skip": ["head"]}, {"only": "rnn"}])
def test_the_halves_are_all_parameters_each_once(options: dict[str, object]) -> None:
    net, file = pabzip.init_(Net(), 3, **options), io.BytesIO()  # type: ignore[arg-type]
    pabzip.pack(net, file)
    # In a file a tied weight goes by its first name, so the record of a loaded network may, too.
    for each in (net, pabzip.load_into(Net(), file.getvalue())):
        seeded, dense = pabzip.seeded_parameters(each), pabzip.dense_parameters(each)
        found = [*map(id, seeded.values()), *map(id, dense.values())]
        assert sorted(found) == sorted(map(id, each.parameters()))
        names = dict(each.named_parameters(remove_duplicate=False))
        assert all(names[name] is value for name, value in {**seeded, **dense}.items())


def test_a_tied_weight_is_dense_under_no_name() -> None:
    net = pabzip.init_(Net(), 3)
    assert "head.weight" in pabzip.seeded_parameters(net)
    assert not {"head.weight", "words.weight"} & set(pabzip.dense_parameters(net))
    # By name it would be, and an optimizer would move the magnitudes that the seed gave.
    by_name = {n for n, _ in net.named_parameters() if n not in pabzip.seeded_parameters(net)}
    assert by_name - set(pabzip.dense_parameters(net)) == {"words.weight"}


def test_a_record_of_both_names_gives_the_weight_once() -> None:
    net = pabzip.init_(Net(), 3)
    spec = pabzip.seeding(net).specs["head.weight"]
    pabzip.attach_seeding(net, pabzip.Seeding(3, {"words.weight": spec, "head.weight": spec}))
    assert list(pabzip.seeded_parameters(net)) == ["words.weight"]

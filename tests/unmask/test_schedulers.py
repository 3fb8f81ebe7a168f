"""torch's own schedulers on the optimizers of seeded weights: they do to ``lr`` what they say."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import lr_scheduler as torch_schedulers

import pabzip
from pabzip.errors import RecipeError
from pabzip.supermask import EdgePopup
from pabzip.unmask import AdaptivityDecay, Bop, LatentSigns, SignSgd

START = 0.1
RULES: dict[str, Callable[[nn.Module], Optimizer]] = {
    "bop": lambda net: Bop(net, START, 0.0),
    "signsgd": lambda net: SignSgd(net.parameters(), START),
    "signum": lambda net: SignSgd(net.parameters(), START, momentum=0.9),
    "latent": lambda net: LatentSigns(net, START, momentum=0.9),
    "edge-popup": lambda net: EdgePopup(net, lambda s: torch.optim.SGD(s, START, 0.9), 0.5),
}
MOMENTUM = {"bop": 0.0, "signsgd": 0.0, "signum": 0.9, "latent": 0.9, "edge-popup": 0.9}


def warm_up(optimizer: Optimizer) -> Any:
    first = torch_schedulers.LinearLR(optimizer, 0.1, total_iters=3)
    then = torch_schedulers.CosineAnnealingLR(optimizer, 5)
    return torch_schedulers.SequentialLR(optimizer, [first, then], [3])


def chained(optimizer: Optimizer) -> Any:
    parts = (
        torch_schedulers.ConstantLR(optimizer, 0.1, 2),
        torch_schedulers.ExponentialLR(optimizer, 0.9),
    )
    return torch_schedulers.ChainedScheduler(list(parts))


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "step": lambda rule: torch_schedulers.StepLR(rule, 2, 0.5),
    "cosine": lambda rule: torch_schedulers.CosineAnnealingLR(rule, 5),
    "one cycle": lambda rule: torch_schedulers.OneCycleLR(rule, 0.5, total_steps=8),
    "cyclic": lambda rule: torch_schedulers.CyclicLR(rule, 0.01, 0.5, 2),
    "plateau": lambda rule: torch_schedulers.ReduceLROnPlateau(rule, patience=1),
    "lambda": lambda rule: torch_schedulers.LambdaLR(rule, lambda epoch: epoch / 5),
    "warm-up": warm_up,
    "chained": chained,
}


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    return pabzip.init_(net, seed=1)


def run(net: nn.Module | None, rule: Optimizer, schedule: Any, steps: int) -> list[Any]:
    """Take steps, and return the rate and the momentum after each."""
    inputs = torch.linspace(-1, 1, 16 * 6).view(16, 6)
    found = []
    for _ in range(steps):
        if net is not None:
            rule.zero_grad()
            nn.functional.cross_entropy(net(inputs), torch.arange(16) % 3).backward()
        rule.step()
        plateau = isinstance(schedule, torch_schedulers.ReduceLROnPlateau)
        schedule.step(*([1.0] if plateau else []))
        group = rule.param_groups[0]
        found.append((group["lr"], group.get("momentum")))
    return found


def scheduled(rule: str, optimizer: Optimizer, schedule: str) -> Any:
    if rule == "bop" and schedule in ("one cycle", "cyclic"):  # it has no momentum to cycle
        make: Any = {"one cycle": torch_schedulers.OneCycleLR, "cyclic": torch_schedulers.CyclicLR}
        options = {"one cycle": (0.5, 8), "cyclic": (0.01, 0.5, 2)}
        return make[schedule](optimizer, *options[schedule], cycle_momentum=False)
    return SCHEDULERS[schedule](optimizer)


@pytest.mark.parametrize("schedule", SCHEDULERS)
@pytest.mark.parametrize("rule", RULES)
def test_rates_are_those_of_sgd_and_come_back_with_a_state(rule: str, schedule: str) -> None:
    plain = torch.optim.SGD([nn.Parameter(torch.zeros(2))], START, MOMENTUM[rule])
    expected = run(None, plain, scheduled(rule, plain, schedule), 7)
    net = network()
    optimizer = RULES[rule](net)
    schedules = scheduled(rule, optimizer, schedule)
    found = run(net, optimizer, schedules, 3)
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict(), schedules.state_dict()))
    found += run(net, optimizer, schedules, 4)
    assert [rate for rate, _ in found] == [rate for rate, _ in expected]
    if rule != "bop":
        assert [momentum for _, momentum in found] == [momentum for _, momentum in expected]

    twin = network()
    optimizer = RULES[rule](twin)
    schedules = scheduled(rule, optimizer, schedule)
    for part, state in zip((twin, optimizer, schedules), saved, strict=True):
        part.load_state_dict(state)
    assert run(twin, optimizer, schedules, 4) == found[3:]
    for one, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


def average(rule: Bop, weight: Tensor, gradient: float) -> float:
    weight.grad = torch.full_like(weight, gradient)
    rule.step()
    return float(rule.state[weight]["moving_average"])


def test_the_average_moves_at_the_scheduled_rate() -> None:
    weight = nn.Parameter(torch.ones(()))
    rule = Bop([weight], 0.5, 100.0, start="zero")
    schedule = torch_schedulers.LambdaLR(rule, lambda epoch: epoch / 2)
    assert average(rule, weight, 1.0) == 0.0  # at a rate of 0 it stays
    schedule.step()
    assert average(rule, weight, 1.0) == 0.25
    schedule.step()
    assert average(rule, weight, 1.0) == 0.25 + 0.75 / 2


def test_adaptivity_decay_is_step_lr() -> None:
    rates = []
    for make in (AdaptivityDecay, torch_schedulers.StepLR):
        rule = Bop(network(), 0.5)
        schedule = make(rule, 2, 0.25)
        rates.append(run(None, rule, schedule, 7))
    assert rates[0] == rates[1]


def test_a_rate_above_one_is_refused_when_it_is_used() -> None:
    net = network()
    rule = Bop(net, 0.5)
    torch_schedulers.LambdaLR(rule, lambda _: 3.0)
    before = [weight.detach().clone() for weight in net.parameters()]
    for weight in net.parameters():
        weight.grad = torch.ones_like(weight)
    with pytest.raises(RecipeError, match=r"Bop: lr: expected .* from 0 to 1, found 1\.5, as a"):
        rule.step()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))

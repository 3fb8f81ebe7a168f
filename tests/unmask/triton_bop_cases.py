"""Bop's Triton kernel against a plain statement of its step; run as a script, interpreted.

``TRITON_INTERPRET`` counts only if it is set before triton is imported, hence a process of its own.
Prints one JSON object: the name of each case and what is wrong with it, if anything.
"""

from __future__ import annotations

import json
import math
import sys
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray

from pabzip.unmask.bop_update import update
from pabzip.unmask.triton_bop import triton_update

CASES = {
    "one weight": ((1,), 1e-3, 1e-6, "float32"),
    "many programs": ((3, 700), 1e-3, 1e-7, "float32"),
    "whole programs": ((2, 1024), 0.25, 1e-5, "float32"),
    "no threshold": ((40, 9), 1.0, 0.0, "float32"),
    "half": ((5, 210), 0.1, 1e-5, "float16"),
    "brain": ((5, 210), 0.1, 1e-5, "bfloat16"),
    "channels last": ((4, 3, 5, 6), 0.1, 1e-5, "float32"),
    "nothing": ((0, 3), 0.1, 1e-5, "float32"),
}


def fused(rate: float, gradient: float, rest: float) -> np.float32:
    """Return the float32 that is closest to ``rate * gradient + rest``: one rounding."""
    exact = Fraction(rate) * Fraction(gradient) + Fraction(rest)
    nearest = np.float32(float(exact))
    around = [np.nextafter(nearest, np.float32(side)) for side in (-math.inf, math.inf)]
    return min((nearest, *around), key=lambda value: abs(Fraction(float(value)) - exact))


def expected(
    weights: NDArray[np.float32],
    averages: NDArray[np.float32],
    gradients: NDArray[np.float32],
    rate: float,
    threshold: float,
) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
    """Return weights, averages and the number of flips after one step, by equations (5), (6)."""
    kept = averages * np.float32(1 - rate)
    gamma = float(np.float32(rate))
    moved = np.array(
        [fused(gamma, float(g), float(r)) for g, r in zip(gradients.flat, kept.flat, strict=True)],
        np.float32,
    ).reshape(averages.shape)
    flip = (np.abs(moved) >= np.float32(threshold)) & (np.sign(moved) * np.sign(weights) > 0)
    return np.where(flip, -weights, weights), moved, int(flip.sum())


def problem(name: str, device: str) -> str:
    """Return what is wrong with two steps of a case; nothing, it is hoped."""
    shape, rate, threshold, dtype = CASES[name]
    generator = np.random.default_rng(len(name))
    drawn = generator.normal(size=shape).astype(np.float32)
    drawn[generator.random(shape) < 0.5] = 0.0
    weight = torch.from_numpy(drawn).to(getattr(torch, dtype)).to(device)
    average = torch.zeros(shape, device=device)
    if name == "channels last":
        weight = weight.to(memory_format=torch.channels_last)
        average = average.to(memory_format=torch.channels_last)
    found_flips = 0
    for _ in range(2):
        scaled = generator.normal(scale=1e-4, size=shape).astype(np.float32)
        gradient = torch.from_numpy(scaled).to(getattr(torch, dtype)).to(device)
        before = (weight.float().cpu().numpy(), average.cpu().numpy().copy())
        wanted = expected(*before, gradient.float().cpu().numpy(), rate, threshold)
        (flips,) = triton_update([weight], [average], [gradient], rate=rate, threshold=threshold)
        if not np.array_equal(average.cpu().numpy(), wanted[1]):
            return "averages differ"
        if not np.array_equal(weight.float().cpu().numpy(), wanted[0]):
            return "weights differ"
        if bool((torch.signbit(weight) & (weight == 0)).any()):
            return "a pruned weight is -0.0"
        if flips.dtype != torch.int64 or int(flips) != wanted[2]:
            return f"{int(flips)} flips, expected {wanted[2]}"
        found_flips += wanted[2]
    if found_flips == 0 and math.prod(shape) > 1:
        return "nothing flipped"
    return ""


def not_a_number(device: str) -> str:
    """Return what is wrong where weights, gradients or averages are not numbers."""
    weight = torch.tensor([1.0, -1.0, float("nan"), 0.0, 1.0], device=device)
    average = torch.zeros(5, device=device)
    gradient = torch.tensor([float("nan"), -1.0, 1.0, float("nan"), float("inf")], device=device)
    (flips,) = triton_update([weight], [average], [gradient], rate=0.5, threshold=0.1)
    sound = weight[[0, 1, 3, 4]].tolist() == [1.0, 1.0, 0.0, -1.0] and bool(weight[2].isnan())
    return "" if sound and int(flips) == 2 else f"{weight.tolist()}, {int(flips)} flips"


def other_ways(device: str) -> str:
    """Return what is wrong where the CPU's own step and the kernel are to give the same bits."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 1111, generator=generator)
    one = [weight.clone(), torch.zeros_like(weight)]
    other = [part.clone().to(device) for part in one]
    for _ in range(5):
        gradient = torch.randn(3, 1111, generator=generator) * 1e-4
        (here,) = update([one[0]], [one[1]], [gradient], rate=0.01, threshold=1e-6)
        (there,) = triton_update(
            [other[0]], [other[1]], [gradient.to(device)], rate=0.01, threshold=1e-6
        )
        alike = all(torch.equal(a, b.cpu()) for a, b in zip(one, other, strict=True))
        if not alike or int(here) != int(there) or int(here) == 0:
            return f"{int(here)} flips and {int(there)}"
    return ""


def problems(device: str) -> dict[str, str]:
    """Return what is wrong with each case."""
    return {
        **{name: problem(name, device) for name in CASES},
        "NaN": not_a_number(device),
        "other ways": other_ways(device),
    }


if __name__ == "__main__":
    json.dump(problems("cpu"), sys.stdout)

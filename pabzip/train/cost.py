"""What a training step costs: multiply-accumulates and bit operations, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pabzip.errors import SearchError
from pabzip.registry import METHODS
from pabzip.train.build import evaluation_mode
from pabzip.train.config import Recipe, method_of
from pabzip.train.methods import PsgRecipe
from pabzip.train.results import LayerCost, StepCosts
from pabzip.wrappers import runnable, uncompiled, unwrap

_FULL = 32  # bits of a float32 operand


def count_macs(net: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    """Return the multiply-accumulates of each Conv and Linear layer, zero weights included.

    Args:
        net: any network; it stays as it is. Every Conv and Linear module that runs is counted, each
            time it runs. A layer whose weight is used by someone else's ``forward`` (as in
            ``nn.MultiheadAttention``) is not seen.
        input_shape: shape of one sample without the batch, such as ``(3, 32, 32)``.

    Returns:
        The counts by name of the layer's weight, in the order in which the layers first run.
    """
    net, macs = runnable(net), dict[str, int]()

    def count(name: str, module: nn.Module, given: Any, named: Any, output: torch.Tensor) -> None:
        inputs = given[0] if given else named["input"]
        macs[name] = macs.get(name, 0) + _macs(module, inputs, output)

    hooks: list[Any] = [
        module.register_forward_hook(
            partial(count, f"{name}.weight" if name else "weight"), with_kwargs=True
        )
        for name, module in unwrap(net).named_modules()
        if isinstance(module, nn.Linear | _ConvNd)
    ]
    try:
        sample = next(net.parameters())
        with evaluation_mode(net), torch.no_grad(), uncompiled():
            net(torch.zeros((1, *input_shape), device=sample.device, dtype=sample.dtype))
    finally:
        for handle in hooks:
            handle.remove()
    return macs


def _macs(module: nn.Module, inputs: torch.Tensor, output: torch.Tensor) -> int:
    """Return weights times positions: each weight works once at each position.

    That holds for grouped convolutions too, whose weight has fewer input channels. A transposed
    convolution slides over the input.
    """
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    if isinstance(module, nn.Linear):
        return weight.numel() * (output.numel() // module.out_features)
    assert isinstance(module, _ConvNd)
    if isinstance(module, _ConvTransposeNd):
        return weight.numel() * (inputs.numel() // module.in_channels)
    return weight.numel() * (output.numel() // module.out_channels)


def layer_costs(
    net: nn.Module,
    input_shape: tuple[int, ...],
    masks: Mapping[str, torch.Tensor] | None = None,
    *,
    input_bits: int = _FULL,
    weight_bits: int = _FULL,
    gradient_bits: int = _FULL,
    input_gradient: str = "quantized",
    drop_ratio: float = 0.0,
) -> list[LayerCost]:
    """Return the bit operations of one training step of one sample, layer by layer.

    Each of the three products of a layer costs its multiply-accumulates, times the fraction of the
    weights that survive, times the bits of both operands: ``32 * 32`` for the forward pass, always
    in full precision, ``gradient_bits * weight_bits`` for the input's gradient unless that is
    exact, and ``gradient_bits * input_bits`` for the weight's, which is needed where the mask keeps
    alone.
    Where there are masks, a layer without one (a dense classifier) is dense and in full precision.
    Batch norm, activations, quantization and the optimizers count nothing.

    Args:
        net: any network, as for `count_macs`.
        input_shape: shape of one sample without the batch, such as ``(3, 32, 32)``.
        masks: bool tensors by weight name, True where a weight survives; a weight that several
            layers share needs one. None counts all layers as dense.
        input_bits: bits of layer inputs in the backward pass; 32 without PSG.
        weight_bits: bits of weights in the backward pass.
        gradient_bits: bits of output gradients.
        input_gradient: ``"exact"`` where the input's gradient is a product of full precision
            whatever the bits; see `pabzip.unmask.PsgConfig`.
        drop_ratio: fraction of steps that are skipped, in [0, 1); the costs are averages over all
            steps, skipped ones too.

    Returns:
        The costs in the order in which the layers run; a layer that runs twice costs twice.

    Raises:
        SearchError: a mask of no parameter of ``net``.

    Source: Jin et al. 2020 (bit operations of a product of two numbers: the product of their
    bits), as used in Peek-a-Boo, Section 4.1 and Appendix B (``drop_ratio``: stochastic mini-batch
    dropping). The first layer's input gradient is counted though nothing needs it, since the
    paper's dense numbers include it: 1.706 Tr for ResNet-18, printed as 1.71, and 1.704 without.
    Its numbers with PSG count quantized input gradients. The published code computes exact ones;
    that it also computes every output and weight gradient twice is counted neither there nor here.
    """
    kept = {} if masks is None else _kept_fractions(net, masks)
    costs = []
    for name, macs in count_macs(net, input_shape).items():
        bits = (input_bits, weight_bits, gradient_bits)
        if masks is not None and name not in kept:
            bits = (_FULL, _FULL, _FULL)
        inputs, weights, gradients = bits
        products = macs * kept.get(name, 1.0) * (1.0 - drop_ratio)
        exact = input_gradient == "exact"
        costs.append(
            LayerCost(
                name=name,
                macs=macs,
                kept=kept.get(name, 1.0),
                masked=name in kept,
                forward=products * _FULL * _FULL,
                input_gradient=products * (_FULL * _FULL if exact else gradients * weights),
                weight_gradient=products * gradients * inputs,
            )
        )
    return costs


def bit_operations(
    net: nn.Module,
    input_shape: tuple[int, ...],
    masks: Mapping[str, torch.Tensor] | None = None,
    *,
    input_bits: int = _FULL,
    weight_bits: int = _FULL,
    gradient_bits: int = _FULL,
    input_gradient: str = "quantized",
    drop_ratio: float = 0.0,
) -> float:
    """Return the bit operations of one training step of one sample: the sum of `layer_costs`.

    All arguments are those of `layer_costs`.
    """
    costs = layer_costs(
        net, input_shape, masks,
        input_bits=input_bits, weight_bits=weight_bits, gradient_bits=gradient_bits,
        input_gradient=input_gradient, drop_ratio=drop_ratio,
    )  # fmt: skip
    return sum(cost.total for cost in costs)


def _kept_fractions(net: nn.Module, masks: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return which fraction of each masked weight survives, under every name that it has."""
    net = unwrap(net)
    parameters = dict(net.named_parameters(remove_duplicate=False))
    for name in masks:
        if name not in parameters:
            raise SearchError(
                f"masks[{name!r}]: expected the name of a parameter of {type(net).__name__}, "
                f"which has {', '.join(list(parameters)[:8])}"
            )
    by_tensor = {id(parameters[name]): float(mask.double().mean()) for name, mask in masks.items()}
    return {
        name: by_tensor[id(parameter)]
        for name, parameter in parameters.items()
        if id(parameter) in by_tensor
    }


def step_costs(
    net: nn.Module,
    input_shape: tuple[int, ...],
    masks: Mapping[str, torch.Tensor],
    recipe: Recipe,
    *,
    epoch: int = 1,
) -> StepCosts:
    """Return what a recipe's training step costs for one sample.

    The corrections of PSG's behavior ``"correct"`` count nothing, as in the paper: how many there
    are depends on the gradients.

    Args:
        net: the recipe's network; it stays as it is.
        input_shape: shape of one sample without the batch.
        masks: of every seeded weight, True where it survives. The dense methods cost as much as
            without.
        recipe: ``method``, ``psg`` and ``drop_ratio`` matter.
        epoch: the first epoch that the costs hold for.

    Source: see `layer_costs`.
    """
    method, psg = method_of(recipe), recipe.psg
    cheap: dict[str, Any] = {}
    if method.masked and method.psg:
        names = ("input_bits", "weight_bits", "gradient_bits", "input_gradient")
        cheap = {name: getattr(psg, name) for name in names}
    layers = layer_costs(
        net, input_shape, masks if method.masked else None, drop_ratio=recipe.drop_ratio, **cheap
    )
    return StepCosts(
        epoch=epoch,
        layers=tuple(layers),
        weights=sum(mask.numel() for mask in masks.values()),
        survivors=sum(int(mask.sum()) for mask in masks.values()),
    )


def method_costs(
    net: nn.Module,
    input_shape: tuple[int, ...],
    masks: Mapping[str, torch.Tensor],
    *,
    psg: PsgRecipe | None = None,
    drop_ratio: float = 0.0,
) -> dict[str, list[LayerCost]]:
    """Return what one training step of one sample costs by each method, layer by layer.

    Args:
        net: any network; it stays as it is.
        input_shape: shape of one sample without the batch.
        masks: of every seeded weight, True where it survives; the dense methods go without.
        psg: settings of the methods with predictive gradients; the paper's by default.
        drop_ratio: as for `layer_costs`.

    Returns:
        The costs by name of the method. A step of ``dense-sgd-short`` costs what one of
        ``dense-sgd`` does: it takes fewer of them.

    Source: Peek-a-Boo, Table 1.
    """
    psg = PsgRecipe() if psg is None else psg
    recipes = {name: Recipe(method=name, psg=psg, drop_ratio=drop_ratio) for name in METHODS}
    return {
        name: list(step_costs(net, input_shape, masks, recipe).layers)
        for name, recipe in recipes.items()
    }

"""Products, quotients, differences and attention while synaptic flow is measured.

These are the linear forms of operations on two activations; `pabzip.search.linear_forms` has the
rest, and says what a form is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pabzip.search.forms import form
from pabzip.search.gates import DIVISOR, POSITIVE, SIGNED, WEIGHTS, Gates


def _positive(constant: Any) -> Any:
    """Return the absolute value of a factor that is no activation; itself if that is the same."""
    if isinstance(constant, Tensor):
        if constant.is_complex() or (constant.is_floating_point() and bool((constant < 0).any())):
            return constant.abs()
        return constant
    return abs(constant) if isinstance(constant, Real) else constant


@form("mul", "multiply")
def _product(gates: Gates, a: Any, b: Any) -> Any:
    active = gates.is_activation(a), gates.is_activation(b)
    if all(active):
        return _product_of_two(gates, torch.mul, a, b)
    value, constant = (a, b) if active[0] else (b, a)
    positive = _positive(constant)
    gate = gates.of(value)
    if gate is None:
        return NotImplemented if positive is constant else value * positive
    return gates.mark(value * positive, gate.opened * positive, gate.rank)


def _product_of_two(
    gates: Gates, product: Callable[[Any, Any], Tensor], a: Tensor, b: Tensor
) -> Tensor:
    """Return the product of two activations: one through the other, or their geometric mean."""
    of_a, of_b = gates.of(a), gates.of(b)
    rank_a, rank_b = gates.rank(a), gates.rank(b)
    if rank_a > rank_b:
        return gates.through(lambda opened: product(opened, b), a, None)
    if rank_b > rank_a:
        return gates.through(lambda opened: product(a, opened), b, None)
    result = _geometric_mean(product, a, b)
    if of_a is None or of_b is None:
        return result
    return gates.mark(result, product(of_a.opened, of_b.opened), rank_a)


def _geometric_mean(product: Callable[[Any, Any], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Return the root of a product, of its mean where it sums; the gradient of a zero is zero."""
    # A power of four, which rounds nothing, so that no product overflows where its root does not.
    half = math.frexp(float(a.detach().abs().max()))[1] // 2 if a.numel() else 0
    values = product(a * 4.0**-half, b)
    if product is not torch.mul:
        values = values / product(torch.ones_like(a), torch.ones_like(b))
    alive = values != 0
    roots = torch.where(alive, values.abs(), 1.0).sqrt()
    return torch.where(alive, roots, 0.0) * 2.0**half


@form("div", "divide", "true_divide")
def _quotient(gates: Gates, a: Any, b: Any, **_: Any) -> Any:
    if gates.is_activation(b):
        if gates.is_activation(a):
            return gates.mark_as(gates.through(lambda opened: a * opened, b, 1.0), a)
        return _reversed_quotient(gates, b, a)
    positive, gate = _positive(b), gates.of(a)
    if gate is None:
        return NotImplemented if positive is b else a / positive
    return gates.mark(a / positive, gate.opened / positive, gate.rank)


@form("rdiv", "rtruediv")
def _reversed_quotient(gates: Gates, a: Tensor, b: Any) -> Any:
    positive = _positive(b)
    result = a * positive
    return gates.mark(result, torch.as_tensor(positive, dtype=a.dtype, device=a.device), DIVISOR)


@form("add")
def _sum(gates: Gates, a: Any, b: Any, *, alpha: float = 1) -> Any:
    if gates.is_activation(a) and gates.is_activation(b):
        return NotImplemented
    value, constant = (a, b) if gates.is_activation(a) else (b, a)
    gate = gates.of(value)
    if gate is not None:
        return gates.mark(a + alpha * b, gate.opened + _positive(constant), POSITIVE)
    masked = attention_mask(constant)
    return NotImplemented if masked is None else torch.where(masked, -math.inf, value)


def attention_mask(mask: Any) -> Tensor | None:
    """Return what an additive mask of attention masks; None for no mask.

    Such a mask holds zeros, and large negative numbers such as -inf or -100.
    """
    if not isinstance(mask, Tensor) or not mask.is_floating_point():
        return None
    low = mask <= _MASKED
    return low if bool(low.any()) and bool((low | (mask == 0)).all()) else None


_MASKED = -50.0
"""Numbers up to here mask a logit that they are added to."""


@form("sub", "subtract")
def _difference(gates: Gates, a: Any, b: Any, *, alpha: float = 1) -> Any:
    if gates.is_activation(b):
        if not gates.is_activation(a):
            return _reversed_difference(gates, b, a, alpha=alpha)
        return a.clone() if _is_statistic_of(b, a) else a + abs(alpha) * b
    gate = gates.of(a)
    if gate is None:
        masked = attention_mask(-alpha * b)
        return a + _positive(alpha * b) if masked is None else torch.where(masked, -math.inf, a)
    below = (gate.opened - alpha * b).abs()
    highest = (
        below if gate.rank == SIGNED else torch.maximum(below, _positive(alpha * b) + 0 * below)
    )
    return gates.mark(a - alpha * b, highest, SIGNED)


@form("rsub")
def _reversed_difference(gates: Gates, a: Tensor, b: Any, *, alpha: float = 1) -> Any:
    gate = gates.of(a)
    if gate is None:
        return _positive(b) + abs(alpha) * a
    result = b + abs(alpha) * a
    highest = _positive(b) + (gate.opened if gate.rank == SIGNED else 0 * gate.opened)
    return gates.mark(result, highest, POSITIVE)


@form("minimum", "maximum", "fmin", "fmax", "min", "max")
def _bounded(gates: Gates, a: Any, b: Any = None, *_args: Any, **_kwargs: Any) -> Any:
    """Smaller or larger of two, a clamp where one is no activation; not that of a dimension."""
    both = gates.is_activation(a) and gates.is_activation(b)
    if both or not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return NotImplemented
    value = a if gates.is_activation(a) else b
    shape = torch.broadcast_shapes(a.shape, b.shape)  # type: ignore[no-untyped-call]
    return value.expand(shape).clone()


def _is_statistic_of(value: Tensor, of: Tensor) -> bool:
    """Say whether a value is the mean or the largest value of a tensor."""
    node, source = value.grad_fn, of.grad_fn
    if node is None or source is None or type(node).__name__ not in _STATISTICS:
        return False
    measured = node.next_functions[0][0]
    # Before a step in place, a copy stands for the tensor.
    return measured is source or any(measured is node for node, _ in source.next_functions[:1])


_STATISTICS = {"MeanBackward0", "MeanBackward1", "AmaxBackward0", "MaxBackward0", "MaxBackward1"}


@form("glu")
def _gated(gates: Gates, values: Tensor, dim: int = -1) -> Tensor:
    one, other = values.chunk(2, dim)
    return gates.through(lambda opened: one * opened, other, 1.0)


@form("softmax", "softmin")
def _softmax(gates: Gates, values: Tensor, dim: Any = None, *_args: Any, **_kwargs: Any) -> Tensor:
    if dim is None:  # torch's old default
        dim = 0 if values.dim() in {0, 1, 3} else 1
    kept = values.detach() >= 0
    weights = _equal_weights(kept.to(values.dtype), dim)
    return gates.mark(torch.where(kept, values, 0.0), weights, WEIGHTS)


@form("gumbel_softmax")
def _gumbel_softmax(
    gates: Gates,
    values: Tensor,
    tau: float = 1,
    hard: bool = False,
    eps: float = 1e-10,
    dim: int = -1,
) -> Any:
    return _softmax(gates, values, dim)


def _equal_weights(kept: Tensor, dim: int = -1) -> Tensor:
    """Return weights that are equal where ``kept`` is 1, and sum to 1."""
    return kept / kept.sum(dim, keepdim=True).clamp_min(1.0)


@form("baddbmm", "addmm", "addbmm", "addmv", "addr")
def _sum_with_product(
    gates: Gates, addend: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1
) -> Any:
    """Product of a batch of matrices with a term, such as a mask, beside it, or of a pair."""
    if a.dim() == 1 or addend.dim() < a.dim() or not all(map(gates.is_activation, (a, b))):
        return NotImplemented
    product = abs(alpha) * _product_of_two(gates, torch.matmul, a, b)
    masked = None if gates.is_activation(addend) else attention_mask(addend)
    return product + beta * addend if masked is None else torch.where(masked, -math.inf, product)


@form("grouped_mm")
def _grouped(gates: Gates, values: Tensor, weights: Tensor, offs: Any = None, **_: Any) -> Any:
    """Products of rows with the matrix of their expert, which torch has for small floats alone."""
    if offs is None or gates.is_activation(weights):
        return NotImplemented
    weights = _positive(weights)
    sizes = torch.diff(offs, prepend=offs.new_zeros(1)).tolist()
    parts = torch.split(values[: sum(sizes)], sizes)
    products = [part @ weight for part, weight in zip(parts, weights, strict=True)]
    return torch.cat([*products, values.new_zeros(len(values) - sum(sizes), weights.shape[-1])])


@form("addcmul")
def _sum_with_elementwise_product(
    gates: Gates, addend: Tensor, a: Tensor, b: Tensor, *, value: float = 1
) -> Any:
    if not any(map(gates.is_activation, (a, b))):
        return NotImplemented
    product = _product(gates, a, b)
    return addend + abs(value) * (a * b if product is NotImplemented else product)


@form("addcdiv")
def _sum_with_quotient(
    gates: Gates, addend: Tensor, a: Tensor, b: Tensor, *, value: float = 1
) -> Any:
    if not any(map(gates.is_activation, (a, b))):
        return NotImplemented
    quotient = _quotient(gates, a, b)
    return addend + abs(value) * (a / b if quotient is NotImplemented else quotient)


@form("lerp")
def _interpolated(gates: Gates, start: Tensor, end: Tensor, weight: Any) -> Any:
    if not gates.is_activation(weight):
        return NotImplemented
    return gates.through(lambda opened: opened * start + opened * end, weight, 1.0)


@form("einsum")
def _einsum(gates: Gates, equation: Any, *operands: Any) -> Any:
    """Factors in torch's usual form, two of which at most are activations."""
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    active = [place for place, part in enumerate(operands) if gates.is_activation(part)]
    if not isinstance(equation, str) or len(active) > 2:
        return NotImplemented
    parts = [part if place in active else _positive(part) for place, part in enumerate(operands)]
    if len(active) == 1:
        return torch.einsum(equation, *parts)

    def product(a: Tensor, b: Tensor) -> Tensor:
        parts[active[0]], parts[active[1]] = a, b
        return torch.einsum(equation, *parts)

    return _product_of_two(gates, product, parts[active[0]], parts[active[1]])


@form("scaled_dot_product_attention")
def _attention(
    gates: Gates,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    active = gates.is_activation(query), gates.is_activation(key)
    if not any(active):
        return NotImplemented
    if enable_gqa:
        key, value = (
            part.repeat_interleave(query.shape[-3] // part.shape[-3], -3) for part in (key, value)
        )
    keys = key.mT
    if all(active):
        logits = _product_of_two(gates, torch.matmul, query, keys)
    else:
        logits = _positive(query) @ keys if active[1] else query @ _positive(keys)
    kept = torch.ones_like(logits.detach())
    if is_causal:
        kept = kept.tril()
    if attn_mask is not None:
        allowed = attn_mask if attn_mask.dtype == torch.bool else attn_mask.detach() > _MASKED
        kept = kept * allowed
    if not gates.is_activation(value):
        return (logits * kept) @ _positive(value)
    weights = _equal_weights(kept)
    return gates.through(lambda opened: opened @ value, logits, weights)


MAPS = frozenset({
    "matmul", "mm", "bmm", "mv", "dot", "vdot", "inner", "outer", "ger", "tensordot", "bilinear",
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d",
})  # fmt: skip
"""Functions linear in their first two arguments, by torch's names."""


def linear_map(gates: Gates, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return a linear map by something other than a weight that is searched."""
    if len(args) < 2:
        return NotImplemented
    a, b, *rest = args
    active = gates.is_activation(a), gates.is_activation(b)
    if not all(active):
        a, b = (a, _positive(b)) if active[0] else (_positive(a), b)
        same = a is args[0] and b is args[1]
        return NotImplemented if same else func(a, b, *rest, **kwargs)
    if func.__name__ == "bilinear":
        return _bilinear(gates, a, b, *rest, **kwargs)
    # A bias comes third; with one, torch's function is no product of the first two.
    if rest[:1] not in ([], [None]) or kwargs.get("bias") is not None:
        return NotImplemented
    return _product_of_two(gates, lambda one, other: func(one, other, *rest, **kwargs), a, b)


def _bilinear(
    gates: Gates, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Return a linear map of the products of all pairs of two activations."""
    pairs = _product_of_two(gates, torch.mul, a.unsqueeze(-1), b.unsqueeze(-2))
    return F.linear(pairs.flatten(-2), weight.flatten(1), bias)

"""Linear forms: what a network's operations become while its synaptic flow is measured.

Synaptic flow counts the paths through a weight, as a linear network has them. So an operation that
saturates, gates, or divides by what it measures is replaced, in modules, functional calls and
methods of tensors alike. An activation is a tensor that depends on the network's input; operations
on parameters alone, such as a weight's own normalization, stay as they are.

======================================================  =========================================
Operation                                               Linear form
======================================================  =========================================
elementwise function (ReLU6, GELU, sigmoid, exp, ...)   identity
activation times a gate: sigmoid, tanh, erf, ReLU6      the activation times the gate's largest
  and clamps of small range, 1 - gate, 0.5 * gate, ...    value, mostly 1
softmax                                                 identity, 0 where a mask left a negative
softmax times activations (attention)                   their mean over what is not masked
activation divided by another, or times its inverse     the activation
``a * b`` of two other activations                      geometric mean ``sqrt(a * b)``
matrix product of two other activations                 ``sqrt`` of the mean product
activation minus its own mean or largest value          the activation
``a - b``, ``c - a``, ``c / a``, c no activation        ``a + b``, ``c + a``, ``c * a``
``c * a`` and linear maps by c, c no activation         by the absolute value of c
GLU                                                     its first half
norm over the sample (layer, group, instance, RMS)      ``a * weight + bias``
variance, deviation, vector norm, logsumexp             mean
LSTM, GRU, RNN                                          their sums, all gates open
cast to another floating type                           identity
======================================================  =========================================

So squeeze-and-excitation leaves its trunk as it is, attention passes the mean of its values (as a
softmax does where no key stands out, and each row still sums to 1), and the layers that make gates,
queries and keys are scored by the flow through what they scale (`pabzip.search.gates`). A product
of two activations neither of which is bounded, as in SwiGLU, has no gate to open: its geometric
mean is of degree 1 as a linear layer is, and 0 where a factor is, as the product.

What is linear on a network without negative values already (convolution, batch norm by running
statistics, pooling, residual sums, ReLU) computes the same bits as without these forms. What has
no form computes as it is; `pabzip.search.linearized` warns of it by name.

Source: Tanaka et al. 2020, Section 4, for linear activations; the forms of products, norms,
attention and recurrent layers are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from pabzip.search.gates import DIVISOR, POSITIVE, SIGNED, WEIGHTS, Gates
from pabzip.search.recurrent_forms import recurrent_cell, recurrent_layer

_ELEMENTWISE = frozenset({
    "relu", "relu6", "leaky_relu", "rrelu", "prelu", "elu", "selu", "celu", "gelu", "silu",
    "mish", "threshold", "sigmoid", "hardsigmoid", "hardswish", "hardtanh", "hardshrink",
    "softshrink", "tanhshrink", "softplus", "softsign", "logsigmoid", "log_sigmoid",
    "log_softmax", "tanh", "sinh", "cosh", "tan", "asinh", "arcsinh", "acosh", "arccosh", "atanh",
    "arctanh", "asin", "arcsin", "acos", "arccos", "sin", "cos", "sinc", "atan", "arctan", "erf",
    "erfc", "erfinv", "logit", "expit", "exp", "expm1", "exp2", "log", "log1p", "log2", "log10",
    "sqrt", "rsqrt", "square", "pow", "ipow", "rpow", "float_power", "reciprocal", "clamp", "clip",
    "clamp_min", "clamp_max", "abs", "absolute", "neg", "negative", "round", "floor", "ceil",
    "trunc", "fix", "frac", "sign", "sgn", "normalize", "local_response_norm", "nan_to_num",
})  # fmt: skip
"""Functions that become the identity, by torch's names."""

_GATES = {
    **dict.fromkeys(("sigmoid", "expit", "hardsigmoid"), (1.0, POSITIVE)),
    **dict.fromkeys(("tanh", "erf", "softsign"), (1.0, SIGNED)),
    **dict.fromkeys(("atan", "arctan"), (math.pi / 2, SIGNED)),
    **dict.fromkeys(("rsqrt", "reciprocal"), (1.0, DIVISOR)),
    "relu6": (6.0, POSITIVE),
}
"""Largest value and rank of those functions that are gates as a factor."""

_LARGEST_CLAMP = 6.0
"""Bound of a clamp up to which it is a gate: ReLU6 is one in a hard sigmoid written out."""

_SAME_VALUES = frozenset({
    "view", "view_as", "reshape", "reshape_as", "expand", "expand_as", "broadcast_to", "repeat",
    "repeat_interleave", "tile", "unsqueeze", "squeeze", "permute", "transpose", "swapaxes",
    "swapdims", "movedim", "t", "T", "mT", "flatten", "unflatten", "contiguous", "clone",
    "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout",
    "getitem", "select", "narrow", "index_select", "chunk", "split", "tensor_split", "unbind",
    "roll", "flip", "interpolate", "upsample",
})  # fmt: skip
"""Functions that keep a gate what it is, by torch's names."""

_FORMS: dict[str, Callable[..., Any]] = {}
"""All other forms, by torch's name of what they replace."""


def linear_form(func: Any, args: Sequence[Any], kwargs: dict[str, Any], gates: Gates) -> Any:
    """Return what a call of torch with an activation gives on the linearized network.

    ``NotImplemented`` where the call is to run as it is.
    """
    name: str = getattr(func, "__name__", "")
    if name == "__get__":
        name = getattr(func.__self__, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    name = name.removeprefix("special_").removeprefix("linalg_").strip("_")
    if "input" in kwargs:
        args, kwargs = (kwargs["input"], *args), {k: v for k, v in kwargs.items() if k != "input"}
    if name in _ELEMENTWISE:
        found = next((v for v in (*args, *kwargs.values()) if gates.is_activation(v)), None)
        if in_place or found is None:
            form = args[0] if in_place else NotImplemented
        else:
            form = found.clone()  # a copy, since the caller may go on to write to either
        bound = _bound(name, args, kwargs)
        return form if bound is None or form is NotImplemented else gates.mark(form, *bound)
    if name in _MAPS:
        return _linear_map(gates, func, args, kwargs)
    if name in _SAME_VALUES:
        return _kept(gates, func, args, kwargs)
    if name not in _FORMS:
        return NotImplemented
    if not in_place:
        return _FORMS[name](gates, *args, **kwargs)
    # The backward pass may need what is about to be written over.
    before = gates.mark_as(args[0].clone(), args[0])
    form = _FORMS[name](gates, before, *args[1:], **kwargs)
    return form if form is NotImplemented else gates.mark_as(args[0].copy_(form), form)


def _bound(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[float, int] | None:
    """Return the largest value and the rank of an elementwise function that is a gate."""
    if name in {"pow", "float_power"}:
        exponent = args[1] if len(args) > 1 else kwargs.get("exponent")
        return (1.0, DIVISOR) if isinstance(exponent, Real) and exponent < 0 else None
    if name not in {"hardtanh", "clamp", "clip"}:
        return _GATES.get(name)
    lowest, highest = (-1.0, 1.0) if name == "hardtanh" else (None, None)
    lowest = args[1] if len(args) > 1 else kwargs.get("min_val", kwargs.get("min", lowest))
    highest = args[2] if len(args) > 2 else kwargs.get("max_val", kwargs.get("max", highest))
    if not isinstance(lowest, Real) or not isinstance(highest, Real):
        return None
    largest = max(abs(float(lowest)), abs(float(highest)))
    rank = POSITIVE if lowest >= 0 else SIGNED
    return (largest, rank) if 0 < largest <= _LARGEST_CLAMP else None


def _kept(gates: Gates, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return what a function of `_SAME_VALUES` gives, a gate if its argument is one."""
    gate = gates.of(args[0]) if args else None
    if gate is None:
        return NotImplemented
    found, opened = func(*args, **kwargs), func(gate.opened, *args[1:], **kwargs)
    if isinstance(found, Tensor):
        return gates.mark(found, opened, gate.rank)
    for one, its in zip(found, opened, strict=True):
        gates.mark(one, its, gate.rank)
    return found


def _form(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for the linear form of torch's functions with these names.

    A form is called with the `Gates` of the pass and then as torch's own function.
    """

    def add(form: Callable[..., Any]) -> Callable[..., Any]:
        _FORMS.update(dict.fromkeys(names, form))
        return form

    return add


_form("lstm", "gru", "rnn_tanh", "rnn_relu")(recurrent_layer)
_form("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")(recurrent_cell)


def _positive(constant: Any) -> Any:
    """Return the absolute value of a factor that is no activation; itself if that is the same."""
    if isinstance(constant, Tensor):
        if constant.is_complex() or (constant.is_floating_point() and bool((constant < 0).any())):
            return constant.abs()
        return constant
    return abs(constant) if isinstance(constant, Real) else constant


@_form("mul", "multiply")
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


@_form("div", "divide", "true_divide")
def _quotient(gates: Gates, a: Any, b: Any, **_: Any) -> Any:
    if gates.is_activation(b):
        if gates.is_activation(a):
            return gates.mark_as(gates.through(lambda opened: a * opened, b, 1.0), a)
        return _reversed_quotient(gates, b, a)
    positive, gate = _positive(b), gates.of(a)
    if gate is None:
        return NotImplemented if positive is b else a / positive
    return gates.mark(a / positive, gate.opened / positive, gate.rank)


@_form("rdiv", "rtruediv")
def _reversed_quotient(gates: Gates, a: Tensor, b: Any) -> Any:
    positive = _positive(b)
    result = a * positive
    return gates.mark(result, torch.as_tensor(positive, dtype=a.dtype, device=a.device), DIVISOR)


@_form("add")
def _sum(gates: Gates, a: Any, b: Any, *, alpha: float = 1) -> Any:
    if gates.is_activation(a) and gates.is_activation(b):
        return NotImplemented
    value, constant = (a, b) if gates.is_activation(a) else (b, a)
    gate = gates.of(value)
    if gate is not None:
        return gates.mark(a + alpha * b, gate.opened + _positive(constant), POSITIVE)
    masked = _masked(constant)
    return NotImplemented if masked is None else torch.where(masked, -math.inf, value)


def _masked(mask: Any) -> Tensor | None:
    """Return what an additive mask of attention masks, such as -inf or -100; None for no mask."""
    if not isinstance(mask, Tensor) or not mask.is_floating_point():
        return None
    low = mask <= -50
    return low if bool(low.any()) and bool((low | (mask == 0)).all()) else None


@_form("sub", "subtract")
def _difference(gates: Gates, a: Any, b: Any, *, alpha: float = 1) -> Any:
    if gates.is_activation(b):
        if not gates.is_activation(a):
            return _reversed_difference(gates, b, a, alpha=alpha)
        return a.clone() if _is_statistic_of(b, a) else a + abs(alpha) * b
    gate = gates.of(a)
    if gate is None:
        return NotImplemented
    below = (gate.opened - alpha * b).abs()
    highest = below if gate.rank == SIGNED else torch.maximum(below, _positive(alpha * b) + 0 * below)
    return gates.mark(a - alpha * b, highest, SIGNED)


@_form("rsub")
def _reversed_difference(gates: Gates, a: Tensor, b: Any, *, alpha: float = 1) -> Any:
    result, gate = b + abs(alpha) * a, gates.of(a)
    if gate is None:
        return result
    highest = _positive(b) + (gate.opened if gate.rank == SIGNED else 0 * gate.opened)
    return gates.mark(result, highest, POSITIVE)


def _is_statistic_of(value: Tensor, of: Tensor) -> bool:
    """Say whether a value is the mean or the largest value of a tensor."""
    node, source = value.grad_fn, of.grad_fn
    if node is None or source is None or type(node).__name__ not in _STATISTICS:
        return False
    measured = node.next_functions[0][0]
    # Before a step in place, a copy stands for the tensor.
    return measured is source or any(measured is node for node, _ in source.next_functions[:1])


_STATISTICS = {"MeanBackward0", "MeanBackward1", "AmaxBackward0", "MaxBackward0", "MaxBackward1"}


@_form("glu")
def _gated(gates: Gates, values: Tensor, dim: int = -1) -> Tensor:
    one, other = values.chunk(2, dim)
    return gates.through(lambda opened: one * opened, other, 1.0)


@_form("softmax", "softmin", "gumbel_softmax")
def _softmax(gates: Gates, values: Tensor, dim: Any = None, *_args: Any, **kwargs: Any) -> Tensor:
    if not isinstance(dim, int):  # torch's old default, or the temperature of gumbel_softmax
        dim = kwargs.get("dim") or (0 if values.dim() in {0, 1, 3} else 1)
    kept = values.detach() >= 0
    weights = _equal_weights(kept.to(values.dtype), dim)
    return gates.mark(torch.where(kept, values, 0.0), weights, WEIGHTS)


def _equal_weights(kept: Tensor, dim: int = -1) -> Tensor:
    """Return weights that are equal where ``kept`` is 1, and sum to 1."""
    return kept / kept.sum(dim, keepdim=True).clamp_min(1.0)


@_form("baddbmm", "addmm", "addbmm", "addmv", "addr")
def _sum_with_product(
    gates: Gates, addend: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1
) -> Any:
    """Product of a batch of matrices with a term, such as a mask, beside it, or of a pair."""
    if a.dim() == 1 or addend.dim() < a.dim() or not all(map(gates.is_activation, (a, b))):
        return NotImplemented
    product = abs(alpha) * _product_of_two(gates, torch.matmul, a, b)
    masked = None if gates.is_activation(addend) else _masked(addend)
    return product + beta * addend if masked is None else torch.where(masked, -math.inf, product)


@_form("addcmul")
def _sum_with_elementwise_product(
    gates: Gates, addend: Tensor, a: Tensor, b: Tensor, *, value: float = 1
) -> Any:
    if not any(map(gates.is_activation, (a, b))):
        return NotImplemented
    product = _product(gates, a, b)
    return addend + abs(value) * (a * b if product is NotImplemented else product)


@_form("addcdiv")
def _sum_with_quotient(
    gates: Gates, addend: Tensor, a: Tensor, b: Tensor, *, value: float = 1
) -> Any:
    if not any(map(gates.is_activation, (a, b))):
        return NotImplemented
    quotient = _quotient(gates, a, b)
    return addend + abs(value) * (a / b if quotient is NotImplemented else quotient)


@_form("lerp")
def _interpolated(gates: Gates, start: Tensor, end: Tensor, weight: Any) -> Any:
    if not gates.is_activation(weight):
        return NotImplemented
    return sum(gates.through(lambda opened, x=x: opened * x, weight, 1.0) for x in (start, end))


@_form("einsum")
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


@_form("scaled_dot_product_attention")
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
        allowed = attn_mask if attn_mask.dtype == torch.bool else attn_mask.detach() > -50
        kept = kept * allowed
    if not gates.is_activation(value):
        return (logits * kept) @ _positive(value)
    weights = _equal_weights(kept)
    return gates.through(lambda opened: opened @ value, logits, weights)


@_form("var", "std", "logsumexp")
def _spread(
    _: Gates,
    values: Tensor,
    dim: Any = None,
    *_args: Any,
    keepdim: bool = False,
    **_kwargs: Any,
) -> Tensor:
    return values.mean(None if isinstance(dim, bool) else dim, keepdim=keepdim)


@_form("norm", "vector_norm")
def _vector_norm(
    _: Gates,
    values: Tensor,
    order: Any = 2,
    dim: Any = None,
    keepdim: bool = False,
    **_kwargs: Any,
) -> Tensor:
    return values.mean(dim, keepdim=keepdim)


@_form("var_mean", "std_mean")
def _spread_and_mean(gates: Gates, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    return _spread(gates, *args, **kwargs), _spread(gates, *args, **kwargs)


@_form("layer_norm", "rms_norm", "group_norm")
def _norm(
    _: Gates,
    values: Tensor,
    sizes: Any,
    weight: Tensor | None = None,
    bias: Any = None,
    *_args: Any,
    **_kwargs: Any,
) -> Tensor:
    """Norm by the sample's statistics; group norm alone has a number, its groups, for ``sizes``."""
    bias = bias if isinstance(bias, Tensor) else None  # RMS norm has its eps there
    return _affine(values, weight, bias, channels=isinstance(sizes, int))


@_form("batch_norm", "instance_norm")
def _running_norm(
    _: Gates,
    values: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    by_sample: bool = False,
    *_args: Any,
    training: bool = False,
    use_input_stats: bool = False,
    **_kwargs: Any,
) -> Any:
    """Norm by the sample's statistics; with running ones it is linear already."""
    if running_mean is None or by_sample or training or use_input_stats:
        return _affine(values, weight, bias, channels=True)
    return NotImplemented


def _affine(
    values: Tensor, weight: Tensor | None, bias: Tensor | None, *, channels: bool = False
) -> Tensor:
    """Return ``values * weight + bias``, along the channels or along the last dimensions."""
    after = [1] * (values.dim() - 2) if channels else []
    values = values.clone() if weight is None else values * weight.reshape(*weight.shape, *after)
    return values if bias is None else values + bias.reshape(*bias.shape, *after)


@_form("to", "type", "type_as", "float", "double", "half", "bfloat16")
def _cast(gates: Gates, values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Floats stay what they are; so flows beyond the range of float32 do not overflow."""
    asked = (*args, *kwargs.values())
    if any(isinstance(part, torch.dtype) and not part.is_floating_point for part in asked):
        return NotImplemented
    if any(isinstance(part, Tensor) and not part.is_floating_point() for part in asked):
        return NotImplemented
    devices = [part for part in asked if isinstance(part, str | torch.device)]
    return gates.mark_as(values.to(devices[0]), values) if devices else values


_MAPS = frozenset({
    "matmul", "mm", "bmm", "mv", "dot", "vdot", "inner", "outer", "ger", "tensordot", "bilinear",
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d",
})  # fmt: skip
"""Functions linear in their first two arguments, by torch's names."""


def _linear_map(gates: Gates, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return a linear map by something other than a weight that is searched."""
    if len(args) < 2:
        return NotImplemented
    a, b, *rest = args
    active = gates.is_activation(a), gates.is_activation(b)
    if not all(active):
        a, b = (part if own else _positive(part) for part, own in zip(args, active))
        same = a is args[0] and b is args[1]
        return NotImplemented if same else func(a, b, *rest, **kwargs)
    # A bias comes third; with one, torch's function is no product of the first two.
    if func.__name__ != "bilinear" and (rest[:1] not in ([], [None]) or kwargs.get("bias") is not None):
        return NotImplemented
    return _product_of_two(gates, lambda one, other: func(one, other, *rest, **kwargs), a, b)

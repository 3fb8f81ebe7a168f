"""Linear forms: what a network's operations become while its synaptic flow is measured.

Synaptic flow counts the paths through a weight, as a linear network has them. So an operation that
saturates, gates, or divides by what it measures is replaced, in modules, functional calls and
methods of tensors alike. An activation is a tensor that depends on the network's input; operations
on parameters alone, such as a weight's own normalization, stay as they are.

======================================================  =========================================
Operation                                               Linear form
======================================================  =========================================
elementwise function (ReLU6, GELU, sigmoid, exp, ...)   identity
smaller or larger of ``a`` and ``c``, c no activation   ``a``
activation times a gate: sigmoid, tanh, erf, ReLU6      the activation times the gate's largest
  and clamps of small range, 1 - gate, 0.5 * gate, ...    value, mostly 1
softmax                                                 identity, 0 where a mask left a negative
softmax times activations (attention)                   their mean over what is not masked
activation divided by another, or times its inverse     the activation
``a * b`` of two other activations                      geometric mean ``sqrt(a * b)``
matrix product of two other activations                 ``sqrt`` of the mean product
activation minus its own mean or largest value          the activation
``a - b``, ``a - c``, ``c - a``, ``c / a``              ``a + b``, ``a + |c|`` twice, ``c * a``
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
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from pabzip.search.forms import FORMS, form
from pabzip.search.gates import DIVISOR, POSITIVE, SIGNED, Gates
from pabzip.search.product_forms import MAPS, linear_map
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

_IN_ORDER = dict.fromkeys((
    "input", "other", "normalized_shape", "num_groups", "end", "batch1", "mat1", "tensor1",
    "batch2", "mat2", "tensor2", "vec",
))  # fmt: skip
"""Keywords of torch's functions whose arguments come first, in the order that they come in."""

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


def linear_form(func: Any, args: Sequence[Any], kwargs: dict[str, Any], gates: Gates) -> Any:
    """Return what a call of torch with an activation gives on the linearized network.

    ``NotImplemented`` where the call is to run as it is.
    """
    name: str = getattr(func, "__name__", "")
    if name == "__get__":
        name = getattr(func.__self__, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    name = name.removeprefix("special_").removeprefix("linalg_").strip("_")
    if kwargs.keys() & _IN_ORDER:
        args = (*args, *(kwargs[key] for key in _IN_ORDER if key in kwargs))
        kwargs = {key: value for key, value in kwargs.items() if key not in _IN_ORDER}
    if name in _ELEMENTWISE:
        found = next((v for v in (*args, *kwargs.values()) if gates.is_activation(v)), None)
        if in_place or found is None:
            form = args[0] if in_place else NotImplemented
        else:
            form = found.clone()  # a copy, since the caller may go on to write to either
        bound = _bound(name, args, kwargs)
        return form if bound is None or form is NotImplemented else gates.mark(form, *bound)
    if name in MAPS:
        return linear_map(gates, func, args, kwargs)
    if name in _SAME_VALUES:
        return _kept(gates, func, args, kwargs)
    if name not in FORMS:
        return NotImplemented
    if not in_place:
        return FORMS[name](gates, *args, **kwargs)
    # The backward pass may need what is about to be written over.
    before = gates.mark_as(args[0].clone(), args[0])
    form = FORMS[name](gates, before, *args[1:], **kwargs)
    return form if form is NotImplemented else gates.mark_as(args[0].copy_(form), form)


def _bound(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[float, int] | None:
    """Return the largest value and the rank of an elementwise function that is a gate."""
    if name in {"pow", "float_power"}:
        exponent = args[1] if len(args) > 1 else kwargs.get("exponent")
        return (1.0, DIVISOR) if isinstance(exponent, Real) and float(exponent) < 0 else None
    if name not in {"hardtanh", "clamp", "clip"}:
        return _GATES.get(name)
    lowest, highest = (-1.0, 1.0) if name == "hardtanh" else (None, None)
    lowest = args[1] if len(args) > 1 else kwargs.get("min_val", kwargs.get("min", lowest))
    highest = args[2] if len(args) > 2 else kwargs.get("max_val", kwargs.get("max", highest))
    if not isinstance(lowest, Real) or not isinstance(highest, Real):
        return None
    lowest, largest = float(lowest), max(abs(float(lowest)), abs(float(highest)))
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


form("lstm", "gru", "rnn_tanh", "rnn_relu")(recurrent_layer)
form("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")(recurrent_cell)


@form("var", "std")
def _spread(
    _: Gates,
    values: Tensor,
    dim: Any = None,
    correction: Any = None,
    keepdim: bool = False,
    **_kwargs: Any,
) -> Tensor:
    return values.mean(None if isinstance(dim, bool) else dim, keepdim=keepdim)


@form("logsumexp")
def _largest(_: Gates, values: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    return values.mean(dim, keepdim=keepdim)


@form("norm", "vector_norm")
def _vector_norm(
    _: Gates,
    values: Tensor,
    order: Any = 2,
    dim: Any = None,
    keepdim: bool = False,
    **_kwargs: Any,
) -> Tensor:
    return values.mean(dim, keepdim=keepdim)


@form("var_mean", "std_mean")
def _spread_and_mean(gates: Gates, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    return _spread(gates, *args, **kwargs), _spread(gates, *args, **kwargs)


@form("layer_norm", "rms_norm", "group_norm")
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


@form("batch_norm", "instance_norm")
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


@form("to", "type", "type_as", "float", "double", "half", "bfloat16")
def _cast(gates: Gates, values: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Floats stay what they are; so flows beyond the range of float32 do not overflow."""
    asked = (*args, *kwargs.values())
    if any(isinstance(part, torch.dtype) and not part.is_floating_point for part in asked):
        return NotImplemented
    if any(isinstance(part, Tensor) and not part.is_floating_point() for part in asked):
        return NotImplemented
    devices = [part for part in asked if isinstance(part, torch.device)]
    devices += [torch.device(part) for part in asked if isinstance(part, str) and "." not in part]
    return gates.mark_as(values.to(devices[0]), values) if devices else values

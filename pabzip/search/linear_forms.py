"""Linear forms: what a network's operations become while its synaptic flow is measured.

Synaptic flow counts the paths through a weight, as a linear network has them. So an operation that
saturates, gates, or divides by what it measures is replaced, in modules and in functional calls
alike. An activation is a tensor that depends on the network's input; operations on parameters
alone, such as a weight's own normalization, stay as they are.

======================================================  =========================================
Operation                                               Linear form
======================================================  =========================================
elementwise function (ReLU6, GELU, sigmoid, exp, ...)   identity
softmax                                                 identity, 0 where a mask left a negative
``a * b``, ``a / b``, ``a - b`` of two activations      ``a + b``
``c - a``, ``c / a``, c no activation                   ``c + a``, ``c * a``
GLU                                                     sum of its halves
matrix product of two activations                       mean of ``a + b`` over the summed index
attention                                               its products and softmax as above, unmasked
norm over the sample (layer, group, instance, RMS)      ``a * weight + bias``
variance, deviation, vector norm, logsumexp             mean
LSTM, GRU, RNN                                          every gate is added to the state
======================================================  =========================================

The sum stands for a product because it is the product's expansion to first order at 1, but for a
constant: each factor passes as if the other, its gate, were open. So squeeze-and-excitation leaves
the flow of its trunk as it is, and its own weights are scored by what they add to it; attention
passes the mean of its values, and queries and keys are scored by what they add.

What is linear on a network without negative values already (convolution, batch norm by running
statistics, pooling, residual sums, ReLU) computes the same bits as without these forms. Parts of a
network in TorchScript and custom autograd functions compute as they are: torch shows their
operations to no one.

Source: Tanaka et al. 2020, Section 4, for linear activations; the forms of products, norms,
attention and recurrent layers are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IsActivation = Callable[[object], bool]
"""Says whether an argument depends on the network's input."""

_ELEMENTWISE = frozenset({
    "relu", "relu6", "leaky_relu", "rrelu", "prelu", "elu", "selu", "celu", "gelu", "silu",
    "mish", "threshold", "sigmoid", "hardsigmoid", "hardswish", "hardtanh", "hardshrink",
    "softshrink", "tanhshrink", "softplus", "softsign", "logsigmoid", "log_sigmoid",
    "log_softmax", "softmin", "gumbel_softmax", "tanh", "sin", "cos", "atan", "arctan", "erf",
    "expit", "exp", "expm1", "exp2", "log", "log1p", "log2", "sqrt", "rsqrt", "square", "pow",
    "rpow", "float_power", "reciprocal", "clamp", "clip", "clamp_min", "clamp_max", "abs",
    "absolute", "neg", "negative", "round", "floor", "ceil", "trunc", "sign", "normalize",
    "local_response_norm",
})  # fmt: skip
"""Functions that become the identity, by torch's names."""

_FORMS: dict[str, Callable[..., Any]] = {}
"""All other forms, by torch's name of what they replace."""


def linear_form(
    func: Any, args: Sequence[Any], kwargs: dict[str, Any], is_activation: IsActivation
) -> Any:
    """Return what a call of torch with an activation gives on the linearized network.

    ``NotImplemented`` where the call is to run as it is.
    """
    name: str = getattr(func, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    name = name.removeprefix("special_").removeprefix("linalg_").strip("_")
    if "input" in kwargs:
        args, kwargs = (kwargs["input"], *args), {k: v for k, v in kwargs.items() if k != "input"}
    if name in _ELEMENTWISE:
        if in_place:
            return args[0]
        found = next((value for value in (*args, *kwargs.values()) if is_activation(value)), None)
        # A copy, since the caller may go on to write to either.
        return NotImplemented if found is None else found.clone()
    if name not in _FORMS:
        return NotImplemented
    form = _FORMS[name](is_activation, *args, **kwargs)
    return args[0].copy_(form) if in_place and form is not NotImplemented else form


def _form(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for the linear form of torch's functions with these names.

    A form is called with `IsActivation` and then as torch's own function.
    """

    def add(form: Callable[..., Any]) -> Callable[..., Any]:
        _FORMS.update(dict.fromkeys(names, form))
        return form

    return add


@_form("mul", "multiply")
def _product(is_activation: IsActivation, a: Any, b: Any) -> Any:
    return a + b if is_activation(a) and is_activation(b) else NotImplemented


@_form("div", "divide", "true_divide")
def _quotient(is_activation: IsActivation, a: Any, b: Any, **_: Any) -> Any:
    if not is_activation(b):
        return NotImplemented
    return a + b if is_activation(a) else a * b


@_form("rdiv", "rtruediv")
def _reversed_quotient(_: IsActivation, a: Tensor, b: Any) -> Any:
    return a * b


@_form("sub", "subtract")
def _difference(is_activation: IsActivation, a: Any, b: Any, *, alpha: float = 1) -> Any:
    return a + abs(alpha) * b if is_activation(b) else NotImplemented


@_form("rsub")
def _reversed_difference(_: IsActivation, a: Tensor, b: Any, *, alpha: float = 1) -> Any:
    return b + abs(alpha) * a


@_form("glu")
def _gated(_: IsActivation, values: Tensor, dim: int = -1) -> Tensor:
    one, other = values.chunk(2, dim)
    return one + other


@_form("softmax")
def _softmax(_: IsActivation, values: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return values.clamp_min(0)


def _mean_of_sums(
    a: Tensor, b: Tensor, product: Callable[[Tensor, Tensor], Tensor] = torch.matmul
) -> Tensor:
    """Return the mean of ``a + b`` over the index that ``product`` sums over."""
    ones_a, ones_b = torch.ones_like(a), torch.ones_like(b)
    return (product(a, ones_b) + product(ones_a, b)) / product(ones_a, ones_b)


@_form("matmul", "mm", "bmm")
def _matrix_product(is_activation: IsActivation, a: Tensor, b: Tensor) -> Any:
    return _mean_of_sums(a, b) if is_activation(a) and is_activation(b) else NotImplemented


@_form("baddbmm")
def _sum_with_matrix_product(
    is_activation: IsActivation,
    addend: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> Any:
    product = _matrix_product(is_activation, a, b)
    return product if product is NotImplemented else beta * addend + alpha * product


@_form("einsum")
def _einsum(is_activation: IsActivation, equation: Any, *operands: Any) -> Any:
    """Two activations in torch's usual form; a sum over more than two factors stays as it is."""
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or len(operands) != 2 or not all(map(is_activation, operands)):
        return NotImplemented
    return _mean_of_sums(*operands, lambda a, b: torch.einsum(equation, a, b))


@_form("scaled_dot_product_attention")
def _attention(
    is_activation: IsActivation,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    active = [is_activation(part) for part in (query, key, value)]
    if not any(active[:2]):
        return NotImplemented
    if enable_gqa:
        key, value = (
            part.repeat_interleave(query.shape[-3] // part.shape[-3], -3) for part in (key, value)
        )
    keys = key.mT
    logits = _mean_of_sums(query, keys) if all(active[:2]) else query @ keys
    logits = logits * (1 / math.sqrt(query.shape[-1]) if scale is None else abs(scale))
    return _mean_of_sums(logits, value) if active[2] else logits @ value


@_form("var", "std", "logsumexp")
def _spread(
    _: IsActivation,
    values: Tensor,
    dim: Any = None,
    *_args: Any,
    keepdim: bool = False,
    **_kwargs: Any,
) -> Tensor:
    return values.mean(None if isinstance(dim, bool) else dim, keepdim=keepdim)


@_form("norm", "vector_norm")
def _vector_norm(
    _: IsActivation,
    values: Tensor,
    order: Any = 2,
    dim: Any = None,
    keepdim: bool = False,
    **_kwargs: Any,
) -> Tensor:
    return values.mean(dim, keepdim=keepdim)


@_form("var_mean", "std_mean")
def _spread_and_mean(is_activation: IsActivation, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    return _spread(is_activation, *args, **kwargs), _spread(is_activation, *args, **kwargs)


@_form("layer_norm", "rms_norm", "group_norm")
def _norm(
    _: IsActivation,
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
    _: IsActivation,
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


@_form("lstm", "gru", "rnn_tanh", "rnn_relu")
def _recurrent(_: IsActivation, values: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Recurrent layers of any depth and direction, as ``nn.LSTM`` and its like call them."""
    packed = isinstance(rest[0], Tensor) and not rest[0].is_floating_point()
    if packed:  # batch sizes come first; the batch is a single input here, so all of them are 1
        values = values[:, None]
        (state, weights, _, layers, _, _, both), batch_first = rest[1:], False
    else:
        state, weights, _, layers, _, _, both, batch_first = rest
    hidden, cell = state if isinstance(state, tuple) else (state, None)
    sequence = values.transpose(0, 1) if batch_first else values
    directions = 2 if both else 1
    size = len(weights) // (layers * directions)
    ends = []
    for layer in range(layers):
        outputs = []
        for number in range(layer * directions, (layer + 1) * directions):
            backwards = number % directions == 1
            now = hidden[number], None if cell is None else cell[number]
            found = []
            for step in sequence.flip(0) if backwards else sequence:
                now = _step(step, *now, *weights[number * size : (number + 1) * size])
                found.append(now[0])
            outputs.append(torch.stack(found[::-1] if backwards else found))
            ends.append(now)
        sequence = torch.cat(outputs, -1)
    result = sequence.transpose(0, 1) if batch_first else sequence
    last = (torch.stack(parts) for parts in zip(*ends, strict=True) if parts[0] is not None)
    return result[:, 0] if packed else result, *last


@_form("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def _recurrent_cell(_: IsActivation, values: Tensor, state: Any, *weights: Any) -> Any:
    hidden, cell = (state, None) if isinstance(state, Tensor) else state
    hidden, cell = _step(values, hidden, cell, *weights)
    return hidden if cell is None else (hidden, cell)


def _step(
    values: Tensor,
    hidden: Tensor,
    cell: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    weight_hr: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the hidden state and the cell after one step, all gates open.

    LSTM: ``c + i + f + g`` and ``c + o``; GRU: ``h + r + z + n``; a plain cell: its sum alone.
    """
    sums = F.linear(values, weight_ih, bias_ih) + F.linear(hidden, weight_hh, bias_hh)
    if cell is None:
        gates = sums.shape[-1] // hidden.shape[-1]
        return (sums if gates == 1 else hidden + sum(sums.chunk(gates, -1))), None
    into, forget, candidate, out = sums.chunk(4, -1)
    cell = cell + into + forget + candidate
    hidden = cell + out
    return hidden if weight_hr is None else F.linear(hidden, weight_hr), cell

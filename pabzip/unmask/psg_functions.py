"""Predictive sign gradients (PSG): settings, the quantizer, and layers that compute with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pabzip.errors import RecipeError
from pabzip.unmask.rule import check_not_negative

BEHAVIORS = ("all", "correct", "remove")
"""What becomes of small approximate weight gradients; see `PsgConfig`."""

INPUT_GRADIENTS = ("quantized", "exact")
"""Which gradient a layer hands on to those before it; see `PsgConfig`."""

QUANTIZERS = ("symmetric", "published")
"""How tensors are rounded to few bits; see `quantize`."""


@dataclass(frozen=True, slots=True)
class PsgConfig:
    """Bit-widths and thresholds of predictive sign gradients.

    Attributes:
        input_bits: bits of the layer's inputs in the backward pass, 2 to 32; 32 means exact.
        weight_bits: bits of the weights, likewise.
        gradient_bits: bits of the output gradients, likewise. The one that matters most: below 8
            training fails (Table 5).
        threshold: weight gradients of a magnitude below this are handled as ``behavior`` says. Too
            high and most are removed or, with ``"correct"``, paid for twice; zero is ``"all"``.
        behavior: ``"all"`` keeps small gradients as they are, ``"correct"`` replaces them by
            exact ones (a further product of full precision), ``"remove"`` sets them to zero, the
            choice of the paper.
        adaptive: whether ``threshold`` is relative to the largest magnitude in each layer's
            approximate weight gradient, as in the paper and its code; False takes it as it is.
        input_gradient: which gradient a layer hands on. ``"quantized"`` multiplies the quantized
            weight and output gradient, the paper's text; ``"exact"`` the exact ones, the published
            code, where quantization then touches weight gradients alone and ``weight_bits`` changes
            nothing. Errors of quantized ones add up from layer to layer: with 4 bits prefer exact.
        quantizer: ``"symmetric"``, ours, or ``"published"``, the code's; see `quantize`.

    Raises:
        RecipeError: a value out of range.

    Source: Peek-a-Boo, Sections 3.3 and 4.4, Table 5, and the code published with it, whose
    thresholds are relative where they are negative: its CIFAR command negates the given 1e-7, its
    ImageNet command gives -5e-7. Wang et al. 2019 (E2-Train).
    """

    input_bits: int = 8
    weight_bits: int = 8
    gradient_bits: int = 16
    threshold: float = 1e-7
    behavior: str = "remove"
    adaptive: bool = True
    input_gradient: str = "quantized"
    quantizer: str = "symmetric"

    def __post_init__(self) -> None:
        for name in ("input_bits", "weight_bits", "gradient_bits"):
            bits = getattr(self, name)
            if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 32:
                raise RecipeError(f"PSG: {name}: expected an integer from 2 to 32, found {bits!r}")
        check_not_negative("PSG", threshold=self.threshold)
        for name, choices in (
            ("behavior", BEHAVIORS),
            ("input_gradient", INPUT_GRADIENTS),
            ("quantizer", QUANTIZERS),
        ):
            found = getattr(self, name)
            if found not in choices:
                raise RecipeError(
                    f"PSG: {name}: expected one of {', '.join(choices)}, found {found!r}"
                )


def quantize(
    values: Tensor, bits: int, *, quantizer: str = "symmetric", role: str = "gradient"
) -> Tensor:
    """Round ``values`` to the levels that ``bits`` bits can tell apart.

    Zero is a level of both quantizers, so pruned weights stay zero, and signs never change.

    - ``"symmetric"``, with L = 2**(bits - 1) - 1 and s = max|values| / L: a value v becomes
      ``round(v / s) * s``, where round is to nearest even. That is 2L + 1 equally spaced levels,
      the outermost at the largest magnitude of the whole tensor; nothing saturates.
    - ``"published"``, with H = 2**(bits - 1) and a largest magnitude M: s = M / H and the levels
      are -H s to (H - 1) s; where no input is negative, s = M / (2 H) and they are 0 to
      (2 H - 1) s. Values beyond are cut off. M is the largest magnitude of the whole tensor for a
      gradient, of each filter (first dimension) for a weight, and for an input the mean over the
      batch (first dimension) of each sample's largest magnitude.

    Args:
        values: floating tensor of any shape.
        bits: 2 to 32; 32 returns ``values`` itself.
        quantizer: one of `QUANTIZERS`.
        role: what ``values`` are: ``"input"``, ``"weight"`` or ``"gradient"``. The symmetric
            quantizer treats all alike.

    Returns:
        Tensor of the same shape, dtype and device, detached. The arithmetic is float32 for half
        precision, whose results are then rounded to that dtype: there the levels are equally
        spaced but for that rounding, up to half a step of 8 bits in bfloat16 (`levels` has none).
        A value that is not finite makes all that share its scale NaN, so it cannot pass unseen.

    Source: Peek-a-Boo, Section 3.3, asks for "bit-quantized versions" and leaves the quantizer
    open. The symmetric one is our choice; the other is that of the code published with the paper.
    Deviation: there each layer is told by its network whether its inputs are unsigned (all of a
    ResNet or VGG but the first); here the inputs tell.
    """
    values = values.detach()
    if bits >= 32 or values.numel() == 0:
        return values
    whole, step = _whole(values, bits, quantizer, role)
    return whole.mul_(step).to(values.dtype)


def levels(
    values: Tensor, bits: int, *, quantizer: str = "symmetric", role: str = "gradient"
) -> tuple[Tensor, Tensor]:
    """Do what `quantize` does, but keep the levels apart from their scale.

    The levels are whole numbers, so a product of two such tensors is one of integers: exact, in
    whatever order it is summed up, as long as no sum passes the 24 bits of float32. For two
    operands of 8 bits that takes more than 1,040 terms, all of the largest magnitude. Half
    precision holds operands of 8 bits exactly too, and its products are summed up in float32.

    Returns:
        Tensor of the same shape, dtype and device, detached, and its unit, of float32 or wider: a
        tensor without dimensions, but for published weights, one for each filter. Their product is
        what `quantize` returns, but for rounding. In float16, whose largest number a sum of whole
        numbers soon passes, the levels are divided by the power of two that brings them below one,
        unsigned ones below two, which leaves them as exact.
    """
    values = values.detach()
    if bits >= 32 or values.numel() == 0:
        return values, values.new_ones((), dtype=torch.promote_types(values.dtype, torch.float32))
    whole, step = _whole(values, bits, quantizer, role)
    if values.dtype == torch.float16:
        whole.mul_(2.0 ** (1 - bits))
        step *= 2.0 ** (bits - 1)
    return whole.to(values.dtype), step


def largest_magnitude(values: Tensor) -> Tensor:
    """Return max|values| as a scalar tensor, NaN if there is one, in a single reading pass."""
    smallest, largest = torch.aminmax(values)
    return torch.maximum(smallest.neg(), largest)


def _whole(values: Tensor, bits: int, quantizer: str, role: str) -> tuple[Tensor, Tensor]:
    """Return a new tensor of the levels as whole numbers, float32 or wider, and their step."""
    wide = torch.promote_types(values.dtype, torch.float32)
    half = 2 ** (bits - 1)
    highest = None
    if quantizer == "published":
        largest, unsigned = _published_range(values, role, wide)
        count = torch.where(unsigned, 2 * half, half).to(wide)
        step, highest = largest / count, count - 1
    else:
        step = largest_magnitude(values).to(wide) / (half - 1)
    # An all-zero tensor has no scale of its own; any positive step maps it to zeros.
    step += step == 0
    # One new tensor, then in place: fresh memory costs more than the arithmetic on it.
    scaled = values.div(step) if values.dtype == wide else values.to(wide).div_(step)
    scaled.round_()
    if highest is not None:
        # Two bounds at once are far slower where one of them is a tensor.
        scaled.clamp_(max=highest).clamp_(min=-half)
    return scaled, step


def _published_range(values: Tensor, role: str, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the magnitude that the published quantizer scales by, and whether it is unsigned."""
    signed = torch.zeros((), dtype=torch.bool, device=values.device)
    if role == "gradient":
        return largest_magnitude(values).to(wide), signed
    rows = values.flatten(1) if values.dim() > 1 else values.unsqueeze(0)
    smallest, largest = rows.amin(1), rows.amax(1)
    largest = torch.maximum(smallest.neg(), largest).to(wide)
    if role == "weight":
        return largest.reshape(-1, *[1] * (values.dim() - 1)), signed
    return largest.mean(), (smallest >= 0).all()


Geometry = tuple[Any, ...] | None
"""Of a convolution: stride, padding, dilation, transposed, output padding and groups, as
``torch.convolution`` takes them. None for a linear map."""


class PsgFunction(torch.autograd.Function):
    """A linear map or a convolution whose gradients are products of quantized tensors.

    Source: Peek-a-Boo, Section 3.3.
    """

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        config: PsgConfig,
    ) -> Tensor:
        """Return the exact output."""
        if geometry is None:
            return F.linear(x, weight, bias)
        return torch.convolution(x, weight, bias, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Remember the exact tensors; they are quantized when the backward pass needs them."""
        x, weight, _, ctx.geometry, ctx.config = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of input, weight and bias; None for those not asked for."""
        # Read once: activation checkpointing hands its tensors out a single time.
        inputs, weight = ctx.saved_tensors
        config: PsgConfig = ctx.config
        wants_input, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        exact_input = wants_input and config.input_gradient == "exact"
        exact_weight = wants_weight and config.behavior == "correct"
        rough_input = wants_input and not exact_input
        of_input, exact = _gradients(
            gradient, inputs, weight, ctx.geometry, exact_input, exact_weight
        )
        predicted_input, of_weight = _predicted(
            gradient, inputs, weight, ctx.geometry, config, rough_input, wants_weight
        )
        if of_weight is not None:
            of_weight = _without_small(of_weight, exact, config)
        of_bias = None
        if wants_bias and ctx.geometry is None:
            of_bias = gradient.reshape(-1, gradient.shape[-1]).sum(0)
        elif wants_bias:
            of_bias = gradient.sum([0, *range(2, gradient.dim())])
        return of_input if exact_input else predicted_input, of_weight, of_bias, None, None


def _predicted(
    gradient: Tensor,
    x: Tensor,
    w: Tensor,
    geometry: Geometry,
    config: PsgConfig,
    wants_input: bool,
    wants_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of input and weight as products of quantized tensors.

    The operands are whole numbers, their scales multiplied afterwards (see `levels`).
    """
    if not (wants_input or wants_weight):
        return None, None
    rounded = partial(levels, quantizer=config.quantizer)
    g, unit = rounded(gradient, config.gradient_bits)
    x_unit = w_unit = unit
    if wants_weight:
        x, x_unit = rounded(x, config.input_bits, role="input")
    if wants_input:
        w, w_unit = rounded(w, config.weight_bits, role="weight")
        if w_unit.dim() > 0:  # a scale for each filter, over which the product sums
            w, w_unit = w_unit.mul(w).to(w.dtype), w_unit.new_ones(())
    of_input, of_weight = _gradients(g, x, w, geometry, wants_input, wants_weight)
    if of_input is not None:
        of_input.mul_(unit * w_unit)
    if of_weight is not None:
        of_weight.mul_(unit * x_unit)
    return of_input, of_weight


def _without_small(of_weight: Tensor, exact: Tensor | None, config: PsgConfig) -> Tensor:
    """Return the predicted weight gradient, its small values removed or exact, perhaps in place."""
    if config.behavior == "all":
        return of_weight
    limit = config.threshold * largest_magnitude(of_weight) if config.adaptive else config.threshold
    size = of_weight.abs()
    if exact is None:
        # A factor of 0 or 1 is several times faster on a CPU than filling through a mask.
        return of_weight.mul_(size.ge_(limit))
    return torch.where(size < limit, exact, of_weight)


def _gradients(
    g: Tensor, x: Tensor, w: Tensor, geometry: Geometry, wants_input: bool, wants_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of input and weight from ``g``, that of the output."""
    if not (wants_input or wants_weight):
        return None, None
    if geometry is not None:
        of_input, of_weight, _ = torch.ops.aten.convolution_backward(
            g, x, w, None, *geometry, (wants_input, wants_weight, False)
        )
        return of_input, of_weight
    of_input = g @ w if wants_input else None
    of_weight = g.reshape(-1, g.shape[-1]).T @ x.reshape(-1, x.shape[-1]) if wants_weight else None
    return of_input, of_weight


def psg_linear(
    config: PsgConfig,
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Do what ``torch.nn.functional.linear`` does, with predictive gradients."""
    inputs, weight, bias = _autocast(input, weight, bias)
    return PsgFunction.apply(inputs, weight, bias, None, config)  # type: ignore[no-any-return]


def psg_conv(
    config: PsgConfig,
    input: Tensor,  # noqa: A002 (a caller may name it, as in torch)
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    transposed: bool = False,
    output_padding: int | Sequence[int] = 0,
) -> Tensor:
    """Do what ``torch.nn.functional.conv1d``, ``conv2d`` and ``conv3d`` do, predictively."""
    inputs, dimensions = input, weight.dim() - 2
    dilation = _each(dilation, dimensions)
    if padding == "valid":
        padding = 0
    elif padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        padding = [total // 2 for total in totals]
        if any(total % 2 for total in totals):
            # An even kernel pads one more on the far side; F.pad counts from the last dimension.
            inputs = F.pad(
                inputs, [side for t in reversed(totals) for side in (t // 2, t - t // 2)]
            )
            padding = 0
    geometry = (
        _each(stride, dimensions),
        _each(padding, dimensions),
        dilation,
        transposed,
        _each(output_padding, dimensions),
        groups,
    )
    inputs, weight, bias = _autocast(inputs, weight, bias)
    # torch.convolution takes batches only, so a single input becomes a batch of one.
    single = inputs.dim() == weight.dim() - 1
    output: Tensor = PsgFunction.apply(
        inputs.unsqueeze(0) if single else inputs, weight, bias, geometry, config
    )
    return output.squeeze(0) if single else output


def psg_conv_transpose(
    config: PsgConfig,
    input: Tensor,  # noqa: A002 (a caller may name it, as in torch)
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Do what ``torch.nn.functional.conv_transpose1d`` to ``3d`` do, predictively."""
    return psg_conv(
        config, input, weight, bias, stride, padding, dilation, groups,
        transposed=True, output_padding=output_padding,
    )  # fmt: skip


def _autocast(
    inputs: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast as autocast would, where it is on; outside the functions, so autograd casts back."""
    kind = inputs.device.type
    # Of a device that knows no autocast, such as "meta", torch will not be asked.
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if not on or inputs.dtype == torch.float64:
        return inputs, weight, bias
    dtype = torch.get_autocast_dtype(kind)
    return inputs.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _each(value: Any, dimensions: int) -> list[int]:
    """Return one integer a dimension, from one for all or a sequence of them."""
    values = [value] if isinstance(value, int) else list(value)
    return values * dimensions if len(values) == 1 else values

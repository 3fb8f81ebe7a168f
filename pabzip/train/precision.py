"""In which arithmetic a network is trained, and how its tensors lie in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Precision:
    """Forward passes and losses in the precision of a recipe; gradients come out in float32.

    In half precision, products run under autocast. Weights, batch norm's statistics, the loss, the
    gradients of the weights and all that decides on signs stay float32, so a ticket trained this
    way packs as exactly as any other.

    float16 scales the loss, and gradients back, so that small gradients do not vanish. The scale is
    a power of two. Where gradients overflow it is halved, and after 2000 sound steps in a row
    doubled. A step that overflows sees gradients of zero, so Bop's moving averages only fade a
    little. It is all decided on the device; nothing waits for it, where torch's ``GradScaler``
    waits in every step. Once the scale is below 1 an overflow is no longer the scale's fault, and
    stays to be seen.

    Args:
        name: the recipe's ``precision``.
        channels_last: the recipe's.
        device: where the network is.

    Source: Micikevicius et al. 2018, Section 3.2; factors and interval are those of torch's
    ``GradScaler``. Its first scale of 2^16 is meant to overflow at once and so find its size; here
    that would be the step whose gradient Bop's average begins with, so ours begins at 2^10 and
    finds its size from below.
    """

    def __init__(self, name: str, channels_last: bool, device: torch.device):
        self._dtype = None if name == "float32" else getattr(torch, name)
        self._channels_last, self._device = channels_last, device
        self._scaling = self._dtype is torch.float16
        self._scale = torch.full((), 2.0**10, device=device)
        self._sound_steps = torch.zeros((), dtype=torch.int32, device=device)

    def lay_out(self, net: nn.Module) -> None:
        """Lay out the weights of convolutions as the recipe says, in place; no value changes."""
        if self._channels_last:
            net.to(memory_format=torch.channels_last)

    def logits(self, net: nn.Module, inputs: Tensor) -> Tensor:
        """Return the logits of ``inputs``, ``float32[B, ...]``: ``float32[B, classes]``."""
        if self._channels_last and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        if self._dtype is None:
            logits: Tensor = net(inputs)
            return logits
        with torch.autocast(self._device.type, dtype=self._dtype):
            logits = net(inputs)
        return logits.float()

    def scaled(self, loss: Tensor) -> Tensor:
        """Return what to differentiate in place of ``loss``: in float16, it times the scale."""
        return loss * self._scale if self._scaling else loss

    def unscale(self, gradients: Sequence[Tensor]) -> None:
        """Turn float32 gradients of `scaled` into those of the loss, in place, once a step.

        Where one overflowed, all become zero. The scale is adapted for the next step.
        """
        if not self._scaling:
            return
        overflow = torch.zeros((), device=self._scale.device)
        torch._amp_foreach_non_finite_check_and_unscale_(
            list(gradients), overflow, self._scale.reciprocal()
        )
        dropped = (overflow > 0) & (self._scale >= 1)
        for gradient in gradients:
            gradient.masked_fill_(dropped, 0.0)
        torch._amp_update_scale_(self._scale, self._sound_steps, overflow, 2.0, 0.5, 2000)

    def state_dict(self) -> dict[str, Any]:
        """Return the scale and the number of sound steps since it changed; nothing if unused."""
        if not self._scaling:
            return {}
        return {"scale": float(self._scale), "sound_steps": int(self._sound_steps)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict` of the same precision."""
        if self._scaling:
            self._scale.fill_(float(state["scale"]))
            self._sound_steps.fill_(int(state["sound_steps"]))

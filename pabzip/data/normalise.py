"""From pixels to network inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Normalisation:
    """``(pixels / peak - mean) / std`` by channel; its constants are put on the device once.

    Args:
        mean: of each channel, after division by ``peak``.
        std: likewise.
        peak: the pixel value of full intensity.
        device: of the pixels.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], peak: int, device: torch.device
    ):
        def constants(values: Sequence[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)

        self._mean, self._std, self._peak = constants(mean), constants(std), peak

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return ``float32[N, C, H, W]`` from ``uint8[N, C, H, W]`` on the device."""
        return (pixels.to(torch.float32) / self._peak - self._mean) / self._std

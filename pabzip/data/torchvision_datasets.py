"""Import torchvision's datasets, or say what to install."""

from __future__ import annotations

from typing import Any

from pabzip._torchvision import torchvision_part


def torchvision_datasets() -> Any:
    """Return the module ``torchvision.datasets``.

    Raises:
        MissingDependencyError: torchvision is missing or does not match torch.
    """
    return torchvision_part("datasets", purpose="data")

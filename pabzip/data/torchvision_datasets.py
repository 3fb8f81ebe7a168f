"""Import torchvision, or say what to install."""

from __future__ import annotations

from typing import Any

from pabzip.errors import MissingDependencyError


def torchvision_datasets() -> Any:
    """Return the module ``torchvision.datasets``.

    Raises:
        MissingDependencyError: torchvision is missing, or was built for another torch, which shows
            as an operator that does not exist or as a library that does not load.
    """
    try:
        from torchvision import datasets
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"data: expected torchvision, found no module named {error.name!r}; "
            "install it with: pip install 'pabzip[train]'"
        ) from error
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        import torch

        raise MissingDependencyError(
            f"data: expected a torchvision that matches torch {torch.__version__}, found one that "
            f"does not load ({error}); reinstall the two together with: "
            "pip install --upgrade --force-reinstall torch torchvision"
        ) from error
    return datasets

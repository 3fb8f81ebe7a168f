"""pabzip: neural networks as seeds.

A ticket is a seed, an init spec a weight, one code a weight in {0, +1, -1} and the few tensors
that were trained in the ordinary way. pabzip finds such tickets, packs them into ``.pabz`` files,
and regenerates every weight bit for bit.

The public names, nothing else. Each is imported on first use, so ``import pabzip`` loads neither
torch nor onnx, and reading a file needs neither.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pabzip._version import __version__
from pabzip.errors import FormatError, PabzError

if TYPE_CHECKING:
    from pabzip import data, export, formats, models, runtime, search, seeds, train, unmask
    from pabzip.export.onnx import export_onnx
    from pabzip.init import Seeding, attach_seeding, init_, seeded_parameters, seeding
    from pabzip.packing import pack
    from pabzip.runtime.arrays import load_arrays, open  # noqa: A004
    from pabzip.runtime.ticket_session import load_session
    from pabzip.runtime.torch_module import load, load_into, load_state_dict
    from pabzip.seeds import InitSpec
    from pabzip.ticket import DenseTensor, SeededTensor, Ticket, TiedTensor
    from pabzip.train.checkpoint import load_checkpoint, save_checkpoint

_HOMES = {
    "DenseTensor": "pabzip.ticket",
    "InitSpec": "pabzip.seeds",
    "SeededTensor": "pabzip.ticket",
    "Seeding": "pabzip.init",
    "Ticket": "pabzip.ticket",
    "TiedTensor": "pabzip.ticket",
    "attach_seeding": "pabzip.init",
    "export_onnx": "pabzip.export.onnx",
    "init_": "pabzip.init",
    "load": "pabzip.runtime.torch_module",
    "load_arrays": "pabzip.runtime.arrays",
    "load_checkpoint": "pabzip.train.checkpoint",
    "load_into": "pabzip.runtime.torch_module",
    "load_session": "pabzip.runtime.ticket_session",
    "load_state_dict": "pabzip.runtime.torch_module",
    "open": "pabzip.runtime.arrays",
    "pack": "pabzip.packing",
    "save_checkpoint": "pabzip.train.checkpoint",
    "seeded_parameters": "pabzip.init",
    "seeding": "pabzip.init",
}
_PACKAGES = (
    "data", "export", "formats", "models", "runtime", "search", "seeds", "train", "unmask",
)  # fmt: skip

__all__ = [
    "DenseTensor",
    "FormatError",
    "InitSpec",
    "PabzError",
    "SeededTensor",
    "Seeding",
    "Ticket",
    "TiedTensor",
    "__version__",
    "attach_seeding",
    "data",
    "export",
    "export_onnx",
    "formats",
    "init_",
    "load",
    "load_arrays",
    "load_checkpoint",
    "load_into",
    "load_session",
    "load_state_dict",
    "models",
    "open",
    "pack",
    "runtime",
    "save_checkpoint",
    "search",
    "seeded_parameters",
    "seeding",
    "seeds",
    "train",
    "unmask",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"pabzip.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'pabzip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))

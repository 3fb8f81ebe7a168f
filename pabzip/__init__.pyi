from . import (
    data,
    export,
    formats,
    models,
    packing,
    runtime,
    search,
    seeds,
    supermask,
    train,
    unmask,
)
from ._version import __version__ as __version__
from .checkpoint import load_checkpoint, save_checkpoint
from .coverage import InitReport
from .errors import BaseFileError, FormatError, PabzError
from .export.onnx import export_onnx, load_session
from .formats import DeltaTensor, DenseTensor, SeededTensor, TernaryTensor, TiedTensor
from .init import (
    Seeding,
    attach_seeding,
    dense_parameters,
    init_,
    init_report,
    seeded_parameters,
    seeding,
)
from .packing.pack import pack, save_file
from .random import rand, randn, signs
from .runtime.loaders import load, load_arrays, load_file, load_into, open  # noqa: A004
from .seeds.spec import InitSpec
from .ticket import Ticket, TicketReport
from .train.evaluation import Evaluation, evaluate

__all__ = [
    "BaseFileError",
    "DeltaTensor",
    "DenseTensor",
    "Evaluation",
    "FormatError",
    "InitReport",
    "InitSpec",
    "PabzError",
    "SeededTensor",
    "Seeding",
    "TernaryTensor",
    "Ticket",
    "TicketReport",
    "TiedTensor",
    "__version__",
    "attach_seeding",
    "data",
    "dense_parameters",
    "evaluate",
    "export",
    "export_onnx",
    "formats",
    "init_",
    "init_report",
    "load",
    "load_arrays",
    "load_checkpoint",
    "load_file",
    "load_into",
    "load_session",
    "models",
    "open",
    "pack",
    "packing",
    "rand",
    "randn",
    "runtime",
    "save_checkpoint",
    "save_file",
    "search",
    "seeded_parameters",
    "seeding",
    "seeds",
    "signs",
    "supermask",
    "train",
    "unmask",
]

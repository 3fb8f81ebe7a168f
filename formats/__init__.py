"""The .pabz file format: container, header, coders, dense tensors, one validator.

SPEC.md beside this file is normative. Importing this package loads numpy; numba is loaded with the
first codes, not with a header.
"""

from pabzip.formats.atomic import open_atomic
from pabzip.formats.coder import AUTO
from pabzip.formats.container import MAGIC, VERSION
from pabzip.formats.contents import (
    Contents,
    Header,
    Scalar,
    StoredEntry,
    StoredTensor,
    Tensor,
    gather,
)
from pabzip.formats.delta import DeltaEntry, DeltaTensor
from pabzip.formats.delta_base import Base
from pabzip.formats.dense import DenseEntry, DenseTensor, bfloat16_to_float32, rounded
from pabzip.formats.digest import state_sha256
from pabzip.formats.huffman import huffman_bytes
from pabzip.formats.limits import ARCHITECTURES, DENSE_TYPES, GENERATOR, HALF_TYPES
from pabzip.formats.reader import Reader
from pabzip.formats.report import breakdown, report
from pabzip.formats.seeded import SeededEntry, SeededTensor, regenerated
from pabzip.formats.sources import open_source
from pabzip.formats.ternary import TernaryEntry, TernaryTensor
from pabzip.formats.tied import TiedEntry, TiedTensor, resolve, resolved
from pabzip.formats.writer import EncodedFile, encode_ticket, save, verify
from pabzip.registry import CODERS

__all__ = [
    "ARCHITECTURES",
    "AUTO",
    "CODERS",
    "DENSE_TYPES",
    "GENERATOR",
    "HALF_TYPES",
    "MAGIC",
    "VERSION",
    "Base",
    "Contents",
    "DeltaEntry",
    "DeltaTensor",
    "DenseEntry",
    "DenseTensor",
    "EncodedFile",
    "Header",
    "Reader",
    "Scalar",
    "SeededEntry",
    "SeededTensor",
    "StoredEntry",
    "StoredTensor",
    "Tensor",
    "TernaryEntry",
    "TernaryTensor",
    "TiedEntry",
    "TiedTensor",
    "bfloat16_to_float32",
    "breakdown",
    "encode_ticket",
    "gather",
    "huffman_bytes",
    "open_atomic",
    "open_source",
    "regenerated",
    "report",
    "resolve",
    "resolved",
    "rounded",
    "save",
    "state_sha256",
    "verify",
]

"""Random weights as an exact function of (seed, stream, place): the same bits on every machine.

Philox4x32-10 gives the random bits (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011), integer arithmetic shapes them, and one rounding and one multiplication make them float32.
Importing this package loads numpy alone; numba and triton are loaded when first used.
"""

from pabzip.seeds.frozen import Frozen
from pabzip.seeds.generation import BACKENDS, magnitudes, regenerate, weights
from pabzip.seeds.packed import pack_codes, unpack_codes
from pabzip.seeds.spec import DISTRIBUTIONS, SCHEMES, InitSpec, check_seed, scheme_spec

__all__ = [
    "BACKENDS",
    "DISTRIBUTIONS",
    "SCHEMES",
    "Frozen",
    "InitSpec",
    "check_seed",
    "magnitudes",
    "pack_codes",
    "regenerate",
    "scheme_spec",
    "unpack_codes",
    "weights",
]

"""Unmask: learning the signs of a ticket, and the cheap gradients that suffice for it."""

from pabzip.unmask.bop import Bop
from pabzip.unmask.decay import AdaptivityDecay
from pabzip.unmask.psg import PsgHandle, apply_psg, remove_psg
from pabzip.unmask.psg_config import PsgConfig
from pabzip.unmask.quantise import quantise

__all__ = [
    "AdaptivityDecay",
    "Bop",
    "PsgConfig",
    "PsgHandle",
    "apply_psg",
    "quantise",
    "remove_psg",
]

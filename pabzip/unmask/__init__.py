"""Unmask: learning the signs of a ticket, and the cheap gradients that suffice for it."""

from pabzip.unmask.bop import Bop
from pabzip.unmask.decay import AdaptivityDecay
from pabzip.unmask.latent import LatentSigns
from pabzip.unmask.psg import PsgHandle, apply_psg, remove_psg
from pabzip.unmask.psg_config import PsgConfig
from pabzip.unmask.quantise import quantise
from pabzip.unmask.signsgd import SignSgd

__all__ = [
    "AdaptivityDecay",
    "Bop",
    "LatentSigns",
    "PsgConfig",
    "PsgHandle",
    "SignSgd",
    "apply_psg",
    "quantise",
    "remove_psg",
]

"""Unmask: learning the signs of a ticket, and the cheap gradients that suffice for it."""

from pabzip._optional import require

require("torch", extra="torch", purpose="pabzip.unmask")

from pabzip.unmask.bop import AdaptivityDecay, Bop
from pabzip.unmask.latent import LatentSigns
from pabzip.unmask.psg import PsgHandle, apply_psg, remove_psg
from pabzip.unmask.psg_functions import PsgConfig, quantize
from pabzip.unmask.signsgd import SignSgd

__all__ = [
    "AdaptivityDecay",
    "Bop",
    "LatentSigns",
    "PsgConfig",
    "PsgHandle",
    "SignSgd",
    "apply_psg",
    "quantize",
    "remove_psg",
]

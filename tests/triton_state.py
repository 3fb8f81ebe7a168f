"""Print the SHA-256 of a ticket's state as Triton regenerates it; run by `test_sha256`.

The digest is written here from formats/SPEC.md alone. ``TRITON_INTERPRET`` counts only if it is set
before triton is imported, hence a process of its own.
"""

from __future__ import annotations

import hashlib
import struct
import sys

import torch

from pabzip.seeds import cuda, pack_codes
from pabzip.ticket import Ticket


def main(path: str, device: str) -> None:
    """Hash every tensor of ``path``, the seeded ones through Triton on ``device``."""
    state = hashlib.sha256()
    with Ticket.open(path) as ticket:
        for name in ticket.names:
            if ticket.kind(name) == "seeded":
                packed = torch.from_numpy(pack_codes(ticket.codes(name))).to(device)
                shape = ticket.shape(name)
                drawn = cuda.regenerate(
                    ticket.seed, ticket.spec(name), packed, shape, device=device
                )
                values = drawn.cpu().numpy()
            else:
                values = ticket.dense(name).values
            text, dtype = name.encode(), ticket.dtype(name).encode()
            state.update(struct.pack("<I", len(text)) + text)
            state.update(struct.pack("<B", len(dtype)) + dtype)
            state.update(struct.pack(f"<B{values.ndim}Q", values.ndim, *values.shape))
            state.update(values.tobytes())
    sys.stdout.write(state.hexdigest())


if __name__ == "__main__":
    main(*sys.argv[1:])

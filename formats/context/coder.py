"""The coder ``context``: what the decoder already knows of a tensor predicts its mask.

The seed gives every magnitude, and a mask found by SynFlow, SNIP or magnitude is nearly a function
of them. So the file holds a few factors a channel, in a side stream that all tensors share, the few
bits that prediction leaves open, and the signs. SPEC.md states every byte.

This module is light; the encoder and the decoder, and numba with them, are loaded on use.
"""

from __future__ import annotations

from collections.abc import Sequence

from pabzip.errors import FormatError
from pabzip.formats.checks import shown
from pabzip.formats.coder import Decoder, OnTensor
from pabzip.formats.entries import SeededEntry
from pabzip.formats.tensors import SeededTensor


class Context:
    """`pabzip.formats.coder.Coder` that predicts masks from magnitudes."""

    name = "context"
    shares_side = True

    def check_length(self, entry: SeededEntry, length: int) -> None:
        """Check that the payload has room for the plain signs at most.

        What a payload needs at least follows from the side stream, and is checked with it.

        Raises:
            FormatError: it has more bytes than any encoder would use.
        """
        most = 2 * entry.count + 16
        if length > most:
            raise FormatError(
                f"tensor {shown(entry.name)}",
                f"expected at most {most} bytes of codes for {entry.count} weights, found {length}",
            )

    def encode(
        self,
        seed: int,
        tensors: Sequence[SeededTensor],
        on_tensor: OnTensor | None = None,
    ) -> tuple[list[bytes], bytes]:
        """Return one payload a tensor, and the side stream."""
        from pabzip.formats.context.encoder import encode_tensors

        return encode_tensors(seed, tensors, on_tensor)

    def decoder(self, seed: int, entries: Sequence[SeededEntry], side: bytes) -> Decoder:
        """Read the side stream.

        Raises:
            FormatError: it is damaged, or does not fit the entries.
        """
        from pabzip.formats.context.decoder import ContextDecoder

        return ContextDecoder(seed, entries, side)

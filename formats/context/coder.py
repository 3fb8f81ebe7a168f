"""The `context` coder: predicts the mask from the magnitudes that the seed gives.

The seed gives every magnitude, and a mask found by SynFlow, SNIP or magnitude is nearly a function
of them. So the file holds a few factors a channel, in a side stream that all tensors share, the few
bits that prediction leaves open, and the signs. SPEC.md states every byte.

This module is light: the encoder and the decoder, and numba with them, are loaded on use.
"""

from __future__ import annotations

from collections.abc import Sequence

from pabzip.errors import FormatError
from pabzip.formats.coder import Decoder, OnTensor, Spent
from pabzip.formats.limits import tensor_place
from pabzip.formats.seeded import SeededEntry, SeededTensor
from pabzip.registry import register_coder


@register_coder("context", shares_side=True)
class Context:
    """`pabzip.formats.coder.Coder` that predicts masks from magnitudes."""

    def check_length(self, entry: SeededEntry, length: int) -> None:
        """Check that the payload has room for the plain signs at most.

        What a payload needs at least follows from the side stream, and is checked with it.
        """
        most = 2 * entry.count + 16
        if length > most:
            raise FormatError(
                tensor_place(entry.name),
                f"expected at most {most} bytes of codes for {entry.count} weights, found {length}",
            )

    def encode(
        self, seed: int, tensors: Sequence[SeededTensor], on_tensor: OnTensor | None = None
    ) -> tuple[list[bytes], bytes]:
        """Return one payload per tensor, and the side stream."""
        from pabzip.formats.context.encoder import encode_tensors

        return encode_tensors(seed, tensors, on_tensor)

    def decoder(self, seed: int, entries: Sequence[SeededEntry], side: bytes) -> Decoder:
        """Read the side stream, and return what decodes the tensors that it describes."""
        from pabzip.formats.context.decoder import ContextDecoder

        return ContextDecoder(seed, entries, side)

    def breakdown(self, tensors: Sequence[tuple[SeededEntry, int]], side: bytes) -> list[Spent]:
        """Split chunks by their description, and the side stream by what each tensor takes of it.

        Signs that are coded together with the mask count with the bits that their probability
        gives them.
        """
        from pabzip.formats.context.side_information import SideInformation

        information = SideInformation(side)
        sign_bits, ends = [], [0.0]
        for entry, _ in tensors:
            sign_bits.append(information.tensor(entry.shape, entry.learned_survivors).sign_bits)
            ends.append(information.stream.used_bits)
        information.stream.close("side stream")
        places = [round(len(side) * end / ends[-1]) for end in ends]
        return [
            Spent.of(length, sign_bits=bits, factors=places[at + 1] - places[at])
            for at, (bits, (_, length)) in enumerate(zip(sign_bits, tensors, strict=True))
        ]

"""Write a file: encode every section, then the header that gives their lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from pabzip.formats.coder import OnTensor
from pabzip.formats.coders import AUTO, encode_codes
from pabzip.formats.container import CHECKSUM_BYTES, checksum, encode_header
from pabzip.formats.dense import encode_group, group_sizes
from pabzip.formats.entries import Coding, Contents, DenseGroup, Header
from pabzip.formats.scales import stored_dense
from pabzip.formats.tensors import SeededTensor, Tensor


@dataclass(frozen=True, slots=True)
class EncodedFile:
    """A file in memory, compressed.

    Attributes:
        header: what it declares.
        start: its bytes before the first section.
        payloads: of its sections, in order.
    """

    header: Header
    start: bytes
    payloads: tuple[bytes, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.start) + sum(len(part) + CHECKSUM_BYTES for part in self.payloads)

    def write(self, stream: BinaryIO) -> None:
        """Write the file to a binary stream, which may take it in pieces (a pipe, say).

        Raises:
            OSError: the stream cannot take all of it.
        """
        write_all(stream, self.start)
        for payload in self.payloads:
            write_all(stream, payload)
            write_all(stream, checksum(payload))


def encode(
    contents: Contents,
    tensors: Sequence[Tensor],
    sha256: str,
    *,
    coder: str = AUTO,
    on_tensor: OnTensor | None = None,
) -> EncodedFile:
    """Encode a ticket.

    Args:
        contents: what the ticket holds; its entries are those of ``tensors``.
        tensors: in the order of the network's state, checked.
        sha256: of the regenerated state.
        coder: for the codes of every seeded tensor; ``"auto"`` takes the smallest for each.
        on_tensor: told the name of each seeded tensor that is encoded, from any thread.

    Raises:
        FormatError: the ticket breaks a rule of the format.
        PackError: no such coder.
    """
    seeded = [tensor for tensor in tensors if isinstance(tensor, SeededTensor)]
    dense = list(stored_dense(tensors))
    coded = encode_codes(contents.seed, seeded, coder, on_tensor)
    groups, payloads = [], []
    start = 0
    for count in group_sizes(contents.dense):
        encoding, payload = encode_group(dense[start : start + count])
        groups.append(DenseGroup(count, encoding, len(payload)))
        payloads.append(payload)
        start += count
    codings = tuple(map(Coding, coded.coders, map(len, coded.payloads)))
    header = Header(contents, sha256, codings, tuple(groups), len(coded.side))
    side = (coded.side,) if coded.side else ()
    return EncodedFile(header, encode_header(header), (*side, *coded.payloads, *payloads))


def write_all(stream: BinaryIO, data: bytes | memoryview) -> None:
    """Write every byte; an unbuffered stream may take fewer at a time.

    Raises:
        OSError: the stream takes nothing.
    """
    rest = memoryview(data)
    while rest:
        taken = stream.write(rest)
        if not taken:
            raise OSError(f"expected the stream to take {len(rest)} bytes, it took none")
        rest = rest[taken:]

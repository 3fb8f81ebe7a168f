"""What the decoding kernels know of the tables and of the format, as Triton wants it.

A Triton kernel may read no globals but ``tl.constexpr`` values. The fields are those of
`pabzip.runtime.decode_tables.CHUNK_FIELDS`.
"""

from __future__ import annotations

import triton.language as tl

from pabzip.formats.context import buckets, chunk_reader, predictor
from pabzip.runtime import decode_tables
from pabzip.runtime.decode_tables import CHUNK_FIELDS

PIECE = tl.constexpr(decode_tables.PIECE)
REACH = tl.constexpr(buckets.REACH)
ROW_FIELDS = tl.constexpr(decode_tables.ROW_FIELDS)
FIELDS = tl.constexpr(len(CHUNK_FIELDS))
FIELD_COUNT = tl.constexpr(CHUNK_FIELDS.index("count"))
FIELD_BEGIN = tl.constexpr(CHUNK_FIELDS.index("begin"))
FIELD_END = tl.constexpr(CHUNK_FIELDS.index("end"))
FIELD_FIRST_PIECE = tl.constexpr(CHUNK_FIELDS.index("piece"))
FIELD_STREAM = tl.constexpr(CHUNK_FIELDS.index("stream"))
FIELD_KIND = tl.constexpr(CHUNK_FIELDS.index("kind"))
FIELD_FACTOR = tl.constexpr(CHUNK_FIELDS.index("factor"))
FIELD_SCORED = tl.constexpr(CHUNK_FIELDS.index("scored"))
FIELD_FIRST = tl.constexpr(CHUNK_FIELDS.index("first"))
FIELD_LAST = tl.constexpr(CHUNK_FIELDS.index("last"))
FIELD_CHANCES = tl.constexpr(CHUNK_FIELDS.index("chances"))
FIELD_SIGNS = tl.constexpr(CHUNK_FIELDS.index("signs"))
FIELD_FLIP_CHANCE = tl.constexpr(CHUNK_FIELDS.index("flip_chance"))
FIELD_CODED = tl.constexpr(CHUNK_FIELDS.index("coded"))
FIELD_PLAIN = tl.constexpr(CHUNK_FIELDS.index("plain"))
FIELD_SURVIVORS = tl.constexpr(CHUNK_FIELDS.index("survivors"))
FIELD_OUT = tl.constexpr(CHUNK_FIELDS.index("out"))

SIGNS_PLAIN = tl.constexpr(predictor.SIGNS_PLAIN)
SIGNS_CODED = tl.constexpr(predictor.SIGNS_CODED)
FINE = tl.constexpr(chunk_reader.FINE)
WRONG_COUNT = tl.constexpr(chunk_reader.WRONG_COUNT)
WRONG_LENGTH = tl.constexpr(chunk_reader.WRONG_LENGTH)
WRONG_PADDING = tl.constexpr(chunk_reader.WRONG_PADDING)

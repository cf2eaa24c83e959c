"""Numbers that both sides agree on: Python, which writes records, and kernels, which read them."""

from __future__ import annotations

# A record: words of 64 bits.
CODE, PARTS, JOINED = 0, 1, 2  # its kernel, its parts, how many later records are worked on together with it
HEADER_WORDS, OPERANDS = 3, 13
RECORD_WORDS = HEADER_WORDS + OPERANDS
assert RECORD_WORDS == 16, "two cache lines; the executor steps from record to record by this"

# The control words of a team: a cache line each, numbered here.
LINE_BYTES = 64
TICKETS, DONE, RECORD, RUNNING, LIMIT, YIELD, ASLEEP = range(7)  # from ASLEEP on one for each helper
LEFT_BITS = 24  # of the ticket word, for the parts left to take; the rest counts records

# Weights and activations.
BLOCK = 32  # columns that share a scale
QUADS = {"q4_0": 4, "q8_0": 8}  # four-byte words of a stored block, behind its f16 scale
DENSE = {"f32": 0, "f16": 1, "bf16": 2}  # kinds kept row by row
DENSE_HEIGHT = 4  # rows of a dense weight taken together
X_SCALE, X_SEED, X_BYTES = BLOCK, BLOCK + 4, BLOCK + 8  # 32 activations: bytes, f32 scale, i32 seed; and all

SPAN = 256  # positions in a tile of attention
PIECE = 4096  # values in a part of a pointwise op

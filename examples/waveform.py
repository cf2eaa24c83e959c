"""Words under the sound they were heard in: a column is 80 ms, a word ends where it was heard to end.

python examples/waveform.py [RECORDING]
"""

import sys
from itertools import cycle

import numpy as np

from pipeline import load
from pipeline.ends.file import FileSource
from stages import Text

BARS = " ▁▂▃▄▅▆▇█"
COLUMN = 1280  # samples at 16 kHz


def bars(blocks: list[np.ndarray]) -> str:
    """One character per block, as high as the block is loud."""
    loudness = np.array([np.sqrt(np.mean(np.square(block))) for block in blocks])
    return "".join(BARS[round(8 * level)] for level in np.sqrt(loudness / loudness.max()))


def words(pieces: tuple[Text, ...]) -> list[str]:
    """Two rows, taken in turn, so that neighbours do not collide."""
    rows = ["", ""]
    for piece, row in zip(pieces, cycle((0, 1)), strict=False):
        word = piece.text.strip()
        rows[row] = (rows[row] and rows[row] + " ").ljust(piece.span.stop // COLUMN - len(word)) + word
    return rows


if __name__ == "__main__":
    source = FileSource(sys.argv[1] if len(sys.argv) > 1 else "examples/audio/default.flac", block_ms=80)
    rate, blocks = source.open().rate, list(source.blocks())
    with load("voxtral") as run:
        print("\n".join([bars(blocks), *words(run.transcribe(np.concatenate(blocks), rate).pieces)]))

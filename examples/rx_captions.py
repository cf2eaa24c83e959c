"""Captions inside an Rx pipeline of one's own: blocks of samples in, a line that grows with every word out.

python examples/rx_captions.py [RECORDING]

Each stage is an operator. The portable backend keeps tensors on the host, so no wire stands between two.
"""

import sys
from collections.abc import Iterable

import numpy as np
import reactivex as rx
from reactivex import operators as ops

from pipeline import load, operator
from pipeline.ends.file import FileSource
from stages import pcm


def captions(blocks: Iterable[np.ndarray], rate_hz: int) -> rx.Observable[str]:
    """The caption so far, each time a word has been heard."""
    with load("voxtral", params={"backend": "portable"}) as run:
        chain = [operator(stage) for stage in run.plan.stages(pcm(rate_hz)).values()]
    return rx.from_iterable(blocks).pipe(
        *chain,
        ops.flat_map(lambda packet: rx.from_iterable(packet.data)),
        ops.scan(lambda caption, piece: caption + piece.text, ""),
        ops.map(str.strip),
    )


if __name__ == "__main__":
    source = FileSource(sys.argv[1] if len(sys.argv) > 1 else "examples/audio/default.flac", block_ms=80)
    captions(source.blocks(), source.open().rate).subscribe(print)

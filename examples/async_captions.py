"""Words of audio that arrives bit by bit, as from a socket, while the event loop stays free for the rest.

python examples/async_captions.py [RECORDING]
"""

import asyncio
import sys
from collections.abc import AsyncIterator

import numpy as np

from pipeline import load
from pipeline.ends.file import FileSource


async def arriving(source: FileSource) -> AsyncIterator[np.ndarray]:
    """Stands for a socket: blocks of 80 ms, each a moment after the last."""
    for block in source.blocks():
        yield block
        await asyncio.sleep(0.001)


async def words(path: str) -> AsyncIterator[tuple[float, str]]:
    """When each word ended, in seconds, and the word."""
    source = FileSource(path, block_ms=80)
    rate = source.open().rate
    with load("voxtral") as run:
        async for piece in run.stream(arriving(source), rate):
            yield piece.span.stop / 16_000, piece.text


async def main(path: str) -> None:
    async for seconds, word in words(path):
        print(f"{seconds:6.2f} s {word}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "examples/audio/default.flac"))

"""One stage in a program of one's own, with NumPy alone: the mel of a sound that climbs, drawn as text.

python examples/embed_mel.py
"""

from collections.abc import Iterator

import numpy as np

from stages import Mel, bind, pcm

RATE, SECONDS, COLUMNS = 16_000, 2.0, 64


def sweep() -> np.ndarray:
    """A tone from 200 Hz to 7 kHz, every octave in the same time."""
    hertz = np.geomspace(200, 7000, int(RATE * SECONDS))
    return np.sin(2 * np.pi * np.cumsum(hertz) / RATE).astype(np.float32)


def loudest_bands(samples: np.ndarray, block: int = 1000) -> Iterator[int]:
    """The loudest of the 128 mel bands, 100 times a second, as the samples come in."""
    mel = bind(Mel(pcm(RATE)))
    for start in range(0, len(samples), block):
        for packet in mel.step(samples[start : start + block]):
            yield from packet.data[0].argmax(axis=1)  # [frames, 128]
    for packet in mel.flush():
        yield from packet.data[0].argmax(axis=1)


if __name__ == "__main__":
    for frame, band in enumerate(loudest_bands(sweep())):
        if frame % 8 == 0:
            print(f"{frame / 100:5.2f} s {'█' * (COLUMNS * (int(band) + 1) // 128)}")

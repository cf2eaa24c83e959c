"""Raw PCM from standard input: what `arecord -t raw`, `ffmpeg -f s16le` or `rtl_fm` writes into a pipe."""

from __future__ import annotations

from pipeline.ends.file import FileSource


def stdin_source(
    *,
    rate_hz: int = 16_000,
    format: str = "s16le",
    channels: int = 1,
    block_ms: float = 80.0,
    pace: str | float = "asap",
    channel: int | None = None,
) -> FileSource:
    """A `FileSource` of headerless samples on standard input, in short blocks, since its writer may be live.

    Raises
    ------
    GraphError   at once, if an option makes no sense
    """
    return FileSource(
        "-",
        block_ms=block_ms,
        pace=pace,
        channel=channel,
        raw_rate_hz=rate_hz,
        raw_format=format,
        raw_channels=channels,
    )

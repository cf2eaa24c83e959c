"""A microphone, through PortAudio: the one source that cannot wait."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from pipeline.ends.blocks import BLOCK_MS, Mixdown
from pipeline.errors import GraphError, SourceError
from stages.stage import Port, pcm

RATE_HZ = 16_000  # what both models' front ends end in; a device that gives it saves a resampling
SILENCE_S = 2.0  # a running device calls every few milliseconds; one that has not for so long is gone
WAKING_S = 6.0  # before its first call a device may take its time; a suspended PulseAudio one takes 2 s
HELD_S = 30.0  # audio kept for a reader that has stopped reading, before the newest is dropped
POLL_S = 0.1  # how soon `close` and a vanished device are noticed
OVERRUNS = ("drop", "error")

INSTALL_PORTAUDIO = {
    "linux": "apt install libportaudio2 (or dnf install portaudio)",
    "darwin": "brew install portaudio",
    "win32": "pip install --force-reinstall sounddevice",
}


class Backlog:
    """Blocks from PortAudio's thread, bounded: what finds no room is dropped, counted and owed as silence."""

    def __init__(self, blocks: int):
        self.lost = 0  # samples
        self._queue: queue.Queue[tuple[np.ndarray, int]] = queue.Queue(blocks)
        self._owed = 0

    def put(self, frames: np.ndarray) -> None:
        """Take [frames, channels]; never waits."""
        try:
            self._queue.put_nowait((frames, self._owed))
            self._owed = 0
        except queue.Full:
            self._owed += len(frames)
            self.lost += len(frames)

    def get(self, timeout_s: float) -> tuple[np.ndarray, int] | None:
        """The next block and how many samples are missing before it; None if none came in time."""
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None


class MicSource:
    """A live input device, mono.

    Parameters
    ----------
    device : its number or part of its name, as `list_devices` shows them; by default the system's own choice
    block_ms : audio per block
    window_s, overrun : how far the engine may fall behind, and what then happens: `drop` the oldest audio or
        end with an `error`; applied by the intake
    rate_hz : the rate to ask the device for; by default 16 kHz, or the device's own if it does not take that
    channel : the one to hear, counted from 1; by default the mean of all

    `lost` counts dropped samples: a block for every overflow the device reports (it does not say how much),
    and what this source dropped itself, which it replaces by as much silence.

    Raises
    ------
    GraphError    at once, if an option makes no sense
    SourceError   from `open`: no PortAudio, no such device, or it refuses; from `blocks`: it has gone away
    """

    live = True
    duration_s: float | None = None

    def __init__(
        self,
        *,
        device: int | str | None = None,
        block_ms: float = 80.0,
        window_s: float = 2.0,
        overrun: str = "drop",
        rate_hz: int | None = None,
        channel: int | None = None,
    ):
        if not BLOCK_MS[0] <= block_ms <= BLOCK_MS[1]:
            raise GraphError(f"a block is 1 ms to 60 s long, not {block_ms!r} ms")
        if not window_s * 1000 >= block_ms:
            raise GraphError(f"a window of {window_s!r} s does not hold one block of {block_ms!r} ms")
        if overrun not in OVERRUNS:
            raise GraphError(f"overrun is one of {', '.join(OVERRUNS)}, not {overrun!r}")
        if channel is not None and channel < 1:
            raise GraphError(f"channels are counted from 1, not {channel!r}")
        self.device, self.block_ms, self.rate_hz, self.channel = device, block_ms, rate_hz, channel
        self.window_s, self.overrun = window_s, overrun
        self.label = "the default microphone" if device is None else f"microphone {device!r}"
        self.notes: list[str] = []
        self._stream: Any = None
        self._backlog = Backlog(1)
        self._overflowed = 0
        self._stop = threading.Event()
        self._closing = threading.Lock()  # PortAudio must not be asked twice
        self._ended = threading.Event()

    @property
    def lost(self) -> int:
        """Samples dropped so far."""
        return self._overflowed + self._backlog.lost

    def open(self) -> Port:
        """Find the device, agree on a rate and start it."""
        sound = _sounddevice()
        index, info = _find(sound, self.device)
        self.label = f"microphone {info['name']!r}"
        channels = self._channels(int(info["max_input_channels"]))
        rate = _agree(sound, index, info, channels, self.rate_hz, self.label)
        block = max(1, round(self.block_ms * rate / 1000))
        self._backlog = Backlog(max(2, int(HELD_S * rate / block)))
        try:
            self._stream = sound.InputStream(
                device=index,
                channels=channels,
                samplerate=rate,
                blocksize=block,
                dtype="float32",
                callback=self._heard,
                finished_callback=self._ended.set,
            )
            self._stream.start()
        except sound.PortAudioError as error:
            said = _words(error)
            raise SourceError(f"{self.label}: cannot start it ({said}); is it in use elsewhere?") from error
        return pcm(rate)

    def blocks(self) -> Iterator[np.ndarray]:
        """Mono blocks [samples] as they are heard, until `close`."""
        assert self._stream is not None or self._stop.is_set(), "open a source before reading its blocks"
        mix = Mixdown(self.channel)
        patience_s = WAKING_S
        while (heard := self._next(patience_s)) is not None:
            frames, gap = heard
            while gap:
                silence = np.zeros(min(gap, len(frames)), np.float32)
                gap -= len(silence)
                yield silence
            yield mix(frames)
            patience_s = SILENCE_S
        self.notes += mix.note()

    def close(self) -> None:
        """Stop the device; a thread inside `blocks` sees the end."""
        self._stop.set()
        with self._closing:
            stream, self._stream = self._stream, None
        if stream is not None:
            stream.close(ignore_errors=True)

    def _channels(self, offered: int) -> int:
        """How many to open: enough for the one asked for, or two for a mean; some devices claim 64."""
        if self.channel is None:
            return min(offered, 2)
        if self.channel > offered:
            raise SourceError(f"{self.label}: channel {self.channel} is not one of its {offered}")
        return self.channel

    def _next(self, patience_s: float) -> tuple[np.ndarray, int] | None:
        """The next device block and the gap before it; None once closed."""
        waited_s = 0.0
        while not self._stop.is_set():
            heard = self._backlog.get(POLL_S)
            if heard is not None:
                return heard
            waited_s += POLL_S
            if not self._stop.is_set() and (self._ended.is_set() or waited_s >= patience_s):
                self.close()
                raise SourceError(
                    f"{self.label} stopped delivering audio; was it unplugged, or its sound server stopped?"
                )
        return None

    def _heard(self, frames: np.ndarray, count: int, _time: Any, status: Any) -> None:
        """PortAudio's own thread: copy and go."""
        if status.input_overflow:
            self._overflowed += count
        self._backlog.put(frames.copy())


def list_devices() -> str:
    """A table of the input devices: number, name, channels, rate; a star marks the default.

    Raises
    ------
    SourceError   if PortAudio or its Python package is missing
    """
    sound = _sounddevice()
    default = sound.default.device[0]
    apis = [api["name"] for api in sound.query_hostapis()]
    rows = [
        f"{'*' if index == default else ' '} {index:3d}  {info['name']}  ({apis[info['hostapi']]}, "
        f"{info['max_input_channels']} ch, {info['default_samplerate']:.0f} Hz)"
        for index, info in enumerate(sound.query_devices())
        if info["max_input_channels"] > 0
    ]
    return "\n".join(rows) if rows else "no input device found"


def _sounddevice() -> ModuleType:
    try:
        import sounddevice  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise SourceError("microphone: sounddevice is missing; pip install 'headrace[mic]'") from error
    except OSError as error:  # the package is there, the library it wraps is not
        cure = INSTALL_PORTAUDIO.get(sys.platform, "install PortAudio")
        raise SourceError(f"microphone: the PortAudio library is missing; {cure}") from error
    return sounddevice


def _find(sound: ModuleType, device: int | str | None) -> tuple[int, dict[str, Any]]:
    """Number and description of an input device."""
    inputs = {n: info for n, info in enumerate(sound.query_devices()) if info["max_input_channels"] > 0}
    if not inputs:
        raise SourceError("microphone: no input device found; is one plugged in, is the sound server up?")
    known = ", ".join(f"{n}: {info['name']!r}" for n, info in inputs.items())
    if device is None:
        chosen = [sound.default.device[0]] if sound.default.device[0] in inputs else list(inputs)[:1]
    elif isinstance(device, int) or device.isdigit():
        chosen = [int(device)] if int(device) in inputs else []
    else:
        exact = [n for n, info in inputs.items() if info["name"] == device]
        chosen = exact or [n for n, info in inputs.items() if device.lower() in info["name"].lower()]
    if not chosen:
        raise SourceError(f"microphone {device!r}: there is no such input device; there are {known}")
    if len(chosen) > 1:
        names = ", ".join(f"{n}: {inputs[n]['name']!r}" for n in chosen)
        raise SourceError(f"microphone {device!r}: that fits several devices, {names}; give its number")
    return chosen[0], inputs[chosen[0]]


def _agree(
    sound: ModuleType, index: int, info: dict[str, Any], channels: int, asked_hz: int | None, label: str
) -> int:
    """A rate the device takes: the one asked for, else 16 kHz, else its own."""
    own = round(info["default_samplerate"])
    refusal: Exception | None = None
    for rate in [asked_hz] if asked_hz is not None else [RATE_HZ, own]:
        try:
            sound.check_input_settings(device=index, channels=channels, samplerate=rate, dtype="float32")
            return rate
        except (sound.PortAudioError, ValueError) as error:
            refusal = error
    wanted = f"{asked_hz} Hz" if asked_hz is not None else f"{RATE_HZ} nor {own} Hz"
    raise SourceError(f"{label}: it does not take {wanted} ({_words(refusal)}); its own rate is {own} Hz")


def _words(error: Exception | None) -> str:
    """PortAudio's sentence out of sounddevice's tuple."""
    return str(error.args[0] if error is not None and error.args else error).lower()

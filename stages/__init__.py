"""Stages: audio, time, text and models, without threads, sockets, YAML or Rx."""

from stages.audio.mel import Mel
from stages.audio.normalize import Normalize
from stages.audio.pad import Pad
from stages.audio.resample import Resample
from stages.audio.segment import Segment
from stages.errors import ClockError, ConfigError, FileAbsent, FormatError, StageError, WeightsError
from stages.packet import Cut, Packet, Span, Text
from stages.stage import Bound, Port, Stage, bind, pcm

__all__ = [
    "Bound", "ClockError", "ConfigError", "Cut", "FileAbsent", "FormatError", "Mel", "Normalize", "Packet",
    "Pad", "Port", "Resample", "Segment", "Span", "Stage", "StageError", "Text", "WeightsError", "bind",
    "pcm",
]

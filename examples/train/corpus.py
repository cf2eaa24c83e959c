"""Speech on disk: utterances, speakers, and the time of every word and phone.

A corpus folder holds `segments.tsv` (utt_id, speaker, file, start_sample, end_sample, text) beside
FLAC files of 16 kHz.
Forced alignment by pocketsphinx gives the times; it runs once and is kept in a cache file.
"""

from __future__ import annotations

import csv
import multiprocessing
import pickle
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile

SAMPLE_RATE = 16000
ALIGN_TAIL = np.zeros(SAMPLE_RATE // 2, np.int16)  # without it the aligner loses the last word
TEST_SPEAKERS = frozenset([
    "an4:fbbh", "an4:fwxs", "an4:mcen", "an4:mmsh", "an4:mtje", "barista:bar09", "barista:bar14",
])
PHONES = [
    "SIL", "AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY", "F", "G", "HH", "IH",
    "IY", "JH", "K", "L", "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W",
    "Y", "Z", "ZH", "NOISE",
]

Span = tuple[str, float, float]  # name, start and end in seconds


@dataclass(frozen=True, slots=True)
class Utterance:
    name: str
    speaker: str  # "an4:fash"
    text: str
    pcm: np.ndarray  # int16, 16 kHz
    words: tuple[Span, ...] = ()
    phones: tuple[Span, ...] = ()

    @property
    def corpus(self) -> str:
        return self.speaker.partition(":")[0]


def load_corpora(root: Path, cache: Path) -> list[Utterance]:
    """Every aligned utterance of `an4`, `barista` and `wakewords` under `root`."""
    if cache.exists():
        return pickle.loads(cache.read_bytes())
    found = [u for folder in ("an4", "barista") for u in read_segments(root / folder / "segments.tsv")]
    for listing in sorted((root / "wakewords").glob("*.tsv")):
        found += read_segments(listing)
    aligned = align_all(found)
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_bytes(pickle.dumps(aligned))
    return aligned


def read_segments(listing: Path) -> list[Utterance]:
    """The utterances of one `segments.tsv`, not yet aligned."""
    audio: dict[str, np.ndarray] = {}
    found = []
    with listing.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            if row["file"] not in audio:
                audio[row["file"]] = read_pcm(listing.parent / row["file"])
            pcm = audio[row["file"]][int(row["start_sample"]) : int(row["end_sample"])]
            found.append(
                Utterance(row["utt_id"], f"{listing.parent.name}:{row['speaker']}", row["text"].lower(), pcm)
            )
    return found


def read_manifest(root: Path) -> list[Utterance]:
    """The utterances of a `transcripts.tsv` (file, text, speaker, ...), named by their path."""
    with (root / "transcripts.tsv").open(newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines, delimiter="\t") if row["file"].count("/") == 1]
    return [
        Utterance(
            row["file"],
            f"{Path(row['file']).parent}:{row['speaker']}",
            row["text"].lower(),
            read_pcm(root / row["file"]),
        )
        for row in rows
    ]


def read_pcm(path: Path) -> np.ndarray:
    """Mono int16 samples; 16 kHz or nothing."""
    pcm, rate = soundfile.read(path, dtype="int16", always_2d=True)
    if rate != SAMPLE_RATE:
        raise ValueError(f"{path.name}: expected {SAMPLE_RATE} Hz, found {rate}; resample it first")
    return pcm[:, 0]


def align_all(utterances: Iterable[Utterance], processes: int = 2) -> list[Utterance]:
    """Utterances with word and phone times; those that cannot be aligned are left out."""
    with multiprocessing.Pool(processes) as pool:
        done = pool.map(align, list(utterances), chunksize=16)
    return [u for u in done if u is not None]


def align(utterance: Utterance) -> Utterance | None:
    """Word times, then the phones inside the words; None where the words are not found."""
    import pocketsphinx

    global _decoder
    if _decoder is None:
        _decoder = pocketsphinx.Decoder(lm=None, loglevel="FATAL", samprate=SAMPLE_RATE)
    sound = np.concatenate((utterance.pcm, ALIGN_TAIL)).tobytes()
    try:
        _decoder.set_align_text(utterance.text)
        run_decoder(sound)
        words = [
            (s.word, s.start_frame / 100, (s.end_frame + 1) / 100)
            for s in _decoder.seg() or ()
            if s.word[0] not in "<["
        ]
    except RuntimeError:
        return None
    if [plain(word) for word, _, _ in words] != utterance.text.split():
        return None
    phones = align_phones(sound) or [phone for word in words for phone in even_phones(*word)]
    return replace(utterance, words=tuple((plain(w), a, b) for w, a, b in words), phones=tuple(phones))


def align_phones(sound: bytes) -> list[Span]:
    """Phones of the words found by the pass before; empty where the aligner gives up, which is one in ten."""
    try:
        _decoder.set_alignment()
        run_decoder(sound)
        return [
            (phone.name, phone.start / 100, (phone.start + phone.duration) / 100)
            for word in _decoder.get_alignment()
            for phone in word
        ]
    except RuntimeError:
        return []


def even_phones(word: str, start: float, end: float) -> list[Span]:
    """The word's phones from the dictionary, all of one length."""
    names = _decoder.lookup_word(word).split()
    step = (end - start) / len(names)
    return [(name, start + i * step, start + (i + 1) * step) for i, name in enumerate(names)]


def plain(word: str) -> str:
    """ "two(2)" is the second pronunciation of two."""
    return word.partition("(")[0]


_decoder = None  # one per worker process: loading the acoustic model takes longer than an utterance


def run_decoder(sound: bytes) -> None:
    _decoder.start_utt()
    _decoder.process_raw(sound, full_utt=True)
    _decoder.end_utt()


def split(utterances: list[Utterance]) -> tuple[list[Utterance], list[Utterance]]:
    """Training utterances, and those kept for the last figures."""
    return [u for u in utterances if not is_test(u)], [u for u in utterances if is_test(u)]


def is_test(utterance: Utterance) -> bool:
    """By speaker; the wake words name no speaker, so one clip in sixteen, and the figure is worth less."""
    if utterance.corpus == "wakewords":
        return utterance.name.startswith("0")
    return utterance.speaker in TEST_SPEAKERS

"""The built-in model on speakers it never heard: the right words, the same ones live and offline."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kernels import open_backend
from kernels.quant import pack
from pipeline.clock import VirtualTime
from pipeline.ends.memory import Memory, MemorySource
from pipeline.run import Run, load
from pipeline.tools.quantize import Piece, write_weights
from stages import Mel, Packet, Pad, bind, pcm
from stages.voxtral.adapter import Adapter
from stages.voxtral.decoder import Decoder
from stages.voxtral.encoder import Encoder
from stages.voxtral.names import TRANSFORMERS, open_checkpoint
from tests.tiny import halves, transformers_config

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "audio"
MODEL = ROOT / "graphs" / "models" / "small-voxtral"
with (EXAMPLES / "transcripts.tsv").open(encoding="utf-8") as table:
    RECORDINGS = [(row["file"], row["text"]) for row in csv.DictReader(table, delimiter="\t")]
TIE = 1e-4  # of the largest logit: where the official top two lie closer, either may win


@pytest.fixture(scope="module")
def run() -> Run:
    return load("file", params={"weights": str(MODEL)})


@cache
def samples(name: str) -> np.ndarray:
    audio, rate = soundfile.read(EXAMPLES / name, dtype="float32")
    assert rate == 16_000 and audio.ndim == 1
    return audio


def errors(said: str, heard: str) -> int:
    """Words wrong, missing or too many."""
    said_words, row = said.split(), list(range(len(said.split()) + 1))
    for n, word in enumerate(heard.split(), 1):
        last, row[0] = row[0], n
        for m, other in enumerate(said_words, 1):
            last, row[m] = row[m], min(row[m] + 1, row[m - 1] + 1, last + (word != other))
    return row[-1]


def test_the_default_recording_is_read_word_for_word(run):
    assert run.transcribe(EXAMPLES / "default.flac").text == dict(RECORDINGS)["default.flac"]


def test_a_stranger_is_understood(run):
    wrong = sum(errors(text, run.transcribe(EXAMPLES / name).text) for name, text in RECORDINGS)
    words = sum(len(text.split()) for _, text in RECORDINGS)
    assert wrong <= 0.1 * words, f"{wrong} of {words} words"


def test_q4_0_weights_read_the_default_recording_too():
    run = load("file", params={"weights": str(MODEL / "small-voxtral-q4_0.gguf")})
    said = dict(RECORDINGS)["default.flac"]
    assert errors(said, run.transcribe(EXAMPLES / "default.flac").text) <= 1


@pytest.mark.parametrize("delay", ["160ms", "320ms", "640ms", "960ms", "1200ms"])
def test_every_delay_works(delay):
    run = load("file", params={"weights": str(MODEL), "delay": delay})
    said = dict(RECORDINGS)["default.flac"]
    assert errors(said, run.transcribe(EXAMPLES / "default.flac").text) <= 2


@pytest.mark.parametrize("name", [name for name, _ in RECORDINGS])
def test_live_offline_and_any_chunking_give_the_same_text_and_times(run, name):
    audio = samples(name)
    offline = list(run.transcribe(audio).pieces)
    live = MemorySource(audio, 16_000, block_ms=80.0, pace="realtime")
    live.clock = VirtualTime()
    cuts = np.sort(np.random.default_rng(len(audio)).integers(0, len(audio), 20))
    for source in (live, MemorySource(np.split(audio, cuts), 16_000)):
        kept = Memory()
        assert run.batch([(source, [(run.text_node, kept)])]) == []
        assert kept.pieces == offline


def test_nobody_is_heard_in_silence_or_hiss(run):
    hiss = np.random.default_rng(1).normal(0, 0.01, 16_000 * 30).astype(np.float32)
    for quiet in (np.zeros_like(hiss), hiss):
        words = run.transcribe(quiet).text.split()
        assert len(words) <= 1, f"half a minute without a voice gave {words}"


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["portable", "cpu"])
def test_every_token_is_the_official_implementations(tmp_path, backend):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", minversion="5.2")
    folder = as_transformers(tmp_path)
    model = transformers.VoxtralRealtimeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    extract = transformers.VoxtralRealtimeFeatureExtractor()
    for name, _ in RECORDINGS:
        padded, tokens = our_tokens(samples(name), backend)
        features = extract(padded, sampling_rate=16_000, return_tensors="pt")["input_features"]
        with torch.no_grad():
            fed = torch.tensor([[1, *tokens[:-1]]])
            answer = model.eval()(input_ids=fed, input_features=features, num_delay_tokens=6, use_cache=False)
        theirs = answer.logits[0].numpy()
        for position in range(38, len(tokens)):
            best, ours = theirs[position].max(), theirs[position, tokens[position]]
            assert best - ours <= TIE * np.abs(theirs).max(), f"{name}, position {position}"


def our_tokens(audio: np.ndarray, backend: str) -> tuple[np.ndarray, list[int]]:
    """The padded samples and every token of the built-in model at 480 ms."""
    checkpoint, ops = open_checkpoint(MODEL), open_backend(backend)
    pad = bind(Pad(pcm(16_000), left_ms=2560, right_ms=880, delay_ms=480))
    blocks = [packet.data[0] for packet in [*pad.step(audio), *pad.flush()]]
    mel = bind(Mel(pcm(16_000)))
    encoder = Encoder(mel.stage.gives, checkpoint, ops)
    adapter = Adapter(encoder.gives, checkpoint, ops)
    decoder = Decoder(adapter.gives, checkpoint, ops)
    packets: list = [packet for block in blocks for packet in mel.step(block)] + mel.flush()
    for stage in (encoder, adapter, decoder):
        bound = bind(stage)
        packets = [
            Packet(ops.copy(given.data), given.spans) for packet in packets for given in bound.step(packet)
        ]
    return np.concatenate(blocks), [int(token) for packet in packets for token in packet.data[0]]


def as_transformers(folder: Path) -> Path:
    """The built-in weights in transformers' own naming and order, f32."""
    checkpoint = open_checkpoint(MODEL)
    (folder / "config.json").write_text(json.dumps(transformers_config(checkpoint.config)))

    def piece(name: str) -> Piece:
        row, array = checkpoint.rows[name], checkpoint.array(name)
        array = halves(array, row.heads) if row.heads else array
        return Piece(row.stored_as(TRANSFORMERS), "f32", row.shape, lambda: [pack(array, "f32")])

    write_weights(folder / "model.safetensors", [piece(name) for name in checkpoint.rows], checkpoint.config)
    return folder

"""Print the tables of the model card: `python figures.py FOLDER --corpus DIR --dev DIR --work DIR`.

Texts come from the transformers implementation in float32; `model.py` must give the same texts, and does the
rest.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
import torch
from augment import music
from corpus import Utterance, align_all, load_corpora, read_manifest, split
from data import FIRST_WORD, load_noises
from export import GGUF, SAFETENSORS, read_gguf
from measure import distance, outputs, spell, transcribe
from model import FRAME, SAMPLE_RATE, Shape, Voxtral
from safetensors.torch import load_file
from theirs import transcribe_theirs

DELAYS = 2, 3, 4, 5, 6, 8, 10, 12, 15
PARTS = "rates", "wordless", "delays", "theirs"
LOOK_AHEAD = 0.0025  # s of sound the last mel frame of a token needs beyond the token's end

Sets = dict[str, list[Utterance]]


def shape_of(params: dict) -> Shape:
    encoder = params["multimodal"]["whisper_model_args"]["encoder_args"]
    return Shape(
        vocab=params["vocab_size"],
        theta=params["rope_theta"],
        ada=params["ada_rms_norm_t_cond_dim"],
        encoder_dim=encoder["dim"],
        encoder_layers=encoder["n_layers"],
        encoder_heads=encoder["n_heads"],
        encoder_head_dim=encoder["head_dim"],
        encoder_ff=encoder["hidden_dim"],
        encoder_window=encoder["sliding_window"],
        decoder_dim=params["dim"],
        decoder_layers=params["n_layers"],
        decoder_heads=params["n_heads"],
        decoder_kv_heads=params["n_kv_heads"],
        decoder_head_dim=params["head_dim"],
        decoder_ff=params["hidden_dim"],
        decoder_window=params["sliding_window"],
    )


def read_model(folder: Path, *, coarse: bool) -> Voxtral:
    """The exported weights in float32, from the GGUF if `coarse`."""
    model = Voxtral(shape_of(json.loads((folder / "params.json").read_text()))).eval()
    weights = (
        {k: torch.from_numpy(v) for k, v in read_gguf(folder / GGUF).items()}
        if coarse
        else {k: v.float() for k, v in load_file(folder / SAFETENSORS).items()}
    )
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or any(not name.startswith("phone_head") for name in missing):
        raise ValueError(f"{folder}: {len(missing)} tensors missing, {len(unexpected)} unknown")
    return model


def read_words(folder: Path) -> list[str]:
    """The words of tekken.json in the order of their ids."""
    return [
        entry["token_str"][1:] for entry in json.loads((folder / "tekken.json").read_text())["vocab"][256:]
    ]


def rate(utterances: list[Utterance], texts: list[str]) -> str:
    """Word error rate, and the share of utterances without an error."""
    errors = [distance(u.text.split(), text.split()) for u, text in zip(utterances, texts, strict=True)]
    total = sum(len(u.text.split()) for u in utterances)
    return f"{100 * sum(errors) / total:.1f} % ({100 * sum(e == 0 for e in errors) / len(errors):.0f} %)"


def latencies(words: list[str], aligned: Utterance, said: list[int], delay: int) -> list[float]:
    """Seconds from the end of each right word to its token; said[i] has heard i + delay + 1 frames."""
    heard = [
        (words[t - FIRST_WORD], (i + 1 + delay) * FRAME / SAMPLE_RATE + LOOK_AHEAD)
        for i, t in enumerate(said)
        if FIRST_WORD <= t < FIRST_WORD + len(words)
    ]
    return [at - end for (_, _, end), (_, at) in pair(aligned.words, heard)]


def pair(wanted: tuple, got: list) -> list[tuple]:
    """Equal words of both in order: the longest common subsequence."""
    table = np.zeros((len(wanted) + 1, len(got) + 1), int)
    for i in range(len(wanted) - 1, -1, -1):
        for j in range(len(got) - 1, -1, -1):
            table[i, j] = (
                table[i + 1, j + 1] + 1
                if wanted[i][0] == got[j][0]
                else max(table[i + 1, j], table[i, j + 1])
            )
    pairs, i, j = [], 0, 0
    while i < len(wanted) and j < len(got):
        if wanted[i][0] == got[j][0]:
            pairs.append((wanted[i], got[j]))
            i, j = i + 1, j + 1
        elif table[i + 1, j] >= table[i, j + 1]:
            i += 1
        else:
            j += 1
    return pairs


def wordless(corpus: Path) -> dict[str, np.ndarray]:
    """Minutes in which nothing is said: float32 at 16 kHz, none of it heard in training."""
    numbers, draw, minute = np.random.default_rng(99), random.Random(99), 60 * SAMPLE_RATE
    spectrum = np.fft.rfft(numbers.standard_normal(2 * minute))
    pink = np.fft.irfft(spectrum / np.sqrt(np.maximum(1, np.arange(len(spectrum)))))
    songs = [music(10 * SAMPLE_RATE, draw, numbers) for _ in range(24)]
    recorded = load_noises(corpus, training=False)

    def level(x: np.ndarray, decibel: float) -> np.ndarray:
        return np.clip(x / np.std(x) * 10 ** (decibel / 20), -1, 1).astype(np.float32)

    return {
        "digital silence": np.zeros(2 * minute, np.float32),
        "white noise": np.concatenate([level(numbers.standard_normal(minute), d) for d in (-60, -40, -25)]),
        "pink noise": np.concatenate([level(pink, d) for d in (-50, -30)]),
        "recorded noises": np.concatenate([level(x, -28) for x in recorded]) if recorded else np.zeros(0),
        "music-like tones": np.concatenate([level(x, -22) for x in songs]),
    }


def streams(utterances: list[Utterance]) -> list[Utterance]:
    """Everything one speaker says, half a second apart, as one stream."""
    gap, joined = np.zeros(SAMPLE_RATE // 2, np.int16), []
    for speaker in sorted({u.speaker for u in utterances}):
        own = [u for u in utterances if u.speaker == speaker]
        pcm = np.concatenate([part for u in own for part in (u.pcm, gap)])
        joined.append(Utterance(speaker, speaker, " ".join(u.text for u in own), pcm))
    return joined


def print_rates(sets: Sets, models: list[Voxtral], words: list[str]) -> None:
    """Set, bf16, Q4_0; then all of a speaker as one stream."""
    for name, found in sets.items():
        columns = [rate(found, transcribe(model, words, found)) for model in models]
        print(f"| {name}, {len(found)} | {' | '.join(columns)} |", flush=True)
    for name, found in spoken_sets(sets).items():
        joined = streams(found)
        seconds = max(len(u.pcm) for u in joined) / SAMPLE_RATE
        columns = [rate(joined, transcribe(model, words, joined)) for model in models]
        print(f"| {name}, streams of up to {seconds:.0f} s | {' | '.join(columns)} |", flush=True)


def print_theirs(sets: Sets, models: list[Voxtral], words: list[str]) -> None:
    """The same by the transformers library, and how many texts are the same."""
    for name, found in sets.items():
        columns = []
        for model in models:
            texts, ours = transcribe_theirs(model, words, found), transcribe(model, words, found)
            same = sum(a == b for a, b in zip(texts, ours, strict=True))
            columns.append(f"{rate(found, texts)}, {same} of {len(found)} texts the same")
        print(f"| {name} | {' | '.join(columns)} |", flush=True)


def print_delays(sets: Sets, model: Voxtral, words: list[str]) -> None:
    """Delay, word error rate of each set, mean and 95th percentile of the time from word to text."""
    sets = spoken_sets(sets)
    aligned = {u.name: u for u in align_all([u for found in sets.values() for u in found])}
    for delay in DELAYS:
        rates, lags = [], []
        for found in sets.values():
            said = outputs(model, found, delay)
            rates.append(rate(found, [spell(tokens, words) for tokens in said]).partition(" (")[0])
            for u, tokens in zip(found, said, strict=True):
                lags += latencies(words, aligned[u.name], tokens, delay) if u.name in aligned else []
        mean, late = 1000 * np.mean(lags), 1000 * np.percentile(lags, 95)
        print(f"| {80 * delay} ms | {' | '.join(rates)} | {mean:.0f} ms | {late:.0f} ms |", flush=True)


def print_wordless(corpus: Path, models: list[Voxtral], words: list[str]) -> None:
    """Kind, and false words a minute by bf16 and Q4_0, each kind as one stream."""
    for name, sound in wordless(corpus).items():
        u = Utterance("", "none", "", np.round(sound * 32767).astype(np.int16))
        minutes = len(sound) / SAMPLE_RATE / 60
        columns = [f"{len(transcribe(m, words, [u])[0].split()) / minutes:.1f}" for m in models]
        print(f"| {name}, {minutes:.1f} min | {' | '.join(columns)} |", flush=True)


def spoken_sets(sets: Sets) -> Sets:
    return {name: found for name, found in sets.items() if not name.startswith("wakewords")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--dev", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    words, models = read_words(args.folder), [read_model(args.folder, coarse=c) for c in (False, True)]
    _, test = split(load_corpora(args.corpus, args.work / "aligned.pkl"))
    dev = read_manifest(args.dev)
    sets = {f"{name}, dev": [u for u in dev if u.corpus == name] for name in ("an4-dev", "barista-dev")}
    sets |= {
        f"{name}, test": [u for u in test if u.corpus == name] for name in ("an4", "barista", "wakewords")
    }
    if "rates" in args.parts:
        print_rates(sets, models, words)
    if "wordless" in args.parts:
        print_wordless(args.corpus, models, words)
    if "delays" in args.parts:
        print_delays(sets, models[0], words)
    if "theirs" in args.parts:
        print_theirs(sets, models, words)


if __name__ == "__main__":
    main()

"""Print the tables of the model card: `python figures.py FOLDER --corpus DIR --dev DIR --work DIR`.

Texts come from the transformers implementation in float32; `model.py` must give the same texts, and does the
rest.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path

import numpy as np
import torch
from augment import music
from corpus import Utterance, align_all, load_corpora, read_manifest, split
from data import BOS, LEFT, STREAMING_PAD, load_noises
from export import GGUF, SAFETENSORS, read_gguf
from measure import distance, outputs, spell, transcribe, word_error_rate
from model import FRAME, SAMPLE_RATE, Shape, Voxtral, log_mel, mel_filters
from safetensors.torch import load_file

DELAYS = 2, 3, 4, 5, 6, 8, 10, 12, 15
LOOK_AHEAD = 0.0025  # s of sound the last mel frame of a token needs beyond the token's end


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


def to_transformers(model: Voxtral):
    """The same weights in the implementation of the transformers library."""
    from transformers import VoxtralRealtimeConfig, VoxtralRealtimeForConditionalGeneration

    shape = model.shape
    rope = {"rope_type": "default", "rope_theta": shape.theta}
    config = VoxtralRealtimeConfig(
        audio_config={
            "hidden_size": shape.encoder_dim,
            "intermediate_size": shape.encoder_ff,
            "num_hidden_layers": shape.encoder_layers,
            "num_attention_heads": shape.encoder_heads,
            "head_dim": shape.encoder_head_dim,
            "num_mel_bins": 128,
            "rms_norm_eps": 1e-5,
            "sliding_window": shape.encoder_window,
            "rope_parameters": rope,
        },
        text_config={
            "vocab_size": shape.vocab,
            "hidden_size": shape.decoder_dim,
            "intermediate_size": shape.decoder_ff,
            "num_hidden_layers": shape.decoder_layers,
            "num_attention_heads": shape.decoder_heads,
            "num_key_value_heads": shape.decoder_kv_heads,
            "head_dim": shape.decoder_head_dim,
            "sliding_window": shape.decoder_window,
            "rms_norm_eps": 1e-5,
            "rope_parameters": rope,
            "tie_word_embeddings": True,
        },
        downsample_factor=4,
        audio_length_per_tok=8,
        default_num_delay_tokens=6,
        projector_hidden_act="gelu",
    )
    theirs = VoxtralRealtimeForConditionalGeneration(config).eval()
    names = {
        their_name(name): permuted(name, w, shape)
        for name, w in model.state_dict().items()
        if not name.startswith("phone_head")
    }
    missing, unexpected = theirs.load_state_dict(names, strict=False)
    if unexpected or [name for name in missing if name != "lm_head.weight" and "lm_head" not in name]:
        raise ValueError(f"transformers: missing {missing[:3]}, unknown {unexpected[:3]}")
    theirs.tie_weights()
    return theirs


def their_name(name: str) -> str:
    """A Mistral tensor name as the transformers module calls it."""
    inner = "mm_streams_embeddings.embedding_module."
    swaps = [
        (inner + "tok_embeddings", "model.language_model.embed_tokens"),
        (inner + "audio_language_projection.0", "model.multi_modal_projector.linear_1"),
        (inner + "audio_language_projection.2", "model.multi_modal_projector.linear_2"),
        (inner + "whisper_encoder.conv_layers.0.conv", "model.audio_tower.embedder.conv1"),
        (inner + "whisper_encoder.conv_layers.1.conv", "model.audio_tower.embedder.conv2"),
        (inner + "whisper_encoder.transformer.", "model.audio_tower."),
    ]
    audio = "whisper_encoder" in name
    for old, new in swaps:
        name = name.replace(old, new)
    if name.startswith(("layers.", "norm.")):
        name = "model.language_model." + name
    norms = (
        ("self_attn_layer_norm", "final_layer_norm")
        if audio
        else ("input_layernorm", "post_attention_layernorm")
    )
    parts = {
        "attention_norm": norms[0],
        "ffn_norm": norms[1],
        "attention.wq": "self_attn.q_proj",
        "attention.wk": "self_attn.k_proj",
        "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
        "ada_rms_norm_t_cond.0": "ada_rms_norm.linear1",
        "ada_rms_norm_t_cond.2": "ada_rms_norm.linear2",
    }
    for old, new in parts.items():
        name = name.replace(f".{old}.", f".{new}.")
    return name


def permuted(name: str, weight: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Rows of wq and wk from the interleaved order to halves, which is what transformers rotates."""
    if ".attention.wq." not in name and ".attention.wk." not in name:
        return weight
    head_dim = shape.encoder_head_dim if "whisper_encoder" in name else shape.decoder_head_dim
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


@torch.no_grad()
def transcribe_theirs(theirs, words: list[str], utterances: list[Utterance], delay: int = 6) -> list[str]:
    """Texts by `generate`, one utterance at a time, official padding, end of text ignored."""
    filters, texts = mel_filters(), []
    for u in utterances:
        frames = LEFT + math.ceil(len(u.pcm) / FRAME) + delay + 11
        sound = np.zeros(frames * FRAME, np.float32)
        sound[LEFT * FRAME : LEFT * FRAME + len(u.pcm)] = u.pcm / np.float32(32768)
        prefix = torch.tensor([[BOS] + [STREAMING_PAD] * (LEFT + delay)])
        ids = theirs.generate(
            input_ids=prefix,
            input_features=log_mel(torch.from_numpy(sound)[None], filters),
            num_delay_tokens=delay,
            do_sample=False,
            eos_token_id=-1,
            pad_token_id=11,
        )
        texts.append(spell(ids[0, prefix.shape[1] :].tolist(), words))
    return texts


def rate(utterances: list[Utterance], texts: list[str]) -> str:
    """Word error rate, and the share of utterances without an error."""
    errors = [distance(u.text.split(), text.split()) for u, text in zip(utterances, texts, strict=True)]
    total = sum(len(u.text.split()) for u in utterances)
    return f"{100 * sum(errors) / total:.1f} % ({100 * sum(e == 0 for e in errors) / len(errors):.0f} %)"


def latencies(model: Voxtral, words: list[str], aligned: list[Utterance], delay: int) -> tuple[float, float]:
    """Mean and 95th percentile, in ms, of a right word's time of output minus its aligned end."""
    lags = []
    for u, said in zip(aligned, outputs(model, aligned, delay), strict=True):
        heard = [
            (words[t - 320], (i + 1) * FRAME / SAMPLE_RATE + LOOK_AHEAD + delay * FRAME / SAMPLE_RATE)
            for i, t in enumerate(said)
            if 320 <= t < 320 + len(words)
        ]
        lags += [at - end for (_, _, end), (_, at) in pair(u.words, heard)]
    return 1000 * float(np.mean(lags)), 1000 * float(np.percentile(lags, 95))


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


def false_words(model: Voxtral, words: list[str], sound: np.ndarray) -> float:
    """Words a minute where there are none, as one stream."""
    u = Utterance("", "none", "", np.round(sound * 32767).astype(np.int16))
    return len(transcribe(model, words, [u])[0].split()) / (len(sound) / SAMPLE_RATE / 60)


def streams(utterances: list[Utterance]) -> list[Utterance]:
    """Everything one speaker says, half a second apart, as one stream."""
    gap, joined = np.zeros(SAMPLE_RATE // 2, np.int16), []
    for speaker in sorted({u.speaker for u in utterances}):
        own = [u for u in utterances if u.speaker == speaker]
        pcm = np.concatenate([part for u in own for part in (u.pcm, gap)])
        joined.append(Utterance(speaker, speaker, " ".join(u.text for u in own), pcm))
    return joined


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--dev", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--quick", action="store_true", help="own implementation alone, error rates alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    words = read_words(args.folder)
    exact, coarse = (read_model(args.folder, coarse=c) for c in (False, True))
    _, test = split(load_corpora(args.corpus, args.work / "aligned.pkl"))
    sets = {
        f"{name} (dev)": [u for u in read_manifest(args.dev) if u.corpus == name]
        for name in ("an4-dev", "barista-dev")
    }
    sets |= {
        f"{name} (test)": [u for u in test if u.corpus == name] for name in ("an4", "barista", "wakewords")
    }
    print_rates(sets, exact, coarse, words, quick=args.quick)
    if not args.quick:
        print_delays(sets, exact, words)
        for name, sound in wordless(args.corpus).items():
            print(
                f"| {name}, {len(sound) / SAMPLE_RATE / 60:.1f} min | {false_words(exact, words, sound):.1f} "
                f"| {false_words(coarse, words, sound):.1f} |"
            )


def print_rates(sets: dict, exact: Voxtral, coarse: Voxtral, words: list[str], *, quick: bool) -> None:
    ours = {name: [transcribe(m, words, found) for m in (exact, coarse)] for name, found in sets.items()}
    for name, found in sets.items():
        print(
            f"| {name}, {len(found)} | {rate(found, ours[name][0])} | {rate(found, ours[name][1])} |",
            flush=True,
        )
    for name, found in sets.items():
        if not name.startswith("wakewords"):
            joined = streams(found)
            print(
                f"| {name}, {len(joined)} streams | {rate(joined, transcribe(exact, words, joined))} |",
                flush=True,
            )
    if not quick:
        for column, model in enumerate((exact, coarse)):
            theirs = to_transformers(model)
            for name, found in sets.items():
                texts = transcribe_theirs(theirs, words, found)
                same = sum(a == b for a, b in zip(texts, ours[name][column], strict=True))
                print(
                    f"transformers, {('bf16', 'q4_0')[column]}, {name}: {rate(found, texts)}; "
                    f"{same} of {len(found)} texts as by model.py",
                    flush=True,
                )


def print_delays(sets: dict, model: Voxtral, words: list[str]) -> None:
    groups = {name: found for name, found in sets.items() if not name.startswith("wakewords")}
    aligned = align_all([u for found in groups.values() for u in found])
    for delay in DELAYS:
        rates = " | ".join(f"{word_error_rate(model, words, found, delay):.1f}" for found in groups.values())
        average, late = latencies(model, words, aligned, delay)
        print(f"| {80 * delay} ms | {rates} | {average:.0f} ms | {late:.0f} ms |", flush=True)


if __name__ == "__main__":
    main()

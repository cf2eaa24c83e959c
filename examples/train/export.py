"""Write a checkpoint as the four files of a model folder: `python export.py work/latest.pt FOLDER`.

`consolidated.safetensors` (bf16) and `small-voxtral-q4_0.gguf` hold the same averaged weights under
Mistral's names; `params.json` and `tekken.json` carry every shape and id. All are read back and compared.
"""

from __future__ import annotations

import argparse
import base64
import json
from pathlib import Path

import gguf
import numpy as np
import torch
from data import BOS, FIRST_WORD, LEFT, SPECIALS, STREAMING_PAD, STREAMING_WORD
from model import ENCODER_PER_TOKEN, EPS, FRAME, HOP, LOG_MEL_CEILING, MELS, SAMPLE_RATE, Shape
from rounding import is_quantised
from safetensors.torch import load_file, save_file

SAFETENSORS, GGUF = "consolidated.safetensors", "small-voxtral-q4_0.gguf"
DELAY_MS = 480
SPECIAL_NAMES = {
    0: "<unk>",
    BOS: "<s>",
    2: "</s>",
    3: "[INST]",
    4: "[/INST]",
    5: "[AVAILABLE_TOOLS]",
    6: "[/AVAILABLE_TOOLS]",
    7: "[TOOL_RESULTS]",
    8: "[/TOOL_RESULTS]",
    9: "[TOOL_CALLS]",
    10: "[IMG]",
    11: "<pad>",
    12: "[IMG_BREAK]",
    13: "[IMG_END]",
    14: "[PREFIX]",
    15: "[MIDDLE]",
    16: "[SUFFIX]",
    17: "[SYSTEM_PROMPT]",
    18: "[/SYSTEM_PROMPT]",
    19: "[TOOL_CONTENT]",
    24: "[AUDIO]",
    25: "[BEGIN_AUDIO]",
    STREAMING_PAD: "[STREAMING_PAD]",
    STREAMING_WORD: "[STREAMING_WORD]",
    34: "[TRANSCRIBE]",
    35: "[CALL_ID]",
    36: "[ARGS]",
    37: "[THINK]",
    38: "[/THINK]",
}
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def export(checkpoint: Path, folder: Path) -> None:
    """Write the four files into `folder` and check them."""
    state = torch.load(checkpoint, weights_only=True)
    shape = Shape(**state["shape"])
    weights = {
        name: w.to(torch.bfloat16)
        for name, w in state["average"].items()
        if not name.startswith("phone_head")
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / SAFETENSORS, metadata={"format": "pt"})
    write_gguf({name: w for name, w in state["average"].items() if name in weights}, folder / GGUF)
    (folder / "params.json").write_text(json.dumps(params(shape), indent=2) + "\n")
    (folder / "tekken.json").write_text(json.dumps(tekken(state["words"], shape.vocab), indent=1) + "\n")
    check(folder, weights, state["words"])


def params(shape: Shape) -> dict:
    """`params.json`, field for field as the big model has it."""
    audio = {
        "sampling_rate": SAMPLE_RATE,
        "frame_rate": SAMPLE_RATE / FRAME,
        "num_mel_bins": MELS,
        "hop_length": HOP,
        "window_size": 400,
        "chunk_length_s": None,
        "global_log_mel_max": LOG_MEL_CEILING,
        "transcription_format": "streaming",
    }
    encoder = {
        "audio_encoding_args": audio,
        "dim": shape.encoder_dim,
        "n_layers": shape.encoder_layers,
        "head_dim": shape.encoder_head_dim,
        "hidden_dim": shape.encoder_ff,
        "n_heads": shape.encoder_heads,
        "n_kv_heads": shape.encoder_heads,
        "vocab_size": shape.vocab,
        "use_biases": True,
        "use_cache": False,
        "rope_theta": shape.theta,
        "causal": True,
        "norm_eps": EPS,
        "pos_embed": "rope",
        "max_source_positions": None,
        "ffn_type": "swiglu",
        "norm_type": "rms_norm",
        "sliding_window": shape.encoder_window,
    }
    return {
        "dim": shape.decoder_dim,
        "n_layers": shape.decoder_layers,
        "head_dim": shape.decoder_head_dim,
        "hidden_dim": shape.decoder_ff,
        "n_heads": shape.decoder_heads,
        "n_kv_heads": shape.decoder_kv_heads,
        "use_biases": False,
        "causal": True,
        "rope_theta": shape.theta,
        "norm_eps": EPS,
        "vocab_size": shape.vocab,
        "model_parallel": 1,
        "tied_embeddings": True,
        "sliding_window": shape.decoder_window,
        "model_max_length": 131072,
        "ada_rms_norm_t_cond": True,
        "ada_rms_norm_t_cond_dim": shape.ada,
        "multimodal": {
            "whisper_model_args": {
                "encoder_args": encoder,
                "downsample_args": {"downsample_factor": ENCODER_PER_TOKEN},
            }
        },
    }


def tekken(words: list[str], vocab: int) -> dict:
    """`tekken.json`: special tokens, the 256 bytes, the words with a leading space, fillers."""
    pieces = [bytes([value]) for value in range(256)] + [f" {word}".encode() for word in words]
    pieces += [f" <unused_{i}>".encode() for i in range(vocab - SPECIALS - len(pieces))]
    entries = [
        {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": text_of(piece)}
        for rank, piece in enumerate(pieces)
    ]
    specials = [
        {"rank": rank, "token_str": SPECIAL_NAMES.get(rank, f"<SPECIAL_{rank}>"), "is_control": True}
        for rank in range(SPECIALS)
    ]
    audio = {
        "sampling_rate": SAMPLE_RATE,
        "frame_rate": SAMPLE_RATE / FRAME,
        "audio_encoding_config": {"num_mel_bins": MELS, "hop_length": HOP, "window_size": 400},
        "chunk_length_s": None,
        "transcription_format": "streaming",
        "transcription_delay_ms": DELAY_MS,
        "streaming_look_ahead_ms": 2.5,
        "streaming_look_back_ms": 52.5,
        "streaming_n_left_pad_tokens": LEFT,
    }
    config = {
        "pattern": PATTERN,
        "num_vocab_tokens": len(pieces),
        "default_vocab_size": vocab,
        "default_num_special_tokens": SPECIALS,
        "version": "v13",
    }
    return {"config": config, "vocab": entries, "special_tokens": specials, "audio": audio}


def text_of(piece: bytes) -> str | None:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return None


def write_gguf(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Linear weights and embeddings as Q4_0, the rest as F32."""
    writer = gguf.GGUFWriter(path, "voxtral")
    for name, weight in weights.items():
        values = weight.float().contiguous().numpy()
        kind = gguf.GGMLQuantizationType.Q4_0 if is_quantised(name, weight) else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(path: Path) -> dict[str, np.ndarray]:
    """Weights as float32, outermost dimension first."""
    return {
        t.name: np.array(gguf.dequantize(t.data, t.tensor_type)).reshape([int(n) for n in reversed(t.shape)])
        for t in gguf.GGUFReader(path).tensors
    }


def check(folder: Path, weights: dict[str, torch.Tensor], words: list[str]) -> None:
    """Read the files back; raises ValueError where they differ from what was meant."""
    stored, coarse = load_file(folder / SAFETENSORS), read_gguf(folder / GGUF)
    if set(stored) != set(weights) or set(coarse) != set(weights):
        raise ValueError(f"{folder}: names differ between the checkpoint and the files")
    for name, weight in weights.items():
        if not torch.equal(stored[name], weight):
            raise ValueError(f"{SAFETENSORS}: {name!r} differs after reading it back")
        step = (
            weight.float().abs().max() / 8
            if is_quantised(name, weight)
            else 0.01 * weight.float().abs().max()
        )
        if (torch.from_numpy(coarse[name]) - weight.float()).abs().max() > 1.1 * step + 1e-6:
            raise ValueError(f"{GGUF}: {name!r} is further than one level from the exact weights")
    vocabulary = json.loads((folder / "tekken.json").read_text())["vocab"]
    spelt = [base64.b64decode(entry["token_bytes"]).decode() for entry in vocabulary[FIRST_WORD - SPECIALS :]]
    if spelt[: len(words)] != [f" {word}" for word in words]:
        raise ValueError("tekken.json: words are not where training had them")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    export(args.checkpoint, args.folder)
    for path in sorted(args.folder.iterdir()):
        print(f"{path.stat().st_size:>10}  {path.name}")


if __name__ == "__main__":
    main()

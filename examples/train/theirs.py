"""The same weights in the transformers library, which is the judge of what an exported model says."""

from __future__ import annotations

import math

import numpy as np
import torch
from corpus import Utterance
from data import BOS, LEFT, STREAMING_PAD
from measure import spell
from model import FRAME, Shape, Voxtral, log_mel, mel_filters


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
def transcribe_theirs(
    model: Voxtral, words: list[str], utterances: list[Utterance], delay: int = 6
) -> list[str]:
    """Texts by `generate`, one utterance at a time, official padding, end of text ignored."""
    theirs, filters, texts = to_transformers(model), mel_filters(), []
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

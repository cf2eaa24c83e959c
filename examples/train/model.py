"""The small Voxtral as a torch module, for training only.

    pcm [B, N] -> log_mel [B, 128, N/160] -> conv stem, stride 1 and 2 -> encoder [B, N/320, E], 50 Hz
        -> four frames beside each other -> adapter [B, N/1280, D], 12.5 Hz
        -> + embedding of the previous token -> decoder with delay conditioning -> logits [B, N/1280, V]

Module names are the tensor names of Mistral's own checkpoints, so that `state_dict` needs no renaming at
export. The phone head is the one addition: it helps the encoder to learn and is left behind at export.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SAMPLE_RATE = 16000
HOP = 160
FRAME = 1280  # samples of one token: 80 ms
ENCODER_PER_TOKEN = 4
MELS = 128
LOG_MEL_CEILING = 1.5  # params.json, global_log_mel_max
EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Shape:
    """Widths and depths; the defaults are the shipped model."""

    vocab: int = 480
    phones: int = 41  # ARPAbet, silence and noise: see data.PHONES
    theta: float = 10000.0
    ada: int = 32  # transformers has this bottleneck hard-coded
    encoder_dim: int = 128
    encoder_layers: int = 4
    encoder_heads: int = 2
    encoder_head_dim: int = 64
    encoder_ff: int = 512
    encoder_window: int = 100  # keys, self included: 2 s
    decoder_dim: int = 256
    decoder_layers: int = 3
    decoder_heads: int = 4
    decoder_kv_heads: int = 2
    decoder_head_dim: int = 128
    decoder_ff: int = 512
    decoder_window: int = 64  # 5.1 s
    dropout: float = 0.1


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in the dtype of the matmuls."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(matmul_dtype())
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * self.weight.to(x.dtype)


class Attention(nn.Module):
    """Causal attention over the last `window` positions, rotary, grouped keys.

    The weights keep Mistral's interleaved order, in which rows (2i, 2i + 1) of a head
    rotate together. Rotating halves is three times as fast here, so the rows are put in that
    order on the way: scores do not change.
    """

    def __init__(self, dim: int, heads: int, kv_heads: int, head_dim: int, window: int, biases: bool):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.window = heads, kv_heads, head_dim, window
        self.wq = nn.Linear(dim, heads * head_dim, bias=biases)
        self.wk = nn.Linear(dim, kv_heads * head_dim, bias=False)
        self.wv = nn.Linear(dim, kv_heads * head_dim, bias=biases)
        self.wo = nn.Linear(heads * head_dim, dim, bias=biases)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], cache: dict | None = None) -> Tensor:
        batch, length, _ = x.shape
        scale = self.head_dim**-0.5
        weight = torch.cat((self.halves(self.wq.weight) * scale, self.halves(self.wk.weight), self.wv.weight))
        bias = self.wq.bias
        if bias is not None:
            bias = torch.cat(
                (self.halves(bias) * scale, torch.zeros_like(self.wk.weight[:, 0]), self.wv.bias)
            )
        qkv = F.linear(x, weight, bias).view(batch, length, -1, self.head_dim).transpose(1, 2)
        turned, v = qkv.split((self.heads + self.kv_heads, self.kv_heads), 1)
        q, k = rotate(turned, rope).split((self.heads, self.kv_heads), 1)  # [B, H, T, dim]
        if cache is not None:
            k, v = extend(cache, k, v, self.window)
        mixed = self.whole(q, k, v) if cache is not None else self.blocked(q, k, v)
        return self.wo(mixed.transpose(1, 2).reshape(batch, length, -1))

    def halves(self, rows: Tensor) -> Tensor:
        """Put the even rows of each head before the odd ones."""
        return rows.unflatten(0, (-1, self.head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)

    def whole(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One query on all the keys there are."""
        times = self.heads // self.kv_heads
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v

    def blocked(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries in blocks of one window; each block sees its own keys and those of the block before."""
        batch, heads, length, dim = q.shape
        size, times = self.window, self.heads // self.kv_heads
        pad = -length % size
        blocks = (length + pad) // size
        q = F.pad(q, (0, 0, 0, pad)).reshape(batch * self.kv_heads, times, blocks, size, dim)
        q = q.transpose(1, 2).reshape(batch * self.kv_heads * blocks, times * size, dim)
        k, v = (
            self.pairs(F.pad(t, (0, 0, size, pad)), blocks) for t in (k, v)
        )  # [B * H * blocks, 2 size, dim]
        mask = band(size, 2 * size, size, size, q.device)[None].repeat(blocks, times, 1)
        mask[0, :, :size] = False  # before the start: padding
        shut = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, -1e4)
        scores = (q @ k.transpose(-1, -2)).unflatten(0, (-1, blocks)) + shut
        mixed = (scores.softmax(-1).to(v.dtype).flatten(0, 1) @ v).view(-1, blocks, times, size, dim)
        return mixed.transpose(1, 2).reshape(batch, heads, blocks * size, dim)[:, :, :length]

    def pairs(self, x: Tensor, blocks: int) -> Tensor:
        x = x.reshape(-1, blocks + 1, self.window, self.head_dim)
        return torch.cat((x[:, :-1], x[:, 1:]), 2).flatten(0, 1)


class FeedForward(nn.Module):
    """w2(silu(w1 x) * w3 x)"""

    def __init__(self, dim: int, hidden: int, bias: bool):
        super().__init__()
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=bias)
        self.w3 = nn.Linear(dim, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = F.linear(x, torch.cat((self.w1.weight, self.w3.weight))).chunk(2, -1)
        return self.w2(F.silu(gate) * up)


class Layer(nn.Module):
    """Pre-norm layer; with `ada` the input of the feed-forward is scaled by a function of the delay."""

    def __init__(self, dim: int, ff: int, attention: Attention, dropout: float, *, bias: bool, ada: int = 0):
        super().__init__()
        self.attention_norm, self.ffn_norm = RMSNorm(dim), RMSNorm(dim)
        self.attention = attention
        self.feed_forward = FeedForward(dim, ff, bias)
        self.dropout = dropout
        if ada:
            self.ada_rms_norm_t_cond = nn.Sequential(
                nn.Linear(dim, ada, bias=False), nn.GELU(), nn.Linear(ada, dim, bias=False)
            )
            nn.init.zeros_(self.ada_rms_norm_t_cond[2].weight)

    def forward(self, x: Tensor, rope, t_cond: Tensor | None = None, cache: dict | None = None) -> Tensor:
        x = x + self.drop(self.attention(self.attention_norm(x), rope, cache))
        u = self.ffn_norm(x)
        if t_cond is not None:
            u = u * (1 + self.ada_rms_norm_t_cond(t_cond)).to(u.dtype)
        return x + self.drop(self.feed_forward(u))

    def drop(self, x: Tensor) -> Tensor:
        """Drop channels for the whole of a crop: a mask per position costs as much as a matmul here."""
        if not self.training or not self.dropout:
            return x
        keep = torch.rand(x.shape[0], 1, x.shape[2], device=x.device) >= self.dropout
        return x * (keep / (1 - self.dropout)).to(x.dtype)


class CausalConv(nn.Module):
    """Convolution of width 3 that pads on the left alone."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, 3, stride=stride)
        self.left = 3 - stride

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.conv(F.pad(x, (self.left, 0))))


class Encoder(nn.Module):
    """[B, 128, 8T] -> [B, 4T, E]"""

    def __init__(self, shape: Shape):
        super().__init__()
        dim, heads, head_dim = shape.encoder_dim, shape.encoder_heads, shape.encoder_head_dim
        self.conv_layers = nn.ModuleList((CausalConv(MELS, dim, 1), CausalConv(dim, dim, 2)))
        self.transformer = nn.Module()
        self.transformer.layers = nn.ModuleList(
            Layer(
                dim,
                shape.encoder_ff,
                Attention(dim, heads, heads, head_dim, shape.encoder_window, True),
                shape.dropout,
                bias=True,
            )
            for _ in range(shape.encoder_layers)
        )
        self.transformer.norm = RMSNorm(dim)
        self.rope = head_dim, shape.theta

    def forward(self, mel: Tensor) -> Tensor:
        for conv in self.conv_layers:
            mel = conv(mel)
        x = mel.transpose(1, 2)
        rope = rope_table(torch.arange(x.shape[1], device=x.device), *self.rope)
        for layer in self.transformer.layers:
            x = layer(x, rope)
        return self.transformer.norm(x)


class Voxtral(nn.Module):
    """Encoder, adapter and decoder; `forward` is teacher forced, `greedy` is what a checkpoint is for."""

    def __init__(self, shape: Shape = Shape()):
        super().__init__()
        self.shape = shape
        dim, heads, kv, head_dim = (
            shape.decoder_dim,
            shape.decoder_heads,
            shape.decoder_kv_heads,
            shape.decoder_head_dim,
        )
        self.layers = nn.ModuleList(
            Layer(
                dim,
                shape.decoder_ff,
                Attention(dim, heads, kv, head_dim, shape.decoder_window, False),
                shape.dropout,
                bias=False,
                ada=shape.ada,
            )
            for _ in range(shape.decoder_layers)
        )
        self.norm = RMSNorm(dim)
        self.mm_streams_embeddings = nn.Module()
        self.mm_streams_embeddings.embedding_module = inner = nn.Module()
        inner.whisper_encoder = Encoder(shape)
        inner.audio_language_projection = nn.Sequential(
            nn.Linear(ENCODER_PER_TOKEN * shape.encoder_dim, dim, bias=False),
            nn.GELU(),
            nn.Linear(dim, dim, bias=False),
        )
        inner.tok_embeddings = nn.Embedding(shape.vocab, dim)
        self.phone_head = nn.Linear(shape.encoder_dim, shape.phones)
        self.start_small()

    def start_small(self) -> None:
        """Residual branches shrink with depth, so that every layer starts near the identity."""
        nn.init.normal_(self.embeddings.weight, std=self.shape.decoder_dim**-0.5)
        for stack in (self.encoder.transformer.layers, self.layers):
            for layer in stack:
                for last in (layer.attention.wo, layer.feed_forward.w2):
                    last.weight.data.mul_((2 * len(stack)) ** -0.5)

    @property
    def encoder(self) -> Encoder:
        return self.mm_streams_embeddings.embedding_module.whisper_encoder

    @property
    def embeddings(self) -> nn.Embedding:
        return self.mm_streams_embeddings.embedding_module.tok_embeddings

    def adapt(self, encoded: Tensor) -> Tensor:
        """[B, 4T, E] -> [B, T, D]"""
        batch, length, width = encoded.shape
        beside = encoded.reshape(batch, length // ENCODER_PER_TOKEN, ENCODER_PER_TOKEN * width)
        return self.mm_streams_embeddings.embedding_module.audio_language_projection(beside)

    def forward(self, mel: Tensor, tokens: Tensor, delay: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, T, V] and phone logits [B, 4T, phones] of mel [B, 128, 8T] and tokens [B, T]."""
        encoded = self.encoder(mel)
        x = self.adapt(encoded) + self.embeddings(tokens)
        rope = rope_table(
            torch.arange(x.shape[1], device=x.device), self.shape.decoder_head_dim, self.shape.theta
        )
        t_cond = delay_embedding(delay, self.shape.decoder_dim)
        for layer in self.layers:
            x = layer(x, rope, t_cond)
        return F.linear(self.norm(x), self.embeddings.weight), self.phone_head(encoded)

    @torch.no_grad()
    def greedy(self, mel: Tensor, delay: int, *, bos: int, pad: int, left: int = 32) -> Tensor:
        """Outputs [B, T - left - delay] after the prefix of BOS and `left` + `delay` pads, one a frame."""
        audio = self.adapt(self.encoder(mel))  # [B, T, D]
        caches: list[dict] = [{} for _ in self.layers]
        t_cond = delay_embedding(torch.tensor(float(delay)), self.shape.decoder_dim)
        token = torch.full((len(audio),), bos)
        out = []
        for position in range(audio.shape[1]):
            x = (audio[:, position] + self.embeddings(token))[:, None]
            rope = rope_table(torch.tensor([position]), self.shape.decoder_head_dim, self.shape.theta)
            for layer, cache in zip(self.layers, caches, strict=True):
                x = layer(x, rope, t_cond, cache)
            best = F.linear(self.norm(x), self.embeddings.weight)[:, 0].argmax(-1)
            in_prefix = position < left + delay
            token = torch.full_like(best, pad) if in_prefix else best
            out.append(best)
        return torch.stack(out[left + delay :], 1)


def matmul_dtype() -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32


def rope_table(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin [T, head_dim / 2]"""
    inverse = theta ** (-torch.arange(0, head_dim, 2, device=positions.device) / head_dim)
    angle = positions[:, None].float() * inverse
    return angle.cos().to(matmul_dtype()), angle.sin().to(matmul_dtype())


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (i, i + head_dim / 2) of x [B, H, T, head_dim]."""
    cos, sin = rope
    low, high = x.chunk(2, -1)
    return torch.cat((low * cos - high * sin, low * sin + high * cos), -1)


def extend(cache: dict, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Append to the cached keys and values [B, heads, T, dim] and keep the last `window`."""
    if cache:
        k, v = torch.cat((cache["k"], k), 2), torch.cat((cache["v"], v), 2)
    cache["k"], cache["v"] = k[:, :, -window:], v[:, :, -window:]
    return cache["k"], cache["v"]


def band(queries: int, keys: int, window: int, offset: int, device) -> Tensor:
    """True where key j may be seen by query i, which stands at key index i + offset."""
    lag = torch.arange(queries, device=device)[:, None] + offset - torch.arange(keys, device=device)
    return (lag >= 0) & (lag < window)


def delay_embedding(delay: Tensor, dim: int) -> Tensor:
    """All cosines, then all sines, of the delay in tokens. [dim]"""
    inverse = torch.exp(-math.log(10000.0) * torch.arange(dim // 2) / (dim // 2))
    return torch.cat(((delay * inverse).cos(), (delay * inverse).sin()))


def mel_filters() -> Tensor:
    """Slaney triangles on the 201 bins of a 400-point transform. [128, 201]"""

    def hertz(mel: Tensor) -> Tensor:
        return torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15) * math.log(6.4) / 27))

    top = 15 + math.log(8000 / 1000) * 27 / math.log(6.4)
    points = hertz(torch.linspace(0, top, MELS + 2, dtype=torch.float64))
    bins = torch.linspace(0, SAMPLE_RATE / 2, 201, dtype=torch.float64)
    low, mid, high = points[:-2, None], points[1:-1, None], points[2:, None]
    triangles = torch.minimum((bins - low) / (mid - low), (high - bins) / (high - mid)).clamp(min=0)
    return (triangles * 2 / (high - low)).float()


def log_mel(pcm: Tensor, filters: Tensor) -> Tensor:
    """[B, N] -> [B, 128, N / 160]; the ceiling is a constant, so no frame depends on a later one."""
    window = torch.hann_window(400, device=pcm.device)
    power = (
        torch.stft(pcm, 400, HOP, window=window, center=True, return_complex=True)[..., :-1].abs().square()
    )
    energy = (filters @ power).clamp(min=1e-10).log10()
    return (energy.clamp(min=LOG_MEL_CEILING - 8) + 4) / 4

"""Voxtral's decoder: one step, one token, every 80 ms of audio.

    frame [D] ─(+)─ layers ─ norm ─ head ─ pick ─ token
                │                                   │
            embed(last token, or the prompt) <──────┘

Prompt and generation are one code path: the token fed at position p is prompt[p] while p is inside the
prompt, and the last one picked afterwards. The end of a text is a token like any other; it never stops the
stream.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from kernels import Backend, Ring, Tensor
from kernels.fused import GateUpWeights, QkvWeights, norm_head_pick
from stages.layers.attention import Attention, Heads
from stages.layers.mlp import GatedMlp
from stages.layers.replay import Active, Replays, bucket
from stages.layers.stack import Layer, Scratch, Stack
from stages.packet import Packet
from stages.stage import Port, in_range, plug
from stages.voxtral.config import BOS, STREAMING_PAD, delay_tokens, prefix_tokens
from stages.voxtral.names import Checkpoint

NEVER = 2**31 - 1  # positions: the last one that an i32 word can count
MOST_LOGITS = 1e3  # beyond it the guard would forbid the blank outright


@dataclass(frozen=True, slots=True, eq=False)
class DecoderState:
    """Device words and buffers of one step; the rings hold one window of keys and values per layer."""

    rings: tuple[Ring, ...]
    active: Active
    token: Tensor  # [B] i32, what is fed next once the prompt is over
    run: Tensor  # [B] i32, blanks in a row
    picked: Tensor  # [B] i32, from here on scratch
    frame: Tensor  # [B, 1, D], what came
    x: Tensor  # [B, 1, D], the residual stream
    h: Tensor  # [B, D]
    logits: Tensor  # [B, vocabulary]
    scratch: Scratch
    replays: Replays


class Decoder:
    """Adapter frames to tokens, greedily.

    Takes    frames, 12.5 Hz, on the device
    Gives    tokens, 12.5 Hz, on the device: at each position the token of the next one, so the prompt's own
             padding first
    Holds    per layer the keys and values of one window (Voxtral Mini: 8192 positions, 11 minutes, in f16
             107 KB a position), and a few words a lane
    Latency  none in frames; what it says of a word comes `delay_ms` after the word's end, see `voxtral.text`

    Parameters
    ----------
    upstream : the port of `voxtral.adapter`
    checkpoint, backend : the weights, and where the arithmetic runs
    delay_ms : 80 to 1200 in steps of 80, or 2400; longer is more accurate
    context : positions kept at most, where the checkpoint's window is too large for the memory; 0 keeps the
        whole window
    blank_patience : blanks in a row, the prompt's own among them, after which the guard begins to lean on the
        blank; 0 leaves it alone
    blank_slope, blank_limit : how much is taken off the blank's logit per further blank, and at most

    Raises
    ------
    ConfigError   if an option is out of range, or `upstream` is not as wide and fast as the checkpoint says

    The guard frees a model that emits padding over speech: such a rut is won by 3.5 to 6.6 logits, true
    silence by more than 8.5 (measured on Voxtral Mini; see the model's README).
    """

    TAKES, GIVES = ("frames", 1280), ("tokens", 1280)
    quantum = 1
    lookahead = 0

    def __init__(
        self,
        upstream: Port,
        checkpoint: Checkpoint,
        backend: Backend,
        *,
        delay_ms: float = 480.0,
        context: int = 0,
        blank_patience: int = 200,
        blank_slope: float = 0.5,
        blank_limit: float = 7.0,
    ):
        config, shape = checkpoint.config, checkpoint.config.decoder
        plug("voxtral.decoder", upstream, "frames", config.audio.rate, config.token_hop, shape.dim)
        in_range("voxtral.decoder", "context", context, 0, NEVER)
        in_range("voxtral.decoder", "blank_patience", blank_patience, 0, NEVER)
        in_range("voxtral.decoder", "blank_slope", blank_slope, 0.0, MOST_LOGITS)
        in_range("voxtral.decoder", "blank_limit", blank_limit, 0.0, MOST_LOGITS)
        self.takes = replace(upstream, where="device")
        self.ops = backend
        self.delay = delay_tokens(delay_ms)
        self.gives = Port("tokens", upstream.rate, upstream.hop, 1, "device", self.delay * upstream.hop)
        left = checkpoint.left_pad_tokens
        self.asks = {"Pad": {"left": left * upstream.hop, "delay": self.delay * upstream.hop}}
        prompt = [BOS] + [STREAMING_PAD] * (prefix_tokens(self.delay, left) - 1)
        self.prompt = backend.upload(np.array(prompt, np.int32))
        self.guard = (STREAMING_PAD, blank_patience or NEVER, blank_slope, blank_limit)
        self.table = backend.adopt(*checkpoint.raw("decoder.embed"))  # the head as well: embeddings are tied
        self.vocabulary, self.width, self.eps = shape.vocab, shape.dim, shape.norm_eps
        self.norm = backend.upload(checkpoint.array("decoder.norm"))
        window = min(context, shape.window) if context else shape.window
        condition = delay_condition(self.delay, shape.dim)
        layers = tuple(_layer(checkpoint, backend, n, window, condition) for n in range(shape.layers))
        self.stack = Stack(layers, shape.dim, shape.hidden_dim, longest=1)
        self.lane_bytes = self.stack.lane_bytes(backend)

    def open(self, lanes: int = 1) -> DecoderState:
        ops = self.ops
        return DecoderState(
            rings=self.stack.open(ops, lanes),
            active=Active.make(ops, lanes),
            token=ops.zeros((lanes,), "i32"),
            run=ops.zeros((lanes,), "i32"),
            picked=ops.zeros((lanes,), "i32"),
            frame=ops.zeros((lanes, 1, self.width)),
            x=ops.zeros((lanes, 1, self.width)),
            h=ops.zeros((lanes, self.width)),
            logits=ops.zeros((lanes, self.vocabulary)),
            scratch=self.stack.scratch(ops, lanes, 1),
            replays=Replays(),
        )

    def step(self, state: DecoderState, packet: Packet) -> list[Packet]:
        state.active.follow(self.ops, packet)
        if packet.items == 1:
            return [self._token(state, packet)]  # borrowed until the next step
        return [self._nth(state, packet, t) for t in range(packet.items)]

    def flush(self, state: DecoderState, lane: int = 0) -> list[Packet]:
        """Nothing is held back: the delay drains through the right padding."""
        self.stack.clear(self.ops, state.rings, lane)
        for words in (state.token, state.run):
            self.ops.clear(words, lane)
        return []

    def _nth(self, state: DecoderState, packet: Packet, t: int) -> Packet:
        """Item `t` of a longer packet, in memory of its own: its neighbours are under way as well."""
        borrowed = self._token(state, packet.part(t, t + 1, self.takes.hop))
        return Packet(self.ops.copy(borrowed.data), borrowed.spans)

    def _token(self, state: DecoderState, packet: Packet) -> Packet:
        """One position of every lane at work: frame [B, 1, D] to token [B, 1] i32."""
        lanes = bucket(packet)
        self.ops.copy(packet.data[:lanes], out=state.frame[:lanes])
        state.replays.run(self.ops, self._run, state, lanes)
        return Packet(state.token.reshape(-1, 1), packet.spans)

    def _run(self, state: DecoderState) -> None:
        """What a step computes: ops alone, so that it can be recorded."""
        ops, active, position = self.ops, state.active.words, state.rings[0].count
        ops.advance(state.token, state.token, self.prompt, position, active)
        ops.embed(state.x, state.token.reshape(-1, 1), self.table)
        ops.add(state.x, state.x, state.frame)
        self.stack.step(ops, state.x, state.rings, active, state.scratch)
        norm_head_pick(
            ops, state.picked, state.x.reshape(-1, self.width), self.norm, self.table, state.run, *self.guard,
            active, eps=self.eps, h=state.h, logits=state.logits,
        )  # fmt: skip
        ops.advance(state.token, state.picked, self.prompt, position, active)


def delay_condition(delay: int, width: int) -> np.ndarray:
    """The sinusoid [width] that tells the decoder its delay in tokens: all cosines, then all sines.

    Source: `TimeEmbedding` of the official implementation; the time is the token count, not milliseconds.
    """
    rates = np.exp(-math.log(10_000.0) * np.arange(width // 2) / (width // 2))
    return np.concatenate([np.cos(delay * rates), np.sin(delay * rates)])


def ada_scale(condition: np.ndarray, down: np.ndarray, up: np.ndarray) -> np.ndarray:
    """up [C, R] @ gelu(down [R, C] @ condition [C]): a layer's scale, which depends on the delay alone."""
    h = down.astype(np.float64) @ condition
    gelu = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in h])
    return (up.astype(np.float64) @ gelu).astype(np.float32)


def _layer(checkpoint: Checkpoint, ops: Backend, n: int, window: int, condition: np.ndarray) -> Layer:
    shape = checkpoint.config.decoder
    heads = Heads(shape.heads, shape.kv_heads, shape.head_dim, window, shape.rope_theta, shape.norm_eps)

    def matrix(name: str):
        return ops.adopt(*checkpoint.raw(f"decoder.layers.{n}.{name}"))

    def vector(name: str) -> np.ndarray:
        return checkpoint.array(f"decoder.layers.{n}.{name}")

    scale = ops.upload(ada_scale(condition, vector("ada0"), vector("ada2")))
    qkv = QkvWeights(ops.upload(vector("attention_norm")), matrix("wq"), matrix("wk"), matrix("wv"))
    mlp = GateUpWeights(ops.upload(vector("ffn_norm")), matrix("w1"), matrix("w3"), scale)
    return Layer(Attention(qkv, matrix("wo"), None, heads), GatedMlp(mlp, matrix("w2"), None, shape.norm_eps))

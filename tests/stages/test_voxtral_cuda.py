"""Whole steps of a tiny Voxtral on the CUDA backend: on a card, and on the CPU by the emulator.

Tokens are held against the portable backend's. Keys and values are f16 there and f32 here, so each case first
shows that no choice of the portable run was a close one.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels import Backend, BackendMissing, open_backend
from stages import Packet, Port, Span
from stages.voxtral.adapter import Adapter
from stages.voxtral.decoder import Decoder
from stages.voxtral.encoder import Encoder
from stages.voxtral.names import Checkpoint, open_checkpoint
from tests.laws import LAWS, Case
from tests.stages.test_voxtral_laws import bits_stay, cases
from tests.tiny import TINY, tiny_checkpoint

MEL = Port("mel", 16_000, 160, 128)
TOKEN = 8  # mel frames
LONG = 24  # tokens; both windows are exceeded, and one step of 17 is more than a pass
LEFT = 2  # tokens of silence before a stream
PROMPT = LEFT + 1  # answers that are not chosen, at a delay of one
# of the spread of the logits; f16 keys and values move them by 5e-4 a layer, products of many rows as much
CLOSE = 5e-3
PACE = (1, 3, 2, 5, 4)  # a lane takes part in every such step
ENCODER_ATOL = 2e-3  # a key that is rounded the other way is off by 5e-4, in values of about 1
ADAPTER_ATOL = 1e-5  # f32 sums of 256 terms in another order
VARIED = 4  # answers that differ: a model that repeats itself proves nothing

# Head widths and sharing as in the model itself; columns that fill no tile of 64; windows that wrap soon
BROAD = replace(
    TINY,
    encoder=replace(TINY.encoder, dim=96, heads=2, kv_heads=2, head_dim=64, hidden_dim=160, window=10),
    decoder=replace(
        TINY.decoder, dim=160, heads=8, kv_heads=2, head_dim=128, hidden_dim=224, window=13, vocab=544
    ),
)
CONFIGS = {"tiny": TINY, "broad": BROAD}


def emulated() -> Backend:
    """The .cu files on the CPU."""
    from kernels.cuda.backend import Cuda
    from tests.kernels.emulator.device import EmulatedDevice

    return Cuda(EmulatedDevice())


def queued() -> Backend:
    """The same behind the card's own queue: as late as can be, and by address."""
    from kernels.cuda.backend import Cuda
    from tests.kernels.pretend_cupy import emulated_card

    return Cuda(emulated_card())


OPENERS: dict[str, Callable[[], Backend]] = {
    "emulated": emulated,
    "queued": queued,
    "card": lambda: open_backend("cuda"),
}
BACKENDS = ["emulated", pytest.param("card", marks=pytest.mark.gpu)]
SLOW = pytest.mark.slow


@cache
def opened(name: str) -> Backend:
    return OPENERS[name]()


@pytest.fixture(scope="module")
def cuda(request: pytest.FixtureRequest) -> Backend:
    try:
        return opened(request.param)
    except BackendMissing as reason:
        pytest.skip(f"{request.param}: {reason}")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Checkpoint]:
    """By configuration and kind of weights; with a short prompt, to save steps."""

    @cache
    def make(config: str, kind: str) -> Checkpoint:
        folder: Path = tmp_path_factory.mktemp(f"{config}-{kind}")
        tiny_checkpoint(folder, kind=kind, config=CONFIGS[config], seed=5)
        tekken = json.loads((folder / "tekken.json").read_text())
        tekken["audio"]["streaming_n_left_pad_tokens"] = LEFT
        (folder / "tekken.json").write_text(json.dumps(tekken))
        return open_checkpoint(folder)

    return make


class Chain:
    """Encoder, adapter and decoder for some lanes, and what each lane has said."""

    def __init__(self, ops: Backend, checkpoint: Checkpoint, lanes: int = 1):
        encoder = Encoder(MEL, checkpoint, ops)
        adapter = Adapter(encoder.gives, checkpoint, ops)
        decoder = Decoder(adapter.gives, checkpoint, ops, delay_ms=80, blank_patience=3)
        self.ops, self.stages = ops, (encoder, adapter, decoder)
        self.states: list[Any] = [stage.open(lanes) for stage in self.stages]
        self.said: list[list[int]] = [[] for _ in range(lanes)]
        self.at = [0] * lanes

    def step(self, rows: dict[int, np.ndarray]) -> None:
        """Mel frames [T, 128] for the lanes at work, equally many; the others carry noise."""
        some = next(iter(rows.values()))
        data = np.ones((len(self.said), *some.shape), np.float32)
        spans: list[Span | None] = [None] * len(self.said)
        for lane, mel in rows.items():
            data[lane], spans[lane] = mel, Span(160 * self.at[lane], 160 * (self.at[lane] + len(mel)))
            self.at[lane] += len(mel)
        packets = [Packet(self.ops.upload(data), tuple(spans))]
        for stage, state in zip(self.stages, self.states, strict=True):
            packets = [out for packet in packets for out in stage.step(state, packet)]
        for packet in packets:
            tokens = self.ops.fetch(packet.data).wait()
            for lane in rows:
                self.said[lane].append(int(tokens[lane, 0]))

    def end(self, lane: int) -> list[int]:
        for stage, state in zip(self.stages, self.states, strict=True):
            assert stage.flush(state, lane) == []
        said, self.said[lane], self.at[lane] = self.said[lane], [], 0
        return said


def stream(checkpoint: Checkpoint, count: int, first: int = 0) -> tuple[np.ndarray, list[int]]:
    """Mel frames of `count` tokens, and what the portable backend says to them one by one.

    The first of some streams whose answers vary and were no close choices.
    """
    for seed in range(first, first + 50):
        random = np.random.default_rng(seed)
        tokens = random.normal(0, 1, (count, 128)) + random.normal(0, 3, (count, 1))
        mel = np.repeat(tokens, TOKEN, axis=0).astype(np.float32)
        chain, gaps = Chain(open_backend("portable"), checkpoint), []
        for at in range(0, len(mel), TOKEN):
            chain.step({0: mel[at : at + TOKEN]})
            logits = np.sort(chain.states[-1].logits[0])
            gaps.append((logits[-1] - logits[-2]) / logits.std())
        if min(gaps[PROMPT:]) > CLOSE and len(set(chain.said[0][PROMPT:])) >= VARIED:
            return mel, chain.end(0)
    raise AssertionError("no stream is clear enough; make the model or the streams others")


def batches(mel: np.ndarray, tokens: list[int]) -> list[np.ndarray]:
    """`mel` in steps of so many tokens each."""
    return np.split(mel, np.cumsum(TOKEN * np.array(tokens))[:-1])


@pytest.mark.parametrize("cuda", BACKENDS, indirect=True)
@pytest.mark.parametrize(
    ("config", "kind"),
    [("broad", "q4_0"), *(pytest.param(*row, marks=SLOW) for row in (("tiny", "f32"), ("broad", "bf16")))],
)
def test_live_and_offline_tokens_are_the_portable_backend_s(checkpoint, cuda, config, kind):
    weights = checkpoint(config, kind)
    mel, tokens = stream(weights, LONG)
    for cut in ([1] * LONG, [2, 17, 1, 1, LONG - 21]):
        chain = Chain(cuda, weights)
        for part in batches(mel, cut):
            chain.step({0: part})
        assert chain.end(0) == tokens, f"in steps of {cut}"


@pytest.mark.slow
@pytest.mark.parametrize("cuda", BACKENDS, indirect=True)
@pytest.mark.parametrize(("config", "kind"), [("tiny", "q4_0"), ("broad", "q4_0")])
def test_lanes_that_come_and_go_say_what_each_says_alone(checkpoint, cuda, config, kind):
    """Five lanes of unequal pace: steps of 1, 2, 4 and 5 lanes come by; lane 0 ends and starts anew."""
    weights = checkpoint(config, kind)
    streams = [stream(weights, 15, first=1000 * lane) for lane in range(5)]
    waiting = [[streams[0], streams[0]], *([one] for one in streams[1:])]
    chain, at, steps = Chain(cuda, weights, lanes=5), [0] * 5, 0
    while any(waiting):
        at_work = [lane for lane in range(5) if waiting[lane] and steps % PACE[lane] == 0]
        steps += 1
        if not at_work:
            continue
        chain.step({lane: waiting[lane][0][0][at[lane] :][:TOKEN] for lane in at_work})
        for lane in at_work:
            at[lane] += TOKEN
            mel, tokens = waiting[lane][0]
            if at[lane] == len(mel):
                assert chain.end(lane) == tokens, f"lane {lane} after {steps} steps"
                waiting[lane].pop(0)
                at[lane] = 0


@pytest.mark.parametrize("cuda", ["queued", *BACKENDS[1:]], indirect=True)
def test_lanes_that_catch_up_together_say_what_each_says_alone(checkpoint, cuda):
    """Steps of several tokens for several lanes: their items lie between those of the others."""
    weights = checkpoint("tiny", "q4_0")
    streams = [stream(weights, 12, first=1000 * lane) for lane in range(3)]
    chain = Chain(cuda, weights, lanes=3)
    for parts in zip(*(batches(mel, [3, 1, 2, 4, 1, 1]) for mel, _ in streams), strict=True):
        chain.step(dict(enumerate(parts)))
    for lane, (_, tokens) in enumerate(streams):
        assert chain.end(lane) == tokens, f"lane {lane}"


@pytest.mark.slow
@pytest.mark.parametrize("cuda", BACKENDS, indirect=True)
@pytest.mark.parametrize("stage", ["encoder", "adapter", "decoder"])
@pytest.mark.parametrize("law", [*LAWS, bits_stay], ids=lambda law: law.__name__)
@settings(max_examples=3, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_law(law, stage, cuda, data):
    law(trial(cuda)[stage], data.draw)


@cache
def trial(ops: Backend) -> dict[str, Case]:
    """The stages by name; all but their backend, which has work memory, is left as it is."""
    few = cases(ops, ", cuda", tokens=6, encoder_atol=ENCODER_ATOL, adapter_atol=ADAPTER_ATOL)
    own = {"still": apart_from_backend, "twin": partial(copied, ops)}
    return {case.name.partition(",")[0]: replace(case, **own) for case in few}


def apart_from_backend(stage: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(stage).items() if name != "ops"}


def copied(ops: Any, state: Any) -> Any:
    """CuPy copies on the stream that is current: on any but the card's, steps would not wait for it."""
    with getattr(ops.device, "stream", nullcontext()):
        return copy.deepcopy(state)

"""The official implementation (transformers) on small random models is the judge of encoder, adapter and
decoder.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kernels import BackendMissing, open_backend
from stages import Packet, Port, Span
from stages.voxtral.adapter import Adapter
from stages.voxtral.decoder import Decoder
from stages.voxtral.encoder import Encoder
from stages.voxtral.names import Checkpoint, open_checkpoint
from tests.tiny import tiny_checkpoint

pytestmark = pytest.mark.oracle

CHOSEN = 300  # greedy tokens; both tiny windows (10 frames, 20 positions) are exceeded many times over
BOUND = 1e-4  # of the largest value: f32 against f32, sums in another order, through four layers
MEL = Port("mel", 16_000, 160, 128)


WAYS = {"portable": {}, "cpu": {"kv": "f32"}}  # backends that are f32 throughout, with the options for that


def chain(checkpoint: Checkpoint, delay_ms: int, way: str) -> tuple[Encoder, Adapter, Decoder]:
    try:
        ops = open_backend(way, **WAYS[way])
    except BackendMissing as reason:
        pytest.skip(str(reason))
    encoder = Encoder(MEL, checkpoint, ops)
    adapter = Adapter(encoder.gives, checkpoint, ops)
    return encoder, adapter, Decoder(adapter.gives, checkpoint, ops, delay_ms=delay_ms, blank_patience=0)


def packet(items: np.ndarray, start: int, hop: int) -> Packet:
    return Packet(items[None].astype(np.float32), (Span(start, start + len(items) * hop),))


def run_ours(checkpoint: Checkpoint, mel: np.ndarray, delay_ms: int, tokens_per_step: int, way: str):
    """Encoder frames, adapter frames, tokens and logits for mel [T, 128]."""
    encoder, adapter, decoder = chain(checkpoint, delay_ms, way)
    states = encoder.open(), adapter.open(), decoder.open()
    frames, adapted, tokens, logits = [], [], [], []
    step = 8 * tokens_per_step
    for at in range(0, len(mel), step):
        for encoded in encoder.step(states[0], packet(mel[at : at + step], at * 160, 160)):
            frames.append(encoded.data[0].copy())
            for joined in adapter.step(states[1], encoded):
                adapted.append(joined.data[0].copy())
                for t in range(joined.items):
                    (answer,) = decoder.step(states[2], Packet(joined.data[:, t : t + 1], joined.spans))
                    tokens.append(int(answer.data[0, 0]))
                    logits.append(states[2].logits[0].copy())
    return np.concatenate(frames), np.concatenate(adapted), tokens, np.stack(logits)


def run_official(folder: Path, mel: np.ndarray, fed: list[int], delay: int):
    """The same from transformers, fed the same tokens."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.VoxtralRealtimeForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32
    ).eval()
    features = torch.from_numpy(np.ascontiguousarray(mel.T[None]))
    with torch.no_grad():
        heard = model.model.get_audio_features(input_features=features)
        answer = model(
            input_ids=torch.tensor([fed]), input_features=features, num_delay_tokens=delay, use_cache=False
        )
    return heard.last_hidden_state[0].numpy(), heard.pooler_output[0].numpy(), answer.logits[0].numpy()


def assert_within(ours: np.ndarray, theirs: np.ndarray, what: str) -> None:
    assert ours.shape == theirs.shape, f"{what}: {ours.shape} is not {theirs.shape}"
    limit = BOUND * np.abs(theirs).max()
    worst = np.abs(ours - theirs).max()
    assert worst <= limit, f"{what}: off by {worst:.2e}, allowed {limit:.2e}"


def assert_greedy(tokens: list[int], theirs: np.ndarray, first: int) -> None:
    """Each of our picks is their argmax, or the two lie inside the bound."""
    limit = BOUND * np.abs(theirs).max()
    for p in range(first, len(tokens)):
        gap = theirs[p].max() - theirs[p, tokens[p]]
        assert gap <= limit, (
            f"position {p}: picked {tokens[p]}, theirs is {theirs[p].argmax()}, {gap:.2e} better"
        )


def restless_mel(count: int, seed: int) -> np.ndarray:
    """Mel frames [8 count, 128] that change in shape and level with every token, as the answers then do."""
    random = np.random.default_rng(seed)
    tokens = random.normal(0, 1, (count, 128)) + random.normal(0, 3, (count, 1))
    return np.repeat(tokens, 8, axis=0).astype(np.float32)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("naming", ["mistral", "transformers"])
@pytest.mark.parametrize(("delay", "tokens_per_step"), [(1, 1), (6, 40), (15, 7), (30, 1)])
def test_logits_and_greedy_tokens_equal_the_official_ones(
    tmp_path: Path, naming: str, delay: int, tokens_per_step: int, way: str
):
    official = tiny_checkpoint(tmp_path / "official", naming="transformers", seed=delay)
    ours = tiny_checkpoint(tmp_path / "ours", naming=naming, seed=delay)
    mel = restless_mel(32 + delay + CHOSEN, seed=delay)
    frames, adapted, tokens, logits = run_ours(open_checkpoint(ours), mel, 80 * delay, tokens_per_step, way)
    fed = [1, *tokens[:-1]]
    assert fed[: 33 + delay] == [1] + [32] * (32 + delay)
    their_frames, their_adapted, their_logits = run_official(official, mel, fed, delay)
    assert_within(frames, their_frames, "encoder")
    assert_within(adapted.reshape(their_adapted.shape), their_adapted, "adapter")
    assert_within(logits, their_logits, "logits")
    assert len(tokens[32 + delay :]) == CHOSEN
    assert_greedy(tokens, their_logits, first=32 + delay)
    assert len(set(tokens[33 + delay :])) >= 8, "a model that only repeats itself proves nothing"

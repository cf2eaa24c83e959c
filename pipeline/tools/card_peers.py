"""What else runs on the same card: torch's products in bf16 and 4 bits, its attention, transformers' model.

All of it is optional. What is not installed, or refuses, is `Absent` with the reason; no peer stops the
measurement.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from statistics import median
from typing import Any

from pipeline.tools.card_clock import Effort, Timing
from pipeline.tools.card_run import Absent, Sweep
from stages.voxtral.config import Decoder, Tower

BF16, INT4, SDPA = "torch bf16", "torch int4", "torch SDPA bf16"
GROUP = 32  # weights under one scale of the 4-bit product, as in a block of Q4_0
INNER_TILES = 8  # of 16 columns, a choice of torch's 4-bit layout
SPARE = 64  # positions behind the one that is measured: steps of one sample
WARM_STEPS = 3  # of the whole model: compiling, and torch's own recording, take that many

Product = Callable[[int], Timing]  # of so many rows


class Peers:
    """Torch and transformers on one device.

    device : as torch calls it, "cuda" or "cpu"
    """

    def __init__(self, effort: Effort, device: str = "cuda"):
        self.effort, self.device = effort, device

    def products(self, sweep: Sweep, outputs: int, inputs: int) -> dict[str, tuple[str, Product]]:
        """Ways to multiply rows with a matrix [outputs, inputs], which is made when one is first taken."""
        dense = cache(lambda: self._dense(sweep.copies(2 * outputs * inputs), outputs, inputs))
        packed = cache(lambda: self._packed(sweep.copies(outputs * inputs // 2), outputs, inputs))
        return {
            BF16: ("bf16", lambda rows: self._linear(dense(), rows, inputs)),
            INT4: ("q4_0", lambda rows: self._int4(packed(), rows, inputs)),
        }

    def attention(self, sweep: Sweep, tower: Tower, lanes: int, items: int, position: int) -> Timing:
        """`items` queries a lane over `position` keys, as our own attention is asked."""
        with _refusals("torch"):
            torch = _torch(self.device)
            copies = sweep.copies(4 * lanes * tower.kv_width * position)
            make = {"dtype": torch.bfloat16, "device": self.device}
            q = torch.randn(lanes, tower.heads, items, tower.head_dim, **make)
            shape = (copies, 2, lanes, tower.kv_heads, position, tower.head_dim)
            kept = torch.randn(*shape, **make)
            attend = torch.nn.functional.scaled_dot_product_attention
            shared = tower.heads != tower.kv_heads

            def work() -> None:
                for k, v in kept:
                    attend(q, k, v, enable_gqa=shared)

            return self._timed(torch, work) / copies

    def decoder(self, shape: Decoder) -> Callable[[int, bool], Timing]:
        """A step of transformers' decoder at a position, compiled or not: one token of one lane."""
        model = cache(lambda: self._model(shape))
        return lambda position, compiled: self._step(model(), shape, position, compiled)

    def _dense(self, copies: int, outputs: int, inputs: int) -> Any:
        with _refusals("torch"):
            torch = _torch(self.device)
            return torch.randn(copies, outputs, inputs, dtype=torch.bfloat16, device=self.device)

    def _linear(self, matrices: Any, rows: int, inputs: int) -> Timing:
        with _refusals("torch"):
            torch = _torch(self.device)
            x = torch.randn(rows, inputs, dtype=torch.bfloat16, device=self.device)

            def work() -> None:
                for w in matrices:
                    torch.nn.functional.linear(x, w)

            return self._timed(torch, work) / len(matrices)

    def _packed(self, copies: int, outputs: int, inputs: int) -> list[tuple[Any, Any]]:
        """Random nibbles in torch's own order, and a scale and a zero for every group."""
        with _refusals("torch"):
            torch, found = _torch(self.device), []
            for _ in range(copies):
                scales = torch.rand(inputs // GROUP, outputs, 2, dtype=torch.bfloat16, device=self.device)
                if self.device == "cpu":
                    whole = torch.randint(16, (outputs, inputs), dtype=torch.int32)
                    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole, INNER_TILES)
                else:
                    pairs = torch.randint(256, (outputs, inputs // 2), dtype=torch.uint8, device=self.device)
                    packed = torch.ops.aten._convert_weight_to_int4pack(pairs, INNER_TILES)
                found.append((packed, scales))
            return found

    def _int4(self, matrices: list[tuple[Any, Any]], rows: int, inputs: int) -> Timing:
        with _refusals("torch"):
            torch = _torch(self.device)
            name = "_weight_int4pack_mm_for_cpu" if self.device == "cpu" else "_weight_int4pack_mm"
            multiply = getattr(torch.ops.aten, name)
            x = torch.randn(rows, inputs, dtype=torch.bfloat16, device=self.device)

            def work() -> None:
                for packed, scales in matrices:
                    multiply(x, packed, GROUP, scales)

            return self._timed(torch, work) / len(matrices)

    def _model(self, shape: Decoder) -> Any:
        """Voxtral's own decoder where transformers knows it, else Mistral's, without the delay's scale."""
        with _refusals("transformers"):
            torch = _torch(self.device)
            transformers = import_module("transformers")
            numbers = {
                "hidden_size": shape.dim, "intermediate_size": shape.hidden_dim, "head_dim": shape.head_dim,
                "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
                "num_key_value_heads": shape.kv_heads, "vocab_size": shape.vocab,
                "rms_norm_eps": shape.norm_eps, "pad_token_id": None,
                "sliding_window": None,  # nothing that is measured lies beyond it
            }  # fmt: skip
            try:
                voxtral = import_module("transformers.models.voxtral_realtime.modeling_voxtral_realtime")
                kind, name = voxtral.VoxtralRealtimeTextModel, "voxtral_realtime_text"
            except ImportError:  # a transformers older than the model
                kind, name = transformers.MistralModel, "mistral"
            config = transformers.AutoConfig.for_model(name, **numbers)
            with torch.device(self.device):
                return kind._from_config(config, dtype=torch.bfloat16).eval()

    def _step(self, model: Any, shape: Decoder, position: int, compiled: bool) -> Timing:
        with _refusals("transformers"):
            torch = _torch(self.device)
            transformers = import_module("transformers")
            kept = transformers.StaticCache(config=model.config, max_cache_len=position + SPARE)
            place = torch.device(self.device)
            kept.early_initialization(1, shape.kv_heads, shape.head_dim, torch.bfloat16, place)
            for layer in kept.layers:
                layer.keys.normal_()
                layer.values.normal_()
            frame = torch.randn(1, 1, shape.dim, dtype=torch.bfloat16, device=self.device)
            scale = {"t_cond": torch.randn(1, shape.dim, dtype=torch.bfloat16, device=self.device)}
            more = scale if model.config.model_type.startswith("voxtral") else {}
            token = torch.zeros(1, 1, dtype=torch.int64, device=self.device)

            def chosen() -> Any:
                x = model.embed_tokens(token) + frame
                h = model(inputs_embeds=x, past_key_values=kept, use_cache=True, **more).last_hidden_state
                return torch.nn.functional.linear(h, model.embed_tokens.weight).argmax(-1)

            choose = torch.compile(chosen, mode="reduce-overhead") if compiled else chosen  # records, too

            def step() -> None:
                with torch.no_grad():
                    torch.compiler.cudagraph_mark_step_begin()
                    token.copy_(choose())

            def back() -> None:
                for layer in kept.layers:
                    layer.cumulative_length.fill_(position)

            return self._sampled(torch, step, back, warm=WARM_STEPS, most=SPARE)

    def _timed(self, torch: Any, work: Callable[[], None]) -> Timing:
        """`work` by torch's own recording where there is a GPU."""
        with torch.no_grad():
            work()
            if self.device == "cpu":
                return self._sampled(torch, work)
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                work()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                work()
            return self._sampled(torch, graph.replay)

    def _sampled(
        self, torch: Any, act: Callable[[], None], before: Callable[[], None] = lambda: None, *,
        warm: int = 1, most: int = 1000,
    ) -> Timing:  # fmt: skip
        """Two medians, as `Stopwatch` takes them."""
        for _ in range(warm):
            before()
            act()
        before()
        once = self._elapsed(torch, act, 1)
        times = min(most, max(1, math.ceil(self.effort.sample_s / max(once, 1e-9))))

        def sample() -> float:
            before()
            return self._elapsed(torch, act, times)

        first, second = (median(sample() for _ in range(self.effort.samples)) for _ in range(2))
        return Timing(first, second)

    def _elapsed(self, torch: Any, act: Callable[[], None], times: int) -> float:
        """Seconds of one of `times` acts, by the device's clock."""
        if self.device == "cpu":
            started = time.perf_counter()
            for _ in range(times):
                act()
            return (time.perf_counter() - started) / times
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(times):
            act()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000 / times


def _torch(device: str) -> Any:
    torch = import_module("torch")
    if device != "cpu" and not torch.cuda.is_available():
        raise Absent("this torch sees no GPU; install a build with CUDA")
    return torch


@contextmanager
def _refusals(library: str) -> Iterator[None]:
    """Whatever goes wrong in the libraries of others is a reason to leave a figure out; warnings are not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Absent:
        raise
    except ModuleNotFoundError as missing:
        name = missing.name or library
        raise Absent(f"{name} is not installed; pip install {name}") from None
    except Exception as error:  # anything at all: what they raise is not ours to know, and we go on without
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Absent(f"{library} refused: {said}") from error

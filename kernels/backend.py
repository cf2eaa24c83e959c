"""The contract every backend signs, and `open_backend`, which finds the best one that opens.

Ops write into `out`; once a model is open nothing allocates, so a step can be captured and replayed. `out`
of a norm or pointwise op may be one of its operands; any other `out` overlaps none. Shapes use one alphabet:
B lane, T item, C width, H query heads, K key heads, D head width, N rows out, M columns in. `active` is [B]
i32: state of a lane with 0 is left bit for bit as it was, and its rows of `out` are finite but meaningless.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from inspect import signature
from typing import Any, Protocol

import numpy as np

from kernels.errors import BackendMissing
from kernels.tensor import Pending, QuantTensor, Ring, Tensor

BACKENDS = {  # best last; "auto" tries them from the end
    "portable": "kernels.portable.backend:Portable",
    "cpu": "kernels.cpu.backend:Cpu",
    "cuda": "kernels.cuda.backend:Cuda",
}


class Backend(Protocol):
    """Twenty-six verbs in nine groups; a backend keeps one file per group below `replay`."""

    name: str

    # memory
    def zeros(self, shape: tuple[int, ...], dtype: str = "f32") -> Tensor:
        """Zero-filled memory; dtype f32, f16 or i32."""
        ...

    def upload(self, array: np.ndarray, out: Tensor | None = None) -> Tensor:
        """Copy a host array (f32 or i32) to the device, into `out` where given."""
        ...

    def adopt(self, raw: np.ndarray, kind: str, shape: tuple[int, ...]) -> Tensor | QuantTensor:
        """A weight from the bytes of its file (uint8, row-major, as stored); may keep a view of `raw`."""
        ...

    def fetch(self, tensor: Tensor) -> Pending:
        """Start copying to the host; the copy is taken as of now, whatever later steps write."""
        ...

    def copy(self, tensor: Tensor, out: Tensor | None = None) -> Tensor:
        """The content as of now, in `out` where given (a capture allows that), else in memory of its own.

        `tensor` may be a view of some items of every lane, [:, t:u], where no other op takes one.
        """
        ...

    def clear(self, tensor: Tensor, lane: int) -> None:
        """Zero row `lane` of a [B, ...] tensor."""
        ...

    def ring(self, lanes: int, heads: int, capacity: int, width: int) -> Ring:
        """An empty K/V ring."""
        ...

    def ring_bytes(self, heads: int, capacity: int, width: int) -> int:
        """What one lane of such a ring takes, scales included."""
        ...

    def free_bytes(self) -> int | None:
        """Memory that could still be taken; None where it is the system's own."""
        ...

    # replay
    def capture(self, fn: Callable[[], None]) -> Callable[[], None]:
        """A replay of the ops `fn` makes, which are not run by that.

        `fn` must not allocate, upload, read back or branch on data, and has run before, so that all that is
        made at an op's first use is there. The tensors it names have to live as long as the replay.
        """
        ...

    # linear
    def linear(self, out: Tensor, x: Tensor, w: Any, bias: Tensor | None = None) -> None:
        """out [..., N] = x [..., M] @ w [N, M]^T (+ bias [N])."""
        ...

    def embed(self, out: Tensor, ids: Tensor, table: Any) -> None:
        """out [..., M] = rows `ids` [...] i32 of table [N, M]."""
        ...

    # norm
    def rms_norm(self, out: Tensor, x: Tensor, gain: Tensor, eps: float, scale: Tensor | None = None) -> None:
        """out = x / sqrt(mean(x^2) + eps) * gain [C] (* (1 + scale [C])), over the last axis."""
        ...

    def layer_norm(self, out: Tensor, x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> None:
        """out = (x - mean) / sqrt(var + eps) * gain + bias, over the last axis."""
        ...

    # rope
    def rope(self, x: Tensor, position: Tensor, theta: float) -> None:
        """Rotate pairs (2i, 2i+1) of x [B, T, H, D] in place; item t of lane b stands at position[b] + t."""
        ...

    # attention
    def append(self, ring: Ring, k: Tensor, v: Tensor, active: Tensor) -> None:
        """Write k, v [B, T, K, D] behind the newest position of every active lane, and count them."""
        ...

    def attend(self, out: Tensor, q: Tensor, ring: Ring, window: int) -> None:
        """out [B, T, H, D]: the T newest positions look back at most `window` positions, themselves included.

        Query head h reads key head h // (H / K). Scores are scaled by 1 / sqrt(D).
        """
        ...

    # conv
    def conv1d(
        self,
        out: Tensor,
        tail: Tensor,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        stride: int,
        active: Tensor,
    ) -> None:
        """out [B, T / stride, N]: x [B, T, C] behind `tail` [B, k - stride, C], convolved with w [N, C, k].

        `tail` then holds the last k - stride inputs of every active lane. T is a multiple of `stride`.
        """
        ...

    # pointwise
    def add(self, out: Tensor, x: Tensor, y: Tensor) -> None: ...
    def gelu(self, out: Tensor, x: Tensor) -> None:
        """Exact, by erf."""
        ...

    def elu(self, out: Tensor, x: Tensor) -> None: ...
    def silu_mul(self, out: Tensor, gate: Tensor, up: Tensor) -> None:
        """out = gate * sigmoid(gate) * up."""
        ...

    # select
    def argmax(self, out: Tensor, x: Tensor) -> None:
        """out [...] i32 = index of the largest of x [..., N]; the first on ties."""
        ...

    def nearest(self, out: Tensor, x: Tensor, codebook: Tensor) -> None:
        """out [...] i32 = row of codebook [N, C] nearest to x [..., C], Euclidean; the first on ties."""
        ...

    def pick(
        self,
        out: Tensor,
        x: Tensor,
        run: Tensor,
        blank: int,
        patience: int,
        slope: float,
        limit: float,
        active: Tensor,
    ) -> None:
        """Greedy choice with the blank-run guard: out [B] i32 from logits x [B, N].

        With r = run[b] > patience, min(limit, slope * (r - patience)) is subtracted from logit `blank` before
        the argmax; run [B] i32 then counts one more blank in a row, or restarts at 0. Idle lanes keep `run`.
        """
        ...

    def advance(
        self, token: Tensor, picked: Tensor, prompt: Tensor, position: Tensor, active: Tensor
    ) -> None:
        """The next input of active lanes: token[b] = prompt[position[b]] while inside it, else picked[b].

        token, picked, position : [B] i32; prompt : [P] i32; `position` already points at the coming step.
        `picked` may be `token` itself.
        """
        ...


def open_backend(name: str = "auto", **options: Any) -> Backend:
    """The backend called `name`, or with "auto" the best one that opens and takes the options given.

    Raises
    ------
    BackendMissing   with one line per backend that was tried and why it was passed over
    """
    if name != "auto" and name not in BACKENDS:
        raise BackendMissing(f"no backend is called {name!r}; there are {', '.join(BACKENDS)} and auto")
    reasons = []
    for candidate in reversed(BACKENDS) if name == "auto" else [name]:
        module, attribute = BACKENDS[candidate].split(":")
        kind = getattr(import_module(module), attribute)
        if unknown := sorted(options.keys() - signature(kind).parameters.keys()):
            reasons.append(f"{candidate}: has no option {', '.join(unknown)}")
            continue
        try:
            return kind(**options)
        except BackendMissing as reason:
            reasons.append(f"{candidate}: {str(reason).removeprefix(f'{candidate}: ')}")
    raise BackendMissing("\n".join(reasons))

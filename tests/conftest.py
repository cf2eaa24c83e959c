"""What is expensive and shared: a tiny random model on disk, and graphs that run on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.graph import parse_graph
from pipeline.opening import open_chosen
from pipeline.run import Run
from tests.tiny import tiny_checkpoint

CHAIN = "use: voxtral.yaml\n"


@pytest.fixture(scope="session", autouse=True)
def compiled() -> None:
    """Kernels are there before a test looks at standard error, where a first run says that it compiles."""
    open_chosen("auto")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer random Voxtral: its text means nothing, and is the same every time."""
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"), seed=3)


@pytest.fixture(scope="session")
def tiny_run(tiny_folder: Path) -> Callable[..., Run]:
    """A `Run` of the shipped chain on the tiny model, with more YAML and overrides where a test needs them.
    """

    def make(more: str = "", *sets: str, **options) -> Run:
        params = {"weights": str(tiny_folder), **options.pop("params", {})}
        folder = options.pop("folder", Path(__file__).parents[1] / "graphs")
        return Run(parse_graph(CHAIN + more, folder=folder, sets=sets, params=params, **options))

    return make


@pytest.fixture(scope="session")
def restless() -> Callable[[float, int], np.ndarray]:
    """Seconds of 16 kHz sound that changes every token, so that a random model's answers do too."""

    def make(seconds: float, seed: int = 0) -> np.ndarray:
        random = np.random.default_rng(seed)
        count = round(seconds * 16_000)
        level = np.repeat(10 ** random.uniform(-3, -0.5, count // 1280 + 1), 1280)[:count]
        pitch = np.repeat(random.uniform(100, 4000, count // 1280 + 1), 1280)[:count]
        wave = np.sin(2 * np.pi * np.cumsum(pitch) / 16_000) + random.normal(0, 0.3, count)
        return np.clip(level * wave, -1, 1).astype(np.float32)

    return make

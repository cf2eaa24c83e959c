"""`doctor`: what works on this machine, what is missing, and the cure."""

from __future__ import annotations

from pathlib import Path

import graphs


def built_in(weights: str | Path) -> bool:
    """Whether `weights` is the model that ships inside the package `graphs`."""
    models = Path(graphs.__file__).resolve().parent / "models"
    return Path(weights).resolve().is_relative_to(models)

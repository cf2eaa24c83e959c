"""Object files kept between processes, in a folder that is the user's alone.

A file is its SHA-256, then the code. Whatever is not exactly that is ignored and written anew; so is a folder
that somebody else could write to, since what is read here is executed.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from pathlib import Path

KEPT = 8  # files; the least recently written go first
MOST_BYTES = 1 << 26
_DIGEST = hashlib.sha256().digest_size
_HOMES = {"darwin": "Library/Caches", "win32": "AppData/Local"}


def default_folder() -> Path | None:
    """Where this system keeps what can be made again; None for a user without a home."""
    try:
        return Path.home() / _HOMES.get(sys.platform, ".cache") / "headrace"
    except RuntimeError:
        return None


def read(folder: Path, key: str) -> bytes | None:
    """The code kept under `key`; None if there is none, or none to be trusted."""
    path = folder / f"{key}.o"
    try:
        if not (_private(folder) and _private(path)) or path.stat().st_size > MOST_BYTES:
            return None
        held = path.read_bytes()
    except OSError:
        return None
    code = held[_DIGEST:]
    return code if code and hashlib.sha256(code).digest() == held[:_DIGEST] else None


def write(folder: Path, key: str, code: bytes) -> bool:
    """Keeps `code`, at once or not at all; False where that is not possible."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _private(folder):
            return False
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as part:
            part.write(hashlib.sha256(code).digest() + code)
        Path(part.name).replace(folder / f"{key}.o")
        _forget(folder)
    except OSError:
        return False
    return True


def _forget(folder: Path) -> None:
    """Removes all but the newest files: every change of a library or a source leaves one behind."""
    kept = sorted(folder.glob("*.o"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in kept[KEPT:]:
        path.unlink(missing_ok=True)


def _private(path: Path) -> bool:
    """Whether nobody else can write there; where owners are not numbers, the system's own rules decide."""
    if not hasattr(os, "getuid"):
        return True
    facts = path.stat()
    return facts.st_uid == os.getuid() and not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)

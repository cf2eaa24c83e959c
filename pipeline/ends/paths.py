"""What can be wrong with a path, in words: for sources and sinks alike."""

from __future__ import annotations

import difflib
import errno
import itertools
import os
import stat
from pathlib import Path

from pipeline.errors import SourceError

NAMES_LOOKED_AT = 2000  # of a folder, when guessing which file was meant


def readable(path: Path, label: str) -> int:
    """The mode of a file that exists, is no folder and may be read.

    Raises
    ------
    SourceError   saying which of these fails, and which file may have been meant
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            path.open("rb").close()
    except FileNotFoundError as error:
        raise SourceError(f"{label}: there is no such file{_did_you_mean(path)}") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise SourceError(f"{label}: cannot read it ({reason(error)})") from error
    if stat.S_ISDIR(mode):
        raise SourceError(f"{label}: it is a folder; name a file in it, or all: `transcribe FOLDER/*.wav`")
    return mode


def is_same(one: str | Path, other: str | Path) -> bool:
    """Whether both name one file that exists, by whatever path; `-` and devices are no such files."""
    if "-" in (str(one), str(other)):
        return False
    try:
        first, second = Path(one).stat(), Path(other).stat()
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(first.st_mode) and os.path.samestat(first, second)


def reason(error: Exception) -> str:
    """The system's or the library's own words, without their decoration."""
    words = getattr(error, "strerror", None) or getattr(error, "error_string", None) or str(error)
    return str(words).removeprefix("Error : ").rstrip(".").lower()


def cure(error: OSError, path: str | Path) -> str:
    """The end of an error message about writing `path`: what to do, where we know."""
    if error.errno == errno.ENOENT:
        return f"; create the folder {str(Path(path).parent)!r} first"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "; free some space or write elsewhere"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR):
        return "; choose a file that you may write"
    return ""


def _did_you_mean(path: Path) -> str:
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in itertools.islice(entries, NAMES_LOOKED_AT)]
    except OSError:
        return f", nor a folder {str(path.parent)!r}"
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {str(path.with_name(near[0]))!r}?" if near else ""

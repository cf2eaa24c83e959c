"""`evaluate`: word and character error rates over a manifest, overall and per folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.ends.manifest import Row, read_table
from pipeline.ends.memory import Memory
from pipeline.errors import SourceError
from pipeline.progress import progress
from pipeline.run import Run
from pipeline.tools.recordings import recording
from pipeline.tools.score import Score, Scored, Scorer

NAMED = 5  # recordings named in one complaint
COLUMNS = ("WER %", "CER %", "right %", "files", "words", "sub", "del", "ins", "audio s")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The answer: every recording with its score.

    wall_s : seconds from the first recording opened to the last one closed
    failed : recordings that could not be read to their end, and why; what was not heard counts as deleted
    unheard : recordings left out because the run was interrupted
    """

    scored: tuple[Scored, ...]
    wall_s: float
    normalizer: str
    failed: tuple[tuple[str, str], ...] = ()
    unheard: int = 0

    @property
    def overall(self) -> Score:
        return Score.of(self.scored)

    @property
    def folders(self) -> dict[str, Score]:
        """By first path component, in the order of the manifest."""
        names = dict.fromkeys(s.folder for s in self.scored)
        return {name: Score.of(s for s in self.scored if s.folder == name) for name in names}

    @property
    def rtf(self) -> float | None:
        """Seconds of work per second of audio, reading the files included."""
        seconds = self.overall.seconds
        return self.wall_s / seconds if seconds else None

    def as_json(self) -> dict[str, Any]:
        """One object; `wer` and `cer` on top are those of all recordings together, as fractions."""
        return {
            **self.overall.as_json(),
            "rtf": None if self.rtf is None else round(self.rtf, 5),
            "wall_s": round(self.wall_s, 3),
            "normalizer": self.normalizer,
            "folders": {name or ".": score.as_json() for name, score in self.folders.items()},
            "failed": [{"file": file, "error": error} for file, error in self.failed],
            "unheard": self.unheard,
        }

    def table(self) -> str:
        """For people: a row per folder and one for all."""
        named = [(name or ".", score) for name, score in self.folders.items()]
        named += [("all", self.overall)] if len(named) != 1 else []
        rows = [("", *COLUMNS), *(_cells(name, score) for name, score in named)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(_pad, row, widths, range(len(row)))) for row in rows]
        if self.rtf is not None:
            spent = f"{self.wall_s:.1f} s for {self.overall.seconds:.1f} s of audio"
            lines.append(f"{self.normalizer} text normaliser; real-time factor {self.rtf:.3f}, {spent}")
        lines += [f"failed: {error if file in error else f'{file}: {error}'}" for file, error in self.failed]
        if self.unheard:
            lines.append(f"interrupted: {self.unheard} recordings were not heard and are not counted")
        return "\n".join(lines)

    def mistakes(self) -> str:
        """Every recording with an error, both texts aligned: S wrong, D missing, I made up."""
        return "\n".join(f"{s.file}\n{s.alignment}" for s in self.scored if s.words.errors) or "no mistakes"


def read_manifest(path: Path, only: Sequence[str] = ()) -> list[Row]:
    """The recordings to evaluate, with what was said in them.

    Parameters
    ----------
    path : a TSV with the columns file (relative to its own folder) and text
    only : folders of it; all without

    Raises
    ------
    SourceError   naming file, line or recording: a table that makes no sense, without text or
                  recordings (below `only`), or with recordings that are not there
    """
    rows = read_table(path)
    if rows and rows[0].text is None:
        found = ", ".join(rows[0].columns)
        raise SourceError(f"{path}:1: expected a column 'text' with what was said, found only {found}")
    if not rows:
        raise SourceError(f"{path}:2: expected a recording per line below the header, found none")
    kept = [row for row in rows if not only or any(_below(row.label, folder) for folder in only)]
    if not kept:
        folders = ", ".join(dict.fromkeys(PurePosixPath(row.label).parts[0] for row in rows))
        wanted = " or ".join(map(repr, only))
        raise SourceError(f"{path}: no recording is below {wanted}; there are {folders[:200]}")
    if absent := [repr(row.label) for row in kept if not row.path.is_file()]:
        more = f" and {len(absent) - NAMED} more" if len(absent) > NAMED else ""
        named = ", ".join(absent[:NAMED])
        raise SourceError(f"{path}: {len(absent)} of {len(kept)} recordings are not there: {named}{more}")
    return kept


def evaluate_manifest(running: Run, rows: Sequence[Row], score: Scorer) -> Evaluation:
    """Recognise every recording, over the graph's lanes, and compare.

    A recording that cannot be read to its end is in `failed`, and counts with what was recognised of it.
    """
    recordings = [recording(running.graph, row.path, row.label) for row in rows]
    heard = [Memory() for _ in rows]
    jobs = [(r, [(running.text_node, memory)]) for r, memory in zip(recordings, heard, strict=True)]
    started = time.perf_counter()
    with progress("evaluating", unit="recordings") as report:
        failed = running.batch(jobs, lambda: report(sum(memory.closed for memory in heard), len(rows)))
    wall_s = time.perf_counter() - started
    errors = {name: str(error) for name, error in failed}
    scored = tuple(
        score(row.label, row.text or "", memory.text, r.heard_s)
        for row, r, memory in zip(rows, recordings, heard, strict=True)
        if r.complete or row.label in errors
    )
    return Evaluation(scored, wall_s, score.normalizer, tuple(errors.items()), len(rows) - len(scored))


def _below(file: str, folder: str) -> bool:
    return PurePosixPath(file).is_relative_to(PurePosixPath(folder))


def _pad(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)


def _cells(name: str, score: Score) -> tuple[str, ...]:
    words, right = score.words, 100 * score.right / max(1, score.recordings)
    rates = (f"{100 * words.rate:.2f}", f"{100 * score.characters.rate:.2f}", f"{right:.1f}")
    counts = (score.recordings, words.reference, words.substitutions, words.deletions, words.insertions)
    return (name, *rates, *map(str, counts), f"{score.seconds:.1f}")

"""Many recordings at once: a list, a glob, or a table with one row per recording."""

from __future__ import annotations

import csv
import glob
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pipeline.ends.file import FileSource
from pipeline.ends.paths import readable, reason
from pipeline.errors import SourceError

TABLE_SUFFIXES = (".tsv", ".txt")
TABLE_BYTES = 1 << 28  # of a table; a larger one is more likely audio under a wrong name


@dataclass(frozen=True, slots=True)
class Row:
    """One recording: where it is, what it is called in the manifest, what was said if that is known.

    `columns` holds all that the table says about it.
    """

    path: Path
    label: str
    text: str | None = None
    columns: dict[str, str] = field(default_factory=dict)


class ManifestSource:
    """A `FileSource` for each row of a manifest, in an order that is the same on every machine.

    Parameters
    ----------
    files : a pattern such as `corpus/**/*.flac`; or a .tsv with the column `file` (and `text`), relative to
        its own folder; or a list of files and patterns
    block_ms, pace, channel : as for a file

    Raises
    ------
    SourceError   from `rows` and `sources`: nothing matches, or the table makes no sense. A row's own file is
        looked at only when it is opened
    """

    live = False
    label = "manifest"

    def __init__(
        self,
        files: str | Path | Sequence[str | Path],
        *,
        block_ms: float | None = None,
        pace: str | float = "asap",
        channel: int | None = None,
    ):
        self.files = [files] if isinstance(files, str | Path) else list(files)
        self._file = partial(FileSource, block_ms=block_ms, pace=pace, channel=channel)
        self._file("-")  # complains about options now and not at the first row

    def rows(self) -> list[Row]:
        """All recordings, in order: as listed, as in the table, or sorted within a pattern."""
        return [row for entry in self.files for row in _rows_of(str(entry))]

    def sources(self) -> Iterator[FileSource]:
        """A closed source per row; `label` is the row's own."""
        for row in self.rows():
            source = self._file(row.path)
            source.label = row.label
            yield source


def read_table(path: str | Path) -> list[Row]:
    """The rows of a TSV with a header line; `file` is required, `text` is what was said.

    Raises
    ------
    SourceError   naming file, line and what is expected there
    """
    path, label = Path(path), str(path)
    readable(path, label)
    try:
        with path.open("rb") as file:
            data = file.read(TABLE_BYTES + 1)
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{label}: cannot read it as UTF-8 text ({reason(error)})") from error
    if len(data) > TABLE_BYTES:
        raise SourceError(f"{label}: a table of recordings is at most {TABLE_BYTES >> 20} MiB; is this one?")
    lines = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        header = next(lines, [])
        if "file" not in header:
            raise SourceError(f"{label}:1: expected a header with the column 'file', found {header!r}")
        return [_row(path, lines.line_num, header, cells) for cells in lines if any(cells)]
    except csv.Error as error:
        raise SourceError(f"{label}:{lines.line_num}: {reason(error)}") from error


def _row(table: Path, line: int, header: list[str], cells: list[str]) -> Row:
    if len(cells) != len(header):
        raise SourceError(f"{table}:{line}: expected {len(header)} columns, as above, found {len(cells)}")
    columns = dict(zip(header, cells, strict=True))
    name = columns["file"].strip()
    if not name or "\0" in name:
        raise SourceError(f"{table}:{line}: expected a path in the column 'file', found {columns['file']!r}")
    return Row(table.parent / name, name, columns.get("text"), columns)


def _rows_of(entry: str) -> list[Row]:
    path = Path(entry)
    if path.suffix.lower() in TABLE_SUFFIXES:
        return read_table(path)
    if not glob.has_magic(entry) or path.is_file():
        return [Row(path, entry)]
    names = glob.iglob(entry, recursive=True)  # noqa: PTH207
    found = sorted(name for name in names if Path(name).is_file())
    if not found:
        raise SourceError(f"{entry}: no file matches this pattern; `**` stands for any number of folders")
    return [Row(Path(name), name) for name in found]

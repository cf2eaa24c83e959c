"""A manifest: a table with one row per recording."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.ends.paths import readable, reason
from pipeline.errors import SourceError

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


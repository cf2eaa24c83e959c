"""What an examination found: one line for each thing looked at, with a mark and a cure."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from typing import Any

OK, NOTE, WARNING, MISSING = "ok", "note", "warning", "missing"
WIDTH, INDENT = 110, " " * 8
MARKS = {OK: "ok", NOTE: "--", WARNING: "!!", MISSING: "no"}
Row = tuple[str, str, str, str]  # name, status, detail, cure


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at.

    status : ok, note (good to know), warning, or missing
    cure : what to do about it, empty where nothing need be done
    """

    section: str
    name: str
    status: str
    detail: str
    cure: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All that was found, in order."""

    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Nothing that `run file` needs is missing."""
        return not any(f.status == MISSING for f in self.findings)

    def text(self) -> str:
        """For people: a paragraph per section; each cure stands below its trouble."""
        lines: list[str] = []
        for section in dict.fromkeys(f.section for f in self.findings):
            lines += ["", section]
            for f in self.findings:
                if f.section == section:
                    lines += _wrapped(f"{f.name}: {f.detail}", f"  {MARKS[f.status]}  ")
                    lines += [line for cure in f.cure.splitlines() for line in _wrapped(cure, INDENT)]
        verdict = "all is here that is needed" if self.healthy else "missing: the lines marked no"
        return "\n".join([*lines[1:], "", verdict])

    def as_json(self) -> dict[str, Any]:
        return {"healthy": self.healthy, "findings": [asdict(f) for f in self.findings]}


def _wrapped(text: str, margin: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=margin, subsequent_indent=INDENT, break_on_hyphens=False)

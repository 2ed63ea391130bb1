"""summary.md: the account of the night to keep.

Rule 1: every text that is not ours is escaped: no markup, no HTML, no link comes of a prompt or a server's message.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from . import sections, tables
from .account import Account, JobLine
from .advice import Step, next_steps
from .atomic import replaced
from .moments import rfc3339, span_text

FILE_NAME = "summary.md"

_MARKUP = re.compile(r"([\\`*_{}\[\]|~$])")
_ENTITIES = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("://", "&#58;//"), ("www.", "www&#46;"))


def escaped(text: str) -> str:
    """Return text that Markdown and HTML show as it is, inside a line; it must be printable already."""
    for raw, entity in _ENTITIES:
        # Addresses too, as renderers turn bare ones into links.
        text = text.replace(raw, entity)
    return _MARKUP.sub(r"\\\1", text)


def markdown_text(account: Account) -> str:
    """Return summary.md's content."""
    span = span_text(account.started_us, account.ended_us)
    parts = [
        ["# " + sections.headline(account)],
        [f"{span} local time, {rfc3339(account.started_us)} to {rfc3339(account.ended_us)} UTC"],
        [f"- {line}" for line in sections.standing(account.jobs)],
        ["## What to do next", "", *_steps(next_steps(account))],
        ["## Credits", "", *_table(sections.money(account))],
    ]
    if account.kinds:
        parts.append(["## By model and size", "", *_table(sections.kinds(account.kinds, wide=True))])
    if account.failures:
        parts.append(["## Failures", "", *_table(sections.failures(account.failures))])
    parts.append(_night(account))
    parts += [_jobs("Slowest jobs", account.slowest), _jobs("Dearest jobs", account.dearest)]
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def write_summary(folder: Path | int, account: Account) -> None:
    """Replace summary.md in the output folder (a path, or an open descriptor of it).

    Raises:
        DiskError: it could not be written; the old file is as it was.
    """
    with replaced(folder, FILE_NAME) as file:
        file.write(markdown_text(account).encode("utf-8", "replace"))


def _table(table: sections.Table) -> list[str]:
    rows = [[escaped(cell) for cell in row] for row in table.rows]
    return tables.markdown(table.head, rows, table.align)


def _steps(steps: Sequence[Step]) -> list[str]:
    if not steps:
        return ["Nothing: all is done."]
    lines = []
    for step in steps:
        lines.append(f"- {step.why[0].upper()}{step.why[1:]}" + (":" if step.command else "."))
        if step.command:
            lines += ["", f"      {step.command}", ""]
    return lines


def _night(account: Account) -> list[str]:
    lines = [f"- Outage {escaped(sentence)}" for sentence in sections.outages(account.outages)]
    lines += [f"- {escaped(sentence)}" for sentence in sections.oddities(account)]
    return ["## The endpoint", "", *lines] if lines else []


def _jobs(title: str, lines: Sequence[JobLine]) -> list[str]:
    return [f"## {title}", "", *_table(sections.stand_outs(lines))] if lines else []

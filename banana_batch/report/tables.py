"""A small table in plain text or Markdown."""

import unicodedata
from collections.abc import Sequence

LEFT, RIGHT = "<", ">"


def width(text: str) -> int:
    """Return how many columns of a terminal a text takes: wide characters two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def fitted(text: str, columns: int) -> str:
    """Return a text cut to so many columns of a terminal."""
    if width(text) <= columns:
        return text
    kept, used = [], 1
    for char in text:
        used += width(char)
        if used > columns:
            break
        kept.append(char)
    return "".join(kept) + "…"


def plain(head: Sequence[str], rows: Sequence[Sequence[str]], align: str, indent: str = "") -> list[str]:
    """Return a table's lines: columns two spaces apart, as wide as their widest cell.

    Args:
        align: `<` or `>` for each column.
    """
    table = [head, *rows] if any(head) else list(rows)
    widths = [max(map(width, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = [_padded(cell, columns, side) for cell, columns, side in zip(row, widths, align, strict=True)]
        lines.append((indent + "  ".join(cells)).rstrip())
    return lines


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """Return a table's lines in Markdown; cells must be escaped already."""
    rule = ["---:" if side == RIGHT else "---" for side in align]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def _padded(cell: str, columns: int, side: str) -> str:
    space = " " * (columns - width(cell))
    return space + cell if side == RIGHT else cell + space

"""The figures as a picture: bars, one group a workload, written by hand as SVG."""

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, BAR, GAP, LEFT = 760, 18, 26, 210
COLOURS = ("#e0a800", "#8a8f98", "#4c78a8")


def bars(title: str, groups: Mapping[str, Sequence[tuple[str, float, str]]]) -> str:
    """Return a bar chart.

    Args:
        groups: By heading: label, length relative to the longest of its group, and the text at its end.
    """
    y, parts = 56, []
    for heading, rows in groups.items():
        longest = max((length for _, length, _ in rows), default=1.0) or 1.0
        parts.append(f'<text x="12" y="{y}" font-weight="600">{escape(heading)}</text>')
        y += 8
        for number, (label, length, text) in enumerate(rows):
            width = max(1, round((WIDTH - LEFT - 190) * length / longest))
            colour = COLOURS[number % len(COLOURS)]
            parts.append(f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(label)}</text>')
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{width}" height="{BAR - 4}" rx="2" fill="{colour}"/>')
            parts.append(f'<text x="{LEFT + width + 6}" y="{y + 12}">{escape(text)}</text>')
            y += BAR
        y += GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" font-family="sans-serif" font-size="13">'
        f'<rect width="100%" height="100%" fill="white"/>'
        f'<text x="12" y="26" font-size="17" font-weight="600">{escape(title)}</text>'
    )
    return head + "".join(parts) + "</svg>\n"

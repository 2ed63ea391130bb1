"""What a manifest means for a batch, as values."""

import json
from collections.abc import Iterator, Mapping

from msgspec import Struct, field

from banana_batch.models import Kind
from banana_batch.text import printable


class ChangedRow(Struct, frozen=True):
    """A known id with another request.

    Attributes:
        differences: `field: was → is`, printable.
    """

    id: str
    file: str
    line: int
    differences: tuple[str, ...]


class KindCount(Struct, frozen=True):
    """Jobs of one model × size.

    Attributes:
        new: Not bought under this request: changed rows among them.
        states: Known jobs of the manifest by state.
        removed: Jobs of the last manifest that this one does not have.
    """

    kind: Kind
    new: int
    states: Mapping[str, int]
    removed: int = 0


class Difference(Struct):
    """What a manifest means for a batch.

    Attributes:
        rows: Jobs in the manifest, after expansion.
        new: Not known to the batch, changed ones among them not counted.
        changed: Known ids with another request whose job was sent: refused unless accepted.
        updated: Known ids with another request whose job was never sent, or failed: they take it.
        removed: Jobs of the last manifest that this one does not have.
        known: Jobs of the last manifest.
        duplicates: Rows whose request another row has too.
        changes: The first few changed rows.
        columns: Those of the manifest's first rows that are the user's own: kept, and never sent.
    """

    rows: int = 0
    new: int = 0
    changed: int = 0
    updated: int = 0
    removed: int = 0
    known: int = 0
    duplicates: int = 0
    kinds: list[KindCount] = field(default_factory=list)
    changes: list[ChangedRow] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)

    @property
    def columns_text(self) -> str:
        """What is said of the user's own columns; empty where there are none."""
        names = ", ".join(printable(name, 40) for name in self.columns)
        return f"columns of your own, kept and not sent: {names}" if names else ""

    @property
    def mostly_gone(self) -> bool:
        """More than half of the known rows are missing: likely another manifest, or another default."""
        return self.removed * 2 > self.known


def differences(was: str, now: str, was_refs: str | None, now_refs: str | None) -> Iterator[str]:
    """Yield `field: was → is` of two requests, printable."""
    old, new = json.loads(was), json.loads(now)
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            yield f"{name}: {_shown(old.get(name))} → {_shown(new.get(name))}"
    if was_refs != now_refs:
        yield "refer_images: the content of a local file changed"


def _shown(value: object) -> str:
    return "not given" if value is None else printable(json.dumps(value, ensure_ascii=False), 60)

"""The log of what was sold: one JSON line for each charged call, durable before the call goes on.

Rule 1: a line is written and synced before anything of its call is answered: what was charged is in the log, whoever
        dies when. Lines of concurrent calls share a sync.
Rule 2: the log is the only record. A picture's name carries the offset of its line, and the line the whole name,
        so that any picture ever sold is found without an index, and no name can be guessed.
Rule 3: a torn last line was never answered for; it is cut off at the next start.
"""

import asyncio
import json
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from msgspec import Struct

from banana_batch import money
from banana_batch.errors import SettingsError
from banana_batch.grouping import GroupCommit

from .faults import Fault, FaultKind
from .medium import line_at, line_start, open_medium
from .orders import Order

LOG_NAME = "charges.jsonl"
_TOKEN_CHARS = 32
_NAME = re.compile(r"[0-9a-f]{33,47}")  # so that the offset fits the 63 bits that systems allow


class Charge(Struct, frozen=True):
    """One line of the log.

    Attributes:
        number: Order of the charges, from 1.
        image: Name of the picture, without extension: 32 random hexadecimal digits and the line's offset.
        references: How many reference images came with it.
        credits: What it cost, millionths.
        total: What was charged up to and with it, millionths.
        fault: What fetches of the picture meet.
        tries: How many of them; None: all.
        time: RFC 3339, UTC.
    """

    number: int
    image: str
    prompt: str
    model: str
    aspect_ratio: str
    image_size: str
    thinking_level: str | None
    google_search: bool
    image_search: bool
    references: int
    credits: int
    total: int
    fault: FaultKind | None
    tries: int | None
    time: str


class _Sale(Struct, frozen=True):
    order: Order
    micro: int
    fault: Fault | None


class ChargeLog:
    """The log of one sandbox, open for sales.

    Args:
        folder: Where `charges.jsonl` lies, made where it is missing; None: in memory.
        executor: One thread (or none, in a simulation) that writes and syncs; None: one of its own.
        now: The wall clock, for the record.

    Raises:
        BatchLocked: another sandbox has the log open.
        SettingsError: the folder can't be used, or the log is none of ours.
    """

    def __init__(
        self,
        folder: Path | None,
        executor: Executor | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._now = now
        self._owned = ThreadPoolExecutor(1, "charges") if executor is None and folder is not None else None
        self._medium, self._end = open_medium(None if folder is None else folder / LOG_NAME)
        self.number, self.total = self._resume(folder)
        self._writing: set[asyncio.Future[str]] = set()
        writer = executor or self._owned
        self._group = None if writer is None or folder is None else GroupCommit(writer, self._write)

    def _resume(self, folder: Path | None) -> tuple[int, int]:
        if not self._end:
            return 0, 0
        try:
            last = parse_line(line_at(self._medium, line_start(self._medium, self._end - 1)))
        except ValueError:
            self._medium.close()
            raise SettingsError(
                f"{folder}/{LOG_NAME} is damaged", "Move it away; pictures sold before are gone with it."
            ) from None
        return last.number, last.total

    async def charge(self, order: Order, micro: int, fault: Fault | None = None) -> str:
        """Charge a call; return its picture's name when the line is durable.

        Raises:
            OSError: nothing was charged, and nothing of it is in the log.
        """
        sale = _Sale(order, micro, fault)
        if self._group is None:
            return self._write([sale])[0]
        written = self._group.put(sale)
        self._writing.add(written)
        written.add_done_callback(self._writing.discard)
        # A caller that goes away takes nothing back: its line is written all the same.
        return await asyncio.shield(written)

    def _write(self, sales: Sequence[_Sale]) -> Sequence[str]:
        lines: list[bytes] = []
        names: list[str] = []
        end, number, total = self._end, self.number, self.total
        time = self._now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        for sale in sales:
            number += 1
            total += sale.micro
            name = f"{secrets.token_hex(_TOKEN_CHARS // 2)}{end:x}"
            line = _line(sale, number, name, total, time)
            names.append(name)
            lines.append(line)
            end += len(line)
        self._medium.append(b"".join(lines), self._end)
        self._end, self.number, self.total = end, number, total
        return names

    def find(self, image: str) -> Charge | None:
        """Return the charge that sold a picture; None if there was none of this name."""
        if not _NAME.fullmatch(image):
            return None
        try:
            charge = parse_line(line_at(self._medium, int(image[_TOKEN_CHARS:], 16)))
        except ValueError:
            return None
        return charge if secrets.compare_digest(charge.image, image) else None

    def __iter__(self) -> Iterator[Charge]:
        """Go through all charges, in their order."""
        offset = 0
        while offset < self._end:
            line = line_at(self._medium, offset)
            offset += len(line) + 1
            yield parse_line(line)

    async def close(self) -> None:
        """Finish what is being written and let go of the file."""
        if self._writing:
            await asyncio.wait(self._writing)
        if self._owned is not None:
            self._owned.shutdown(wait=True)
        self._medium.close()


def read_charges(folder: Path) -> list[Charge]:
    """Return the charges that a folder's log holds, without a torn last line; for tests and accounts."""
    data = (folder / LOG_NAME).read_bytes()
    return [parse_line(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def _line(sale: _Sale, number: int, image: str, total: int, time: str) -> bytes:
    order, fault = sale.order, sale.fault
    of_image = fault is not None and fault.kind.of_image
    record = {
        "number": number,
        "image": image,
        "prompt": order.prompt,
        "model": order.model,
        "aspect_ratio": order.ratio,
        "image_size": order.size,
        "thinking_level": order.thinking_level,
        "google_search": order.google_search,
        "image_search": order.image_search,
        "references": len(order.refer_images or ()),
        "credits": money.credits_text(sale.micro),
        "total": money.credits_text(total),
        "fault": fault.kind if fault and of_image else None,
        "tries": fault.tries if fault and of_image else None,
        "time": time,
    }
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def parse_line(line: bytes) -> Charge:
    """Read one line of the log.

    Raises:
        ValueError: it is none.
    """
    try:
        record: dict[str, Any] = json.loads(line)
        fault = record["fault"]
        amounts = {name: money.to_micro(Decimal(record[name])) for name in ("credits", "total")}
        return Charge(**{**record, **amounts, "fault": fault and FaultKind(fault)})
    except (ArithmeticError, KeyError, TypeError) as failed:
        raise ValueError("not a line of a charge log") from failed

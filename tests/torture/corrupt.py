"""T-corrupt: damaged, cut, exchanged and missing state files. What was bought is never bought again in silence.

A batch is copied at the instant of a call, as a kill would leave it; then one file of the copy is damaged and the batch
is made ready again, up to the point where it would send. Either that is refused with one of the known codes, or no job
whose request had left is among those that would be sent.

Rule: one bit more or less is as good as a page: what counts is that nobody is charged twice, never that all is noticed.
"""

import asyncio
import io
import json
import os
import random
import shutil
import sqlite3
import struct
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from banana_batch.errors import BananaError, Exit
from banana_batch.mending import recover
from banana_batch.ordering import settle_order
from banana_batch.pacing.clock import SystemClock
from banana_batch.planning import made_ready
from banana_batch.store.ballast import BALLAST_NAME
from tests.integration.answers_peer import answer, failed
from tests.integration.whole_runs import Arrived, Gateway, Watcher, gateway, run_batch, scratch

from .suite import Figures, Suite

TIERS = {"a": 2000, "b": 50_000}
STATE, WAL, LOG = "state.sqlite3", "state.sqlite3-wal", "run.log"
CODES = {Exit.BAD_INPUT, Exit.DISK, Exit.SETTINGS}
JOBS = [f"job {number}" for number in range(1, 61)]


@dataclass(frozen=True)
class Snapshot:
    """A batch as a kill left it.

    Attributes:
        sent: Jobs whose request had left and was not refused.
    """

    name: str
    folder: Path
    sent: frozenset[str]


Damage = Callable[[Path, random.Random], str]


async def snapshots(folder: Path) -> list[Snapshot]:
    """Make batches and copy them in the middle of a run, near its beginning, and after its end."""
    taken: list[Snapshot] = []
    at = {12: "early", 45: "late"}

    async def said(peer: Gateway, arrived: Arrived) -> bytes | None:
        if arrived.nth in at:
            # The log is written within 0.2 s; a kill later than that finds it complete.
            await asyncio.sleep(0.5)
            copy = folder / at[arrived.nth]
            shutil.copytree(folder / "out", copy / "out", ignore=shutil.ignore_patterns("*-shm"))
            sent = frozenset(peer.posts) - {"job 3", "job 4"}
            taken.append(Snapshot(at[arrived.nth], copy, sent))
        if arrived.prompt in ("job 3", "job 4"):
            return answer(422, failed("no"))
        return None if arrived.prompt in ("job 7", "job 8") else peer.sold()

    async with gateway(said) as peer:
        await run_batch(folder / "out", peer.url, JOBS, concurrency=4, budget="$1")
    copy = folder / "ended"
    shutil.copytree(folder / "out", copy / "out", ignore=shutil.ignore_patterns("*-shm"))
    taken.append(Snapshot("ended", copy, frozenset(peer.posts) - {"job 3", "job 4"}))
    for snapshot in taken:
        with suppress(FileNotFoundError):
            os.truncate(snapshot.folder / "out" / BALLAST_NAME, 0)  # its name is what counts here
        shutil.copy(folder / "out.jsonl", snapshot.folder / "out.jsonl")
    return taken


def _places(data: bytearray, chance: random.Random) -> int:
    """Return a place in a file: anywhere, or in the header of one of its pages or frames."""
    if chance.random() < 0.5:
        return chance.randrange(len(data))
    size, first = (4096, 0) if data[:6] == b"SQLite" else (4120, 32)
    return min(len(data) - 1, chance.randrange(len(data) // size + 1) * size + first + chance.randrange(24))


def _edited(edit: Callable[[bytearray, random.Random], None]) -> Damage:
    def damage(out: Path, chance: random.Random) -> str:
        files = [name for name in (STATE, WAL) if (out / name).exists() and (out / name).stat().st_size]
        name = chance.choice(files)
        data = bytearray((out / name).read_bytes())
        edit(data, chance)
        (out / name).write_bytes(data)
        return name

    return damage


def _flip(data: bytearray, chance: random.Random) -> None:
    data[_places(data, chance)] ^= 1 << chance.randrange(8)


def _burst(data: bytearray, chance: random.Random) -> None:
    place = _places(data, chance)
    data[place : place + 16] = chance.randbytes(len(data[place : place + 16]))


def _truncate(data: bytearray, chance: random.Random) -> None:
    del data[_places(data, chance) :]


def _zero(data: bytearray, chance: random.Random) -> None:
    place = _places(data, chance)
    length = len(data[place : place + chance.choice((16, 512, 4096))])
    data[place : place + length] = bytes(length)


def _swap(data: bytearray, chance: random.Random) -> None:
    size, first = (4096, 0) if data[:6] == b"SQLite" else (4120, 32)
    pages = (len(data) - first) // size
    if pages > 1:
        one, other = (first + page * size for page in chance.sample(range(pages), 2))
        data[one : one + size], data[other : other + size] = data[other : other + size], data[one : one + size]


def _without_wal(out: Path, _chance: random.Random) -> str:
    (out / WAL).unlink(missing_ok=True)
    return "no -wal"


def _version(out: Path, chance: random.Random) -> str:
    data = bytearray((out / STATE).read_bytes())
    data[60:64] = struct.pack(">I", chance.choice((0, 2, 99)))
    (out / STATE).write_bytes(data)
    return "version"


def _stranger(out: Path, _chance: random.Random) -> str:
    (out / WAL).unlink(missing_ok=True)
    (out / STATE).unlink()
    with closing(sqlite3.connect(out / STATE)) as db:
        db.execute("CREATE TABLE cats (name)")
    return "stranger"


def _empty(out: Path, _chance: random.Random) -> str:
    (out / STATE).write_bytes(b"")
    return "empty"


def _missing(out: Path, _chance: random.Random) -> str:
    for name in (STATE, WAL):
        (out / name).unlink(missing_ok=True)
    return "missing"


DAMAGES: dict[str, tuple[int, Damage]] = {
    "flip": (8, _edited(_flip)),
    "burst": (4, _edited(_burst)),
    "truncate": (4, _edited(_truncate)),
    "zero": (4, _edited(_zero)),
    "swap": (4, _edited(_swap)),
    "no-wal": (1, _without_wal),
    "version": (1, _version),
    "stranger": (1, _stranger),
    "empty": (1, _empty),
    "missing": (1, _missing),
}


def case(number: int, taken: list[Snapshot], scratch_folder: Path) -> tuple[str, str | None]:
    """Damage one copy and make it ready; return what it came to, and what is wrong with that."""
    chance = random.Random(number)
    snapshot = chance.choice(taken)
    kinds = list(DAMAGES)
    kind = chance.choices(kinds, [DAMAGES[name][0] for name in kinds])[0]
    copy = scratch_folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(snapshot.folder, copy)
    where = DAMAGES[kind][1](copy / "out", chance)
    label = f"{snapshot.name} {kind} {where}"
    try:
        again = would_send(copy) & snapshot.sent
    except BananaError as refused:
        wrong = None if refused.exit in CODES else f"{label}: exit {int(refused.exit)}: {refused}"
        return f"refused {int(refused.exit)}", wrong
    except Exception as broke:  # noqa: BLE001  # what the user would see as a traceback
        return "broke", f"{label}: {type(broke).__name__}: {broke}"
    return "went on", f"{label}: {len(again)} sent jobs would be sent again: {sorted(again)[:3]}" if again else None


def would_send(folder: Path) -> set[str]:
    """Make a batch ready as a run does, and return the jobs that it would send."""
    out = folder / "out"
    order = settle_order(
        [str(folder / "out.jsonl")], {"out": str(out), "base_url": "http://127.0.0.1:9"}, {}, folder, io.BytesIO()
    )
    with made_ready(order) as prepared, closing(prepared.db) as db:
        asyncio.run(recover(db, out, SystemClock(), Watcher()))
        rows = db.execute("SELECT id, request FROM jobs WHERE state = 'pending' AND position IS NOT NULL").fetchall()
        return {row["id"] for row in rows} | {json.loads(row["request"]).get("prompt", "") for row in rows}


def run_cases(numbers: range) -> Figures:
    """Try so many damages."""
    figures, ends = Figures(), Counter[str]()
    with scratch() as folder:
        taken = asyncio.run(snapshots(folder))
        for number in numbers:
            end, wrong = case(number, taken, folder)
            ends[end] += 1
            if wrong:
                replay = f"python -m tests.torture.corrupt {number}"
                figures.violations.append(f"{wrong} ({replay})")
    figures.counts = {"files": len(numbers), **{name: ends[name] for name in sorted(ends)}}
    return figures


def main(arguments: list[str]) -> int:
    """Replay single cases."""
    with scratch() as folder:
        taken = asyncio.run(snapshots(folder))
        for number in map(int, arguments):
            print(number, *case(number, taken, folder))
    return 0


SUITE = Suite("T-corrupt", lambda tier: run_cases(range(TIERS[tier])))

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

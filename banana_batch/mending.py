"""What a run mends before it begins and completes before it ends: doubts, parts, lost rows, shared images."""

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .images.folders import Folders, lock_after_former
from .images.links import link_images
from .images.recovery import adopt, remove_parts
from .ports import Clock, Events
from .store import queries, runs
from .store.changes import record_image, share_image
from .store.handout import paid_images
from .store.state import StateStore
from .text import plural

TWINS_AT_ONCE = 256
Question = Coroutine[Any, Any, bool]


async def recover(db: sqlite3.Connection, out: Path, clock: Clock, events: Events) -> bool:
    """Bring into order what a dead run left; tell whether there was anything.

    Raises:
        DiskError, OutputError: it can't be.
        BatchLocked: a process of that run still writes.
    """
    folders = Folders(out)
    try:
        await lock_after_former(folders)
    finally:
        folders.close()
    with runs.transaction(db):
        doubts = runs.doubt_interrupted(db, runs.DIED)
        runs.lower_ceilings(db)
    if doubts:
        events.emit("note", message=f"an earlier run died with {plural(doubts, 'request')} on the wire: now in doubt")
    remove_parts(out)
    adopted = 0
    for image, known_sha256 in list(paid_images(db)):
        found = adopt(out, image, known_sha256)
        if found is not None:
            with runs.transaction(db):
                record_image(db, image.index, found, clock.wall_us())
            adopted += 1
    return bool(doubts or adopted)


async def settle_doubts(
    db: sqlite3.Connection,
    policy: str,
    ask: Callable[[Sequence[queries.Doubt]], Question] | None,
    halted: asyncio.Event,
) -> bool:
    """Return whether jobs in doubt are sent again in this run; drop them where that was said.

    Args:
        policy: Of `--in-doubt`.
        ask: Asks whether these are to be sent again; None: there is nobody to ask.
        halted: An order to stop has come: it needs no answer any more.
    """
    if policy == "drop":
        with runs.transaction(db):
            if runs.drop_doubts(db):
                runs.tell_listed(db, None)
    if policy == "ask" and ask is not None:
        doubts = list(queries.doubts(db, manifest_only=True))
        return bool(doubts) and await _answer(ask(doubts), halted)
    return policy == "resend"


async def _answer(question: Question, halted: asyncio.Event) -> bool:
    asked, over = asyncio.ensure_future(question), asyncio.ensure_future(halted.wait())
    try:
        await asyncio.wait({asked, over}, return_when=asyncio.FIRST_COMPLETED)
        return asked.done() and asked.result()
    finally:
        asked.cancel()
        over.cancel()


async def share_images(store: StateStore, out: Path, clock: Clock, events: Events) -> None:
    """Give each row that asks for what another row bought a link to that image under its own name."""
    while twins := await store.do(partial(queries.ready_twins, limit=TWINS_AT_ONCE)):
        shared = link_images(out, [(index, stem, path) for index, _, stem, path in twins])
        now_us = clock.wall_us()
        for index, name, _, _ in twins:
            await store.do(partial(share_image, index=index, path=shared[index], done_us=now_us))
            events.emit("shared", index=index, id=name, path=shared[index])

"""Which paid images a run takes up by itself."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from banana_batch.capabilities import pixels
from banana_batch.lifecycle import Event, Settlement
from banana_batch.models import Answer, Kind, Reserve, Settled
from banana_batch.pacing.clock import SystemClock
from banana_batch.store.handout import paid_images
from banana_batch.store.runs import begin_run
from banana_batch.store.state import StateStore
from banana_batch.store.unborn import Unborn

PRO = Kind("gemini-3-pro-image-preview", "1K")
PAID = Settled(Event.ANSWERED, Settlement.PAID, "ok", answer=Answer("https://example.test/x.png", 13_000_000))


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    opened = Unborn(tmp_path).open()
    opened.execute("INSERT INTO kinds (model, image_size) VALUES (?, ?)", (PRO.model, PRO.image_size))
    opened.execute(
        "INSERT INTO jobs (id, position, key, kind, stem, request) VALUES ('x', 1, x'00', 1, '00001-x', ?)",
        ('{"prompt": "x", "model": "gemini-3-pro-image-preview"}',),
    )
    opened.execute("""UPDATE jobs SET unsent = '{"aspect_ratio": "16:9"}'""")
    yield opened
    opened.close()


async def test_an_image_is_taken_up_by_later_runs_only(db: sqlite3.Connection, tmp_path: Path) -> None:
    """What a run bought itself is never handed out as left by an earlier one: two tasks would fetch it at once."""
    with ThreadPoolExecutor(1) as thread:
        mine = StateStore(db, thread, SystemClock(), begin_run(db, 0, None), tmp_path)
        (job,) = await mine.next_pending(10)
        await mine.settle(await mine.begin(job, Reserve(50_000_000, ceiling=True)), job, PAID)
        assert await mine.next_paid(10) == []
        later = StateStore(db, thread, SystemClock(), begin_run(db, 1, None), tmp_path)
        assert [image.id for image in await later.next_paid(10)] == ["x"]
        assert await later.next_paid(10) == []


async def test_what_is_bought_is_handed_on_as_the_state_has_it(db: sqlite3.Connection, tmp_path: Path) -> None:
    """The image that comes with an answer is the one that a later run would read: its name, its documented size."""
    with ThreadPoolExecutor(1) as thread:
        store = StateStore(db, thread, SystemClock(), begin_run(db, 0, None), tmp_path)
        (job,) = await store.next_pending(10)
        bought = await store.settle(await store.begin(job, Reserve(50_000_000, ceiling=True)), job, PAID)
    assert [(bought, None)] == list(paid_images(db))
    assert bought is not None
    assert bought.stem == "00001-x"
    assert bought.expected_pixels == pixels(PRO.model, "16:9", PRO.image_size) != pixels(PRO.model, None, "1K")

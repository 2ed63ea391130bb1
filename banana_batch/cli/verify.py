"""`verify`: every image re-hashed against the state, every sum counted again; never pays."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from msgspec import Struct, field

from banana_batch.errors import Exit
from banana_batch.finding import working_folder
from banana_batch.images.recovery import rehash, set_changed_aside
from banana_batch.lifecycle import JobState
from banana_batch.planning import opened_for_images
from banana_batch.prepared import Prepared
from banana_batch.settings import wants_json
from banana_batch.store import checks, queries, resolve, runs
from banana_batch.text import plural, printable

from . import outcome
from .run import DownloadWait


class _Found(Struct):
    """What a check found: index and path of images that are not what the state says."""

    images: int = 0
    missing: list[tuple[int, str]] = field(default_factory=list)
    changed: list[tuple[int, str]] = field(default_factory=list)

    @property
    def bad(self) -> list[tuple[int, str]]:
        return [*self.missing, *self.changed]


def verify(
    batch: Annotated[str, typer.Argument(metavar="BATCH", help="Output folder, or the manifest it was made from")],
    repair: Annotated[bool, typer.Option("--repair", help="Fetch again what is missing or changed; free")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output")] = False,
    download_wait: DownloadWait = None,
) -> int:
    """Hold every image and every sum against the state. Never pays for anything.

    Example: banana-batch verify outputs/prompts --repair
    """
    given: dict[str, Any] = {"json": json, "download_wait": download_wait}
    options = {name: value for name, value in given.items() if value}
    told = outcome.Told(wants_json(options, os.environ))
    with outcome.json_whatever_happens(told):
        out, settings, ready = opened_for_images(batch, options, os.environ, working_folder())
        told.out = out
        with ready() as prepared, contextlib.closing(prepared.db) as db:
            with runs.transaction(db):
                runs.doubt_interrupted(db, runs.DIED)
            if not queries.sums_agree(db):
                raise checks.damaged(out, "its sums are not those of its attempts")
            found = _check(db, out)
        mends = repair and bool(found.bad)
        if not (json and mends):
            # One object is promised: with --repair it is the repairing run's.
            _report(found, json=json)
        if not found.bad:
            return Exit.DONE
        if not repair:
            return Exit.FAILED

        @contextlib.contextmanager
        def repaired() -> Iterator[Prepared]:
            with ready() as again:
                # First: what lies under the name of a job that is only paid would be taken for its image.
                for _, path in found.changed:
                    set_changed_aside(out, path)
                with runs.transaction(again.db):
                    runs.tell_listed(again.db, None)
                    for index, _ in found.bad:
                        resolve.fetch_again(again.db, index)
                yield again

        from .running import Work, finish

        return finish(Work(out, settings, repaired, os.environ, sends=False), told)
    return told.code


def _check(db: Any, out: Path) -> _Found:
    found = _Found()
    for row in queries.results(db, JobState.DONE):
        found.images += 1
        there = rehash(out, row["path"])
        if there is None:
            found.missing.append((row["job"], row["path"]))
        elif there != (row["sha256"].hex(), row["bytes"]):
            found.changed.append((row["job"], row["path"]))
    return found


def _report(found: _Found, *, json: bool) -> None:
    if json:
        outcome.print_json(
            {
                "images": found.images,
                "missing": [path for _, path in found.missing],
                "changed": [path for _, path in found.changed],
            }
        )
        return
    for what, bad in (("missing", found.missing), ("changed", found.changed)):
        for _, path in bad:
            outcome.say(f"{what}  {printable(path, 200)}")
    whole = found.images - len(found.bad)
    outcome.say(f"{plural(found.images, 'image')}: {whole:,} whole, {len(found.missing):,} missing, "
                f"{len(found.changed):,} changed; the ledger's sums agree")  # fmt: skip
    if found.bad:
        outcome.say("  → banana-batch verify --repair fetches them again, free")

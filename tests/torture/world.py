"""A simulated night: the real program before the real sandbox, on virtual time.

The endpoint outlives the program's deaths, as the real one does. What a dead program leaves is a copy of its
folder, made at the very instant; the next life goes on with that copy.
"""

import asyncio
import contextlib
import csv
import functools
import io
import logging
import os
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

from banana_batch import money
from banana_batch.batch import Machinery, Run, Work
from banana_batch.errors import Exit
from banana_batch.images.outside import Outside
from banana_batch.manifest.loader import open_manifests
from banana_batch.ordering import Order
from banana_batch.planning import made_ready
from banana_batch.prepared import Prepared
from banana_batch.report.account import Account
from banana_batch.sandbox.config import Latency, SandboxConfig, list_prices
from banana_batch.sandbox.faults import CallInfo, Canned, Fault, FaultKind
from banana_batch.sandbox.server import Sandbox
from banana_batch.settings import Settings
from banana_batch.store.queries import Doubt
from banana_batch.store.state import StateStore
from tests.contract.fakes import VirtualClock
from tests.torture.virtual import EVENING, Inline, virtual_network
from tests.torture.weather import KINDS, Death, Night, Spell, Storm
from tests.torture.witness import Witness

PORT = 8787
_STORM_FAULTS = {
    Storm.ERRORS: FaultKind.SERVER_ERROR,
    Storm.OVERLOAD: FaultKind.UNAVAILABLE,
    Storm.THROTTLED: FaultKind.TOO_MANY,
    Storm.QUEUE: FaultKind.QUEUE_FULL,
    Storm.DOUBTS: FaultKind.GATEWAY_TIMEOUT,
}
_NO_BALANCE = b'{"status":"FAILED","message":"Insufficient balance","data":null}'


class Nobody:
    """A view without a person; it keeps what must never happen."""

    can_ask = False

    def __init__(self, life: "Life") -> None:
        self.bugs: list[str] = []
        self._life = life

    def emit(self, event: str, /, **facts: object) -> None:
        if event in ("bug", "unrecorded") and not self._life.dead:
            self.bugs.append(f"{event}: {facts}")

    async def ask(self, question: str) -> bool:
        return False

    async def ask_doubts(self, doubts: Sequence[Doubt]) -> bool:
        return False


class Dead(Exception):
    """The program is dead: its commit does not happen."""


class Life:
    """One life of the program, and how it ends."""

    def __init__(self, out: Path, death: Death | None) -> None:
        self.out = out
        self.left = out.with_name("left")
        self.dead = False
        self.commits = 0
        self.run: Run | None = None
        self.task: asyncio.Task[Any] | None = None
        self._death = death

    def before_commit(self) -> None:
        self.commits += 1
        if not self.dead and self._due() and not (self._death and self._death.durable):
            self.die()
        if self.dead:
            raise Dead

    def after_commit(self) -> None:
        if not self.dead and self._due():
            self.die()

    def _due(self) -> bool:
        return self._death is not None and self._death.commit == self.commits

    def die(self) -> None:
        """Leave the folder as it is now, and do nothing more to it."""
        if self.dead or self.task is None or self.task.done():
            return
        self.dead = True
        shutil.copytree(self.out, self.left, copy_function=_copied)
        self.task.cancel()


def _copied(source: str, target: str) -> None:
    # Images never change once they have their name.
    if source.endswith(".png"):
        os.link(source, target)
    else:
        shutil.copyfile(source, target)


class World:
    """Everything of one night.

    Attributes:
        calls: Paid calls that reached the endpoint, by prompt.
        witness: Watches every commit.
    """

    def __init__(self, night: Night, folder: Path) -> None:
        self.night = night
        self.folder = folder
        self.out = folder / "out"
        self.calls: Counter[str] = Counter()
        self.witness = Witness()
        self.broken: list[str] = []
        self.balance = night.balance
        self.budget = night.budget
        self.last_call_s = 0.0
        self.life: Life | None = None
        self.indices: dict[str, int] = {}
        self.config = SandboxConfig(
            seed=night.seed,
            latency=Latency("lognormal", night.median_s, night.median_s * 2.5),
            prices=list_prices(),
            queue_limit=night.queue_limit,
            rate_limit=night.rate_limit,
            faults=night.shares,
            plain_pictures=True,
        )
        self._spell: Spell | None = None
        self.manifest = folder / "night.csv"
        self._write_manifest()

    def _write_manifest(self) -> None:
        text = io.StringIO()
        rows = csv.writer(text)
        rows.writerow(("prompt", "model", "image_size"))
        for number in range(self.night.jobs):
            kind = KINDS[number % len(KINDS)]
            rows.writerow((f"picture {number}", kind.model, kind.image_size))
        self.manifest.write_text(text.getvalue())

    # The endpoint.

    def clock(self) -> VirtualClock:
        """Return the time that the program goes by."""
        return VirtualClock(EVENING.timestamp())

    def sandbox(self) -> Sandbox:
        return Sandbox(None, self.config, PORT, executor=Inline(), now=lambda: EVENING)

    def meet(self, sandbox: Sandbox, call: CallInfo) -> Fault | Canned | None:
        """Decide what a call meets, and hold the two promises that only the endpoint's side can see."""
        self.last_call_s = asyncio.get_running_loop().time()
        prompt = call.order.prompt
        self.calls[prompt] += 1
        job = self.indices.get(prompt)
        known = self.witness.of_job[job] if job is not None else []
        if job is None or self.calls[prompt] > len(known):
            self._break(f"{prompt!r} was sent before its attempt was durable")
        elif self.witness.attempts[known[-1]].outcome != "sending":
            self._break(f"{prompt!r} was sent by an attempt that is settled")
        if self._spell is not None and self._spell.storm in _STORM_FAULTS:
            return Fault(_STORM_FAULTS[self._spell.storm])
        price = self.config.prices[next(kind for kind in KINDS if kind.model == call.order.model)]
        charged = sum(charge.credits for charge in sandbox.charges()) if self.balance is not None else 0
        if self.balance is not None and charged + price > self.balance:
            return Canned(402, {"Content-Type": "application/json"}, _NO_BALANCE)
        return None

    def _break(self, promise: str) -> None:
        if len(self.broken) < 10:
            self.broken.append(promise)

    async def rage(self, sandbox: Sandbox, spell: Spell) -> None:
        """Let one storm come and pass."""
        await asyncio.sleep(spell.starts_s)
        self._spell = spell
        if spell.storm in _STORM_FAULTS:
            await asyncio.sleep(spell.lasts_s)
        else:
            async with sandbox.outage("refuse" if spell.storm is Storm.REFUSED else "drop"):
                await asyncio.sleep(spell.lasts_s)
        self._spell = None

    async def cut(self, sandbox: Sandbox, at_s: float) -> None:
        await asyncio.sleep(at_s)
        sandbox.cut()

    async def reprice(self, at_s: float, factor: float) -> None:
        await asyncio.sleep(at_s)
        for kind in self.config.prices:
            self.config.prices[kind] = round(self.config.prices[kind] * factor)

    # The program.

    def settings(self, *, stop_by: bool) -> Settings:
        night = self.night
        at = EVENING.timestamp() + (night.stop_by_s or 0)
        return Settings(
            out=self.out,
            base_url=f"http://127.0.0.1:{PORT}",
            concurrency=night.concurrency,
            budget=None if self.budget is None else money.credits_text(self.budget),
            give_up_after=8 * 3600.0,
            download_wait=night.download_wait_s,
            in_doubt=night.in_doubt,
            stop_by=datetime.fromtimestamp(at).time() if stop_by else None,  # noqa: DTZ006  # as a clock on the wall
            log_file=self.folder / "run.log",
        )

    async def one_run(self, death: Death | None, *, stop_by: bool) -> Exit | None:
        """Live once; return the exit code, None for a death."""
        settings = self.settings(stop_by=stop_by)
        order = Order(settings, self.out, open_manifests([str(self.manifest)], settings, self.folder, io.BytesIO()))

        @contextlib.contextmanager
        def ready() -> Iterator[Prepared]:
            with made_ready(order) as prepared:
                self._watch(prepared.db)
                yield prepared

        life = self.life = Life(self.out, death)
        clock, view = self.clock(), Nobody(life)
        machinery = Machinery(
            clock=clock,
            rng=random.Random(self.night.seed),
            executor=lambda _width, _name: Inline(),
            images=functools.partial(Outside, many=None),
        )
        life.run = Run(Work(self.out, settings.of_run, ready, {"TT_API_KEY": "key"}), lambda _: view, machinery)
        life.task = asyncio.create_task(life.run.run())
        if death is not None and death.at_s is not None:
            loop = asyncio.get_running_loop()
            loop.call_at(max(death.at_s, loop.time() + 1), life.die)
        await asyncio.wait([life.task])
        self.broken += view.bugs
        if life.dead:
            with contextlib.suppress(BaseException):
                life.task.exception()
            shutil.rmtree(self.out)
            life.left.rename(self.out)
            return None
        account: Account = life.task.result()
        return account.exit

    def _watch(self, db: sqlite3.Connection) -> None:
        self.witness.budget = self.budget
        self.witness.may_resend = self.night.in_doubt == "resend"
        self.witness.attach(db)
        if not self.indices:
            self.indices = {row[0]: row[1] for row in db.execute("SELECT request ->> 'prompt', job FROM jobs")}

    def unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Keep what nobody caught; what a dead program leaves uncaught is no matter."""
        if not isinstance(context.get("exception"), Dead | None):
            self._break(f"uncaught: {context}")

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep what the endpoint's server logs as an error of its own."""
        if record.levelno >= logging.ERROR:
            self._break(f"the sandbox failed: {record.exc_info and record.exc_info[1]!r}")
        return False

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Put the loop's own network under the client, and the witness behind each commit."""
        original = StateStore._transaction

        def watched(store: StateStore, operations: Sequence[Callable[[sqlite3.Connection], Any]]) -> list[Any]:
            assert self.life is not None
            self.life.before_commit()
            results = original(store, operations)
            self.witness.committed(store._db)
            self.life.after_commit()
            return results

        with virtual_network(), patch.object(StateStore, "_transaction", watched):
            server = logging.getLogger("aiohttp.server")
            server.addFilter(self)
            yield
            server.removeFilter(self)

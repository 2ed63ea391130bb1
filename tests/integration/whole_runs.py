"""A whole run in process against a gateway of raw bytes: what it sends, what it keeps, what it says."""

import asyncio
import io
import json
import random
import sqlite3
import ssl
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from banana_batch.batch import Machinery, Run, Work
from banana_batch.engine.stops import Stop
from banana_batch.errors import Exit
from banana_batch.models import Totals
from banana_batch.money import MICRO
from banana_batch.ordering import settle_order
from banana_batch.planning import made_ready
from banana_batch.report.phrases import PHRASES
from banana_batch.report.tally import Tally
from banana_batch.store import queries
from banana_batch.store.database import open_reader
from tests.integration.answers_peer import CANARY, answer, read_request
from tests.unit.images.samples import png

IMAGE = png()


@dataclass(frozen=True)
class Arrived:
    """One POST; `nth` counts all of them from 1, `again` those of this prompt."""

    prompt: str
    nth: int
    again: int
    request: dict[str, Any]


class Gateway:
    """What arrived at the peer; each answer is exactly the bytes it is told to give.

    Attributes:
        image: Answers a GET; its number, from 1, is handed in.
        hold: Set when the peer ends: an answer may wait for it.
        most: Paid calls that were on the wire at once, at most.
    """

    def __init__(self) -> None:
        self.posts: list[str] = []
        self.gets: list[str] = []
        self.url = ""
        self.connections = 0
        self.hold = asyncio.Event()
        self.image: Callable[[int], bytes | None] = lambda _nth: answer(200, IMAGE, "Content-Type: image/png")
        self.most = self._now = 0
        self._writers: set[asyncio.StreamWriter] = set()

    def sold(self, quota: object = 2, **data: object) -> bytes:
        """Return the answer to a good call, with an image that lies at this peer."""
        url = f"{self.url}/i/{len(self.posts)}.png"
        bought = {"prompt": "p", "refer_images": None, "image_url": url, "quota": quota, **data}
        return answer(200, {"status": "SUCCESS", "message": "success", "data": bought})

    def cut_all(self) -> None:
        """Reset every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def serve(self, reply: "Reply", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.connections += 1
        self._writers.add(writer)
        try:
            while request := await read_request(reader):
                said = await self._answered(request, reply)
                if said:
                    writer.write(said)
                    await writer.drain()
                if not said or not _whole(said):
                    break
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answered(self, request: bytes, reply: "Reply") -> bytes | None:
        head, _, body = request.partition(b"\r\n\r\n")
        if head.startswith(b"GET"):
            self.gets.append(head.split()[1].decode())
            return self.image(len(self.gets))
        asked = json.loads(body)
        prompt = asked["prompt"]
        self.posts.append(prompt)
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            said = reply(self, Arrived(prompt, len(self.posts), self.posts.count(prompt), asked))
            return said if said is None or isinstance(said, bytes) else await said
        finally:
            self._now -= 1


Reply = Callable[[Gateway, Arrived], bytes | Awaitable[bytes | None] | None]


def _whole(said: bytes) -> bool:
    """Tell whether the connection can go on after these bytes."""
    head, _, body = said.partition(b"\r\n\r\n")
    length = f"Content-Length: {len(body)}".encode()
    return head.startswith(b"HTTP/1.1 ") and length in head.split(b"\r\n") and b"Connection: close" not in head


def good(gateway: Gateway, _arrived: Arrived) -> bytes:
    """Sell every image for 2 credits."""
    return gateway.sold()


@asynccontextmanager
async def gateway(reply: Reply = good, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Gateway]:
    """Open a peer on loopback; None or nothing as an answer closes the connection."""
    peer = Gateway()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        await peer.serve(reply, reader, writer)
        tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls, backlog=512)
    peer.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield peer
    finally:
        peer.hold.set()
        server.close()
        await asyncio.sleep(0)
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


class Eager(random.Random):
    """Every wait that is drawn is as short as it may be."""

    def uniform(self, a: float, b: float) -> float:
        """Return the low end."""
        return min(a, b)


class Watcher:
    """Implements `batch.View`: keeps what it is told, answers what it is asked."""

    def __init__(self, *, can_ask: bool = False, yes: bool = False) -> None:
        self.can_ask = can_ask
        self.yes = yes
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.asked: list[str] = []
        self.on: Callable[[str, dict[str, Any]], None] = lambda _event, _facts: None

    def emit(self, event: str, /, **facts: object) -> None:
        """See ports.Events."""
        self.events.append((event, dict(facts)))
        self.on(event, facts)

    async def ask(self, question: str) -> bool:
        """See `batch.View`."""
        self.asked.append(question)
        return self.yes

    async def ask_doubts(self, doubts: Sequence[queries.Doubt]) -> bool:
        """See `batch.View`."""
        self.asked.append(f"{len(doubts)} doubts")
        return self.yes


@dataclass
class Ended:
    """How a run ended, as the outside sees it: code, state, ledger, log."""

    exit: Exit
    jobs: Counter[str]
    tries: list[int]
    totals: Totals
    log: list[dict[str, Any]]
    events: list[tuple[str, dict[str, Any]]]
    outcomes: Counter[str] = field(default_factory=Counter)

    def told(self, event: str) -> list[dict[str, Any]]:
        """Return the facts of each such event."""
        return [facts for name, facts in self.events if name == event]

    @property
    def said(self) -> str:
        """What a person reads of it."""
        return "\n".join(PHRASES[name](facts) for name, facts in self.events if _worth_telling(name, facts))

    @property
    def credits(self) -> tuple[float, float, float]:
        """Spent, at risk and reserved credits."""
        sums = self.totals
        return sums.spent / MICRO, sums.at_risk / MICRO, sums.reserved / MICRO


async def run_batch(
    out: Path,
    base_url: str,
    prompts: Sequence[str],
    *,
    watcher: Watcher | None = None,
    machinery: Machinery | None = None,
    watch: Callable[[Run], None] | None = None,
    rows: Sequence[dict[str, Any]] = (),
    **options: Any,
) -> Ended:
    """Run a manifest of prompts; return how it ended. Raises what the run raises."""
    view = watcher or Watcher()
    out.parent.mkdir(parents=True, exist_ok=True)
    manifest = out.parent / f"{out.name}.jsonl"
    rows = rows or [{"prompt": text, "id": text} for text in prompts]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"out": str(out), "base_url": base_url, "concurrency": 1, "give_up_after": 5.0, "download_wait": 5.0}
    order = settle_order([str(manifest)], given | options, {"TT_API_KEY": CANARY}, out.parent, io.BytesIO())
    work = Work(out, order.settings.of_run, lambda: made_ready(order), {"TT_API_KEY": CANARY})
    run = Run(work, lambda _tally: view, machinery or Machinery(rng=Eager()))
    if watch is not None:
        watch(run)
    account = await run.run()
    return ended(out, account.exit, view)


def ended(out: Path, code: Exit, view: Watcher) -> Ended:
    """Read what a run left, with nothing but what it left on the disk."""
    log = []
    with suppress(FileNotFoundError):
        log = [json.loads(line) for line in (out / "run.log").read_text().splitlines()]
    with closing(open_reader(out)) as db:
        jobs = Counter({state.value: count for state, count in queries.counts(db).items() if count})
        tries = [row[0] for row in db.execute("SELECT tries FROM jobs ORDER BY job")]
        outcomes = Counter(row[0] for row in db.execute("SELECT outcome FROM attempts"))
        assert queries.sums_agree(db)
        return Ended(code, jobs, tries, queries.totals(db), log, view.events, outcomes)


def _worth_telling(event: str, facts: dict[str, Any]) -> bool:
    if event == "answered":
        return facts["outcome"] in ("refused", "in_doubt")
    return event in PHRASES and (event != "fetch_failed" or bool(facts["lost"]))


def attempts(out: Path) -> list[sqlite3.Row]:
    """Return the ledger's rows."""
    with closing(open_reader(out)) as db:
        return db.execute("SELECT * FROM attempts ORDER BY attempt").fetchall()


def stopping(run: Run, code: Exit = Exit.STOPPED) -> None:
    """Ask a run to drain, as the first signal does."""
    run.drain(Stop(code, "SIGTERM: stopping", "run again to go on"))


__all__ = ["Arrived", "Eager", "Ended", "Gateway", "Tally", "Watcher", "attempts", "gateway", "good", "run_batch"]


@contextmanager
def scratch() -> Iterator[Path]:
    """Make a folder in memory where there is one: a sync costs nothing there, and no promise here needs it."""
    memory = Path("/dev/shm")  # a folder of its own below
    with tempfile.TemporaryDirectory(prefix="whole-runs-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)

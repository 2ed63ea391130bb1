"""Composition root: opens everything a run needs in one stack, runs it, closes it, tells how it went."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from concurrent.futures import Executor

from msgspec import Struct, structs

from . import accounting, money
from .accounting import Span
from .endpoint.client import EndpointClient
from .endpoint.key import load_key
from .engine.downloads import CROWD
from .engine.pool import Ending, Pool, PoolConfig
from .engine.sending import Rules
from .engine.stops import Stop, exit_code
from .errors import REASONS, BananaError, DiskError, Exit, KeyRefused, worst
from .estimating import Estimate, Estimates
from .images.fetcher import COMMIT_THREADS, DISK_THREADS
from .lifecycle import JobState
from .listing import Listing
from .mending import recover, settle_doubts, share_images
from .pacing.deadlines import deadline
from .pacing.pacer import Pacer
from .pacing.pacer import Stop as PacerStop
from .ports import Events, Images
from .prepared import ALLOWED_HOSTS, BASE_URL, SANDBOX_PORT, Prepared
from .report.account import Account
from .report.fanout import Fanout
from .report.log import RunLog
from .report.markdown import write_summary
from .report.results import FILE_NAME as RESULTS_NAME
from .report.tally import Tally
from .run_settings import TIMEOUT_4K_S, TIMEOUT_S
from .secret import Secret
from .store import queries, runs
from .store.evidence import LOG_NAME
from .store.room import Room
from .store.state import StateStore
from .text import duration_text
from .work import Machinery, View, Work

SANDBOX_FOLDER = "sandbox"
SANDBOX_KEY = "sandbox"
ASK_ABOVE_MICRO = 1000 * money.MICRO
MAX_FETCHERS = 64
MIN_FETCHERS = 4
WIDE = 256  # calls in flight of which the images come in bursts
CROWD_OF_BURSTS = 2  # instead of CROWD: a burst has time until the next one, and its calls go first
__all__ = ["LOG_NAME", "Machinery", "Run", "View", "Work"]


class _Begun(Struct):
    """A run that has begun: what its end needs."""

    db: sqlite3.Connection
    run: int
    first_attempt: int
    started_us: int
    started_s: float
    changed: bool


class Run:
    """One run of a batch. `drain` and `abort` may be called at any time, from the loop's thread."""

    def __init__(self, work: Work, view: Callable[[Tally], View], machinery: Machinery | None = None) -> None:
        self._work = work
        self._settings = work.settings
        self._machinery = machinery or Machinery()
        self._clock = self._machinery.clock
        self.tally = Tally(self._clock)
        self._view = view(self.tally)
        self._events: Events = self._view
        self._secret = Secret("")
        self._pool: Pool | None = None
        self._early: Stop | None = None
        self._halted = asyncio.Event()
        self._aborted = False
        self._store: StateStore | None = None
        self._estimates = Estimates(work.settings.caps.max_price)
        self._usual_s: float | None = None

    def drain(self, stop: Stop) -> None:
        """Start nothing more; let calls in flight end, at most for the grace time."""
        self._early = self._early or stop
        self._halted.set()
        pool = self._pool
        if pool is None:
            return
        pool.drain(stop)
        self._events.emit(
            "drain",
            reason=stop.message,
            on_wire=pool.on_wire,
            at_stake_micro=pool.at_stake_micro,
            typical_s=self.tally.latencies.quantile(0.5) or self._usual_s,
        )

    def abort(self, stop: Stop) -> None:
        """Cut calls in flight off: they are in doubt."""
        self._early, self._aborted = stop, True
        self._halted.set()
        if self._pool is not None:
            self._pool.abort(stop)

    async def run(self) -> Account:
        """Do the work; return its account. Everything is closed when this returns.

        Raises:
            BananaError: the run could not begin; nothing was sent.
        """
        started_us, started_s = self._clock.wall_us(), self._clock.monotonic_s()
        with runs.telling_disk(), self._work.ready() as prepared:
            db = prepared.db
            try:
                changed = await recover(db, self._work.out, self._clock, self._view) or not prepared.unchanged
                policy = self._settings.in_doubt if self._work.sends else "keep"
                ask = self._view.ask_doubts if self._view.can_ask else None
                resend = await settle_doubts(db, policy, ask, self._halted)
                self._secret = self._load_key()
                run = runs.begin_run(db, started_us, self._settings.budget)
                begun = _Begun(db, run, queries.next_attempt(db), started_us, started_s, changed)
                try:
                    with runs.telling_disk():
                        return await self._begun(begun, prepared, resend=resend)
                except BaseException as failed:
                    cut = isinstance(failed, asyncio.CancelledError)  # by a program: the command never does
                    code = failed.exit if isinstance(failed, BananaError) else Exit.INTERRUPTED if cut else Exit.BUG
                    with contextlib.suppress(sqlite3.Error):
                        runs.end_run(db, run, self._clock.wall_us(), code)
                    raise
            finally:
                _close(db)

    async def _begun(self, begun: _Begun, prepared: Prepared, *, resend: bool) -> Account:
        async with contextlib.AsyncExitStack() as stack:
            log = self._open_log(stack)
            room = Room(self._work.out)
            listing = Listing(self._work.out, self._executor(1, "results", stack))
            stack.callback(listing.close)
            self._events = Fanout([self.tally, log, room, self._view, self._estimates, listing])
            base_url = await self._gateway(begun.db, stack)
            wires = await stack.enter_async_context(contextlib.AsyncExitStack())
            endpoint = await self._endpoint(base_url, wires)
            images = await self._images(base_url, wires)
            thread = self._executor(1, "state", stack)
            store = self._store = StateStore(begun.db, thread, self._clock, begun.run, self._work.out)
            stack.callback(store.release)
            stack.push_async_callback(store.flush)
            self._estimates.serve(store, self._events)
            pacer = self._make_pacer(begun.db)
            pool = Pool(
                self._pool_config(resend=resend),
                store=store,
                endpoint=endpoint,
                images=images,
                pacer=pacer,
                disk=room,
                clock=self._clock,
                events=self._events,
                rng=self._machinery.rng,
                confirm=self._confirm_spending,
            )
            listing.calls = self._tell_start(begun, prepared)
            self._pool = pool
            if self._early is not None:
                (pool.abort if self._aborted else pool.drain)(self._early)
            ending = await pool.run()
            self._pool = None
            store.alone()
            stops = [*ending.stops, *self._pacer_stop(pacer, ending)]
            await share_images(store, self._work.out, self._clock, self._events)
            code = await store.do(lambda db: self._close_run(db, begun, stops, limited=ending.limited))
            # What is still connected is closed while the thread of the state, which has no more to do, writes.
            closing = asyncio.ensure_future(wires.aclose())
            try:
                account, trouble = await asyncio.wrap_future(thread.submit(self._record, begun, code, listing))
            finally:
                await closing
            if trouble is not None:
                self._events.emit("note", message=trouble)
            self._events.emit("run_ended", exit=int(account.exit), reason=REASONS[account.exit])
        return account

    # Beginning.

    def _load_key(self) -> Secret:
        if self._settings.sandbox:
            return Secret(SANDBOX_KEY)
        try:
            return load_key(self._settings.key_file, self._work.environ)
        except KeyRefused:
            if self._work.sends:
                raise
        # Nothing is sent, so none is needed; one that is there is only kept out of what hosts say.
        return Secret(SANDBOX_KEY)

    def _open_log(self, stack: contextlib.AsyncExitStack) -> RunLog:
        log = RunLog(
            self._settings.log_file or self._work.out / LOG_NAME,
            wall_us=self._clock.wall_us,
            trouble=lambda text: self._view.emit("note", message=text),
            redact=self._secret.redact,
        )
        stack.callback(log.close)
        return log

    async def _gateway(self, db: sqlite3.Connection, stack: contextlib.AsyncExitStack) -> str:
        """Return the gateway's address, with the batch's own sandbox started behind it where it is one."""
        if not self._settings.sandbox:
            url = self._settings.base_url
        else:
            from .sandbox.server import choose_port

            port = int(runs.recall(db, SANDBOX_PORT) or choose_port())
            sandbox = await stack.enter_async_context(
                self._machinery.sandbox(self._work.out / SANDBOX_FOLDER, port=port)
            )
            runs.remember(db, SANDBOX_PORT, str(sandbox.port))
            url = sandbox.base_url
        if self._work.sends:
            runs.remember(db, BASE_URL, url)
            runs.remember(db, ALLOWED_HOSTS, "\n".join(self._settings.allow_host))
        return url

    async def _endpoint(self, base_url: str, stack: contextlib.AsyncExitStack) -> EndpointClient:
        return await stack.enter_async_context(
            self._machinery.endpoint(
                base_url,
                self._secret if self._work.sends else Secret(SANDBOX_KEY),
                clock=self._clock,
                timeout_s=self._settings.timeout_s,
                executor=self._executor(1, "references", stack),
                proxy=self._proxy,
                ca_file=self._settings.ca_file,
            )
        )

    async def _images(self, base_url: str, stack: contextlib.AsyncExitStack) -> Images:
        return await stack.enter_async_context(
            self._machinery.images(
                self._work.out,
                gateway=base_url,
                committer=self._executor(COMMIT_THREADS, "images", stack),
                disk=self._executor(DISK_THREADS, "disk", stack),
                allow_hosts=self._settings.allow_host,
                proxy=self._proxy,
                ca_file=self._settings.ca_file,
                secret=self._secret,
                soon=self._work.sends and self._settings.concurrency >= WIDE,
            )
        )

    @property
    def _proxy(self) -> str | None:
        """The sandbox is this machine itself: nothing of it passes a proxy."""
        return None if self._settings.sandbox else self._settings.proxy

    def _executor(self, threads: int, name: str, stack: contextlib.AsyncExitStack) -> Executor:
        return stack.enter_context(self._machinery.executor(threads, name))

    def _make_pacer(self, db: sqlite3.Connection) -> Pacer:
        settings = self._settings
        pacer = Pacer(
            self._clock,
            self._events,
            self._machinery.rng,
            concurrency=settings.concurrency,
            give_up_after_s=settings.give_up_after,
            rpm=settings.rpm,
            deadline=deadline(
                settings.stop_by,
                settings.max_duration,
                now_s=self._clock.monotonic_s(),
                wall_us=self._clock.wall_us(),
            ),
            own_timeouts_s=(settings.timeout,) if settings.timeout else (TIMEOUT_S, TIMEOUT_4K_S),
        )
        if settings.stop_by is not None or settings.max_duration is not None:
            for past in queries.history(db):
                pacer.latencies.seed(past.kind, past.latencies_s)
        return pacer

    def _pool_config(self, *, resend: bool) -> PoolConfig:
        settings = self._settings
        asks = self._view.can_ask and settings.budget is None and not settings.yes
        return PoolConfig(
            concurrency=settings.concurrency if self._work.sends else 0,
            fetchers=max(MIN_FETCHERS, min(settings.concurrency, MAX_FETCHERS)),
            rules=Rules(settings.caps, settings.retries, ASK_ABOVE_MICRO if asks else None),
            limit=settings.limit,
            resend=resend,
            crowd=CROWD_OF_BURSTS if settings.concurrency >= WIDE else CROWD,
            download_wait_s=settings.download_wait,
            grace_s=settings.grace_s,
        )

    def _tell_start(self, begun: _Begun, prepared: Prepared) -> int:
        """Return how many jobs are to be sent for the first time."""
        self._usual_s = accounting.usual_latency_s(begun.db) if self._view.can_ask else None
        states = queries.counts(begun.db)
        mine = queries.manifest_counts(begun.db)
        todo = mine[JobState.PENDING] if self._work.sends else 0
        todo = min(todo, self._settings.limit or todo)
        own = prepared.difference.columns_text if prepared.fresh else ""
        for note in filter(None, (own, *map(str, prepared.warnings[:10]))):
            self._view.emit("note", message=note)
        self._events.emit(
            "run_started",
            run=begun.run,
            out=str(self._work.out),
            jobs={state.value: count for state, count in states.items()},
            todo=todo + states[JobState.PAID],
            budget_micro=self._settings.budget,
            buys=self._work.sends,
        )
        return todo

    # While it runs.

    async def _confirm_spending(self) -> bool:
        assert self._store is not None
        whole: Estimate = await self._store.do(self._estimates.estimate)
        spent = money.priced_text(self._store.totals.committed)
        return await self._view.ask(
            f"{spent} so far; all of it is likely to cost {money.priced_text(whole.expected)}, at most"
            f" {money.priced_text(whole.most)}. Go above {money.priced_text(ASK_ABOVE_MICRO)}?"
        )

    # Ending.

    def _pacer_stop(self, pacer: Pacer, ending: Ending) -> list[Stop]:
        cause = pacer.stopped_because
        if cause is None or ending.stops:
            return []
        if cause.stop is PacerStop.GAVE_UP:
            text = f"no good answer for {duration_text(self._settings.give_up_after)}"
            return [Stop(Exit.UNAVAILABLE, f"the endpoint: {text}", "run again later; nothing is lost")]
        if cause.stop is PacerStop.DEADLINE:
            return [Stop(Exit.STOPPED, "no further call would have ended in time", "run again to go on")]
        return []

    def _close_run(self, db: sqlite3.Connection, begun: _Begun, stops: list[Stop], *, limited: bool) -> Exit:
        runs.doubt_interrupted(db, runs.DIED)
        jobs, blocked = queries.manifest_counts(db), queries.blocked(db)
        if not self._work.sends:
            # Only images were asked for; what waits to be bought is no part of it.
            jobs |= {JobState.PENDING: 0, JobState.SENDING: 0}
        elif not limited and accounting.is_budget_used_up(db, self._settings.caps, begun.run):
            # Also where an order or a deadline came before the send that the budget would have forbidden.
            stops = [*stops, Stop(Exit.BUDGET, "the budget is reached")]
        code = exit_code(stops, jobs, limited=limited or not self._work.sends, blocked=blocked)
        runs.end_run(db, begun.run, self._clock.wall_us(), code)
        return code

    def _record(self, begun: _Begun, code: Exit, listing: Listing) -> tuple[Account, str | None]:
        """Write what people read afterwards; return it, and what failed: a full disk takes nothing from the state."""
        db, out = begun.db, self._work.out
        span = Span(
            begun.started_us,
            self._clock.wall_us(),
            self._clock.monotonic_s() - begun.started_s,
            begun.first_attempt,
            begun.run,
        )
        account = accounting.account_of(
            db,
            span,
            code,
            out,
            budget=self._settings.budget,
            run_budget=self._settings.run_budget,
            run_command=self._work.run_command,
            throttled_s=self.tally.throttled_s,
            outages=self.tally.outages,
        )
        old = begun.changed or self._estimates.changed or not runs.is_listed(db, begun.run)
        try:
            if old or not (out / RESULTS_NAME).exists():
                listing.write(db)
            with contextlib.suppress(sqlite3.OperationalError):  # then the next run writes them again
                runs.tell_listed(db, begun.run)
            write_summary(out, account)
        except DiskError as failed:
            account = structs.replace(account, exit=worst((code, failed.exit)))
            with contextlib.suppress(sqlite3.Error):  # as full as it was
                runs.end_run(db, begun.run, self._clock.wall_us(), account.exit)
            return account, f"the results could not be written: {failed}; banana-batch export {out}"
        return account, None


def _close(db: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()

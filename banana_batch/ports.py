"""What the engine asks of the other rooms. `batch.py` hands the implementations in.

Rule 1: the engine knows these and no implementation; so it runs without network and disk in tests.
Rule 2: outcomes are values. Only what must end the run is raised.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .errors import DiskError
from .models import (
    FetchFailed,
    Kind,
    PaidImage,
    QueuedJob,
    Reply,
    Reserve,
    SendTrace,
    Settled,
    Signal,
    StoredImage,
    Totals,
)

if TYPE_CHECKING:
    import asyncio  # for a name: whoever only looks at a batch waits for none of it


class Clock(Protocol):
    """Time. The wall clock is for records, the monotonic one for every wait and duration."""

    def monotonic_s(self) -> float:
        """Return seconds on a clock that never jumps."""

    def wall_us(self) -> int:
        """Return microseconds since the epoch, UTC."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


class Endpoint(Protocol):
    """The paid endpoint."""

    async def generate(self, job: QueuedJob, trace: SendTrace) -> Reply:
        """Buy one image. Not idempotent: each call may be charged. Never called again on its own.

        Sets `trace.sent_at_s` before the first byte can leave. Returns every ending as a value; a cancelled
        call with a sent trace is a doubt.
        """

    def rest(self) -> None:
        """No further call is expected: let go of what was kept for one. A call that comes nevertheless is as any."""


class Images(Protocol):
    """From a url to a verified, durable file."""

    async def fetch(self, image: PaidImage) -> StoredImage | FetchFailed:
        """Fetch once. Free, so it may be called again. A returned StoredImage is on disk, durable, under its name."""


class Store(Protocol):
    """The state file. Each method returns when its change is durable, or has raised.

    Raises (any of them):
        DiskError: the change is not durable; nothing may be sent any more.
    """

    @property
    def totals(self) -> Totals:
        """The ledger's sums over the life of the batch, as of the last commit."""

    @property
    def run_totals(self) -> Totals:
        """The same of this run."""

    @property
    def broken(self) -> DiskError | None:
        """Why nothing further can be begun: changes are only recorded in the room that was kept for them."""

    def price_micro(self, kind: Kind) -> int | None:
        """The highest price seen of a kind, as of the last commit; None: none seen."""

    def held_micro(self, kind: Kind, reserve: Reserve) -> int:
        """What the ledger still holds of a reserve: one that was set without a price came down to the first one."""

    async def next_pending(self, limit: int, *, known_only: bool = False) -> Sequence[QueuedJob]:
        """Take up to `limit` pending jobs of the manifest, in its order; each is handed out once a run.

        `known_only`: only such as were sent before.
        """

    async def next_resend(self, limit: int) -> Sequence[QueuedJob]:
        """Take up to `limit` jobs that are in doubt since before this run and may be sent again once."""

    async def begin(self, job: QueuedJob, reserve: Reserve) -> int:
        """Write the attempt with its reserve and the job as `sending`, in one commit; return the attempt.

        Only after this may a byte leave.
        """

    def settle(self, attempt: int, job: QueuedJob, settled: Settled) -> "asyncio.Future[PaidImage | None]":
        """Close an attempt and move its job, in one commit; results in the image to fetch if it is paid.

        Under way once this returns, whether or not it is awaited, and durable no later than what is begun after it.
        """

    async def next_paid(self, limit: int) -> Sequence[PaidImage]:
        """Take up to `limit` paid images that earlier runs left unfetched; each is handed out once a run."""

    async def finish(self, index: int, image: StoredImage) -> None:
        """Record the image and the job as `done`."""

    async def unfetched(self, index: int, failure: FetchFailed, lost: bool) -> None:
        """Record a failed fetch; `lost`: the image can no longer be had."""


class Pacer(Protocol):
    """When the next paid call may start."""

    @property
    def in_incident(self) -> bool:
        """The endpoint fails for everyone just now: a refusal says nothing about its job."""

    async def admit(self, kind: Kind) -> bool:
        """Wait for a turn. False: no further call may start in this run (deadline, drain, gave up)."""

    def admit_now(self) -> bool:
        """Take a turn if one is free and nothing but the width decides; False says nothing of `admit`."""

    def ended(self, kind: Kind, signal: Signal, latency_s: float | None, retry_after_s: float | None) -> None:
        """Give the turn back, with what the call taught. Called exactly once for each admitted call."""

    def withdraw(self) -> None:
        """Give a turn back unused: nothing was attempted."""

    def drain(self) -> None:
        """Admit nothing more; who waits gets False."""

    def hold(self, reason: str) -> None:
        """Admit nothing until `release` of the same reason."""

    def release(self, reason: str) -> None:
        """Undo `hold`."""


class Disk(Protocol):
    """The room that images need."""

    @property
    def moved(self) -> bool:
        """What is bought now would not be found there by the next run."""

    def has_room(self, images: int) -> bool:
        """Tell whether that many more images fit; asked before each paid call."""


Listener = Callable[[Mapping[str, Any]], None]


class Events(Protocol):
    """Where what happens is told: `run.log`, the progress bar, the account of the night.

    Three are told of each job. So whoever has a method `listener` is asked, once for each event, for what is to be
    called with its facts, or None; they are everybody's, and nobody changes them.
    """

    def emit(self, event: str, /, **facts: object) -> None:
        """Tell one event. Never raises, never blocks for long."""

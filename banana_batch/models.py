"""The values that pass between the rooms.

Rule 1: values only: no I/O, no clock. Amounts are integer micro-credits (money.py), times aware UTC or
        integer microseconds since the epoch (`_us`), durations seconds on the monotonic clock (`_s`).
Rule 2: a stage hands these to the next one and never its own objects.
Rule 3: no pydantic here, which takes longer to import than `status` to answer; what a user hands in is in job.py.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from msgspec import Struct

from .capabilities import DEFAULT_IMAGE_SIZE
from .errors import Exit
from .lifecycle import Event, JobState, Settlement

# Stands in a planned file name where the job's index goes, which the batch assigns when it first sees the job.
INDEX_MARK = "\x01"
# Images up to here stay in memory until a group of them is written; larger ones stream to the disk.
SMALL_BYTES = 256 * 1024
# Of the disk, bytes that no image is written into: for the ledger, the results and the log of the run.
KEPT_FREE_BYTES = 1 << 20


class Kind(Struct, frozen=True):
    """What a price and a latency depend on: the model and the image size."""

    model: str
    image_size: str = DEFAULT_IMAGE_SIZE

    def __str__(self) -> str:
        return f"{self.model} {self.image_size}"


class PlannedJob(NamedTuple):
    """A validated job on its way into a batch.

    A tuple, as a million of them are made in one go: a frozen dataclass takes three times as long.

    Attributes:
        id: As given, with `~2` … for further copies; None: the batch derives it from `key` and its occurrence.
        key: Hash of the canonical request, 16 bytes: what makes two jobs the same purchase.
        request: The wire body as compact JSON; local references stand in it as the row gave them.
        references: JSON object `{as given: {"path", "sha256", "mime"}}` of local references; None without any.
        unsent: JSON object of fields that the row spelled out and the wire leaves out; None without any.
        meta: JSON object of the user's own columns; None without any.
        stem: Path under `images/` without extension, with INDEX_MARK for the index.
        file, line: Where the row stands, for messages.
    """

    id: str | None
    key: bytes
    kind: Kind
    request: str
    references: str | None
    unsent: str | None
    meta: str | None
    stem: str
    file: str
    line: int


class QueuedJob(Struct, frozen=True):
    """A job that the engine may send.

    Attributes:
        index: Order in which the batch first saw the job, from 1.
        attempts: Requests made for it so far, over all runs.
        tries: Attempts used up by refusals that may pass, in this run.
        resend: It was in doubt, and the user said to send it again in this run.
        stem: Path under `images/` without extension.
        unsent: As in PlannedJob.
    """

    index: int
    id: str
    kind: Kind
    request: str
    references: str | None
    attempts: int
    tries: int
    resend: bool = False
    stem: str = ""
    unsent: str | None = None


class PaidImage(Struct, frozen=True):
    """An image that was paid for and has to be fetched.

    Attributes:
        stem: Path under `images/` without extension.
        expected_pixels: Documented width and height; another size is a warning.
        tries: Fetches that failed so far, over all runs.
        damaged_sha256: Hash of bytes that came before and held no whole image.
        failed_earlier: An earlier run failed to fetch it too.
    """

    index: int
    id: str
    url: str
    stem: str
    expected_pixels: tuple[int, int] | None
    tries: int = 0
    damaged_sha256: str | None = None
    failed_earlier: bool = False


class StoredImage(Struct, frozen=True):
    """An image that lies, whole, verified and durable, under its final name.

    Attributes:
        path: Relative to the output folder, with forward slashes.
        sha256: Of the bytes as served, hexadecimal.
        warning: A harmless oddity: trailing bytes, another size than documented, a wrong label.
    """

    path: str
    bytes: int
    sha256: str
    width: int
    height: int
    content_type: str
    warning: str | None = None


class Outcome(StrEnum):
    """What one paid request came to, decided by evidence."""

    NOT_SENT = "not_sent"
    REFUSED_FOR_NOW = "refused_for_now"
    REFUSED = "refused"
    PAID = "paid"
    IN_DOUBT = "in_doubt"

    @property
    def event(self) -> Event:
        """The job's event."""
        return _EVENTS[self]


_EVENTS: dict[Outcome, Event] = {
    Outcome.NOT_SENT: Event.NOT_SENT,
    Outcome.REFUSED_FOR_NOW: Event.REFUSED_FOR_NOW,
    Outcome.REFUSED: Event.REFUSED,
    Outcome.PAID: Event.ANSWERED,
    Outcome.IN_DOUBT: Event.UNANSWERED,
}


class Signal(StrEnum):
    """What an ended call tells the pacing of all others."""

    GOOD = "good"  # an image was bought: the endpoint is well
    REFUSED = "refused"  # the endpoint judged this request alone: it is well too
    THROTTLED = "throttled"  # too many calls: go narrower, cool down
    OVERLOADED = "overloaded"  # it failed and knows it: an incident once it is all that comes
    UNREACHED = "unreached"  # nothing was sent: an incident at once
    DOUBT = "doubt"  # sent, no trustworthy answer: an incident at once
    NEUTRAL = "neutral"  # says nothing


class Backoff(Struct, frozen=True):
    """Full jitter: wait uniform(0, min(cap_s, base_s * 2**n)) seconds before try n+1."""

    base_s: float
    cap_s: float


class StopRule(Struct, frozen=True):
    """Ends the run, after drain, with `exit`.

    Attributes:
        after: Answers of this class in a row that it takes.
        from_start: Only while no other class of answer came in this run.
        hint: What the user does next.
    """

    exit: Exit
    hint: str
    after: int = 1
    from_start: bool = False


class Verdict(Struct, frozen=True):
    """One row of the table of answers.

    Attributes:
        name: The error class in results and log; `ok` for an image.
        retries: Most retries of a job after this class, whatever `--retries` says; None: `--retries`;
            -1: as many as it takes, none used up.
        backoff: Wait before the job's next try; None: none of its own.
        signal: For the pacing of all calls.
        stop: Ends the run; None: goes on.
    """

    name: str
    outcome: Outcome
    signal: Signal
    retries: int | None = 0
    backoff: Backoff | None = None
    stop: StopRule | None = None


class Answer(Struct, frozen=True):
    """What the endpoint returned for a paid request.

    Attributes:
        image_url: Where the image lies: any text. Temporary: the vendor keeps some hosts for 3 days.
        credits_micro: What the call cost, `data.quota`, in millionths; None if the answer has no usable figure.
    """

    image_url: str
    credits_micro: int | None


class Reply(Struct, frozen=True):
    """How one paid request ended.

    Attributes:
        answer: Only with Outcome.PAID.
        message: The endpoint's words, or ours; printable, bounded.
        status: HTTP status; None where no response line came.
        latency_s: From the send to the end of the answer, seconds, monotonic clock; None if nothing was sent.
        raw: The body, at most 64 KiB, for the record.
        retry_after_s: The endpoint's own wish, seconds.
    """

    verdict: Verdict
    answer: Answer | None = None
    message: str | None = None
    status: int | None = None
    latency_s: float | None = None
    raw: bytes = b""
    retry_after_s: float | None = None


class SendTrace(Struct):
    """Evidence of one call, shared between the client and the worker that may be cancelled.

    Attributes:
        sent_at_s: Monotonic time at which the request's headers were handed to the transport; None: no byte left.
    """

    sent_at_s: float | None = None


class FetchFailed(Struct, frozen=True):
    """Why an image is not on disk yet.

    Attributes:
        name: The error class.
        retries: Most further tries in this run.
        backoff: Between them.
        lost: After the last try the image can no longer be had.
        stop: Ends the run (an address that may not be fetched, a broken disk).
        sha256: Of bytes that held no whole image: twice the same means the image is lost.
        gone: The host says that there is no such image.
    """

    name: str
    message: str
    retries: int
    backoff: Backoff
    lost: bool = False
    stop: StopRule | None = None
    sha256: str | None = None
    gone: bool = False


class Totals(Struct, frozen=True):
    """The ledger's sums, in millionths. `spent` includes `wasted`."""

    reserved: int = 0
    spent: int = 0
    at_risk: int = 0
    wasted: int = 0

    @property
    def committed(self) -> int:
        """What counts against a budget."""
        return self.reserved + self.spent + self.at_risk


class Caps(Struct, frozen=True):
    """The caps of a run, in millionths; None: no cap.

    Attributes:
        max_price: The most one image may cost while no price of its kind is known.
        bounded: `max_price` is a default, not the user's word: with less budget left, what is left is reserved.
    """

    budget: int | None
    run_budget: int | None
    max_price: int
    bounded: bool

    @property
    def limited(self) -> bool:
        """Whether any sum keeps calls from being sent."""
        return self.budget is not None or self.run_budget is not None


class Reserve(Struct, frozen=True):
    """Credits set aside before a request is sent.

    Attributes:
        ceiling: No price of its kind was known: to be brought down to the first one.
    """

    micro: int
    ceiling: bool


class Settled(Struct, frozen=True):
    """How an attempt is closed in the ledger, in the same commit as the job's next state."""

    event: Event
    settlement: Settlement
    verdict: str
    message: str | None = None
    status: int | None = None
    latency_s: float | None = None
    raw: bytes = b""
    answer: Answer | None = None
    counts: bool = False


@dataclass(slots=True)
class RunResult:
    """One job's line of `results.jsonl`, as an object. Credits are a decimal string, null if not known."""

    id: str
    index: int
    state: JobState
    prompt: str
    model: str
    aspect_ratio: str | None = None
    image_size: str | None = None
    thinking_level: str | None = None
    google_search: bool | None = None
    image_search: bool | None = None
    refer_images: list[str] | None = None
    meta: dict[str, Any] | None = None
    image: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    content_type: str | None = None
    image_url: str | None = None
    credits: str | None = None
    attempts: int = 0
    latency_s: float | None = None
    sent_at: str | None = None
    done_at: str | None = None
    error: dict[str, str] | None = field(default=None)
    warning: str | None = None

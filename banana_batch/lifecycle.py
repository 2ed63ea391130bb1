"""The life of one job and of one paid request, as two tables.

Rule 1: every transition lives in TRANSITIONS or SETTLEMENTS. No other module decides a state;
        a trigger in store/schema.sql refuses any other pair, and a test holds the two equal.
Rule 2: no clock, no disk, no network: the same events always give the same state.
Rule 3: the missing edges are the promise. Nothing leads from PAID, DONE or LOST back to PENDING,
        and nothing but the user's word leads there from IN_DOUBT.
"""

from enum import StrEnum


class JobState(StrEnum):
    """Where a job stands (the words of `status`, `results.jsonl` and the state file)."""

    PENDING = "pending"
    SENDING = "sending"
    PAID = "paid"
    DONE = "done"
    FAILED = "failed"
    IN_DOUBT = "in_doubt"
    LOST = "lost"
    DROPPED = "dropped"


class Event(StrEnum):
    """What can happen to a job. The user's word: RESEND, FOUND, GIVE_UP, REDO, REPAIR."""

    SEND = "send"  # reserve and attempt are written in the same commit, before the first byte
    NOT_SENT = "not_sent"  # proof that no byte left this machine
    REFUSED_FOR_NOW = "refused_for_now"  # the endpoint said no, and it may pass
    REFUSED = "refused"  # the endpoint said no for good, or the retries are used up
    ANSWERED = "answered"  # a url came back: the image is ours to fetch
    UNANSWERED = "unanswered"  # sent, and no trustworthy answer: may have been charged
    STORED = "stored"  # the image is on disk, verified and durable
    IMAGE_LOST = "image_lost"  # paid, and the image can no longer be had
    RESEND = "resend"
    FOUND = "found"  # the user has the image's url
    GIVE_UP = "give_up"
    REDO = "redo"  # also: a failed job whose row was changed
    REPAIR = "repair"  # the file is gone or changed, its url is known


_S, _E = JobState, Event

TRANSITIONS: dict[tuple[JobState, Event], JobState] = {
    (_S.PENDING, _E.SEND): _S.SENDING,
    (_S.SENDING, _E.NOT_SENT): _S.PENDING,
    (_S.SENDING, _E.REFUSED_FOR_NOW): _S.PENDING,
    (_S.SENDING, _E.REFUSED): _S.FAILED,
    (_S.SENDING, _E.ANSWERED): _S.PAID,
    (_S.SENDING, _E.UNANSWERED): _S.IN_DOUBT,
    (_S.PAID, _E.STORED): _S.DONE,
    (_S.PAID, _E.IMAGE_LOST): _S.LOST,
    (_S.IN_DOUBT, _E.RESEND): _S.PENDING,
    (_S.IN_DOUBT, _E.FOUND): _S.PAID,
    (_S.IN_DOUBT, _E.GIVE_UP): _S.DROPPED,
    (_S.FAILED, _E.REDO): _S.PENDING,
    (_S.DROPPED, _E.REDO): _S.PENDING,
    (_S.DONE, _E.REPAIR): _S.PAID,
}


class Settlement(StrEnum):
    """What became of one paid request: the ledger's word for it."""

    SENDING = "sending"  # on the wire, or its process died: its reserve counts
    NOT_SENT = "not_sent"  # released
    REFUSED = "refused"  # released: a refusal costs nothing (assumption, see README)
    PAID = "paid"  # spent: the credits that the endpoint stated
    UNPRICED = "unpriced"  # paid, but the stated credits are unusable: the reserve stays at risk
    DOUBT = "doubt"  # at risk
    CHARGED = "charged"  # spent and wasted: the user saw it on the account
    NOT_CHARGED = "not_charged"  # released: the user saw that it was not


_T = Settlement

SETTLEMENTS: dict[Settlement, frozenset[Settlement]] = {
    _T.SENDING: frozenset({_T.NOT_SENT, _T.REFUSED, _T.PAID, _T.UNPRICED, _T.DOUBT}),
    # PAID: the user handed in the image's url, so the request was answered after all.
    _T.DOUBT: frozenset({_T.CHARGED, _T.NOT_CHARGED, _T.PAID}),
}

SPENT = frozenset({_T.PAID, _T.CHARGED})
AT_RISK = frozenset({_T.UNPRICED, _T.DOUBT})


class IllegalTransition(Exception):
    """A job was told something that can't happen in its state: a bug here, never the user's fault."""

    def __init__(self, state: JobState, event: Event) -> None:
        super().__init__(f"a {state} job can't take the event {event}")
        self.state = state
        self.event = event


def after(state: JobState, event: Event) -> JobState:
    """Return the state that follows.

    Raises:
        IllegalTransition: the table has no such pair.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(state, event) from None

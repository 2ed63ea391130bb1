"""The table itself: what each row does to the job, the money and the run."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banana_batch.endpoint import classify, wire
from banana_batch.errors import Exit
from banana_batch.models import Outcome, Signal, Verdict

_STOPS = {
    "tls_certificate": (Exit.SETTINGS, 1, False),
    "tls_version": (Exit.SETTINGS, 1, False),
    "tls_handshake": (Exit.UNAVAILABLE, 3, False),
    "garbled": (Exit.PROTOCOL, 3, False),
    "redirect": (Exit.PROTOCOL, 1, False),
    "key_refused": (Exit.KEY, 1, False),
    "forbidden": (Exit.KEY, 1, False),
    "out_of_credits": (Exit.OUT_OF_CREDITS, 1, False),
    "wrong_endpoint": (Exit.SETTINGS, 1, False),
    "bad_request": (Exit.BAD_INPUT, 10, True),
    "unlisted_status": (Exit.PROTOCOL, 3, False),
    "queued": (Exit.PROTOCOL, 3, False),
    "no_image_url": (Exit.PROTOCOL, 2, False),
    "unknown_envelope": (Exit.PROTOCOL, 3, False),
    "not_json": (Exit.PROTOCOL, 2, False),
    "quota_absurd": (Exit.PROTOCOL, 1, False),
    "ambiguous": (Exit.PROTOCOL, 1, False),
    "too_large": (Exit.PROTOCOL, 1, False),
    "encoded": (Exit.PROTOCOL, 3, False),
}
_RETRIES = {
    "not_now": 1,
    "failed": 1,
    "server_failed": None,
    "overloaded": None,
    "redirect": -1,
    "key_refused": -1,
    "forbidden": -1,
    "out_of_credits": -1,
    "wrong_endpoint": -1,
    "rate_limited": -1,
    "queue_full": -1,
}
_BACKOFFS = {
    "not_now": (5, 60),
    "failed": (5, 60),
    "server_failed": (5, 60),
    "overloaded": (5, 60),
    "rate_limited": (5, 120),
    "queue_full": (10, 180),
}


@pytest.mark.parametrize("row", classify.ROWS, ids=lambda row: row.verdict.name)
def test_a_row_does_what_the_table_of_safety_says(row: classify.Row) -> None:
    """Stop rules, retries and back-off are pinned: a change here is a change of what users pay."""
    verdict = row.verdict
    stop = verdict.stop and (verdict.stop.exit, verdict.stop.after, verdict.stop.from_start)
    assert stop == _STOPS.get(verdict.name)
    unsent = verdict.outcome is Outcome.NOT_SENT
    assert verdict.retries == _RETRIES.get(verdict.name, -1 if unsent else 0)
    backoff = verdict.backoff and (verdict.backoff.base_s, verdict.backoff.cap_s)
    assert backoff == _BACKOFFS.get(verdict.name, (1, 60) if unsent else None)


def test_a_doubt_is_never_retried() -> None:
    """Nothing that may have been charged goes back to pending by itself."""
    doubts = [row.verdict for row in classify.ROWS if row.verdict.outcome is Outcome.IN_DOUBT]
    assert doubts
    assert all(verdict.retries == 0 and verdict.signal is Signal.DOUBT for verdict in doubts)
    assert all(verdict.outcome is not Outcome.PAID for verdict in doubts)


def test_names_are_unique_and_rows_complete() -> None:
    """A name in `results.jsonl` means one row, and every verdict of the module is in the table."""
    assert len(classify.VERDICTS) == len(classify.ROWS)
    made = {value for value in vars(classify).values() if isinstance(value, Verdict)}
    assert made == set(classify.VERDICTS.values())
    assert all(row.seen and row.charged for row in classify.ROWS)


def test_outages_and_throttling_stop_no_run_by_count() -> None:
    """--give-up-after alone ends these: a night that could go on goes on."""
    for name in ("dns", "connect", "cut_before_send", "rate_limited", "queue_full", "server_failed", "overloaded"):
        assert classify.VERDICTS[name].stop is None
    for name in ("cut_after_send", "timeout", "gateway_error", "gateway_timeout", "truncated"):
        assert classify.VERDICTS[name].stop is None


@given(status=st.integers(100, 999), body=st.binary(max_size=200), framed=st.booleans())
def test_any_answer_gets_a_row(status: int, body: bytes, framed: bool) -> None:
    """No bytes raise, and none of these accidents is taken for a sold image."""
    finding = classify.classify_answer(status, body, framed=framed)
    assert finding.verdict in classify.VERDICTS.values()
    assert finding.verdict.outcome is not Outcome.PAID


@given(status=st.integers(100, 999).filter(lambda status: status != 200))
def test_only_a_200_sells(status: int) -> None:
    """A documented success under another status is no sale."""
    body = b'{"status":"SUCCESS","data":{"image_url":"https://a.example/x.png","quota":2}}'
    assert classify.classify_answer(status, body).answer is None


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@settings(max_examples=60)
@given(data=_json, status=st.sampled_from(["SUCCESS", "FAILED", "ON_QUEUE", "?"]), message=_json, quota=_json)
def test_any_envelope_gets_a_row(data: object, status: str, message: object, quota: object) -> None:
    """Whatever stands in the fields: a sale has a text for its url and a price that is a count or unknown."""
    sold = {"status": status, "message": message, "data": data}
    if isinstance(data, dict):
        data["quota"] = quota
    finding = classify.classify_answer(200, json.dumps(sold).encode())
    assert finding.message is None or isinstance(finding.message, str)
    if finding.answer is not None:
        assert finding.answer.image_url.encode()
        assert finding.answer.credits_micro is None or finding.answer.credits_micro >= 0


@pytest.mark.parametrize(
    ("message", "refused"),
    [
        ("SAFETY", True),
        ("IMAGE_PROHIBITED_CONTENT", True),
        ("Your request was blocked by our moderation system", True),
        ("violates the content policy", True),
        ("RECITATION", True),
        ("SPII", True),
        ("提示词违规", True),
        ("NO_IMAGE", False),
        ("IMAGE_OTHER", False),
        ("upstream timeout", False),
        ("", False),
    ],
)
def test_forbidden_content_is_not_tried_again(message: str, refused: bool) -> None:
    """The same prompt would be refused again; other failures are worth one more try."""
    body = f'{{"status":"FAILED","message":"{message}","data":null}}'.encode()
    expected = classify.CONTENT_REFUSED if refused else classify.FAILED
    assert classify.classify_answer(200, body).verdict is expected


@pytest.mark.parametrize(("levels", "read"), [(32, True), (33, False), (2000, False)])
def test_nesting_is_read_to_32_levels(levels: int, read: bool) -> None:
    """Level 32 is an answer, level 33 is an attack."""
    body = b'{"status":"FAILED","more":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"
    assert isinstance(wire.parse(body), wire.Envelope) is read


def test_many_brackets_are_not_depth() -> None:
    """A wide answer is fine, and brackets inside of text are text."""
    body = b'{"status":"FAILED","more":[' + b"{}," * 500 + b'{}],"message":"' + b"[" * 500 + b'"}'
    envelope = wire.parse(body)
    assert isinstance(envelope, wire.Envelope)
    assert envelope.message == "[" * 500


def test_a_lone_surrogate_does_not_lose_a_paid_image() -> None:
    """An url that no file could hold is made storable; the job stays paid."""
    body = b'{"status":"SUCCESS","data":{"image_url":"https://a.example/\\ud800.png","quota":2}}'
    finding = classify.classify_answer(200, body)
    assert finding.answer is not None
    assert finding.answer.image_url == "https://a.example/\ufffd.png"

"""run.log: what stands in it, and what a broken disk does."""

import errno
import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banana_batch.errors import OutputError
from banana_batch.report import log
from banana_batch.report.log import RunLog
from banana_batch.report.phrases import PHRASES

NOON_US = 1_763_812_800_000_000


def make(path: Path, troubles: list[str] | None = None, **options: Any) -> RunLog:
    said = [] if troubles is None else troubles
    return RunLog(path, wall_us=lambda: NOON_US, trouble=said.append, **options)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def test_every_event_is_one_line_in_order(tmp_path: Path) -> None:
    """Time, event, facts; also for events that wait for the next flush."""
    run_log = make(tmp_path / "run.log")
    for index in range(300):
        run_log.emit("sent", index=index)
    run_log.emit("run_ended", exit=0, reason="done")
    run_log.close()
    found = records(tmp_path / "run.log")
    assert [record.get("index") for record in found] == [*range(300), None]
    assert found[0] == {"time": "2025-11-22T12:00:00.000000Z", "event": "sent", "index": 0}


def test_a_line_can_not_be_forged_or_blown_up(tmp_path: Path) -> None:
    """Line ends, escapes, U+2028, lone surrogates and a megabyte of text stay one bounded ASCII line (S10)."""
    run_log = make(tmp_path / "run.log")
    hostile = 'a\r\n{"event":"stop"}\x1b[2J\u2028\u202e\ud800' + "x" * 1_000_000
    run_log.emit("answered", message=hostile, nested={"k\n": [hostile, float("nan")]})
    run_log.close()
    raw = (tmp_path / "run.log").read_bytes()
    assert raw.isascii()
    assert raw.count(b"\n") == 1
    assert b"\x1b" not in raw
    [record] = records(tmp_path / "run.log")
    assert record["event"] == "answered"
    assert len(record["message"]) == 512
    assert record["nested"]["k "][1] is None


@given(
    event=st.sampled_from(sorted(log.ROUTINE)),
    facts=st.dictionaries(
        st.sampled_from(["index", "id", "message", "path", "latency_s"]),
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(-(2**53), 2**53),
            st.floats(0, 1e9),
            st.text(),
            st.text("ab/", max_size=9),
        ),
    ),
)
def test_the_quick_way_writes_what_the_careful_one_writes(event: str, facts: dict[str, object]) -> None:
    """Of whatever a job's events may hold; what has to be cut or cleaned does not go the quick way."""
    floats = {name: round(value, 6) for name, value in facts.items() if isinstance(value, float)}
    quick = log._plain_line(1_763_812_800_000_001, event, facts | floats)
    if quick is not None:
        assert quick == RunLog._bounded_line(RunLog.__new__(RunLog), 1_763_812_800_000_001, event, facts | floats)
    else:
        assert not facts or any(
            not str(value).isprintable()
            or not str(value).isascii()
            or '"' in str(value)
            or "\\" in str(value)
            or len(str(value)) > 300
            for value in facts.values()
        )


def test_a_secret_is_removed_before_a_cut_can_split_it(tmp_path: Path) -> None:
    """Redaction sees the whole text, and the whole line."""
    key = 'k"ey-1234567890'
    run_log = make(tmp_path / "run.log", redact=lambda text: text.replace(key, "***"))
    run_log.emit("note", message="x" * 505 + key + "y" * 100)
    run_log.emit("note", message=f"plain {key}")
    run_log.close()
    text = (tmp_path / "run.log").read_text()
    assert "ey-" not in text
    assert 'k\\"' not in text


def test_the_only_trace_of_a_paid_image_is_whole(tmp_path: Path) -> None:
    """A signed url is longer than other people's text may be; a secret in it goes all the same."""
    url = f"https://cdn.example/{'x' * 3000}?key=SECRET&sign={'y' * 3000}"
    run_log = make(tmp_path / "run.log", redact=lambda text: text.replace("SECRET", "***"))
    facts = {"index": 1, "id": "a", "verdict": "ok", "image_url": url}
    run_log.emit("unrecorded", **facts)
    run_log.close()
    [record] = records(tmp_path / "run.log")
    assert record["image_url"] == url.replace("SECRET", "***")
    assert url in PHRASES["unrecorded"](facts)
    assert "ended with refused" in PHRASES["unrecorded"](facts | {"image_url": None, "verdict": "refused"})


def test_the_log_is_private_and_is_appended_to(tmp_path: Path) -> None:
    """Mode 0600, and a second run adds its lines."""
    for _ in range(2):
        run_log = make(tmp_path / "run.log")
        run_log.emit("note", message="hello")
        run_log.close()
        run_log.close()
        run_log.emit("note", message="after the end")
    assert stat.S_IMODE((tmp_path / "run.log").stat().st_mode) == 0o600
    assert len(records(tmp_path / "run.log")) == 2


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_something_else_in_the_logs_place_is_refused(tmp_path: Path, kind: str) -> None:
    """No symbolic link is followed, no pipe waited for."""
    path = tmp_path / "run.log"
    if kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(OutputError, match=r"run\.log can't be written"):
        make(path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_pipe_with_a_reader_is_no_log_either(tmp_path: Path) -> None:
    """Only regular files."""
    path = tmp_path / "run.log"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(OutputError, match="no regular file"):
            make(path)
    finally:
        os.close(reader)


def test_a_full_disk_is_told_once_and_the_gap_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events that could not be written are counted in a record as soon as there is room again."""
    troubles: list[str] = []
    full = threading.Event()
    tried = threading.Semaphore(0)
    write = os.write

    def failing(fd: int, data: Any) -> int:
        if not full.is_set():
            return write(fd, data)
        if bytes(data[:1]) in (b"{", b"\n"):
            return write(fd, data[:10])
        full.clear()
        tried.release()
        raise OSError(errno.ENOSPC, "No space left on device")

    run_log = make(tmp_path / "run.log", troubles)
    monkeypatch.setattr("banana_batch.report.log.os.write", failing)
    for _ in range(2):
        full.set()
        run_log.emit("stop", exit=74)
        assert tried.acquire(timeout=5)
    run_log.emit("note", message="room again")
    run_log.close()
    assert len(troubles) == 1
    assert "No space left" in troubles[0]
    whole = [line for line in (tmp_path / "run.log").read_text().splitlines() if line.endswith("}")]
    events = [json.loads(line)["event"] for line in whole]
    assert events[-2:] == ["log_gap", "note"]
    assert json.loads(whole[-2])["events"] == 2


def test_half_a_line_of_a_killed_run_spoils_no_other(tmp_path: Path) -> None:
    """The next run starts on a line of its own."""
    path = tmp_path / "run.log"
    path.write_text('{"time":"20')
    run_log = make(path)
    run_log.emit("note", message="next")
    run_log.close()
    torn, whole = path.read_text().splitlines()
    assert torn == '{"time":"20'
    assert json.loads(whole)["message"] == "next"


def test_many_events_do_not_wait_for_the_next_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of calls a second would have a megabyte more or less in memory each time."""
    monkeypatch.setattr(log, "FLUSH_S", 3600.0)
    looked = threading.Event()
    flush = RunLog._flush

    def looking(self: RunLog) -> None:
        flush(self)
        looked.set()

    monkeypatch.setattr(RunLog, "_flush", looking)
    run_log = make(tmp_path / "run.log")
    for index in range(log.MANY):
        run_log.emit("sent", index=index)
    assert not looked.is_set()
    run_log.emit("sent", index=log.MANY)
    assert looked.wait(10)
    assert len(records(tmp_path / "run.log")) == log.MANY + 1
    run_log.close()


def test_a_hung_disk_costs_neither_time_nor_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a write hangs, events are noted down up to a limit, and the end does not wait for ever."""
    hung, release = threading.Event(), threading.Event()
    write = os.write

    def hanging(fd: int, data: Any) -> int:
        hung.set()
        release.wait(10)
        return write(fd, data)

    monkeypatch.setattr(log, "MAX_WAITING", 10)
    monkeypatch.setattr(log, "CLOSE_PATIENCE_S", 0.01)
    monkeypatch.setattr("banana_batch.report.log.os.write", hanging)
    run_log = make(tmp_path / "run.log")
    run_log.emit("note", message="first")
    assert hung.wait(5)
    for index in range(100):
        run_log.emit("sent", index=index)
    run_log.close()
    release.set()
    assert run_log._background.close(5)
    assert [record["event"] for record in records(tmp_path / "run.log")].count("sent") == 10
    os.close(run_log._fd)

"""Doubts that an earlier run left: what each word about them sends, and the question on a terminal."""

import asyncio
import json
import os
import pty
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from banana_batch.batch import Run
from banana_batch.errors import DiskError, Exit
from banana_batch.listing import Listing
from banana_batch.store import queries, resolve, runs
from banana_batch.store.database import open_writer
from tests.integration.answers_peer import CANARY, answer, failed
from tests.integration.whole_runs import Arrived, Ended, Gateway, Watcher, ended, gateway, run_batch, stopping

DOUBTED = [f"doubted {number}" for number in range(1, 9)]
QUESTION = "8 requests got no answer; at most 16 credits ($0.16) may be paid twice. Send again? [y/N/list] "


class Moody:
    """A gateway's mood: it drops calls for these prompts, and only while they are in it."""

    def __init__(self) -> None:
        self.dropped = set(DOUBTED)

    def __call__(self, peer: Gateway, arrived: Arrived) -> bytes | None:
        return None if arrived.prompt in self.dropped else peer.sold()


async def doubtful(out: Path, peer: Gateway, count: int = 8) -> Ended:
    """Leave so many doubts of 2 credits each."""
    left = await run_batch(out, peer.url, DOUBTED[:count], max_price="2")
    assert (left.exit, dict(left.jobs)) == (Exit.IN_DOUBT, {"in_doubt": count})
    peer.posts.clear()
    return left


@pytest.mark.parametrize("word", ["ask", "keep"])
async def test_without_a_terminal_nothing_is_sent_again(out: Path, word: str) -> None:
    """`ask` with nobody to ask keeps them; new work goes on: 4."""
    mood = Moody()
    async with gateway(mood) as peer:
        await doubtful(out, peer)
        mood.dropped.clear()
        left = await run_batch(out, peer.url, [*DOUBTED, "new"], in_doubt=word)
    assert (left.exit, peer.posts, left.credits) == (Exit.IN_DOUBT, ["new"], (2.0, 16.0, 0.0))


async def test_a_resend_comes_after_all_other_work_and_once(out: Path) -> None:
    """New rows first; then each doubt once more at most, also when it gets no answer again."""
    mood = Moody()
    async with gateway(mood) as peer:
        await doubtful(out, peer)
        mood.dropped = set(DOUBTED[:3])
        new = ["new 1", "new 2", "new 3"]
        left = await run_batch(out, peer.url, [*DOUBTED, *new], in_doubt="resend", concurrency=4)
        assert sorted(peer.posts[:3]) == new
        assert Counter(peer.posts[3:]) == Counter(DOUBTED)
        assert (left.exit, dict(left.jobs)) == (Exit.IN_DOUBT, {"done": 8, "in_doubt": 3})
        # What the first sends may have cost stays at risk beside what the second ones did.
        assert left.credits == (16.0, 16.0 + 6.0, 0.0)
        mood.dropped.clear()
        done = await run_batch(out, peer.url, [*DOUBTED, *new], in_doubt="resend")
    assert (done.exit, dict(done.jobs), done.credits) == (Exit.DONE, {"done": 11}, (22.0, 22.0, 0.0))
    assert Counter(peer.posts) == Counter(dict.fromkeys([*new, *DOUBTED], 1)) + Counter(DOUBTED[:3])


@pytest.mark.parametrize(
    "first",
    [answer(500, failed("Server code exception")), answer(429, failed("slow down"))],
    ids=["failed", "throttled"],
)
async def test_a_resend_that_is_refused_for_now_is_tried_again(out: Path, first: bytes) -> None:
    """It is an ordinary job from then on: refused once, then bought; its doubt stays at risk."""
    mood = Moody()
    async with gateway(mood) as peer:
        await doubtful(out, peer, 1)
    async with gateway(lambda peer, arrived: first if arrived.nth == 1 else peer.sold()) as peer:
        left = await run_batch(out, peer.url, DOUBTED[:1], in_doubt="resend")
    assert (left.exit, len(peer.posts), dict(left.jobs)) == (Exit.DONE, 2, {"done": 1})
    assert left.credits == (2.0, 2.0, 0.0)


async def test_resends_stay_within_the_budget(out: Path) -> None:
    """16 at risk, 4 for new rows, 24 in all: two doubts are sent again, the others stay as they are."""
    mood = Moody()
    async with gateway(mood) as peer:
        await doubtful(out, peer)
        mood.dropped.clear()
        left = await run_batch(out, peer.url, [*DOUBTED, "a", "b"], in_doubt="resend", budget="24", concurrency=8)
    assert (len(peer.posts), left.jobs["in_doubt"]) == (4, 6)
    assert left.totals.committed == 24_000_000
    assert left.exit is Exit.IN_DOUBT


async def test_dropped_doubts_are_sent_no_more(out: Path) -> None:
    """`drop` gives them up: nothing is sent, their credits stay at risk, and they count as done."""
    mood = Moody()
    async with gateway(mood) as peer:
        await doubtful(out, peer)
        mood.dropped.clear()
        left = await run_batch(out, peer.url, DOUBTED, in_doubt="drop")
        assert (left.exit, dict(left.jobs), left.credits) == (Exit.DONE, {"dropped": 8}, (0.0, 16.0, 0.0))
        again = await run_batch(out, peer.url, DOUBTED, in_doubt="resend")
    assert (again.exit, peer.posts) == (Exit.DONE, [])


async def test_results_tell_of_what_was_dropped_or_settled(out: Path) -> None:
    """`--in-doubt drop` and `resolve` change what results.jsonl says, though the run after them sends nothing."""
    async with gateway(Moody()) as peer:
        await doubtful(out, peer, 2)
        with closing(open_writer(out)) as db, runs.transaction(db):
            runs.tell_listed(db, None)
            resolve.settle(db, resolve.find_jobs(db, [DOUBTED[0]])[0], resolve.Word(charged_micro=2_000_000))
        await run_batch(out, peer.url, DOUBTED[:2], in_doubt="keep")
        assert _listed(out) == ["dropped", "in_doubt"]
        await run_batch(out, peer.url, DOUBTED[:2], in_doubt="drop")
        assert _listed(out) == ["dropped", "dropped"]


async def test_results_that_could_not_be_written_are_written_by_the_next_run(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever kept them from being replaced, a full disk or a kill: a run that changes nothing makes them true."""

    def fails(*_arguments: object) -> None:
        raise DiskError("no space left on device")

    async with gateway() as peer:
        await run_batch(out, peer.url, ["a", "b"], limit=1)
        with monkeypatch.context() as patched:
            patched.setattr(Listing, "write", fails)
            assert (await run_batch(out, peer.url, ["a", "b"])).exit is Exit.DISK
        assert _listed(out) == ["done", "pending"]
        for _ in range(2):
            before = (out / "results.jsonl").stat().st_ino
            assert (await run_batch(out, peer.url, ["a", "b"])).exit is Exit.DONE
            assert _listed(out) == ["done", "done"]
    assert (out / "results.jsonl").stat().st_ino == before, "what is true is not written again"


def _listed(out: Path) -> list[str]:
    return [json.loads(line)["state"] for line in (out / "results.jsonl").read_bytes().splitlines()]


async def test_a_doubt_of_this_run_waits_for_the_next(out: Path) -> None:
    """`--in-doubt resend` is a word about old doubts: what becomes doubtful in this run is not sent again in it."""
    mood = Moody()
    async with gateway(mood) as peer:
        left = await run_batch(out, peer.url, [*DOUBTED, "new"], in_doubt="resend")
    assert (max(Counter(peer.posts).values()), left.jobs["in_doubt"]) == (1, 8)


class Absent(Watcher):
    """Somebody who is asked and never answers; `stop` is called meanwhile."""

    stop: Callable[[], None]

    async def ask_doubts(self, doubts: Sequence[queries.Doubt]) -> bool:
        """See `batch.View`."""
        self.stop()
        await asyncio.Event().wait()
        return True


async def test_an_order_to_stop_is_an_answer(out: Path) -> None:
    """SIGTERM while the question stands: the run ends at once, and the doubts are as they were."""
    absent = Absent(can_ask=True)

    def watch(run: Run) -> None:
        absent.stop = lambda: stopping(run)

    mood = Moody()
    async with gateway(mood) as peer, asyncio.timeout(20):
        await doubtful(out, peer)
        mood.dropped.clear()
        left = await run_batch(out, peer.url, [*DOUBTED, "new"], watcher=absent, watch=watch)
    assert (left.exit, peer.posts, left.jobs["in_doubt"]) == (Exit.STOPPED, [], 8)


class Typist:
    """A person at a terminal: reads what a command shows and types answers."""

    def __init__(self, command: list[str], environ: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        self.shown = ""
        self._changed = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._master, self._read)
        self._starting = asyncio.create_subprocess_exec(
            *command, stdin=slave, stdout=slave, stderr=slave, env=environ, start_new_session=True
        )
        self._slave = slave

    def _read(self) -> None:
        try:
            self.shown += os.read(self._master, 65536).decode(errors="replace")
        except OSError:
            asyncio.get_running_loop().remove_reader(self._master)
        self._changed.set()

    async def run(self, *turns: tuple[str, str]) -> int:
        """Wait for each text and type what belongs to it; return the exit code."""
        process = await self._starting
        os.close(self._slave)
        seen = 0
        try:
            async with asyncio.timeout(30):
                for text, typed in turns:
                    while text not in self.shown[seen:]:
                        self._changed.clear()
                        await self._changed.wait()
                    seen = self.shown.index(text, seen) + len(text)
                    os.write(self._master, typed.encode() + b"\n")
                return await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            asyncio.get_running_loop().remove_reader(self._master)
            os.close(self._master)


@pytest.mark.parametrize(("typed", "code", "sent"), [("y", 0, 8), ("", 4, 0)])
async def test_the_question_on_a_terminal(out: Path, typed: str, code: int, sent: int) -> None:
    """One question, in money; `list` shows each request first; only yes sends."""
    mood = Moody()
    async with gateway(mood) as peer:
        await doubtful(out, peer)
        mood.dropped.clear()
        manifest = str(out.parent / f"{out.name}.jsonl")
        command = [sys.executable, "-m", "banana_batch", "run", manifest, "-o", str(out), "--base-url", peer.url]
        typist = Typist(command, dict(os.environ) | {"TT_API_KEY": CANARY, "COLUMNS": "200"})
        found = await typist.run((QUESTION, "list"), (QUESTION, typed))
    assert (found, len(peer.posts)) == (code, sent), typist.shown
    for text in DOUBTED:
        assert f"  {text}: sent " in typist.shown
    assert "at risk 2 credits ($0.02)" in typist.shown
    left = ended(out, Exit(found), Watcher())
    assert left.jobs == ({"done": 8} if sent else {"in_doubt": 8})


async def test_an_empty_url_typed_is_no_answer(out: Path) -> None:
    """`resolve` at a terminal: enter at "url:" is asked again, and drops nothing."""
    async with gateway(Moody()) as peer:
        await doubtful(out, peer, 1)
    command = [sys.executable, "-m", "banana_batch", "resolve", str(out)]
    typist = Typist(command, dict(os.environ) | {"COLUMNS": "200"})
    code = await typist.run(("[r]", "u"), ("url: ", ""), ("[r]", "s"))
    assert (code, "--image-url: empty" in typist.shown) == (0, True), typist.shown
    assert ended(out, Exit(code), Watcher()).jobs == {"in_doubt": 1}

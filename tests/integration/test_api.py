"""The Python API: the same run, as an async iterator of typed results."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from banana_batch import Job, RunResult, Settings, run_batch
from banana_batch.api import BatchRun
from banana_batch.errors import Exit, ManifestError, UsageError
from banana_batch.lifecycle import JobState
from banana_batch.sandbox.charges import read_charges
from banana_batch.store import database, queries
from tests.integration.answers_peer import CANARY
from tests.integration.whole_runs import Arrived, Gateway, gateway

JOBS = [Job(prompt=f"a cat, number {number}", id=f"cat-{number}", meta={"number": number}) for number in range(5)]


def _settings(out: Path, **further: object) -> Settings:
    return Settings(out=out, sandbox=True, **further)


async def _all(out: Path, **further: object) -> list[RunResult]:
    return [result async for result in run_batch(JOBS, _settings(out, **further))]


async def test_each_job_is_yielded_once_with_its_image(tmp_path: Path) -> None:
    """Every job comes exactly once, done, with a file that is there."""
    results = await _all(tmp_path / "out")
    assert sorted(result.id for result in results) == [job.id for job in JOBS]
    assert {result.state for result in results} == {JobState.DONE}
    for result in results:
        assert result.image is not None
        assert (tmp_path / "out" / result.image).stat().st_size == result.bytes
        assert result.meta == {"number": int(result.id[-1])}


async def test_a_second_run_pays_for_nothing(tmp_path: Path) -> None:
    """What is done comes again from the state, in the order given."""
    await _all(tmp_path / "out")
    results = await _all(tmp_path / "out")
    assert [result.id for result in results] == [job.id for job in JOBS]
    assert len(read_charges(tmp_path / "out" / "sandbox")) == len(JOBS)


async def test_leaving_the_loop_drains(tmp_path: Path) -> None:
    """Calls in flight are finished and recorded; nothing is in doubt, and the next run goes on."""
    batch = run_batch(JOBS, _settings(tmp_path / "out", concurrency=2))
    iterator = batch.__aiter__()
    await anext(iterator)
    await iterator.aclose()  # type: ignore[attr-defined]  # an async generator
    assert batch.account is not None
    assert batch.account.exit in (Exit.STOPPED, Exit.DONE)
    assert batch.account.jobs[JobState.IN_DOUBT] == 0
    assert len(await _all(tmp_path / "out")) == len(JOBS)
    assert len(read_charges(tmp_path / "out" / "sandbox")) == len(JOBS)


async def test_a_program_that_cancels_twice_cuts_calls_off(out: Path) -> None:
    """The first drains; the second is a hard stop, and no bug: 130, and what was on the wire is in doubt."""
    arrived = asyncio.Event()

    async def never(peer: Gateway, _arrived: Arrived) -> bytes | None:
        arrived.set()
        await peer.hold.wait()
        return None

    async def read(batch: BatchRun) -> None:
        async with batch as run:
            async for _ in run:
                pass

    async with gateway(never) as peer:
        settings = Settings(out=out, base_url=peer.url, concurrency=1)
        reading = asyncio.create_task(read(run_batch(JOBS, settings, environ={"TT_API_KEY": CANARY})))
        await arrived.wait()
        for _ in range(2):
            reading.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await reading
    with contextlib.closing(database.open_reader(out)) as db:
        last = queries.last_run(db)
        assert last is not None
        assert (last.exit, queries.counts(db)[JobState.SENDING]) == (Exit.INTERRUPTED, 0)
        assert queries.counts(db)[JobState.IN_DOUBT] == 1


@pytest.mark.parametrize("how", ["break", "raise", "timeout"])
def test_a_program_that_leaves_the_run_and_ends_waits_for_its_calls(tmp_path: Path, how: str) -> None:
    """Whatever takes it out of the `async with`, the last thing before its event loop ends: nothing is in doubt."""
    batch = run_batch(JOBS, _settings(tmp_path / "out", concurrency=2))

    async def main() -> None:
        async with asyncio.timeout(None) as clock, batch:
            async for _ in batch:
                if how == "timeout":
                    clock.reschedule(0)
                    await asyncio.sleep(60)
                if how == "raise":
                    raise LookupError
                break

    with contextlib.suppress(LookupError, TimeoutError):
        asyncio.run(main())
    assert batch.account is not None
    assert batch.account.jobs[JobState.IN_DOUBT] == batch.account.jobs[JobState.SENDING] == 0
    assert len(read_charges(tmp_path / "out" / "sandbox")) == batch.account.jobs[JobState.DONE]


@pytest.mark.parametrize("setting", [{"dry_run": True}, {"on_finish": "true"}, {"allow_host": ["!!:99999999"]}])
def test_settings_that_mean_nothing_in_code_are_refused(tmp_path: Path, setting: dict[str, object]) -> None:
    """Before anything is sent or written: a dry run that bought would be the worst of surprises."""
    with pytest.raises(UsageError):
        run_batch(JOBS, _settings(tmp_path / "out", **setting))
    assert not (tmp_path / "out").exists()


async def test_a_limit_leaves_the_rest_pending(tmp_path: Path) -> None:
    """Jobs that were not asked for come at the end, pending; the account says 0."""
    batch = run_batch(JOBS, _settings(tmp_path / "out", limit=2))
    states = [result.state async for result in batch]
    assert states == [JobState.DONE] * 2 + [JobState.PENDING] * 3
    assert batch.account is not None
    assert batch.account.exit is Exit.DONE


async def test_bad_jobs_are_told_at_once(tmp_path: Path) -> None:
    """All of them, before anything is sent or written."""
    bad = [Job(prompt=" "), Job(prompt="fine", model="gemini-9")]
    with pytest.raises(ManifestError) as told:
        async for _ in run_batch(bad, _settings(tmp_path / "out")):
            pass
    assert [problem.line for problem in told.value.problems] == [1, 2]
    assert not (tmp_path / "out").exists()


def test_a_folder_is_needed() -> None:
    """There is no default output folder in code."""
    with pytest.raises(UsageError):
        run_batch(JOBS, Settings(sandbox=True))

"""Outages, as the pacer sees them: one incident however many calls it cost."""

import asyncio
import random
from collections.abc import Callable

import pytest

from banana_batch.models import Signal
from banana_batch.pacing.incidents import Incidents, Trouble
from banana_batch.pacing.pacer import Pacer, Stop, StopCause
from tests.contract.fakes import Told
from tests.unit.pacing.simulated import KIND, Server, make_pacer, run_for, simulate

HOUR_S = 3600.0


class Outage(Server):
    """Well, but for one hour: then calls end as `during` says, `after_s` after they came."""

    def __init__(self, during: Signal, from_s: float = 300.0, for_s: float = HOUR_S, after_s: float = 0.05) -> None:
        super().__init__()
        self.during, self.from_s, self.until_s, self.after_s = during, from_s, from_s + for_s, after_s
        self.failed: list[float] = []

    async def call(self) -> tuple[Signal, float | None, float | None]:
        loop = asyncio.get_running_loop()
        if not self.from_s <= loop.time() < self.until_s:
            task = asyncio.ensure_future(super().call())
            done, _ = await asyncio.wait([task], timeout=self._cut_in_s(loop.time()))
            if done:
                return task.result()
            task.cancel()
            self.serving -= 1
        else:
            await asyncio.sleep(self.after_s)
        self.failed.append(loop.time())
        return self.during, None if self.during is Signal.UNREACHED else self.after_s, None

    def _cut_in_s(self, now_s: float) -> float | None:
        """Dropped connections drop what is on the wire; refused ones don't."""
        return self.from_s - now_s if self.during is Signal.DOUBT and now_s < self.from_s else None


def _night(
    server: Outage, *, workers: int = 16, give_up_after_s: float = 8 * HOUR_S, told: Told | None = None
) -> Pacer:
    pacer = make_pacer(told=told, concurrency=workers, give_up_after_s=give_up_after_s)
    simulate(lambda: run_for(2 * HOUR_S, pacer, server.call, workers))
    return pacer


@pytest.mark.parametrize("during", [Signal.DOUBT, Signal.UNREACHED, Signal.OVERLOADED])
def test_an_hour_of_outage_is_one_incident_and_the_run_goes_on(during: Signal) -> None:
    """It costs what was in flight and the probes; afterwards the run goes on at full width by itself."""
    server, told = Outage(during), Told()
    pacer = _night(server, told=told)
    assert [incident.cause for incident in pacer.incidents] == [Trouble(during.value)]
    incident = pacer.incidents[0]
    assert incident.ended_us is not None
    assert 10 < incident.probes < 120
    assert len(server.failed) <= 16 + incident.probes + 4
    assert incident.doubts == (len(server.failed) if during is Signal.DOUBT else 0)
    back = [when_s for when_s in server.good if when_s >= server.until_s]
    assert back[0] - server.until_s < HOUR_S / 15 + 1
    assert pacer.limit == 16
    assert len(back) > 16 * 2900 / 12.5 * 0.9
    assert told.names()[-1] == "incident_ended"
    assert len(told.events) <= 4


def test_probes_go_one_at_a_time() -> None:
    """During an incident there is never a second call beside a probe."""
    server = Outage(Signal.DOUBT, from_s=0.0, for_s=600.0, after_s=20.0)
    most = 0

    async def call() -> tuple[Signal, float | None, float | None]:
        nonlocal most
        if asyncio.get_running_loop().time() < 600 and len(server.failed) >= 8:
            most = max(most, pacer.in_flight)
        return await server.call()

    pacer = make_pacer(concurrency=8)
    simulate(lambda: run_for(HOUR_S, pacer, call, 8))
    assert most == 1
    assert len(pacer.incidents) == 1


def test_an_isolated_doubt_costs_the_night_hardly_anything() -> None:
    """One lost answer among many good ones: the next good one ends it, and nine tenths of the calls still happen."""

    class Lossy(Server):
        async def call(self) -> tuple[Signal, float | None, float | None]:
            signal, latency_s, retry_after_s = await super().call()
            return (Signal.DOUBT if self.rng.random() < 0.01 else signal), latency_s, retry_after_s

    lossy, whole = Lossy(), Server()
    simulate(lambda: run_for(HOUR_S / 3, make_pacer(concurrency=32), lossy.call, 32))
    simulate(lambda: run_for(HOUR_S / 3, make_pacer(concurrency=32), whole.call, 32))
    assert len(lossy.good) > 0.97 * len(whole.good)


@pytest.mark.parametrize("during", [Signal.DOUBT, Signal.UNREACHED, Signal.OVERLOADED, Signal.THROTTLED])
def test_it_gives_up_after_the_time_without_a_good_answer(during: Signal) -> None:
    """`--give-up-after 15m`: who waits is told then, with what the trouble was."""
    server, told = Outage(during, for_s=8 * HOUR_S), Told()
    pacer = make_pacer(told=told, concurrency=8, give_up_after_s=900)

    async def scene() -> float:
        await run_for(7 * HOUR_S, pacer, server.call, 8)
        return asyncio.get_running_loop().time()

    ended_s = simulate(scene)
    assert pacer.stopped_because == StopCause(Stop.GAVE_UP, Trouble(during.value))
    assert 1190 < ended_s < 1240
    assert told.names()[-1] == "gave_up"


def test_refusals_after_an_outage_go_on_with_its_time() -> None:
    """A throttling answer ends the incident, but not the time without anything let in."""
    ended = _pure(Signal.UNREACHED)
    ended(Signal.THROTTLED, 100.0)
    assert incidents_of(ended).current is None
    assert incidents_of(ended).gives_up_s == 900.0
    ended(Signal.REFUSED, 200.0)
    assert incidents_of(ended).gives_up_s == float("inf")


def test_five_failures_in_a_row_are_an_incident_and_four_are_none() -> None:
    """The endpoint that fails and knows it is given four; any other answer begins the count anew."""
    ended = _pure()
    for signal in [Signal.OVERLOADED] * 4 + [Signal.GOOD] + [Signal.OVERLOADED] * 4:
        ended(signal, 1.0)
    assert not incidents_of(ended).all
    ended(Signal.NEUTRAL, 2.0)
    ended(Signal.OVERLOADED, 2.0)
    assert [incident.cause for incident in incidents_of(ended).all] == [Trouble.OVERLOADED]


def test_equal_times_of_doubts_name_the_likely_proxy_timeout() -> None:
    """Three doubts after 60 s each, from two instants; a wave cut at one instant is no timeout, nor is our own."""
    ended = _pure()
    for _ in range(8):
        ended(Signal.DOUBT, 60.0, 60.1)
    assert incidents_of(ended).likely_proxy_timeout_s is None
    ended(Signal.DOUBT, 130.0, 59.8)
    assert incidents_of(ended).likely_proxy_timeout_s == pytest.approx(60, abs=0.5)
    ours = _pure()
    for now_s in (360.0, 400.0, 800.0):
        ours(Signal.DOUBT, now_s, 360.2)
        ours(Signal.DOUBT, now_s, 3.0)
    assert incidents_of(ours).likely_proxy_timeout_s is None


def test_a_probe_that_was_given_back_is_none() -> None:
    """No credits left for the probe: its turn goes to the next, and it is not counted."""

    async def scene() -> None:
        pacer = make_pacer()
        assert await pacer.admit(KIND)
        pacer.ended(KIND, Signal.DOUBT, 5.0, None)
        assert await pacer.admit(KIND)
        assert pacer.limit == 1
        assert pacer.in_incident
        assert pacer.incidents[0].probes == 1
        pacer.withdraw()
        assert pacer.incidents[0].probes == 0
        assert await pacer.admit(KIND)
        pacer.ended(KIND, Signal.REFUSED, 0.2, None)
        assert not pacer.in_incident

    simulate(scene)


def _pure(*first: Signal) -> Callable[..., object]:
    incidents = Incidents(900.0, random.Random(1), (360.0, 600.0))

    def ended(signal: Signal, now_s: float, latency_s: float | None = None) -> object:
        return incidents.ended(signal, latency_s, now_s=now_s, wall_us=round(now_s * 1e6), in_flight=0)

    ended.incidents = incidents  # type: ignore[attr-defined]
    for signal in first:
        ended(signal, 0.0)
    return ended


def incidents_of(ended: Callable[..., object]) -> Incidents:
    """The state behind a feeding function."""
    found = ended.incidents  # type: ignore[attr-defined]
    assert isinstance(found, Incidents)
    return found

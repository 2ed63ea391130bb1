"""One timer for all calls: each is called back in its own time, and none that is over."""

import asyncio
from functools import partial

from banana_batch.endpoint.expiry import Expiry
from tests.unit.pacing.simulated import simulate


def test_each_is_called_back_in_its_own_time() -> None:
    """Of two lengths, begun in any order; what is over is not, and what began later is not forgotten."""
    told: list[tuple[str, float]] = []

    async def scene() -> None:
        loop = asyncio.get_running_loop()

        def late(name: str) -> None:
            told.append((name, round(loop.time() - begun_s, 6)))

        expiry, begun_s = Expiry(), loop.time()
        calls = {name: partial(late, name) for name in "abcde"}
        expiry.begin(calls["a"], 600)
        expiry.begin(calls["b"], 360)
        await asyncio.sleep(100)
        expiry.begin(calls["c"], 360)
        expiry.over(calls["b"], 360)
        await asyncio.sleep(300)
        expiry.begin(calls["d"], 360)
        await asyncio.sleep(1000)
        expiry.begin(calls["e"], 360)
        expiry.close()
        await asyncio.sleep(1000)

    simulate(scene)
    assert told == [("c", 460.0), ("a", 600.0), ("d", 760.0)]

"""`sandbox`: the embedded endpoint as a server, to rehearse against."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from banana_batch.errors import Exit, UsageError

from . import outcome

if TYPE_CHECKING:
    from banana_batch.sandbox.config import SandboxConfig

Parsed = TypeVar("Parsed")
Given = TypeVar("Given")


def sandbox(
    port: Annotated[int, typer.Option(help="To listen on; 0: any free one")] = 8787,
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the charge log here, so that urls outlive a restart")
    ] = None,
    latency: Annotated[
        str, typer.Option(metavar="SHAPE", help="fixed:S, uniform:A,B or lognormal:MEDIAN,P95, seconds")
    ] = "uniform:0.2,0.8",
    fault: Annotated[
        list[str] | None, typer.Option(metavar="KIND=SHARE", help="Such as 429=0.05 or image-404=0.1 (repeatable)")
    ] = None,
    price: Annotated[
        list[str] | None, typer.Option(metavar="[MODEL[/SIZE]=]CREDITS", help="Of an image (repeatable)")
    ] = None,
    queue_limit: Annotated[int | None, typer.Option(metavar="N", help="Calls in flight at most, then 499")] = None,
    rate_limit: Annotated[int | None, typer.Option(metavar="N", help="Calls a minute at most, then 429")] = None,
    retry_after: Annotated[bool, typer.Option(help="Say in a 429 when to come again")] = True,
    balance: Annotated[str | None, typer.Option(metavar="CREDITS", help="What the account holds, then 402")] = None,
    slow_image: Annotated[float, typer.Option(metavar="S", help="Seconds that an image-slow takes")] = 30.0,
    plain_pictures: Annotated[bool, typer.Option("--plain-pictures", help="One colour, cheap to draw")] = False,
    seed: Annotated[int, typer.Option(help="Same seed, same behaviour")] = 0,
) -> int:
    """Serve the embedded endpoint on this machine: free, with latencies and faults to rehearse with.

    Example: banana-batch sandbox --port 8787 --latency lognormal:12,40 --fault 429=0.05
    """
    from banana_batch import money
    from banana_batch.sandbox.config import Latency, SandboxConfig, parse_fault, parse_prices

    try:
        config = SandboxConfig(
            seed=seed,
            latency=_parsed("--latency", Latency.parse, latency),
            prices=_parsed("--price", parse_prices, price or []),
            queue_limit=queue_limit,
            rate_limit=rate_limit,
            retry_after=retry_after,
            balance=None if balance is None else _parsed("--balance", money.parse_credits, balance),
            faults=tuple(_parsed("--fault", parse_fault, text) for text in fault or []),
            slow_image_s=slow_image,
            plain_pictures=plain_pictures,
            count_requests=bool(fault),  # else a request that met a fault would meet it for ever
        )
    except ValueError as bad:
        raise UsageError(f"--fault: {bad}") from None
    asyncio.run(_serve(folder, config, port))
    return Exit.DONE


def _parsed(option: str, parse: Callable[[Given], Parsed], text: Given) -> Parsed:
    try:
        return parse(text)
    except ValueError as bad:
        raise UsageError(f"{option} {text!r} → {bad}", "banana-batch sandbox --help") from None


async def _serve(folder: Path | None, config: "SandboxConfig", port: int) -> None:
    from banana_batch.sandbox.server import Sandbox

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with Sandbox(folder, config, port) as server:
        outcome.say(f"{server.base_url}/gemini/image/generate   (any TT-API-KEY; Ctrl-C ends it)")
        outcome.say("export TT_API_KEY=rehearsal")
        outcome.say(f"banana-batch run prompts.csv -o rehearsal --base-url {server.base_url}")
        await stop.wait()

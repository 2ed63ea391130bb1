"""A scripted endpoint beside the command: the sandbox on a thread of the test's own process."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from banana_batch.sandbox.charges import Charge
from banana_batch.sandbox.config import SandboxConfig
from banana_batch.sandbox.faults import Canned, Fault
from banana_batch.sandbox.server import Sandbox

from .command import BOUND_S, KEY, Ended, command

PLAIN = SandboxConfig(plain_pictures=True)


@dataclass(frozen=True, slots=True)
class Peer:
    """An endpoint that answers as it was told."""

    sandbox: Sandbox

    @property
    def base_url(self) -> str:
        """Its address."""
        return self.sandbox.base_url

    @property
    def charges(self) -> list[Charge]:
        """All that it charged."""
        return list(self.sandbox.charges())

    @property
    def calls(self) -> int:
        """Calls of the paid address, refused ones too."""
        return self.sandbox.stats.calls

    def run(self, *arguments: str | Path, cwd: Path) -> Ended:
        """Run a manifest against it."""
        return command("run", *arguments, "--base-url", self.base_url, cwd=cwd, TT_API_KEY=KEY)


@contextmanager
def serving(
    config: SandboxConfig = PLAIN, canned: Sequence[Fault | Canned | None] = (), folder: Path | None = None
) -> Iterator[Peer]:
    """Serve until this ends. `canned`: what the first calls get, in order; None: the call goes well."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="peer")
    thread.start()
    sandbox = Sandbox(folder, config)
    try:
        asyncio.run_coroutine_threadsafe(sandbox.start(), loop).result(BOUND_S)
        sandbox.canned.extend(canned)
        yield Peer(sandbox)
    finally:
        asyncio.run_coroutine_threadsafe(sandbox.stop(), loop).result(BOUND_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(BOUND_S)
        loop.close()


def refusal(status: int, message: str = "no") -> Canned:
    """Return a refusal in the endpoint's own words."""
    body = json.dumps({"status": "FAILED", "message": message, "data": {}}).encode()
    return Canned(status, {"Content-Type": "application/json"}, body)


def sold(image_url: str, quota: object = 2) -> Canned:
    """Return a good answer that points where it was told."""
    body = json.dumps({"status": "SUCCESS", "message": "", "data": {"image_url": image_url, "quota": quota}}).encode()
    return Canned(200, {"Content-Type": "application/json"}, body, charged=True)

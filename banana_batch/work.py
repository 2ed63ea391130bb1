"""What one run is told to do, what it is made with, and who watches it."""

import contextlib
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct, field

from .endpoint.client import EndpointClient
from .images.fetcher import ImageFetcher
from .images.outside import Outside
from .pacing.clock import SystemClock
from .ports import Clock
from .prepared import Prepared
from .run_settings import RunSettings
from .store import queries

if TYPE_CHECKING:
    from .sandbox.server import Sandbox


class View(Protocol):
    """Who watches a run: a terminal, or a program."""

    @property
    def can_ask(self) -> bool:
        """There is somebody to ask."""

    def emit(self, event: str, /, **facts: object) -> None:
        """See ports.Events."""

    async def ask(self, question: str) -> bool:
        """Ask a yes-or-no question; False where there is nobody to ask."""

    async def ask_doubts(self, doubts: Sequence[queries.Doubt]) -> bool:
        """Ask whether jobs in doubt are to be sent again."""


def _sandbox(folder: Path, **options: Any) -> "Sandbox":
    from .sandbox.server import Sandbox  # with a web server and pictures: for a rehearsal only

    return Sandbox(folder, **options)


class Machinery(Struct):
    """What a run is made with; a simulation hands in its own.

    Attributes:
        executor: Makes an executor of so many threads, with a name.
        endpoint, images, sandbox: Make the adapters.
    """

    clock: Clock = field(default_factory=SystemClock)
    rng: random.Random = field(default_factory=random.Random)
    executor: Callable[[int, str], Executor] = ThreadPoolExecutor
    endpoint: Callable[..., EndpointClient] = EndpointClient
    images: Callable[..., ImageFetcher | Outside] = Outside
    sandbox: Callable[..., "Sandbox"] = _sandbox


class Work(Struct, frozen=True):
    """What one run is to do.

    Attributes:
        ready: Locks the batch and opens its state, planned and ready.
        environ: Where the key may be.
        sends: Whether paid calls may be made at all.
        run_command: The words of the command that goes on with this batch; none: not known.
    """

    out: Path
    settings: RunSettings
    ready: Callable[[], contextlib.AbstractContextManager[Prepared]]
    environ: Mapping[str, str]
    sends: bool = True
    run_command: Sequence[str] = ()

"""The `Images` port: url -> guard -> download -> examine -> durable file.

Rule 1: every failure is a value; what is raised is a bug or an output folder that can't be used.
Rule 2: no task, no thread and no clock of its own: executors are handed in, time is the loop's.
Rule 3: what a host says of itself (where it redirects to, what it calls its bytes) leaves here without the key: the
        endpoint knows it, and may have told the host.
Rule 4: small images take one hop to the committer; large ones stream through the disk executor first.
"""

from collections.abc import Iterable
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType

import aiohttp
from msgspec.structs import replace

from banana_batch.grouping import GroupCommit
from banana_batch.models import FetchFailed, PaidImage, StoredImage
from banana_batch.secret import NO_SECRET, Secret

from . import classify, failures
from .committer import SLICES, Committer, Outcome, Received
from .download import ConnectorFactory, Downloader, tcp_connector
from .folders import Folders, lock_after_former
from .guard import Blocked, UrlRules
from .parts import PartFailed
from .ways import Ways

COMMIT_THREADS = SLICES  # the committer runs one group at a time, and its slices beside it
DISK_THREADS = 8  # large images that are written at once
MAX_GROUP = 128  # images a commit; each has a file open meanwhile
MAX_WAYS = 64  # images that come at once: the others wait for their group, and need no connection for that
PATIENCE_S = 0.5  # a host that is silent must not keep the images of others waiting: they come all the same then
GATHER_S = 0.02  # images that come one after the other share the folder's sync


class ImageFetcher:
    """Fetches paid images into `out/images/`. An async context manager: open while it fetches.

    Args:
        out: The output folder; it exists.
        gateway: `--base-url`: its origin may serve images if it is on loopback.
        allow_hosts: Each `--allow-host`.
        proxy: `--proxy`.
        ca_file: `--ca-file`.
        committer: Executor of about COMMIT_THREADS threads.
        disk: Executor of about DISK_THREADS threads.
        connector: Makes the connectors; a simulation hands in its own.
        secret: Is kept out of whatever hosts say.
        held: Descriptors of `out` and of its `images/`, from whoever opened and locked them.

    Raises (on entering):
        OutputError: the output folder can't be used safely.
        DiskError: nor made durable.
        BatchLocked: a process of an earlier run still writes there.
        UsageError, SettingsError: an `--allow-host` or `--ca-file` that can't be read.
    """

    def __init__(
        self,
        out: Path,
        *,
        gateway: str,
        committer: Executor,
        disk: Executor,
        allow_hosts: Iterable[str] = (),
        proxy: str | None = None,
        ca_file: Path | None = None,
        connector: ConnectorFactory = tcp_connector,
        secret: Secret = NO_SECRET,
        held: tuple[int, int] | None = None,
    ) -> None:
        self._out = out
        self._rules = UrlRules(gateway, allow_hosts, proxied=proxy is not None, redact=secret.redact)
        self._proxy = proxy
        self._ca_file = ca_file
        self._connector = connector
        self._redact = secret.redact
        self._committer = committer
        self._disk = disk
        self._held = held

    async def __aenter__(self) -> "ImageFetcher":
        self._downloader = Downloader(self._rules, proxy=self._proxy, ca_file=self._ca_file, connector=self._connector)
        async with AsyncExitStack() as unless_ready:
            unless_ready.push_async_callback(self._downloader.close)
            self._folders = Folders(self._out, self._held)
            unless_ready.callback(self._folders.close)
            await lock_after_former(self._folders)
            unless_ready.pop_all()
        self._ways = Ways(MAX_WAYS, PATIENCE_S)
        self._commits: GroupCommit[Received, Outcome] = GroupCommit(
            self._committer, Committer(self._folders, self._committer).commit, max_group=MAX_GROUP, gather_s=GATHER_S
        )
        return self

    @property
    def descriptors(self) -> tuple[int, int]:
        """Of `out` and of its `images/`, which is locked."""
        return self._folders.out, self._folders.images

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._downloader.close()
        # A group that was put and whose callers were cancelled still uses the descriptors: close them after it.
        await self._commits.idle()
        self._folders.close()

    async def fetch(self, image: PaidImage) -> StoredImage | FetchFailed:
        """Fetch once. Free, so it may be called again. A returned StoredImage is on disk, durable, under its name.

        Raises:
            OutputError: the image's stem is no file name below `images/`.
        """
        received = await self._received(image)
        outcome = received if isinstance(received, FetchFailed) else await self._commits.put(received)
        if isinstance(outcome, FetchFailed):
            return replace(outcome, message=self._redact(outcome.message))
        return replace(outcome, warning=self._redact(outcome.warning)) if outcome.warning else outcome

    async def _received(self, image: PaidImage) -> Received | FetchFailed:
        try:
            received = await self._on_a_way(image)
        except PartFailed as broken:
            return failures.by_disk(broken.failure)
        except (aiohttp.ClientError, TimeoutError, OSError) as failure:
            return classify.by_exception(failure)
        except ValueError:
            # Some library takes the url for none, after all. One image's url must not keep the others from coming.
            return classify.blocked(Blocked("its url can't be asked for"))
        if isinstance(received, Received) and received.label is not None:
            received.label = self._redact(received.label)
        return received

    async def _on_a_way(self, image: PaidImage) -> Received | FetchFailed:
        held = await self._ways.take()
        try:
            return await self._downloader.receive(image, self._disk, self._folders)
        finally:
            if held:
                self._ways.give_back()

"""A host of images that says exactly what a test hands it, and a fetcher in front of it."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from banana_batch.images.fetcher import ImageFetcher
from banana_batch.models import PaidImage

Script = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


class Host:
    """What arrived, and where the host listens."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.url = ""
        self.port = 0
        self.hold = asyncio.Event()

    @property
    def image(self) -> PaidImage:
        """An image that this host has."""
        return PaidImage(1, "1", f"{self.url}/other/cat.png", "00001-cat", (64, 48))


def answer(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """Return an HTTP answer with its length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@asynccontextmanager
async def host(reply: bytes | Script, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Host]:
    """Answer each request with `reply`, and close after it; or leave the connection to a script."""
    made = Host()
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        made.connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            request = await reader.readuntil(b"\r\n\r\n")
            made.requests.append(request)
            if callable(reply):
                await reply(request, writer)
            else:
                writer.write(reply)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    made.port = server.sockets[0].getsockname()[1]
    made.url = f"{'https' if tls else 'http'}://127.0.0.1:{made.port}"
    try:
        yield made
    finally:
        made.hold.set()
        server.close()
        for writer in writers:
            writer.close()
        await server.wait_closed()


@asynccontextmanager
async def fetching(out: Path, gateway: str, *, made: Any = None, **settings: Any) -> AsyncIterator[ImageFetcher]:
    """Open a fetcher with executors of its own; `made` makes it."""
    with ThreadPoolExecutor(1) as committer, ThreadPoolExecutor(4) as disk:
        async with (made or MADE[-1])(out, gateway=gateway, committer=committer, disk=disk, **settings) as fetcher:
            yield fetcher


# The last one makes what `fetching` opens: what is promised of one is promised of all.
MADE: list[Callable[..., Any]] = [ImageFetcher]


def everything(out: Path) -> set[str]:
    """Return every file below a folder, hidden ones too."""
    return {str(path.relative_to(out)) for path in out.rglob("*") if not path.is_dir()}

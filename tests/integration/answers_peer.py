"""A server of raw bytes: it reads whole requests, counts them, and answers with exactly what a test hands it."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from banana_batch.endpoint.client import EndpointClient
from banana_batch.models import Kind, QueuedJob, Reply, SendTrace
from banana_batch.pacing.clock import SystemClock
from banana_batch.secret import Secret

CANARY = "canary-5f2d/0c+9e71=aa"
URL = "https://cdn.example/other/cat.png"
PROMPT = "a cute cat, seen by nobody else"

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Peer:
    """What arrived: whole requests, and connections that were opened."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.url = ""
        self.arrived = asyncio.Event()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """Read one request with its body; empty at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        size = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
        return head + await reader.readexactly(size)
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


@asynccontextmanager
async def serving(
    reply: bytes | Script, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None, at_once: bool = False
) -> AsyncIterator[Peer]:
    """Answer every request with `reply` and close, or hand the connection to a script.

    The script gets it after the first request, or `at_once`, before anything was read.
    """
    peer = Peer()
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        peer.connections += 1
        try:
            request = b"" if at_once else await read_request(reader)
            if request or at_once:
                peer.requests.append(request)
                peer.arrived.set()
                if isinstance(reply, bytes):
                    writer.write(reply)
                    await writer.drain()
                else:
                    await reply(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(serve, host, 0, ssl=tls, backlog=512)
    port = server.sockets[0].getsockname()[1]
    peer.url = f"{'https' if tls else 'http'}://{host}:{port}"
    try:
        yield peer
    finally:
        server.close()
        await asyncio.sleep(0)  # connections accepted in this very turn get their task
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


def answer(status: int, body: bytes | str | object, *headers: str, reason: str = "Some Reason") -> bytes:
    """Return a whole HTTP answer; a body that is neither bytes nor text goes out as JSON."""
    if not isinstance(body, bytes):
        body = (body if isinstance(body, str) else json.dumps(body)).encode()
    lines = [f"HTTP/1.1 {status} {reason}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def success(**data: object) -> dict[str, object]:
    """Return the documented envelope of a sold image."""
    sold: dict[str, object] = {"prompt": PROMPT, "refer_images": None, "image_url": URL, "quota": 2}
    return {"status": "SUCCESS", "message": "success", "data": {**sold, **data}}


def failed(message: str) -> dict[str, object]:
    """Return the documented envelope of a refusal."""
    return {"status": "FAILED", "message": message, "data": None}


def job(request: str | None = None, references: str | None = None, size: str = "1K") -> QueuedJob:
    """Return a job with a documented request."""
    model = "gemini-3-pro-image-preview"
    body = request or json.dumps({"prompt": PROMPT, "model": model}, separators=(",", ":"))
    return QueuedJob(1, "job-1", Kind(model, size), body, references, tries=0, attempts=0)


@asynccontextmanager
async def client_of(
    url: str, timeout_s: float = 5.0, key: str = CANARY, **options: Any
) -> AsyncIterator[EndpointClient]:
    """Open a client of `url`."""
    with ThreadPoolExecutor(1) as executor:
        made = EndpointClient(
            url, Secret(key), clock=SystemClock(), timeout_s=lambda _size: timeout_s, executor=executor, **options
        )
        async with made:
            yield made


async def buy(url: str, timeout_s: float = 5.0, **options: Any) -> tuple[Reply, SendTrace]:
    """Make one call and return how it ended, with its evidence."""
    trace = SendTrace()
    async with client_of(url, timeout_s, **options) as client:
        return await client.generate(job(), trace), trace

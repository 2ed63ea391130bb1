"""An endpoint that is no bottleneck: a hand-written protocol in a process of its own.

    python -m tests.benchmarks.endpoint --latency 1 --image-bytes 20000

prints its port, then serves `POST /gemini/image/generate`, `GET /image/N.png` and `GET /stats` until its standard
input ends. Latencies are drawn from a seed by order of arrival, so that every peer meets the same ones.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from typing import BinaryIO, cast

import uvloop

from .pictures import noise_png

GENERATE = b"POST /gemini/image/generate "
IN_ONE_PIECE_BYTES = 256 << 10


class Endpoint:
    """What all connections share: the latencies, the picture, the counts."""

    def __init__(self, latency_s: float, sigma: float, seed: int, picture: BinaryIO) -> None:
        self.latency_s = latency_s
        self.sigma = sigma
        self.draws = random.Random(seed)
        self.picture = picture
        self.size = picture.seek(0, os.SEEK_END)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n" % self.size
        picture.seek(0)
        small = self.size <= IN_ONE_PIECE_BYTES
        self.head = head
        self.whole = head + picture.read() if small else None
        self.port = 0
        self.generated = self.images = self.in_flight = self.widest = 0
        self.first: float | None = None

    def draw_s(self) -> float:
        """Return the next call's latency."""
        return drawn_s(self.draws, self.latency_s, self.sigma)

    def stats(self) -> dict[str, float | None]:
        """Return the counts; `first` is when the first paid call came, seconds since the epoch."""
        return {"generated": self.generated, "images": self.images, "widest": self.widest, "first": self.first}


def drawn_s(draws: random.Random, latency_s: float, sigma: float) -> float:
    """Return one latency: `latency_s`, or log-normal with that median."""
    return draws.lognormvariate(0.0, sigma) * latency_s if sigma else latency_s


class Connection(asyncio.Protocol):
    """One keep-alive connection, a request at a time."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._got = bytearray()
        self._loop = asyncio.get_running_loop()
        self._sending: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its type

    def data_received(self, data: bytes) -> None:
        """Answer once a request is whole."""
        got = self._got
        got += data
        end = got.find(b"\r\n\r\n")
        if end < 0:
            return
        if not got.startswith(b"POST"):
            line = bytes(got[: got.find(b"\r")])
            got.clear()
            self._get(line)
            return
        lower = bytes(got[:end]).lower()
        place = lower.find(b"content-length:") + 15
        size = int(lower[place : (lower + b"\r").find(b"\r", place)])
        if len(got) < end + 4 + size:
            return
        paid, body = got.startswith(GENERATE) and b"\r\ntt-api-key:" in lower, bytes(got[end + 4 :])
        got.clear()
        self._post(body) if paid else self._say(b"401 Unauthorized", b"{}")

    def _post(self, body: bytes) -> None:
        endpoint = self._endpoint
        endpoint.first = endpoint.first or time.time()
        endpoint.in_flight += 1
        endpoint.widest = max(endpoint.widest, endpoint.in_flight)
        wait_s = endpoint.draw_s()
        prompt = json.loads(body)["prompt"]
        if wait_s:
            self._loop.call_later(wait_s, self._answer, prompt)
        else:
            self._answer(prompt)

    def _answer(self, prompt: str) -> None:
        endpoint = self._endpoint
        endpoint.in_flight -= 1
        endpoint.generated += 1
        url = f"http://127.0.0.1:{endpoint.port}/image/{endpoint.generated}.png"
        data = {"prompt": prompt, "refer_images": None, "image_url": url, "quota": 2}
        self._say(b"200 OK", json.dumps({"status": "SUCCESS", "message": "success", "data": data}).encode())

    def _get(self, line: bytes) -> None:
        endpoint = self._endpoint
        if b"/stats " in line:
            self._say(b"200 OK", json.dumps(endpoint.stats()).encode())
            return
        endpoint.images += 1
        if endpoint.whole is not None:
            self._transport.write(endpoint.whole)
        else:
            self._sending = self._loop.create_task(self._send_file())

    async def _send_file(self) -> None:
        self._transport.write(self._endpoint.head)
        try:
            # A file object of its own: the position is in it.
            with open(self._endpoint.picture.name, "rb") as file:
                await self._loop.sendfile(self._transport, file)
        except ConnectionError:
            self._transport.abort()

    def _say(self, status: bytes, body: bytes) -> None:
        self._transport.write(
            b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)
        )


async def serve(endpoint: Endpoint) -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(endpoint), "127.0.0.1", 0, backlog=4096)
    endpoint.port = server.sockets[0].getsockname()[1]
    print(endpoint.port, flush=True)  # how the port is told
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--sigma", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--image-bytes", type=int, default=20_000)
    asked = parser.parse_args()
    with tempfile.NamedTemporaryFile(suffix=".png") as picture:
        picture.write(noise_png(asked.image_bytes))
        picture.flush()
        endpoint = Endpoint(asked.latency, asked.sigma, asked.seed, picture)  # type: ignore[arg-type]
        # uvloop serves small images in half the CPU, and has no sendfile for large ones.
        run = asyncio.run if endpoint.whole is None else uvloop.run
        run(serve(endpoint))


if __name__ == "__main__":
    main()

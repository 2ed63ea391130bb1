"""Calls that end without a whole answer: what the evidence says, and when the clock starts."""

import asyncio
import base64
import hashlib
import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from banana_batch.endpoint import classify, client, transport
from banana_batch.models import Outcome, SendTrace
from banana_batch.pacing.clock import SystemClock
from banana_batch.secret import Secret
from tests.integration.answers_peer import URL, answer, buy, client_of, job, serving, success


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def test_a_refused_connection_was_not_sent() -> None:
    """No listener: the hook stays silent, no retry is used up, the reserve is released."""
    ending, trace = await buy(f"http://127.0.0.1:{_closed_port()}")
    assert trace.sent_at_s is None
    assert ending.latency_s is None
    assert ending.verdict is classify.CONNECT
    assert (ending.verdict.outcome, ending.verdict.retries) == (Outcome.NOT_SENT, -1)


async def test_an_unknown_name_was_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS says no: nothing left."""

    def unknown(*_args: object, **_more: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    ending, trace = await buy("https://gateway.example")
    assert trace.sent_at_s is None
    assert ending.verdict is classify.DNS


async def test_a_connection_that_takes_too_long_was_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connect timeout bounds the TLS handshake too; the call's own timeout has not begun."""
    monkeypatch.setattr(transport, "CONNECT_TIMEOUT_S", 0.05)
    async with serving(_silence, at_once=True) as peer:
        async with asyncio.timeout(5):
            ending, trace = await buy(peer.url.replace("http:", "https:"))
    assert trace.sent_at_s is None
    assert ending.verdict is classify.CONNECT


async def test_a_proxy_that_never_answers_was_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything before the first byte is bounded, a proxy's tunnel too."""
    monkeypatch.setattr(transport, "ESTABLISH_TIMEOUT_S", 0.05)
    async with serving(_silence) as proxy:
        ending, trace = await buy("https://127.0.0.1:1", proxy=proxy.url)
    assert trace.sent_at_s is None
    assert ending.verdict is classify.CONNECT


async def test_no_answer_in_time_is_a_doubt() -> None:
    """The timeout counts from the send, and its end proves nothing."""
    async with serving(_silence) as peer:
        ending, trace = await buy(peer.url, timeout_s=0.05)
    assert len(peer.requests) == 1
    assert trace.sent_at_s is not None
    assert ending.verdict is classify.TIMEOUT
    assert ending.latency_s is not None
    assert 0.04 < ending.latency_s < 2
    assert "0.05 s" in (ending.message or "")


async def test_the_timeout_covers_the_whole_answer() -> None:
    """A body that never ends is cut off at the deadline; what came of it is kept for the record."""

    async def trickle(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with serving(trickle) as peer:
        ending, _ = await buy(peer.url, timeout_s=0.1)
    assert ending.verdict is classify.TIMEOUT
    assert ending.status == 200
    assert ending.raw.startswith(b"{ ")


async def test_a_body_that_only_the_timeout_ended_is_not_whole() -> None:
    """Without a length the end of the connection is the body's: ours must not make an answer of what came so far."""

    async def half(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps(success()).encode())
        await asyncio.Event().wait()

    async with serving(half) as peer:
        ending, _ = await buy(peer.url, timeout_s=0.05)
    assert ending.verdict is classify.TIMEOUT
    assert URL.encode() in ending.raw


async def test_the_timeout_goes_by_image_size() -> None:
    """A 4K image may take longer than a small one."""
    sizes: list[str] = []

    def timeout_s(size: str) -> float:
        sizes.append(size)
        return 0.05

    async with serving(_silence) as peer:
        with ThreadPoolExecutor(1) as executor:
            made = client.EndpointClient(
                peer.url, Secret("k"), clock=SystemClock(), timeout_s=timeout_s, executor=executor
            )
            async with made:
                await made.generate(job(size="4K"), SendTrace())
    assert sizes == ["4K"]


async def test_a_reset_after_the_send_is_a_doubt() -> None:
    """A hard reset in place of an answer proves nothing."""

    async def reset(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with serving(reset) as peer:
        ending, trace = await buy(peer.url)
    assert trace.sent_at_s is not None
    assert ending.verdict is classify.CUT_AFTER_SEND
    assert len(peer.requests) == 1
    assert peer.connections == 1


async def test_a_cancelled_call_is_a_doubt_for_its_caller() -> None:
    """Cancelling raises through, and the trace tells that the request had left."""
    trace = SendTrace()
    async with serving(_silence) as peer, client_of(peer.url) as made:
        task = asyncio.create_task(made.generate(job(), trace))
        await peer.arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert trace.sent_at_s is not None


async def test_a_trace_is_sent_once() -> None:
    """A second send on the evidence of the first never gets a byte out."""
    trace = SendTrace()
    async with serving(answer(200, success(), "Connection: close")) as peer, client_of(peer.url) as made:
        first = await made.generate(job(), trace)
        second = await made.generate(job(), trace)
    assert first.verdict is classify.OK
    assert second.verdict is classify.UNEXPECTED
    assert second.verdict.outcome is Outcome.IN_DOUBT
    assert len(peer.requests) == 1


async def test_a_call_that_fails_before_the_send_for_no_known_reason_was_not_sent() -> None:
    """A request that can't even be written as bytes is no doubt."""
    async with client_of("http://127.0.0.1:1") as made:
        ending = await made.generate(job('{"prompt":"\ud800"}'), SendTrace())
    assert ending.verdict is classify.NOT_SENT


async def test_no_call_waits_for_another() -> None:
    """150 calls at once are 150 connections: the wait for a free one would be counted as the call's own."""
    together = asyncio.Barrier(150)

    async def reply(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await together.wait()
        writer.write(answer(200, success()))
        await writer.drain()

    async with serving(reply) as peer, client_of(peer.url) as made:
        endings = await asyncio.gather(*(made.generate(job(), SendTrace()) for _ in range(150)))
    assert {ending.verdict for ending in endings} == {classify.OK}


def _reference(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    return json.dumps({"cat.png": {"path": str(path), "sha256": digest, "mime": "image/png"}})


async def test_a_local_reference_is_sent_as_a_data_url(tmp_path: Path) -> None:
    """The file's bytes stand where the row named it; urls beside it go as they are."""
    references = _reference(tmp_path / "cat.png", b"meow" * 100_000)
    request = json.dumps({"prompt": "cat.png", "refer_images": ["https://a.example/x.png", "cat.png"]})
    async with serving(answer(200, success())) as peer, client_of(peer.url) as made:
        ending = await made.generate(job(request, references), SendTrace())
    assert ending.verdict is classify.OK
    sent = json.loads(peer.requests[0].split(b"\r\n\r\n", 1)[1])
    assert sent["prompt"] == "cat.png"
    assert sent["refer_images"][0] == "https://a.example/x.png"
    kind, content = sent["refer_images"][1].split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content) == b"meow" * 100_000
    assert b"Transfer-Encoding" not in peer.requests[0]


@pytest.mark.parametrize("change", ["edited", "deleted", "a pipe"])
async def test_a_changed_reference_is_refused_unsent(tmp_path: Path, change: str) -> None:
    """What was planned is what is sent: another content, or none, fails the job for good and names the file."""
    path = tmp_path / "cat.png"
    references = _reference(path, b"meow")
    if change == "edited":
        path.write_bytes(b"woof")
    else:
        path.unlink()
    if change == "a pipe":
        os.mkfifo(path)  # nobody ever writes to it
    trace = SendTrace()
    async with serving(answer(200, success())) as peer, client_of(peer.url) as made:
        ending = await made.generate(job('{"refer_images":["cat.png"]}', references), trace)
    assert peer.connections == 0
    assert trace.sent_at_s is None
    assert ending.verdict is classify.REFERENCE_CHANGED
    assert ending.verdict.outcome is Outcome.REFUSED
    assert str(path) in (ending.message or "")


async def test_an_answer_that_came_in_time_counts_though_it_is_read_late() -> None:
    """A process that was frozen (Ctrl-Z, a paused machine) finds the answer and the end of its time in one turn."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer(200, success()))
                frozen.wait(30)

        frozen, peer = threading.Event(), threading.Thread(target=serve)
        peer.start()
        async with client_of(f"http://127.0.0.1:{server.getsockname()[1]}", timeout_s=0.3) as made:
            calling = asyncio.ensure_future(made.generate(job("{}"), trace := SendTrace()))
            while trace.sent_at_s is None:
                await asyncio.sleep(0)
            time.sleep(0.6)  # the process stands still, its peer does not
            ending = await calling
        frozen.set()
        peer.join(30)
    assert ending.verdict is classify.OK

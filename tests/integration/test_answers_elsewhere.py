"""Whom the paid client talks to: never another origin, never an untrusted peer; and what of the key gets out."""

import asyncio
import base64
import json
import pickle
import socket
import ssl
import warnings
from pathlib import Path
from urllib.parse import quote

import pytest

from banana_batch.endpoint import classify
from banana_batch.errors import Exit, SettingsError
from banana_batch.models import Outcome, SendTrace
from banana_batch.secret import Secret
from tests.integration.answers_peer import (
    CANARY,
    PROMPT,
    answer,
    buy,
    client_of,
    failed,
    job,
    read_request,
    serving,
    success,
)
from tests.tls import CA, server_tls


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_never_followed(status: int) -> None:
    """Another origin gets neither the key nor the prompt, whatever the code; the run stops with 76."""
    async with serving(answer(200, success()), host="127.0.0.2") as sink:
        moved = answer(status, "", f"Location: {sink.url}/gemini/image/generate")
        async with serving(moved) as peer:
            ending, _ = await buy(peer.url)
        assert sink.connections == 0
    assert len(peer.requests) == 1
    assert ending.verdict.outcome is Outcome.REFUSED_FOR_NOW
    assert ending.verdict.retries == -1
    assert ending.verdict.stop is not None
    assert ending.verdict.stop.exit is Exit.PROTOCOL
    assert sink.url in (ending.message or "")


async def test_a_trusted_certificate_is_enough() -> None:
    """Certificates of --ca-file are trusted beside the system's."""
    async with serving(answer(200, success()), tls=server_tls("good")) as peer:
        ending, _ = await buy(peer.url, ca_file=CA)
    assert ending.verdict is classify.OK


@pytest.mark.parametrize(
    ("certificate", "ca_file"),
    [("good", None), ("expired", CA), ("other-host", CA)],
    ids=["unknown issuer", "expired", "wrong host"],
)
async def test_an_untrusted_certificate_stops_the_run_unsent(certificate: str, ca_file: Path | None) -> None:
    """Nothing leaves, and it is settings (78), not the endpoint, that must be mended."""
    async with serving(answer(200, success()), tls=server_tls(certificate)) as peer:
        ending, trace = await buy(peer.url, ca_file=ca_file)
    assert peer.requests == []
    assert trace.sent_at_s is None
    assert ending.latency_s is None
    assert ending.verdict is classify.TLS_CERTIFICATE
    assert ending.verdict.stop is not None
    assert ending.verdict.stop.exit is Exit.SETTINGS


async def test_old_tls_is_refused() -> None:
    """A gateway that offers nothing newer than TLS 1.1 gets nothing."""
    context = server_tls("good")
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # A thread with a blocking socket: asyncio's server drops the alert that says why it hangs up.
        handshake = asyncio.create_task(asyncio.to_thread(_handshake, listener, context))
        ending, trace = await buy(f"https://127.0.0.1:{listener.getsockname()[1]}", ca_file=CA)
        with pytest.raises(ssl.SSLError):
            await handshake
    assert trace.sent_at_s is None
    assert ending.verdict is classify.TLS_VERSION


def _handshake(listener: socket.socket, context: ssl.SSLContext) -> None:
    connection, _ = listener.accept()
    with connection:
        context.wrap_socket(connection, server_side=True)


async def test_a_peer_that_speaks_no_tls_is_a_failed_handshake() -> None:
    """Plain bytes where TLS is due: not sent; three in a row end the run with 69."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async with serving(speak, at_once=True) as peer:
        ending, trace = await buy(peer.url.replace("http:", "https:"), ca_file=CA)
    assert trace.sent_at_s is None
    assert ending.verdict is classify.TLS_HANDSHAKE
    assert ending.verdict.stop is not None
    assert (ending.verdict.stop.exit, ending.verdict.stop.after) == (Exit.UNAVAILABLE, 3)


async def test_a_cut_during_the_handshake_is_an_outage() -> None:
    """A peer that hangs up before TLS stands proves that nothing was sent, and ends no run by count."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)

    async with serving(hang_up, at_once=True) as peer:
        ending, trace = await buy(peer.url.replace("http:", "https:"), ca_file=CA)
    assert trace.sent_at_s is None
    assert ending.verdict is classify.CUT_BEFORE_SEND


async def test_a_bad_ca_file_is_said_at_once(tmp_path: Path) -> None:
    """No certificates in --ca-file: settings, before any call."""
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing here")
    for path in (empty, tmp_path / "missing.pem"):
        with pytest.raises(SettingsError, match="--ca-file"):
            await buy("https://127.0.0.1:1", ca_file=path)


async def test_the_environments_proxies_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP_PROXY and its like send neither the prompt nor the key anywhere."""
    async with serving(answer(200, success()), host="127.0.0.2") as sink, serving(answer(200, success())) as peer:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, sink.url)
        ending, _ = await buy(peer.url)
        assert sink.connections == 0
    assert ending.verdict is classify.OK


async def test_a_proxy_sees_a_tunnel_and_never_the_key() -> None:
    """Through --proxy the gateway's TLS holds from end to end."""
    seen: list[bytes] = []

    async with serving(answer(200, success()), tls=server_tls("good")) as peer:
        port = int(peer.url.rsplit(":", 1)[1])

        async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(await read_request(reader))
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(_pump(reader, inner_writer, seen), _pump(inner_reader, writer, []))

        async with serving(tunnel, at_once=True) as proxy:
            ending, _ = await buy(peer.url, ca_file=CA, proxy=proxy.url)
    assert ending.verdict is classify.OK
    assert seen[0].startswith(b"CONNECT 127.0.0.1:")
    assert not any(CANARY.encode() in chunk or PROMPT.encode() in chunk for chunk in seen)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: list[bytes]) -> None:
    while chunk := await reader.read(65536):
        seen.append(chunk)
        writer.write(chunk)
    writer.close()


@pytest.mark.parametrize("status", [403, 407, 502])
async def test_a_proxy_that_refuses_the_tunnel_proves_that_nothing_was_sent(status: int) -> None:
    """The proxy's own answer is no answer of the endpoint."""
    async with serving(answer(status, "no")) as proxy:
        ending, trace = await buy("https://127.0.0.1:1", proxy=proxy.url)
    assert trace.sent_at_s is None
    assert ending.verdict is classify.PROXY_REFUSED
    assert str(status) in (ending.message or "")


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "127.0.0.1:3128", "http://"])
async def test_a_proxy_must_be_a_url_of_http(proxy: str) -> None:
    """Anything else is a setting to mend, not an outage to wait for."""
    with pytest.raises(SettingsError, match="--proxy"):
        await buy("https://127.0.0.1:1", proxy=proxy)


ENCODINGS = {
    "plain": CANARY,
    "url": quote(CANARY, safe=""),
    "base64": base64.b64encode(CANARY.encode()).decode(),
    "base64 inside": base64.b64encode(f"u:{CANARY}:p".encode()).decode(),
    "base64url": base64.urlsafe_b64encode(CANARY.encode()).decode(),
    "hex": CANARY.encode().hex(),
    "json": CANARY.replace("/", "\\/"),
    "unicode escapes": "".join(f"\\u{ord(char):04x}" for char in CANARY),
}


def _echoes(spelled: str) -> list[bytes]:
    quoted = f'"{spelled}"'
    return [
        answer(200, json.dumps(success(image_url="@", prompt="@")).replace('"@"', quoted)),
        answer(200, json.dumps(failed("@")).replace('"@"', quoted)),
        answer(200, json.dumps(success(quota="@")).replace('"@"', quoted)),
        answer(200, json.dumps({"status": "ON_QUEUE", "data": {"jobId": "@"}}).replace('"@"', quoted)),
        answer(401, f"<title>{spelled}</title>"),
        answer(502, spelled),
        answer(302, spelled, f"Location: https://x.example/?k={spelled}"),
        answer(200, spelled, f"Content-Encoding: {spelled}"),
        f"HTTP/1.1 {spelled}\r\n\r\n".encode(),
        f"HTTP/1.1 200 OK\r\n{spelled}\r\n\r\n".encode(),
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + spelled.encode(),
    ]


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_an_echoed_key_gets_no_further(encoding: str) -> None:
    """Whatever a server repeats of the key, in any spelling and place, no value that leaves the client holds it."""
    spelled = ENCODINGS[encoding]
    inner = spelled if encoding != "base64 inside" else base64.b64encode(CANARY.encode()).decode()[4:-4]
    for reply in _echoes(spelled):
        async with serving(reply) as peer:
            ending, trace = await buy(peer.url)
        shown = repr(ending) + repr(trace) + ending.raw.decode("utf-8", "replace")
        for hidden in (CANARY, spelled, inner):
            assert hidden not in shown, reply


async def test_the_client_does_not_show_the_key() -> None:
    """Neither printing nor formatting nor pickling a key gives it away."""
    secret = Secret(CANARY)
    assert f"{secret} {secret!r} {secret!s}" == "*** *** ***"
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    async with client_of("http://127.0.0.1:1") as client:
        await client.generate(job(), SendTrace())
        assert CANARY not in repr(vars(client))

"""Where images may come from, as attacks: redirects, rebinding, proxies, certificates, and who sees what."""

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from banana_batch.errors import Exit, SettingsError
from banana_batch.models import FetchFailed, PaidImage, StoredImage
from tests.integration.images_peer import answer, everything, fetching, host
from tests.tls import CA, server_tls
from tests.unit.images.samples import WHOLE, png

PNG = WHOLE["png"][1]
LARGE = png(fill=3 << 20)
VENDOR = "https://api.ttapi.org"


def paid(url: str) -> PaidImage:
    return PaidImage(1, "1", url, "00001-cat", None)


def resolving(monkeypatch: pytest.MonkeyPatch, addresses: Sequence[str]) -> None:
    """Let every name mean these addresses; none (no name is ever looked up outside)."""

    async def resolve(_self: object, host: str, port: int = 0, family: int = 0) -> list[dict[str, Any]]:
        if not addresses:
            raise OSError(None, "no such name")
        return [
            {"hostname": host, "host": one, "port": port, "family": socket.AF_INET6 if ":" in one else socket.AF_INET,
             "proto": 0, "flags": 0}
            for one in addresses
        ]  # fmt: skip

    monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", resolve)


@pytest.mark.parametrize("addresses", [["127.0.0.2"], ["127.0.0.2", "::1"], ["::ffff:127.0.0.3"], ["127.0.0.2"] * 3])
async def test_a_name_that_means_a_private_address_is_never_connected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    """Rebinding: the url is fine, the address is not. No socket is made, and the way to allow it is said."""
    resolving(monkeypatch, addresses)
    made: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda *call: made.append(call))
    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", lambda *call: made.append(call))
    async with fetching(tmp_path, VENDOR) as fetcher:
        failure = await fetcher.fetch(paid("https://cdn.example/a.png"))
    assert isinstance(failure, FetchFailed)
    assert failure.stop is not None
    assert (failure.name, failure.stop.exit, failure.lost) == ("image_blocked", Exit.PROTOCOL, False)
    assert "--allow-host cdn.example:443" in failure.message
    assert made == []


async def test_a_name_that_means_nothing_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that fails says nothing about the image."""
    resolving(monkeypatch, [])
    async with fetching(tmp_path, VENDOR) as fetcher:
        failure = await fetcher.fetch(paid("https://cdn.example/a.png"))
    assert isinstance(failure, FetchFailed)
    assert (failure.name, failure.stop) == ("image_unreachable", None)
    assert "cdn.example" in failure.message


@pytest.mark.parametrize(
    "url", ["", "not a url\x1b[31m", "http://169.254.169.254/", "https://[::1]/", "https://u:p@h/"]
)
async def test_any_text_as_url_stays_paid_and_stops_the_run(tmp_path: Path, url: str) -> None:
    """Exit 76, the url kept; its text reaches no terminal raw."""
    async with fetching(tmp_path, VENDOR) as fetcher:
        failure = await fetcher.fetch(paid(url))
    assert isinstance(failure, FetchFailed)
    assert failure.stop is not None
    assert (failure.stop.exit, failure.retries, failure.lost) == (Exit.PROTOCOL, 0, False)
    assert "\x1b" not in failure.message


def moved(location: str, status: int = 302) -> bytes:
    return answer(b"", f"Location: {location}", "Set-Cookie: spy=1", status=f"{status} Moved")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_judged_like_the_first_url(tmp_path: Path, status: int) -> None:
    """To another origin: blocked, and that origin sees no packet."""
    async with (
        host(answer(PNG)) as sink,
        host(moved(f"{sink.url}/a.png", status)) as peer,
        fetching(tmp_path, peer.url) as fetcher,
    ):
        failure = await fetcher.fetch(peer.image)
    assert isinstance(failure, FetchFailed)
    assert failure.name == "image_blocked"
    assert sink.requests == []


@pytest.mark.parametrize(("hops", "name"), [(3, None), (4, "image_refused")])
async def test_at_most_three_redirects_are_followed(tmp_path: Path, hops: int, name: str | None) -> None:
    """Within the same origin; no cookie is carried along, and no key."""

    async def hop(request: bytes, writer: asyncio.StreamWriter) -> None:
        path = request.split(b" ")[1]
        at = 0 if path == b"/other/cat.png" else int(path.strip(b"/"))
        writer.write(answer(PNG) if at == hops else moved(f"/{at + 1}"))

    async with host(hop) as peer, fetching(tmp_path, peer.url) as fetcher:
        outcome = await fetcher.fetch(peer.image)
    assert getattr(outcome, "name", None) == name
    assert len(peer.requests) == 4
    assert not any(b"cookie" in request.lower() for request in peer.requests)


@pytest.mark.parametrize("reply", [answer(b"", status="302 Found"), moved("https://[::1")])
async def test_a_redirect_to_nowhere_is_a_failure_like_others(tmp_path: Path, reply: bytes) -> None:
    """Without a target, or with one that is no url."""
    async with host(reply) as peer, fetching(tmp_path, peer.url) as fetcher:
        assert isinstance(await fetcher.fetch(peer.image), FetchFailed)


async def test_the_host_sees_neither_key_nor_cookie_nor_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sent is pinned: a session of its own, blind to environment proxies and .netrc."""
    async with host(answer(b"")) as sink, host(answer(PNG, "Set-Cookie: a=b; Path=/")) as peer:
        (tmp_path / "netrc").write_text("machine localhost login me password secret\n")
        (tmp_path / "netrc").chmod(0o600)
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, sink.url)
        monkeypatch.setenv("TT_API_KEY", "canary")
        (tmp_path / "out").mkdir()
        named = peer.url.replace("127.0.0.1", "localhost")  # a jar keeps no cookies of bare addresses anyway
        async with fetching(tmp_path / "out", named) as fetcher:
            for index in (1, 2):
                image = PaidImage(index, "x", f"{named}/a.png?{index}", f"{index}", None)
                assert isinstance(await fetcher.fetch(image), StoredImage)
    lines = peer.requests[1].decode().split("\r\n")
    assert sorted(line.split(":")[0] for line in lines[1:] if line) == [
        "Accept",
        "Accept-Encoding",
        "Host",
        "User-Agent",
    ]
    assert "Accept-Encoding: identity" in lines
    assert any(line.startswith("User-Agent: banana-batch/") for line in lines)
    assert sink.requests == []


async def test_an_allowed_host_is_fetched_over_trusted_tls(tmp_path: Path) -> None:
    """--allow-host opens a private address and port, --ca-file its certificate; both are needed."""
    async with host(answer(PNG), tls=server_tls("good")) as peer:
        settings = {"allow_hosts": [f"127.0.0.1:{peer.port}"], "ca_file": CA}
        async with fetching(tmp_path, VENDOR, **settings) as fetcher:
            assert isinstance(await fetcher.fetch(peer.image), StoredImage)
        async with fetching(tmp_path, VENDOR, ca_file=CA) as fetcher:
            blocked = await fetcher.fetch(peer.image)
    assert isinstance(blocked, FetchFailed)
    assert blocked.name == "image_blocked"
    assert len(peer.requests) == 1


async def test_the_system_s_certificates_are_where_the_user_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SSL_CERT_FILE, as OpenSSL knows it: a company's own authority."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CA))
    async with (
        host(answer(PNG), tls=server_tls("good")) as peer,
        fetching(tmp_path, VENDOR, allow_hosts=[f"127.0.0.1:{peer.port}"]) as fetcher,
    ):
        assert isinstance(await fetcher.fetch(peer.image), StoredImage)


async def test_a_large_image_comes_whole_over_tls(tmp_path: Path) -> None:
    """Past the parser, too, its bytes are those that were sent."""
    async with host(answer(LARGE), tls=server_tls("good")) as peer:
        settings = {"allow_hosts": [f"127.0.0.1:{peer.port}"], "ca_file": CA}
        async with fetching(tmp_path, VENDOR, **settings) as fetcher:
            stored = await fetcher.fetch(peer.image)
    assert isinstance(stored, StoredImage)
    assert (tmp_path / stored.path).read_bytes() == LARGE


@pytest.mark.parametrize("certificate", ["expired", "other-host", "good"])
async def test_an_untrusted_certificate_is_never_accepted(tmp_path: Path, certificate: str) -> None:
    """Expired, of another host, or of an unknown authority: no request is sent."""
    async with host(answer(PNG), tls=server_tls(certificate)) as peer:
        ca_file = None if certificate == "good" else CA
        async with fetching(tmp_path, VENDOR, allow_hosts=["127.0.0.1"], ca_file=ca_file) as fetcher:
            failure = await fetcher.fetch(peer.image)
    assert isinstance(failure, FetchFailed)
    assert failure.name == "image_unreachable"
    assert "TLS" in failure.message
    assert peer.requests == []


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_a_ca_file_that_holds_none_is_a_setting_to_mend(tmp_path: Path, content: str | None) -> None:
    """Exit 78, before anything is fetched."""
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError):
        async with fetching(tmp_path, VENDOR, ca_file=path):
            pass


async def test_a_proxy_carries_all_images_and_the_names_are_judged(tmp_path: Path) -> None:
    """The proxy connects, so literal and name are judged here; its own address is the user's choice."""

    async def proxy(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(PNG) if request.startswith(b"GET http://127.0.0.1:9/") else answer(b"", status="403 No"))

    async with host(proxy) as peer, fetching(tmp_path, "http://127.0.0.1:9", proxy=peer.url) as fetcher:
        assert isinstance(await fetcher.fetch(paid("http://127.0.0.1:9/a.png")), StoredImage)
        refused = await fetcher.fetch(paid("https://cdn.example/a.png"))
        asked = len(peer.requests)
        for url in ("https://localhost/a.png", "https://router/a.png", "https://127.1/a.png", "https://10.0.0.1/a.png"):
            blocked = await fetcher.fetch(paid(url))
            assert isinstance(blocked, FetchFailed)
            assert blocked.name == "image_blocked"
    assert isinstance(refused, FetchFailed)
    assert (refused.name, refused.lost, refused.gone) == ("image_unreachable", False, False)
    assert peer.requests[1].startswith(b"CONNECT cdn.example:443 ")
    assert len(peer.requests) == asked
    assert everything(tmp_path) == {"images/00001-cat.png"}

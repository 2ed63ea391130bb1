"""Forty urls to where no image may come from, each as it is, behind a redirect, and behind a name that lies (S1, S2).

No test here can reach anything: `connect` is recorded and refused, the sockets of a missing guard too.
"""

import asyncio
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from banana_batch.errors import Exit
from banana_batch.models import FetchFailed, PaidImage
from tests.integration import whole_runs
from tests.integration.answers_peer import CANARY, answer
from tests.integration.images_peer import answer as image_answer
from tests.integration.images_peer import fetching, host
from tests.integration.whole_runs import gateway, run_batch

VENDOR = "https://api.ttapi.org"
PUBLIC = "93.184.216.34"  # so that no url below is refused for what its name means
FORMS = [
    "https://127.0.0.1/a", "https://127.0.0.2/a", "https://127.1/a", "https://2130706433/a", "https://0x7f000001/a",
    "https://0177.0.0.1/a", "https://0x7f.0.0.0x1/a", "https://017700000001/a", "https://127.0.0.1./a", "https://0/a",
    "https://0.0.0.0/a", "https://[::]/a", "https://[::1]/a", "https://[0:0:0:0:0:0:0:1]/a", "https://[::ffff:127.0.0.1]/a",
    "https://[::ffff:7f00:1]/a", "https://[::ffff:a9fe:a9fe]/a", "https://[::127.0.0.1]/a", "https://[64:ff9b::7f00:1]/a",
    "https://[64:ff9b::a9fe:a9fe]/a", "https://[64:ff9b:1::a00:1]/a", "https://[2002:7f00:1::]/a", "https://[2001::1]/a",
    "https://[fe80::1]/a", "https://[fe80::1%25lo]/a", "https://[fd00:ec2::254]/a", "https://[ff02::1]/a",
    "https://169.254.169.254/latest/meta-data/", "https://169.254.170.2/a", "https://100.100.100.200/a",
    "https://192.0.0.192/a", "https://168.63.129.16/a", "https://10.0.0.1/a", "https://172.16.0.1/a", "https://192.168.1.1/a",
    "https://198.18.0.1/a", "https://224.0.0.1/a", "https://255.255.255.255/a", "https://１２７.０.０.１/a",
    "https://127。0。0。1/a", "https://①②⑦.0.0.1/a", "https://%31%32%37.0.0.1/a", "http://cdn.example/a",
    "https://cdn.example:8443/a", "https://cdn.example:22/a", "https://key@cdn.example/a", "https://cdn.example@127.0.0.1/a",
    "https://127.0.0.1#@cdn.example/a", "https://127.0.0.1\\@cdn.example/a", "https://cdn.example\t@127.0.0.1/a",
    "file:///etc/passwd", "ftp://cdn.example/a", "gopher://127.0.0.1:6379/_x", "data:image/png;base64,AAAA",
    "unix:///var/run/docker.sock", "//127.0.0.1/a", "https:127.0.0.1/a", "https:///127.0.0.1/a", "javascript:alert(1)",
]  # fmt: skip
# What a name may turn out to mean.
MEANINGS = [
    "127.0.0.1", "127.0.0.2", "0.0.0.0", "10.0.0.1", "172.31.255.255", "192.168.0.1", "169.254.169.254", "100.64.0.1",
    "100.100.100.200", "192.0.0.192", "192.0.2.1", "168.63.129.16", "198.18.0.1", "224.0.0.251", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::7f00:1", "2002:7f00:1::", "2002:a9fe:a9fe::", "2001::1", "fe80::1", "fc00::1", "fd00:ec2::254", "fec0::1",
    "ff02::1", "100::1", "2001:db8::1", "3fff::1", "5f00::1", "4000::1", "::ffff:0:7f00:1", "::ffff:192.0.0.192", "192.88.99.1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def connects(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Record each connect that would be made, and let none but those to this machine's own test peers happen."""
    asked: list[Any] = []
    connect = socket.socket.connect

    def refuse(made: socket.socket, address: Any) -> None:
        asked.append(address)
        if address[0] != "127.0.0.1" or address[1] not in PEERS:
            raise ConnectionRefusedError(111, "no test goes anywhere")
        connect(made, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield asked
    PEERS.clear()


PEERS: set[int] = set()


def paid(url: str) -> PaidImage:
    return PaidImage(1, "1", url, "00001-cat", None)


def means(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let every name mean these."""

    async def resolve(_self: object, name: str, port: int = 0, family: int = 0) -> list[dict[str, Any]]:
        return [
            {"hostname": name, "host": one, "port": port, "proto": 0, "flags": 0,
             "family": socket.AF_INET6 if ":" in one else socket.AF_INET}
            for one in addresses
        ]  # fmt: skip

    monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", resolve)


def check(outcome: object, elsewhere: list[Any]) -> None:
    """Blocked: still paid, exit 76, and nobody was connected to."""
    assert isinstance(outcome, FetchFailed)
    assert (outcome.name, outcome.lost, outcome.retries) == ("image_blocked", False, 0)
    assert outcome.stop is not None
    assert outcome.stop.exit is Exit.PROTOCOL
    assert elsewhere == []


@pytest.mark.parametrize("url", FORMS)
async def test_a_url_to_where_no_image_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connects: list[Any], url: str
) -> None:
    """Refused as it stands, whatever its name means."""
    means(monkeypatch, PUBLIC)
    async with fetching(tmp_path, VENDOR) as fetcher:
        check(await fetcher.fetch(paid(url)), connects)


@pytest.mark.parametrize("url", [form for form in FORMS if not form.startswith("https:///")])
async def test_a_redirect_to_where_no_image_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connects: list[Any], url: str
) -> None:
    """Judged like the first url; nothing but the first host is connected to."""
    means(monkeypatch, PUBLIC)
    async with host(image_answer(b"", f"Location: {url}", status="302 Found")) as peer:
        PEERS.add(peer.port)
        async with fetching(tmp_path, peer.url) as fetcher:
            outcome = await fetcher.fetch(peer.image)
    elsewhere = [address for address in connects if address != ("127.0.0.1", peer.port)]
    assert isinstance(outcome, FetchFailed)
    assert elsewhere == []
    if url.startswith(("https://", "http://")):
        check(outcome, elsewhere)


@pytest.mark.parametrize("address", MEANINGS)
async def test_a_name_that_means_what_is_not_public(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connects: list[Any], address: str
) -> None:
    """The address decides, at the connect: alone, and among several of its kind."""
    for addresses in ([address], [address, "127.0.0.1"], [address] * 3):
        means(monkeypatch, *addresses)
        async with fetching(tmp_path, VENDOR) as fetcher:
            check(await fetcher.fetch(paid("https://cdn.example/a.png")), connects)


async def test_a_name_that_changes_its_meaning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connects: list[Any]
) -> None:
    """Public for the first look, private for the second: each connect is judged for itself."""
    turns = iter(["93.184.216.34", "127.0.0.1", "169.254.169.254", "::1"])

    async def resolve(_self: object, name: str, port: int = 0, family: int = 0) -> list[dict[str, Any]]:
        one = next(turns)
        kind = socket.AF_INET6 if ":" in one else socket.AF_INET
        return [{"hostname": name, "host": one, "port": port, "family": kind, "proto": 0, "flags": 0}]

    monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", resolve)
    for _ in range(4):
        async with fetching(tmp_path, VENDOR) as fetcher:
            assert isinstance(await fetcher.fetch(paid("https://cdn.example/a.png")), FetchFailed)
    assert [address[0] for address in connects] == ["93.184.216.34"]
    assert all(ip_address(address[0]).is_global for address in connects)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_second_origin_sees_nothing_of_either_session(status: int) -> None:
    """A gateway that redirects the paid call, or the image of one, to elsewhere: no key, no prompt, no packet."""
    with whole_runs.scratch() as folder:
        async with gateway() as sink:
            PEERS.add(int(sink.url.rpartition(":")[2]))
            moved = answer(status, b"", f"Location: {sink.url}/gemini/image/generate")
            async with gateway(lambda _peer, _arrived: moved) as first:
                PEERS.add(int(first.url.rpartition(":")[2]))
                ended = await run_batch(folder / "paid", first.url, ["secret prompt"])
            assert (ended.exit, ended.jobs["pending"], len(first.posts)) == (Exit.PROTOCOL, 1, 1)
            async with gateway() as second:
                PEERS.add(int(second.url.rpartition(":")[2]))
                second.image = lambda _nth: moved
                ended = await run_batch(folder / "image", second.url, ["secret prompt"])
            assert (ended.exit, ended.jobs["paid"], len(second.posts)) == (Exit.PROTOCOL, 1, 1)
            assert sink.connections == 0
        for file in folder.rglob("*"):
            assert not file.is_file() or CANARY.encode() not in file.read_bytes()
    await asyncio.sleep(0)


async def test_references_are_sent_and_never_fetched() -> None:
    """A manifest's urls are the endpoint's to read, wherever they lead: from here nobody is asked."""
    with whole_runs.scratch() as folder:
        async with gateway() as sink, gateway() as peer:
            PEERS.update(int(each.url.rpartition(":")[2]) for each in (sink, peer))
            references = [f"{sink.url}/a.png", "http://169.254.169.254/latest/meta-data/", "https://10.0.0.1/a.png"]
            rows: list[dict[str, Any]] = [{"prompt": "a", "refer_images": references}]
            ended = await run_batch(folder / "out", peer.url, [], rows=rows)
        assert (ended.exit, len(peer.posts), sink.connections) == (Exit.DONE, 1, 0)

"""What other processes of this machine see of a run: command lines, core dumps, key files (S3, S4, S13)."""

import asyncio
import os
import socket
import ssl
import threading
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from banana_batch.errors import Exit
from banana_batch.sandbox.config import Latency, SandboxConfig
from tests.acceptance.command import KEY, command, live, until
from tests.acceptance.peer import serving
from tests.integration import whole_runs
from tests.integration.answers_peer import CANARY
from tests.integration.whole_runs import Ended, gateway, run_batch
from tests.tls import CA, server_tls

MANIFEST = "prompt,model\na,Nano Banana\n"
SLOW = SandboxConfig(plain_pictures=True, latency=Latency("fixed", 30.0))


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.csv"
    path.write_text(MANIFEST)
    return path


@pytest.mark.parametrize("source", ["environment", "file", "credentials"])
def test_a_live_run_shows_the_key_to_nobody(tmp_path: Path, manifest: Path, source: str) -> None:
    """Not in any command line of this machine, and no core would be dumped with it."""
    secret = tmp_path / "ttapi_key"
    secret.write_text(f"{KEY}\n")
    secret.chmod(0o600)
    given = {"environment": {"TT_API_KEY": KEY}, "credentials": {"CREDENTIALS_DIRECTORY": str(tmp_path)}, "file": {}}[
        source
    ]
    more = ["--key-file", str(secret)] if source == "file" else []
    with (
        serving(SLOW) as peer,
        live("run", manifest, *more, "--base-url", peer.base_url, cwd=tmp_path, **given) as run,
    ):
        until(lambda: peer.charges)
        assert not [pid for pid, line in _command_lines().items() if KEY.encode() in line]
        limits = Path(f"/proc/{run.process.pid}/limits")
        if limits.exists():
            (core,) = [line for line in limits.read_text().splitlines() if line.startswith("Max core file size")]
            assert core.split()[4:6] == ["0", "0"]
        run.process.kill()
        ended = run.end()
    assert KEY not in ended.out + ended.err


def _command_lines() -> dict[str, bytes]:
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else []):
        try:
            found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue  # it has ended meanwhile
    return found


@pytest.mark.parametrize("option", ["--key", "--api-key"])
def test_no_option_takes_the_key(tmp_path: Path, manifest: Path, option: str) -> None:
    """64, and what was typed is not repeated."""
    ended = command("run", manifest, option, KEY, cwd=tmp_path)
    assert ended.code == Exit.USAGE
    assert KEY not in ended.out + ended.err


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_an_open_key_file_buys_nothing(tmp_path: Path, manifest: Path, mode: int) -> None:
    """77, before anything is sent; the message says how to close it, and no other source is tried."""
    secret = tmp_path / "key"
    secret.write_text(KEY)
    secret.chmod(mode)
    with serving() as peer:
        ended = command(
            "run", manifest, "--key-file", secret, "--base-url", peer.base_url, cwd=tmp_path, TT_API_KEY=KEY
        )
        assert peer.calls == 0
    assert ended.code == Exit.KEY
    assert f"chmod 600 {secret}" in ended.err
    assert KEY not in ended.out + ended.err


def test_a_bug_shows_neither_locals_nor_a_traceback(tmp_path: Path, manifest: Path) -> None:
    """Whatever breaks, in a process that holds the key: where, in one line, and 70."""
    breaking = (
        "import banana_batch.engine.pool as pool\n"
        "from banana_batch.endpoint.client import EndpointClient\n"
        "async def broken(self, job, trace):\n    key = self._key.reveal(); raise ValueError(f'key {key}')\n"
        "EndpointClient.generate = broken\n"
    )
    (tmp_path / "sitecustomize.py").write_text(breaking)
    with serving() as peer:
        path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
        ended = command("run", manifest, "--base-url", peer.base_url, cwd=tmp_path, TT_API_KEY=KEY, PYTHONPATH=path)
    assert ended.code == Exit.BUG
    assert KEY not in ended.out + ended.err
    assert "Traceback" not in ended.err
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()


@pytest.mark.parametrize("name", ["self-signed", "other-host", "expired"])
async def test_a_gateway_that_cannot_be_trusted_gets_nothing(name: str) -> None:
    """Unknown authority, another host, expired: 78, nothing sent, every job pending."""
    ca_file = None if name == "self-signed" else str(CA)
    with whole_runs.scratch() as folder:
        async with gateway(tls=server_tls("good" if name == "self-signed" else name)) as peer:
            ended = await run_batch(folder / "out", peer.url, ["one", "two"], ca_file=ca_file)
        _check_untrusted(ended)
        assert peer.posts == []


@pytest.mark.parametrize("trusted", [True, False], ids=["trusted", "not trusted"])
async def test_the_command_trusts_whom_the_system_trusts(tmp_path: Path, manifest: Path, trusted: bool) -> None:
    """Certificates that are left out while it loads are there when it calls; else 78, and nothing is sent."""
    system = CA if trusted else os.devnull
    async with gateway(tls=server_tls("good")) as peer:
        ended = await asyncio.to_thread(
            partial(
                command,
                "run",
                manifest,
                "--base-url",
                peer.url,
                cwd=tmp_path,
                TT_API_KEY=KEY,
                SSL_CERT_FILE=str(system),
            )
        )
        assert len(peer.posts) == (1 if trusted else 0)
    assert ended.code == (Exit.DONE if trusted else Exit.SETTINGS), ended.err


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1], ids=["1.0", "1.1"])
async def test_a_gateway_of_old_protocols_gets_nothing(version: ssl.TLSVersion) -> None:
    """A real TLS server that offers nothing newer: 78."""
    context = server_tls("good")
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    with whole_runs.scratch() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        # A blocking server on a thread: asyncio's drops the alert that says why it hangs up.
        thread = threading.Thread(target=_handshakes, args=(listener, context))
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        ended = await run_batch(folder / "out", url, ["one", "two"], ca_file=str(CA))
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        assert not thread.is_alive()
    _check_untrusted(ended)


def _handshakes(listener: socket.socket, context: ssl.SSLContext) -> None:
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection, suppress(ssl.SSLError):
                context.wrap_socket(connection, server_side=True)


def _check_untrusted(ended: Ended) -> None:
    assert (ended.exit, dict(ended.jobs)) == (Exit.SETTINGS, {"pending": 2})
    assert set(ended.outcomes) == {"not_sent"}
    assert CANARY not in ended.said

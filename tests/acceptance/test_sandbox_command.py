"""`banana-batch sandbox`: a server to rehearse against, for free."""

import json
import re
import signal
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from banana_batch.sandbox.charges import read_charges
from tests.integration.test_sandbox_curl import DOCUMENTED

from .command import KEY, command, live


def _post(base_url: str, **headers: str) -> tuple[int, Any]:
    body = DOCUMENTED.split("--data '")[1].rsplit("'", 1)[0].encode()
    call = urllib.request.Request(f"{base_url}/gemini/image/generate", body, headers)
    try:
        with urllib.request.urlopen(call, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, json.load(refused)


def test_the_documented_call_and_a_whole_batch_against_it(tmp_path: Path) -> None:
    """The vendor's own example buys an image (401 without a key), a batch is bought beside it, Ctrl-C ends it with 0,
    and its log names all three."""
    (tmp_path / "two.csv").write_text("prompt\na\nb\n")
    folder = tmp_path / "vendor"
    arguments = ("sandbox", "--port", "0", "--folder", folder, "--latency", "fixed:0", "--price", "3")
    with live(*arguments, cwd=tmp_path) as server:
        assert server.process.stdout is not None
        said = re.search(rb"http://127\.0\.0\.1:\d+", server.process.stdout.readline())
        assert said is not None
        base_url = said[0].decode()
        status, answer = _post(base_url, **{"Content-Type": "application/json", "TT-API-KEY": "<api-key>"})
        assert (status, answer["status"], answer["data"]["quota"]) == (200, "SUCCESS", 3)
        status, answer = _post(base_url, **{"Content-Type": "application/json"})
        assert (status, answer["status"]) == (401, "FAILED")
        ran = command("run", "two.csv", "--json", "--base-url", base_url, cwd=tmp_path, TT_API_KEY=KEY)
        assert (ran.code, ran.summary["credits"]["spent"]) == (0, "6")
        server.signal(signal.SIGINT)
        assert server.end().code == 0
    assert {charge.prompt for charge in read_charges(folder)} == {"<string>", "a", "b"}


def test_faults_are_met_as_told(tmp_path: Path) -> None:
    """--fault with share 1: every call meets it; the run says so with its own code."""
    (tmp_path / "one.csv").write_text("prompt\na\n")
    with live("sandbox", "--port", "0", "--latency", "fixed:0", "--fault", "truncated-json=1", cwd=tmp_path) as server:
        assert server.process.stdout is not None
        said = re.search(rb"http://127\.0\.0\.1:\d+", server.process.stdout.readline())
        assert said is not None
        ran = command("run", "one.csv", "--json", "--base-url", said[0].decode(), cwd=tmp_path, TT_API_KEY=KEY)
        assert (ran.code, ran.summary["jobs"]["in_doubt"]) == (4, 1)


def test_a_fault_is_no_fate(tmp_path: Path) -> None:
    """The same request, sent again, meets something else: a rehearsal with faults can be finished."""
    with live("sandbox", "--port", "0", "--latency", "fixed:0", "--fault", "500=0.5", cwd=tmp_path) as server:
        assert server.process.stdout is not None
        said = re.search(rb"http://127\.0\.0\.1:\d+", server.process.stdout.readline())
        assert said is not None
        headers = {"Content-Type": "application/json", "TT-API-KEY": "<api-key>"}
        assert {_post(said[0].decode(), **headers)[0] for _ in range(20)} == {200, 500}

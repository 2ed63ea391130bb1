"""What is fuzzed: a function from any bytes, which raises where a promise does not hold. Short and long runs share them."""

import socket
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from banana_batch.endpoint import classify
from banana_batch.errors import BananaError, OutputError
from banana_batch.images.guard import Allowed, Blocked, UrlRules, is_public
from banana_batch.images.names import split_stem
from banana_batch.images.verify import Whole, examine
from banana_batch.manifest import names
from banana_batch.models import Outcome
from banana_batch.secret import Secret
from banana_batch.text import printable
from tests.unit.images.samples import WHOLE
from tests.unit.manifest.planning import plan_files

KEY = "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed"
MAX_PIXELS = 200_000_000
STATUSES = (200, 200, 200, 400, 401, 402, 408, 429, 499, 500, 502, 503, 504, 302, 418, 599)
KINDS = ("csv", "tsv", "jsonl", "json", "txt", "toml", "csv.gz")

_SECRET = Secret(KEY)
_RULES = UrlRules("https://api.ttapi.org")
_PROXIED = UrlRules("https://api.ttapi.org", proxied=True)


def answers(data: bytes) -> None:
    """Any body is judged by the table; only a url in a SUCCESS is paid, only a refusal of the endpoint's is free."""
    for status in (STATUSES[len(data) % len(STATUSES)], 200):
        found = classify.classify_answer(status, data, framed=bool(len(data) % 2))
        assert found.verdict.name in classify.VERDICTS
        assert (found.verdict.outcome is Outcome.PAID) == (found.answer is not None)
        if found.answer is not None:
            assert status == 200
            assert b"SUCCESS" in data or b"\\u" in data
            assert found.answer.image_url
            assert found.answer.credits_micro is None or found.answer.credits_micro >= 0
            found.answer.image_url.encode()


def urls(data: bytes) -> None:
    """What may be fetched under guard is https, on port 443, without a user, and no address that is not public."""
    text = data.decode("utf-8", "surrogatepass") if _is_text(data) else data.decode("latin-1")
    for rules in (_RULES, _PROXIED):
        for verdict in (rules.judge(text), rules.judge(f"https://{text}/a.png")):
            if isinstance(verdict, Blocked):
                assert verdict.reason.isprintable() or printable(verdict.reason) == verdict.reason
                continue
            assert isinstance(verdict, Allowed)
            url = verdict.url
            assert (url.scheme, url.port, url.user, url.password) == ("https", 443, None, None)
            _assert_no_private_literal(url.raw_host or "")


def _assert_no_private_literal(host: str) -> None:
    try:
        found = socket.getaddrinfo(host, 443, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return
    assert all(is_public(str(entry[4][0])) for entry in found), host


def images(data: bytes) -> None:
    """A finding, whatever the bytes; what is whole is within the limits and ends where it says."""
    found = examine(data)
    if isinstance(found, Whole):
        assert 0 < found.width * found.height <= MAX_PIXELS
        assert 0 <= found.trailing_bytes < len(data)


def file_names(data: bytes) -> None:
    """What a template makes of a text is a fine name; what it is given is fine or refused; none leads out."""
    text = data.decode("utf-8", "surrogatepass") if _is_text(data) else data.decode("latin-1")
    made = names.tidy(names.cut(names.clean(text), 100), "x")
    assert names.complaint(made) is None, made
    for stem in (text, made):
        try:
            place, name = split_stem(zlib.crc32(data) % 30_000, stem)
        except OutputError:
            assert stem != made
            continue
        assert not {"", ".", ".."} & {*place, name}
        assert not {"/", "\0", "\\"} & set("".join((*place, name)))


def manifests(data: bytes) -> None:
    """Jobs or problems, of any format; every problem is one printable line."""
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        kind = KINDS[zlib.crc32(data) % len(KINDS)]
        (Path(folder) / f"a.{kind}").write_bytes(data)
        try:
            planned = plan_files([f"a.{kind}"], Path(folder))
        except BananaError:
            return
        assert planned.jobs or planned.problems
        assert all(printable(str(problem), 5000) == str(problem) for problem in planned.problems)
        assert all(prompt.strip() for prompt in planned.prompts)


def secrets(data: bytes) -> None:
    """No text around a key keeps it from being found."""
    text = data.decode("latin-1")
    assert KEY not in _SECRET.redact(f"{text}{KEY}{text}").lower()
    assert KEY.encode() not in _SECRET.redact_bytes(data + KEY.encode() + data, 1000).lower()


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def _memory() -> Path | None:
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else None


TARGETS: dict[str, Callable[[bytes], None]] = {
    "answers": answers, "urls": urls, "images": images, "file_names": file_names, "manifests": manifests, "secrets": secrets,
}  # fmt: skip

# Where mutations start.
SEEDS: dict[str, Sequence[bytes]] = {
    "answers": (
        b'{"status":"SUCCESS","message":"","data":{"prompt":"a","refer_images":null,"image_url":"https://x/a.png","quota":2}}',
        b'{"status":"FAILED","message":"Parameter error","data":null}', b'{"status":"ON_QUEUE","jobId":"1","data":{"jobId":"2"}}',
        b"<html><title>502</title></html>", b'{"status":"SUCCESS","data":{"image_url":"u","quota":1e400}}', b"",
    ),
    "urls": (
        b"https://cdn.ttapi.io/a.png?X=%2B", b"127.0.0.1", b"[::ffff:7f00:1]", b"0x7f.1", b"user:pw@cdn.example:443",
        b"[64:ff9b::a9fe:a9fe]", b"\xef\xbc\x91\xef\xbc\x92\xef\xbc\x97.0.0.1", b"2130706433", b"https://[fe80::1%25lo]/",
    ),
    "images": tuple(body for _, body in WHOLE.values()),
    "file_names": (b"../../etc/passwd", b"CON", b"a/b/c", "é😀".encode() * 30, b"x.png", b"COM1.txt", b"-rf ", b"\xed\xa0\x80"),
    "manifests": (
        b"prompt,model,image_size\na cat,Nano Banana,\n", b'{"prompt": "a", "copies": 2}\n', b"prompt\tid\na\tb\n",
        b'[run]\nrpm = 5\n[matrix]\nprompt = "a {x}"\nx = ["b", "c"]\n', b"a\nb\n# c\n", b'[{"prompt": "a"}]', b"\xff\xfea\x00",
        b'prompt,refer_images\n"a ""b""",x|y\n',
    ),
    "secrets": (b"a key: ", b"%31%62", b"&#49;", b"\\u0031b", KEY[:20].encode(), KEY.encode().hex().encode()),
}  # fmt: skip

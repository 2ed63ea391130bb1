"""Local reference images: checked against the plan, and put into the request as data URLs.

Rule 1: what is sent is what was planned: a file whose hash changed is never sent.
Rule 2: rows that share a file read it once, and share its bytes in memory; the cache is bounded by bytes.
"""

import asyncio
import base64
import hashlib
import json
import os
import secrets
import stat
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any

from banana_batch.capabilities import MAX_REFERENCE_BYTES

CACHE_BYTES = 64 * 1024 * 1024


class ReferenceChanged(Exception):
    """A local reference is gone or no longer what was planned; nothing was sent."""


class References:
    """Local references as data URLs, read on `executor`, kept in at most `cache_bytes`."""

    def __init__(self, executor: Executor, cache_bytes: int = CACHE_BYTES) -> None:
        self._executor = executor
        self._cache_bytes = cache_bytes
        self._held = 0
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._reading: dict[str, asyncio.Future[bytes]] = {}

    async def compose(self, request: str, references: str) -> list[bytes]:
        """Return the body of `request`, in parts, with the data URL of each local reference in its place.

        Args:
            request: The wire body as JSON; references stand in it as the row gave them.
            references: JSON object `{as given: {"path", "sha256", "mime"}}`.

        Raises:
            ReferenceChanged: a file is gone, unreadable, or has another content than planned.
        """
        files: dict[str, dict[str, str]] = json.loads(references)
        urls = {given: await self._data_url(file) for given, file in files.items()}
        return _spliced(json.loads(request), urls)

    async def _data_url(self, file: Mapping[str, str]) -> bytes:
        digest, path, mime = file["sha256"], file["path"], file["mime"]
        name = f"{mime} {digest}"
        if name in self._cache:
            self._cache.move_to_end(name)
            return self._cache[name]
        reading = self._reading.get(name)
        if reading is None:
            loop = asyncio.get_running_loop()
            reading = loop.run_in_executor(self._executor, _read, path, digest, mime)
            self._reading[name] = reading
            reading.add_done_callback(lambda ended: self._landed(name, ended))
        # Shielded: others may wait for the same file.
        return await asyncio.shield(reading)

    def _landed(self, name: str, ended: asyncio.Future[bytes]) -> None:
        del self._reading[name]
        if ended.cancelled() or ended.exception() is not None:
            return
        content = ended.result()
        self._cache[name] = content
        self._held += len(content)
        while self._held > self._cache_bytes:
            self._held -= len(self._cache.popitem(last=False)[1])


def _read(path: str, digest: str, mime: str) -> bytes:
    try:
        # A FIFO that took the file's place must not be waited for: no deadline runs before a request is sent.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ReferenceChanged(f"reference image {path} is no file any more")
            content = file.read(MAX_REFERENCE_BYTES + 1)
    except OSError as failed:
        raise ReferenceChanged(f"reference image {path}: {failed.strerror}") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise ReferenceChanged(f"reference image {path} has changed since it was planned")
    return b"data:" + mime.encode() + b";base64," + base64.b64encode(content)


def _spliced(request: dict[str, Any], urls: Mapping[str, bytes]) -> list[bytes]:
    """Return the request as JSON in parts; the data URLs are parts of their own and not copied."""
    if not set(urls) <= set(request["refer_images"]):
        raise ReferenceChanged("a reference image is not where the request names it")
    marks = {given: secrets.token_hex(16) for given in urls}
    request["refer_images"] = [marks.get(given, given) for given in request["refer_images"]]
    by_mark = {mark: urls[given] for given, mark in marks.items()}
    rest = json.dumps(request, ensure_ascii=False, separators=(",", ":"))
    parts: list[bytes] = []
    # `marks` are random: no prompt can hold one.
    for entry in request["refer_images"]:
        if entry in by_mark:
            before, rest = rest.split(entry, 1)
            parts += [before.encode(), by_mark[entry]]
    return [*parts, rest.encode()]

"""What aiohttp can do at most: a fixed number of workers, a lazy manifest, bytes straight to the file, no durability.

python -m tests.benchmarks.peer_tuned MANIFEST FOLDER CONCURRENCY URL
"""

import asyncio
import os
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import aiohttp
from pydantic_core import from_json
from yarl import URL

SMALL_BYTES = 64 << 10


async def _work(
    session: aiohttp.ClientSession, lines: Iterator[bytes], url: URL, folder: Path, names: "count[int]"
) -> None:
    headers = {"TT-API-KEY": "k", "Content-Type": "application/json"}
    for line in lines:
        async with session.post(url, data=line.rstrip(), headers=headers) as response:
            image_url = from_json(await response.read())["data"]["image_url"]
        async with session.get(URL(image_url, encoded=True)) as response:
            file = os.open(folder / f"{next(names)}.png", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                if (response.content_length or SMALL_BYTES + 1) <= SMALL_BYTES:
                    os.write(file, await response.read())
                else:
                    async for chunk in response.content.iter_any():
                        os.write(file, chunk)
            finally:
                os.close(file)


async def main(manifest: str, folder: str, concurrency: str, url: str) -> None:
    """Generate and download everything."""
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=300),
        skip_auto_headers=("User-Agent", "Accept-Encoding"),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
    )
    names = count()
    with open(manifest, "rb") as lines:  # read lazily, as the bound it is
        async with session:
            await asyncio.gather(
                *[_work(session, lines, URL(url), Path(folder), names) for _ in range(int(concurrency))]
            )


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

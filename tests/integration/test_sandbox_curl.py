"""The documentation's own cURL call, with only the host changed."""

import asyncio
import http.client
import json
import shutil
from urllib.parse import urlsplit

from banana_batch.sandbox.config import SandboxConfig
from banana_batch.sandbox.server import Sandbox

# Verbatim from the vendor's page.
DOCUMENTED = """curl --request POST \\
  --url https://api.ttapi.org/gemini/image/generate \\
  --header 'Content-Type: application/json' \\
  --header 'TT-API-KEY: <api-key>' \\
  --data '
{
  "prompt": "<string>",
  "model": "gemini-3-pro-image-preview",
  "refer_images": [
    "https://cdn.ttapi.io/xxx1.png",
    "https://cdn.ttapi.io/xxx2.png"
  ],
  "aspect_ratio": "1:1",
  "image_size": "1K",
  "google_search": "false",
  "image_search": "false",
  "thinking_level": "Minimal"
}
'
"""


def _without_curl(base_url: str) -> bytes:
    body = DOCUMENTED.split("--data '")[1].rsplit("'", 1)[0]
    connection = http.client.HTTPConnection(urlsplit(base_url).netloc, timeout=10)
    headers = {"Content-Type": "application/json", "TT-API-KEY": "<api-key>"}
    connection.request("POST", "/gemini/image/generate", body, headers)
    answer = connection.getresponse().read()
    connection.close()
    return answer


async def _with_curl(base_url: str) -> bytes:
    command = DOCUMENTED.replace("https://api.ttapi.org", base_url)
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    return (await process.communicate())[0]


async def test_the_documented_call_works_verbatim() -> None:
    """The vendor's example, pasted into a shell with another host, buys one image."""
    async with Sandbox(None, SandboxConfig()) as sandbox:
        if shutil.which("curl"):
            answer = await _with_curl(sandbox.base_url)
        else:
            answer = await asyncio.to_thread(_without_curl, sandbox.base_url)
        data = json.loads(answer)["data"]
        (charge,) = sandbox.charges()
        assert data == {
            "prompt": "<string>",
            "refer_images": ["https://cdn.ttapi.io/xxx1.png", "https://cdn.ttapi.io/xxx2.png"],
            "image_url": f"{sandbox.base_url}/image/{charge.image}.png",
            "quota": 13,
        }
        assert (charge.thinking_level, charge.google_search, charge.references) == ("Minimal", False, 2)

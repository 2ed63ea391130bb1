"""The pictures that were sold, drawn when they are fetched.

Rule 1: nothing is kept but the last few: the charge log says how to draw any of them again.
Rule 2: a picture meets the fault that its line of the log names, so it does after a restart too.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Executor

from aiohttp import web

from . import pictures
from .answers import canned_answer, cut_image, slow_image
from .charges import Charge, ChargeLog
from .config import SandboxConfig
from .faults import Canned, FaultKind

_KEPT = 16

ImageScript = Callable[[str, Mapping[str, str]], Canned | None]


class Gallery:
    """Answers fetches of pictures.

    Attributes:
        script: Asked for each fetch by the picture's name and the request's headers; None: the usual way.
    """

    def __init__(self, config: SandboxConfig, log: ChargeLog, artist: Executor | None) -> None:
        self.script: ImageScript | None = None
        self._config = config
        self._log = log
        self._artist = artist
        self._fetches: Counter[str] = Counter()
        self._drawn: OrderedDict[tuple[str, bool], bytes] = OrderedDict()

    async def answer(self, request: web.BaseRequest, name: str, url: str) -> web.StreamResponse:
        """Answer one fetch of the picture `name`, which lies at `url`."""
        canned = self.script(name, request.headers) if self.script is not None else None
        if canned is not None:
            return canned_answer(request, canned, url)
        charge = self._log.find(name)
        fault = self._fault(charge) if charge is not None else None
        if charge is None or fault is FaultKind.IMAGE_404:
            return web.Response(status=404, text="Not found")
        data = await self._bytes(charge, jpeg=fault is FaultKind.IMAGE_MISLABELLED)
        if fault is FaultKind.IMAGE_CUT:
            return await cut_image(request, data)
        if fault is FaultKind.IMAGE_SLOW:
            return await slow_image(request, data, self._config.slow_image_s)
        return web.Response(body=data, content_type="image/png")

    def _fault(self, charge: Charge) -> FaultKind | None:
        if charge.fault is None or charge.tries is None:
            return charge.fault
        self._fetches[charge.image] += 1
        return charge.fault if self._fetches[charge.image] <= charge.tries else None

    async def _bytes(self, charge: Charge, *, jpeg: bool) -> bytes:
        if self._config.plain_pictures and not jpeg:
            return pictures.plain(charge.model, charge.aspect_ratio, charge.image_size, charge.image)
        key = (charge.image, jpeg)
        found = self._drawn.get(key)
        if found is None:
            found = await asyncio.get_running_loop().run_in_executor(self._artist, _draw, charge, jpeg)
            self._drawn[key] = found
            if len(self._drawn) > _KEPT:
                self._drawn.popitem(last=False)
        return found


def _draw(charge: Charge, jpeg: bool) -> bytes:
    details = [f"thinking {charge.thinking_level}"] if charge.thinking_level else []
    details += ["google search"] if charge.google_search else []
    details += ["image search"] if charge.image_search else []
    details += [f"references: {charge.references}"] if charge.references else []
    details.append(f"no. {charge.number}")
    return pictures.draw(charge.prompt, charge.model, charge.aspect_ratio, charge.image_size, details, jpeg=jpeg)

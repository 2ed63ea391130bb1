"""The two addresses: `POST /gemini/image/generate` and `GET /image/NAME.png`.

Rule 1: checks in the order key, body, limits; only a call that passes all of them can be charged or meet a fault.
Rule 2: a charged call is in the charge log before its latency starts.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Executor

from aiohttp import web
from msgspec import Struct, field

from banana_batch.models import Kind

from .answers import WRONG_KEY, Gone, canned_answer, failed, faulty, hang_up, json_answer, success_body
from .charges import ChargeLog
from .config import SandboxConfig
from .faults import CallInfo, Canned, Dice, Fault, FaultKind
from .gallery import Gallery
from .orders import BadOrder, Order, read_order
from .throttle import Throttle

GENERATE_PATH = "/gemini/image/generate"
IMAGE_PATH = "/image/"
IMAGE_SUFFIX = ".png"
KEY_HEADER = "TT-API-KEY"

_HANG_LOOK_S = 1.0

Script = Callable[[CallInfo], Fault | Canned | None]


class Stats(Struct):
    """What happened since the start.

    Attributes:
        calls: Requests to the paid address, whatever came of them.
        in_flight, max_in_flight: Calls past all checks and not yet answered; the most at one time.
        charged: Calls that were charged.
        refused: Calls that ended without being charged.
        images: Fetches of pictures, whatever came of them.
        per_prompt: Calls past key and body by prompt; empty where requests aren't counted.
        statuses: Answers to calls by HTTP status; connections that were cut are in none.
    """

    calls: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    charged: int = 0
    refused: int = 0
    images: int = 0
    per_prompt: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)


class App:
    """The handlers, over an open charge log.

    Attributes:
        base_url: Where the pictures' urls point; set when the port is known.
        dropping: Every connection is cut as soon as it brings a request.
        script: Asked for each call past all checks; what it returns comes before shares of faults; None: those.
        canned: Taken in order, one for each call past all checks, before the script; None: it goes well.
        closing: Set when calls that hang shall end.
        serving: The requests that are being answered: task and connection.
    """

    def __init__(self, config: SandboxConfig, log: ChargeLog, artist: Executor | None) -> None:
        self.base_url = ""
        self.dropping = False
        self.script: Script | None = None
        self.canned: deque[Fault | Canned | None] = deque()
        self.gallery = Gallery(config, log, artist)
        self.stats = Stats()
        self.closing = asyncio.Event()
        self.serving: dict[asyncio.Task[object], web.RequestHandler] = {}
        self._config = config
        self._log = log
        self._life = log.number
        self._charged_micro = log.total
        self._throttle = Throttle(config)
        self._came: Counter[bytes] = Counter()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        task = asyncio.current_task()
        assert task is not None
        self.serving[task] = request.protocol
        try:
            return await self._route(request)
        finally:
            del self.serving[task]

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if path == GENERATE_PATH:
            self.stats.calls += 1
            if self.dropping:
                return self._refuse(hang_up(request))
            if request.method != "POST":
                return self._refuse(failed(405, "Method not allowed"))
            return await self._generate(request, self.stats.calls)
        if path.startswith(IMAGE_PATH) and path.endswith(IMAGE_SUFFIX) and request.method in ("GET", "HEAD"):
            self.stats.images += 1
            name = path[len(IMAGE_PATH) : -len(IMAGE_SUFFIX)]
            return hang_up(request) if self.dropping else await self.gallery.answer(request, name, self._url(name))
        return failed(404, "Not found")

    async def _generate(self, request: web.BaseRequest, number: int) -> web.StreamResponse:
        if not request.headers.get(KEY_HEADER, "").strip():
            return self._refuse(json_answer(WRONG_KEY, 401))
        try:
            order = read_order(await request.read())
        except BadOrder as bad:
            return self._refuse(failed(400, str(bad)))
        except web.HTTPRequestEntityTooLarge:
            return self._refuse(failed(413, "Request body too large"))
        except (ConnectionError, web.RequestPayloadError):
            return self._refuse(hang_up(request))
        stats = self.stats
        if self._config.count_requests:
            stats.per_prompt[order.prompt] += 1
        price = self._config.prices[Kind(order.model, order.size)]
        now_s = asyncio.get_running_loop().time()
        refusal = self._throttle.judge(now_s, stats.in_flight, price, self._charged_micro)
        if refusal is not None:
            return self._refuse(failed(refusal.status, refusal.message, refusal.retry_after_s))
        stats.in_flight += 1
        stats.max_in_flight = max(stats.max_in_flight, stats.in_flight)
        try:
            return await self._serve(request, order, price, number)
        finally:
            stats.in_flight -= 1

    async def _serve(self, request: web.BaseRequest, order: Order, price: int, number: int) -> web.StreamResponse:
        trouble, dice = self._trouble(request, order, number)
        url = ""
        if trouble is None or trouble.charges:
            self._charged_micro += price  # before the write, so that calls at the same time see it
            try:
                name = await self._log.charge(order, price, trouble if isinstance(trouble, Fault) else None)
            except OSError as broken:
                self._charged_micro -= price
                return self._refuse(failed(500, f"The sandbox can't write its charge log: {broken.strerror}"))
            self.stats.charged += 1
            url = self._url(name)
        latency_s = self._latency_s(trouble, dice)
        if latency_s > 0:
            await asyncio.sleep(latency_s)
        response = await self._answer(request, order, price, trouble, url)
        return self._count(response) if url else self._refuse(response)

    def _trouble(self, request: web.BaseRequest, order: Order, number: int) -> tuple[Fault | Canned | None, Dice]:
        key, occurrence = order.key(), 0
        if self._config.count_requests:
            occurrence = self._came[key]
            self._came[key] += 1
        dice = Dice.throw(self._config.seed, self._life, key, occurrence)
        if self.canned:
            return self.canned.popleft(), dice
        trouble = self.script(CallInfo(number, order, occurrence, request.headers)) if self.script else None
        return trouble or dice.pick(self._config.faults), dice

    def _latency_s(self, trouble: Fault | Canned | None, dice: Dice) -> float:
        if isinstance(trouble, Fault) and trouble.kind.at_once:
            return 0.0
        if isinstance(trouble, Canned) and trouble.latency_s is not None:
            return trouble.latency_s
        return self._config.latency.at(dice.latency)

    async def _answer(
        self, request: web.BaseRequest, order: Order, price: int, trouble: Fault | Canned | None, url: str
    ) -> web.StreamResponse:
        if isinstance(trouble, Canned):
            return canned_answer(request, trouble, url)
        if trouble is None or trouble.kind.of_image:
            return json_answer(success_body(order, price, url))
        if trouble.kind is FaultKind.HANG:
            await self._hang(request)
        return faulty(request, trouble, order, price, url)

    async def _hang(self, request: web.BaseRequest) -> None:
        """Say nothing for as long as the caller stays."""
        while not self.closing.is_set() and request.transport is not None:
            try:
                await asyncio.wait_for(self.closing.wait(), _HANG_LOOK_S)
            except TimeoutError:
                continue

    def _url(self, name: str) -> str:
        return f"{self.base_url}{IMAGE_PATH}{name}{IMAGE_SUFFIX}"

    def _refuse(self, response: web.StreamResponse) -> web.StreamResponse:
        self.stats.refused += 1
        return self._count(response)

    def _count(self, response: web.StreamResponse) -> web.StreamResponse:
        if not isinstance(response, Gone):
            self.stats.statuses[response.status] += 1
        return response

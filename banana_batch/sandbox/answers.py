"""What goes back over the connection, byte for byte as the vendor documents it, or worse on purpose."""

import asyncio
import json
from collections.abc import Mapping

from aiohttp import web

from banana_batch import money

from .faults import IMAGE_URL_MARK, Canned, Fault, FaultKind
from .orders import Order

# The documentation's own words: here, and only here, `data` is left out.
WRONG_KEY = b'{"status":"FAILED","message":"Wrong TT-API-KEY or email is not activated."}'

_BAD_GATEWAY_PAGE = (
    b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n"
    b"<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n</body>\r\n</html>\r\n"
)
_DROPS = frozenset({FaultKind.DROP_BEFORE_CHARGE, FaultKind.DROP_AFTER_CHARGE, FaultKind.HANG})
_REFUSALS: dict[FaultKind, tuple[int, str]] = {
    FaultKind.TOO_MANY: (429, "Short-term request rate exceeded"),
    FaultKind.TOO_MANY_RETRY_AFTER: (429, "Short-term request rate exceeded"),
    FaultKind.QUEUE_FULL: (499, "Queue exhausted: not enough queue capacity for that product"),
    FaultKind.SERVER_ERROR: (500, "Server code exception"),
    FaultKind.UNAVAILABLE: (503, "The model is overloaded"),
    FaultKind.GATEWAY_TIMEOUT: (504, "Long-running synchronous request timed out"),
    FaultKind.FAILED_200: (200, "Image generation failed"),
}


class Gone(web.Response):
    """Stands for an answer on a connection that was cut on purpose."""


def json_answer(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Answer with JSON as it stands. aiohttp knows no phrase for 499 and sends none, which HTTP allows."""
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


def failed(status: int, message: str, retry_after_s: int | None = None) -> web.Response:
    """Answer with the envelope of a refusal."""
    body = json.dumps({"status": "FAILED", "message": message, "data": None}, separators=(",", ":")).encode()
    return json_answer(body, status, None if retry_after_s is None else {"Retry-After": str(retry_after_s)})


def success_body(order: Order, price: int, url: str | None) -> bytes:
    """Return the envelope of an image; without `image_url` if there is no url. `price` in millionths of a credit."""
    data: dict[str, object] = {"prompt": order.prompt, "refer_images": order.echoed_references()}
    if url is not None:
        data["image_url"] = url
    # The price is put in as text: an integer where it is one, else an exact decimal.
    head = json.dumps({"status": "SUCCESS", "message": "success", "data": data}, separators=(",", ":"))
    return f'{head[:-2]},"quota":{money.credits_text(price)}}}}}'.encode()


def faulty(request: web.BaseRequest, fault: Fault, order: Order, price: int, url: str) -> web.Response:
    """Answer a call that met a fault of its own."""
    kind = fault.kind
    if kind in _DROPS:
        return hang_up(request)
    if kind is FaultKind.TRUNCATED_JSON:
        whole = success_body(order, price, url)
        return json_answer(whole[: len(whole) // 2])
    if kind is FaultKind.MISSING_URL:
        return json_answer(success_body(order, price, None))
    if kind is FaultKind.BAD_GATEWAY:
        return web.Response(status=502, body=_BAD_GATEWAY_PAGE, content_type="text/html")
    status, message = _REFUSALS[kind]
    return failed(status, message, fault.retry_after_s if kind is FaultKind.TOO_MANY_RETRY_AFTER else None)


def canned_answer(request: web.BaseRequest, canned: Canned, url: str) -> web.Response:
    """Answer as a test ordered it."""
    if canned.wire is not None:
        transport = request.transport
        if transport is not None:
            transport.write(canned.wire)
            transport.close()
        return Gone()
    headers = {name: value.replace(IMAGE_URL_MARK, url) for name, value in canned.headers.items()}
    body = canned.body.replace(IMAGE_URL_MARK.encode(), url.encode())
    return web.Response(status=canned.status, headers=headers, body=body)


def hang_up(request: web.BaseRequest) -> Gone:
    """Cut the connection without a word."""
    if request.transport is not None:
        request.transport.abort()
    return Gone()


async def begin_image(request: web.BaseRequest, length: int) -> web.StreamResponse:
    """Send the head of a picture of `length` bytes."""
    response = web.StreamResponse()
    response.content_type = "image/png"
    response.content_length = length
    await response.prepare(request)
    return response


async def cut_image(request: web.BaseRequest, data: bytes) -> web.StreamResponse:
    """Promise the whole picture, send half of it, and close."""
    response = await begin_image(request, len(data))
    await response.write(data[: len(data) // 2])
    if request.transport is not None:
        request.transport.close()
    return response


async def slow_image(request: web.BaseRequest, data: bytes, seconds: float, pieces: int = 16) -> web.StreamResponse:
    """Send the picture in pieces, over `seconds`, for as long as somebody takes it."""
    response = await begin_image(request, len(data))
    step = -(-len(data) // pieces)
    for start in range(0, len(data), step):
        await asyncio.sleep(seconds / pieces)
        try:
            await response.write(data[start : start + step])
        except ConnectionError:
            return hang_up(request)
    return response

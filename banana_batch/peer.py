"""The other end of a connection, as it answers: one request at a time, read by aiohttp's parser.

aiohttp's own handler serves sessions: it makes a parser for each request that is sent, and at each piece of an answer
that is read it looks for more than is needed here. This one makes the parser when an answer begins to come: of
thousands of calls that are waited for, none holds one.

Rule 1: what comes while nothing is asked, or behind an answer, ends the connection: it is used for nothing any more.
Rule 2: a parser sees the bytes of one exchange.
Rule 3: whatever ends the connection ends the exchange that is under way.
"""

import asyncio
import contextlib
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.helpers import EMPTY_BODY_STATUS_CODES
from aiohttp.http import HttpProcessingError, HttpResponseParser, RawResponseMessage
from aiohttp.streams import EMPTY_PAYLOAD

# aiohttp's own, of a line, a field and their number.
_MAX_LINE, _MAX_FIELD, _MAX_HEADERS = 8190, 8190, 128

Head = tuple[RawResponseMessage, aiohttp.StreamReader]


class Garbled(aiohttp.ClientError):
    """What came is no HTTP answer."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def is_final(status: int) -> bool:
    """Tell a last head from those that come before it, such as 103 Early Hints."""
    return not 100 <= status < 200 or status == 101


class Peer(asyncio.Protocol):
    """Hears a connection in the place of aiohttp's handler. Make it where the loop runs.

    Attributes:
        handler: aiohttp's own; it still hears of the connection's end, and of when to write on.
    """

    __slots__ = (
        "_asked", "_connection", "_content", "_failed", "_final", "_heads", "_limit", "_loop", "_parser", "_paused",
        "_spoiled", "_waiter", "handler", "transport",
    )  # fmt: skip

    def __init__(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        transport, handler = connection.transport, connection.protocol
        if transport is None or handler is None:  # it ended on its way here
            connection.close()
            raise aiohttp.ServerDisconnectedError
        self._connection = connection
        self._loop = loop
        self.transport = transport
        self.handler: ResponseHandler = handler
        self._spoiled = handler.should_close
        self._asked = self._final = self._paused = False
        self._limit = 0
        self._parser: HttpResponseParser | None = None
        self._heads: list[Head] = []
        self._content: aiohttp.StreamReader | None = None
        self._failed: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        transport.set_protocol(self)

    @property
    def closed(self) -> bool:
        """The connection is over, or about to be."""
        return self.transport.is_closing()

    @property
    def clean(self) -> bool:
        """Nothing came that was not asked for, and nothing of an answer is missing."""
        return not self._spoiled

    def ask(self, limit: int) -> None:
        """Say that a request follows; of its answer `limit` bytes may wait to be read."""
        self._asked, self._final, self._limit = True, False, limit

    async def answer(self) -> Head:
        """Return the head that comes next: with the last one the exchange is over once its content is.

        Raises:
            Garbled: no HTTP came.
            aiohttp.ClientError, OSError: the connection ended before.
        """
        if not self._heads and self._failed is None:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._heads:
            return self._heads.pop(0)
        assert self._failed is not None
        raise self._failed

    def over(self) -> bool:
        """End the exchange; tell whether its answer came whole."""
        whole = self._is_whole()
        if not whole or self._heads or self._goes_on():
            self._spoiled = True
        self._asked, self._parser, self._content = False, None, None
        return whole

    def _is_whole(self) -> bool:
        return self._final and self._content is not None and self._content.is_eof()

    def _goes_on(self) -> bool:
        """Tell whether the parser is in the middle of another answer."""
        if self._parser is None:
            return False
        try:
            return self._parser.feed_eof() is not None
        except Exception:  # noqa: BLE001  # half a head is no head
            return True

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def drop(self) -> None:
        """Close the connection at once, without a farewell (TLS): nothing is owed on one that is idle."""
        self.transport.abort()
        self.close()

    def leave(self) -> None:
        """Give the connection back to the connector; close it where it is no good any more."""
        if self._spoiled:
            self._connection.close()
        else:
            self._connection.release()  # heard here still, until its next route takes it over

    # What the transport says.

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if not self._asked or (data and self._is_whole()):
            self._spoiled = True
            self.transport.close()
            return
        if self._failed is not None:  # what follows garbage is none of it
            return
        if self._parser is None:
            self._parser = self._new_parser()
        try:
            messages, upgraded, _ = self._parser.feed_data(data)
        except Exception as failed:  # noqa: BLE001  # whatever it is, no answer can be read from here on
            self._break_off(failed.message if isinstance(failed, HttpProcessingError) else "")
            return
        for message, content in messages:
            self._content = EMPTY_PAYLOAD if message.code in EMPTY_BODY_STATUS_CODES else content
            self._heads.append((message, self._content))
            self._final = is_final(message.code)
            self._spoiled = self._spoiled or message.should_close
        self._spoiled = self._spoiled or upgraded
        if messages:
            self._wake()

    def _new_parser(self) -> Any:
        return HttpResponseParser(
            self,  # type: ignore[arg-type]  # as good as aiohttp's own, for what is called of it
            self._loop,
            self._limit,
            payload_exception=aiohttp.ClientPayloadError,
            response_with_body=True,
            read_until_eof=True,
            auto_decompress=False,
            max_line_size=_MAX_LINE,
            max_field_size=_MAX_FIELD,
            max_headers=_MAX_HEADERS,
        )

    def _break_off(self, message: str) -> None:
        self.transport.close()
        self._parser, self._spoiled = None, True
        self._fail(Garbled(message))
        if self._content is not None and not self._content.is_eof():
            self._content.set_exception(aiohttp.ClientPayloadError(message))

    def _fail(self, failed: Exception) -> None:
        self._failed = self._failed or failed
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._spoiled = True
        parser, self._parser = self._parser, None
        uncompleted = None
        if parser is not None:
            try:
                uncompleted = parser.feed_eof()
            except Exception as failed:  # noqa: BLE001  # the content says that it is not whole
                if self._content is not None:
                    self._content.set_exception(
                        aiohttp.ClientPayloadError(f"Response payload is not completed: {failed!r}")
                    )
        if exc is None:
            self._fail(aiohttp.ServerDisconnectedError(uncompleted))
        else:
            self._fail(aiohttp.ClientOSError(*exc.args) if isinstance(exc, OSError) else exc)
        self.handler.connection_lost(exc)

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self.handler.pause_writing()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self.handler.resume_writing()

    # What the content asks and says: it holds as much as it may, or less again.

    @property
    def connected(self) -> bool:
        """More may come."""
        return self.handler.connected

    def pause_reading(self) -> None:
        """Let no more come."""
        self._paused = True
        if self._parser is not None:
            self._parser.pause_reading()
        with contextlib.suppress(RuntimeError):  # it is closing
            self.transport.pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Let more come. Called at each piece that is read."""
        if not self._paused:
            return
        self._paused = False
        if resume_parser and self._asked:
            self.data_received(b"")  # what the parser kept back
        if not self._paused:
            with contextlib.suppress(RuntimeError):
                self.transport.resume_reading()

"""Connections of aiohttp's, made in fewer steps where a host has but one address.

aiohttp makes the socket itself, so that several addresses can race, and hands it to the loop once it is connected.
uvloop looks the address up once more for that, in a thread: half of the 190 µs that a connection costs. With one
address there is no race, and the loop makes the connection whole.
"""

import asyncio
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler


class Dialer(aiohttp.TCPConnector):
    """Connects as aiohttp does. With a `socket_factory`, each socket is that one's."""

    async def _wrap_create_connection(
        self, *args: Any, addr_infos: list[Any], **kwargs: Any
    ) -> tuple[asyncio.Transport, ResponseHandler]:
        if len(addr_infos) > 1 or self._socket_factory is not None:
            return await super()._wrap_create_connection(*args, addr_infos=addr_infos, **kwargs)
        family, _, _, _, (host, port, *_) = addr_infos[0]
        return await self._wrap_existing_connection(*args, host=host, port=port, family=family, **kwargs)

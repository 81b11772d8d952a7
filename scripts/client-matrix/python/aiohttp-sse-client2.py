"""aiohttp-sse-client2."""

import asyncio

import aiohttp
from aiohttp_sse_client2.client import EventSource
from report import URL, finish, report


async def listen():
    # aiohttp ends every request after 5 minutes, unless it is told otherwise.
    timeout = aiohttp.ClientTimeout(total=None)
    async with EventSource(URL, timeout=timeout) as source:
        async for event in source:
            report("message", type=event.type, data=event.data, id=event.last_event_id)


finish(lambda: asyncio.run(listen()))

"""aiohttp's WebSocket client: reconnecting is left to the program."""

import asyncio

import aiohttp
from report import URL, finish, frame


async def listen():
    async with aiohttp.ClientSession() as session, session.ws_connect(URL) as socket:
        async for message in socket:
            frame(message.data)


finish(lambda: asyncio.run(listen()))

"""websockets: `async for` over connect() reconnects by itself."""

import asyncio

from report import URL, finish, frame, report
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


async def listen():
    async for socket in connect(URL):
        try:
            async for message in socket:
                frame(message)
        except ConnectionClosed as error:
            report("error", detail=str(error))


finish(lambda: asyncio.run(listen()))

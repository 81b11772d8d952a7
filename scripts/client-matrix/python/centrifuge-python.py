"""centrifuge-python: the SDK reconnects and recovers by itself."""

import asyncio

from centrifuge import Client, ClientEventHandler, SubscriptionEventHandler
from report import URL, report


class Events(ClientEventHandler):
    async def on_error(self, ctx):
        report("error", detail=str(ctx.error))

    async def on_disconnected(self, ctx):
        report("closed", code=ctx.code, detail=ctx.reason)


class Messages(SubscriptionEventHandler):
    async def on_publication(self, ctx):
        kind = "binary" if ctx.pub.tags.get("encoding") == "base64" else "message"
        report(kind, data=ctx.pub.data)


async def listen():
    client = Client(URL, events=Events())
    subscription = client.new_subscription("live", events=Messages())
    await client.connect()
    await subscription.subscribe()
    await asyncio.Event().wait()


asyncio.run(listen())

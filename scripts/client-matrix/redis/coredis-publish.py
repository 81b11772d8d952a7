"""coredis."""

import asyncio

import coredis
from common import MODE, PORT, call, done, wait
from coredis.retry import NoRetryPolicy


async def publish():
    options = {"retry_policy": NoRetryPolicy()} if MODE == "off" else {}
    client = coredis.Redis(host="127.0.0.1", port=PORT, **options)
    async with client:
        function, _, key, *arguments = call("first")
        await client.fcall(function, [key], arguments)
        wait()
        function, _, key, *arguments = call("second")
        try:
            await client.fcall(function, [key], arguments)
            done()
        except Exception as error:
            done(error)


asyncio.run(publish())

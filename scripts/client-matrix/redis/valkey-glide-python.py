"""valkey-glide, Python."""

import asyncio

from common import PORT, call, done, wait
from glide import GlideClient, GlideClientConfiguration, NodeAddress


async def publish():
    configuration = GlideClientConfiguration([NodeAddress("127.0.0.1", PORT)], request_timeout=5000)
    client = await GlideClient.create(configuration)
    function, _, key, *arguments = call("first")
    await client.fcall(function, [key], arguments)
    wait()
    function, _, key, *arguments = call("second")
    try:
        await client.fcall(function, [key], arguments)
        done()
    except Exception as error:
        done(error)
    await client.close()


asyncio.run(publish())

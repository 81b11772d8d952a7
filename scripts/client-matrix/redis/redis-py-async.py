"""redis-py, asyncio."""

import asyncio

import redis.asyncio as redis
from common import MODE, PORT, call, done, wait
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff


async def publish():
    options = {"retry": Retry(NoBackoff(), 0)} if MODE == "off" else {}
    client = redis.Redis(port=PORT, **options)
    await client.fcall(*call("first"))
    wait()
    try:
        await client.fcall(*call("second"))
        done()
    except redis.RedisError as error:
        done(error)
    await client.aclose()


asyncio.run(publish())

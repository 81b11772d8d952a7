"""Publishes three messages with a library of Python's: publish.py LIBRARY URL plain|key. A line for
each: a status, or what was raised."""

import asyncio
import sys

LIBRARY, URL, MODE = sys.argv[1:4]


def headers(number: int) -> dict[str, str]:
    return {"Idempotency-Key": f"message-{number}"} if MODE == "key" else {}


def publisher():
    if LIBRARY == "requests":
        import requests

        session = requests.Session()
        return lambda n: session.post(URL, data=f"n{n}", headers=headers(n)).status_code
    if LIBRARY == "httpx":
        import httpx

        client = httpx.Client()
        return lambda n: client.post(URL, content=f"n{n}", headers=headers(n)).status_code
    if LIBRARY == "urllib3":
        import urllib3

        pool = urllib3.PoolManager()
        return lambda n: pool.request("POST", URL, body=f"n{n}", headers=headers(n)).status
    raise SystemExit(f"no such library: {LIBRARY}")


async def with_aiohttp():
    import aiohttp

    async with aiohttp.ClientSession() as session:
        for number in range(3):
            try:
                async with session.post(URL, data=f"n{number}", headers=headers(number)) as response:
                    await response.read()
                    print(response.status)
            except aiohttp.ClientError as error:
                print("raised", type(error).__name__)


if LIBRARY == "aiohttp":
    asyncio.run(with_aiohttp())
else:
    publish = publisher()
    for number in range(3):
        try:
            print(publish(number))
        except Exception as error:
            print("raised", type(error).__name__)

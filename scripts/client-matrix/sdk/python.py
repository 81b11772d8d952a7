"""What docs/centrifuge.md promises of the SDK for Python, one check after the other. Prints a line for each."""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import re
import signal
import sys
import time
import traceback
import urllib.request

from centrifuge import CentrifugeError, Client, ClientEventHandler, StreamPosition, SubscriptionEventHandler

setup = json.loads(sys.argv[1])


def token(seconds, channels=("*",), **more):
    """A token (HS256) that holds for so many seconds, for these channels, with more claims."""

    def part(data):
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    claims = {"exp": int(time.time()) + seconds, "livebridge": {"subscribe": channels, "publish": channels}} | more
    text = part(b'{"alg":"HS256"}') + b"." + part(json.dumps(claims).encode())
    return (text + b"." + part(hmac.digest(setup["secret"].encode(), text, hashlib.sha256))).decode()


ALL = token(3600)


class Events(ClientEventHandler, SubscriptionEventHandler):
    """Keeps every event, and wakes whoever waits for one."""

    def __init__(self):
        self.seen = []
        self.changed = asyncio.Event()

    def take(self, name, context):
        self.seen.append((name, context))
        self.changed.set()

    async def on_connecting(self, context):
        self.take("connecting", context)

    async def on_connected(self, context):
        self.take("connected", context)

    async def on_disconnected(self, context):
        self.take("disconnected", context)

    async def on_unsubscribed(self, context):
        self.take("unsubscribed", context)

    async def on_publication(self, context):
        self.take("publication", context.pub)

    async def on_join(self, context):
        self.take("join", context.info)

    async def on_leave(self, context):
        self.take("leave", context.info)

    def all(self, name):
        return [context for event, context in self.seen if event == name]

    async def until(self, name, count=1, seconds=15):
        async with asyncio.timeout(seconds):
            while len(self.all(name)) < count:
                self.changed.clear()
                await self.changed.wait()
        return self.all(name)


def client(events=None, **options):
    options = {"token": ALL, "min_reconnect_delay": 0.05, "max_reconnect_delay": 0.2} | options
    return Client(setup["url"], events=events or Events(), **options)


def equal(seen, expected, what):
    assert seen == expected, f"{what}: {seen!r} instead of {expected!r}"


async def publish(channel, body):
    request = urllib.request.Request(
        f"{setup['http']}/publish?channel={channel}", body.encode(), {"Authorization": f"Bearer {ALL}"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    await asyncio.to_thread(lambda: opener.open(request, timeout=10).read())


async def backlog(instance):
    """How many messages wait for the slowest client of an instance."""
    request = urllib.request.Request(f"{instance['http']}/metrics", headers={"Authorization": f"Bearer {ALL}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    text = await asyncio.to_thread(lambda: opener.open(request, timeout=10).read().decode())
    return int(re.search(r"^livebridge_backlog_messages ([0-9]+)", text, re.M)[1])


async def failed(awaitable):
    try:
        await awaitable
    except CentrifugeError as error:
        return getattr(error, "code", None)
    raise AssertionError("it did not fail")


async def connects_publishes_and_reads_the_history():
    events, sdk = Events(), client()
    subscription = sdk.new_subscription("py:one", events=events)
    await sdk.connect()
    await subscription.subscribe()
    await subscription.ready()
    await subscription.publish({"number": 1})
    await sdk.publish("py:one", "two")
    equal([held.data for held in await events.until("publication", 2)], [{"number": 1}, "two"], "the publications")
    newest = await subscription.history(limit=0)
    equal((newest.offset, newest.publications), (2, []), "the position")
    page = await subscription.history(limit=10, reverse=True)
    equal([held.offset for held in page.publications], [2, 1], "the history")
    rest = await subscription.history(limit=10, since=StreamPosition(offset=1, epoch=page.epoch))
    equal([held.data for held in rest.publications], ["two"], "the rest of it")
    await sdk.disconnect()


async def has_many_channels_and_changes_them_at_any_time():
    sdk, names = client(), [f"py:many:{index}" for index in range(60)]
    held = [(name, sdk.new_subscription(name, events=(events := Events())), events) for name in names]
    await sdk.connect()
    for _, subscription, _ in held:
        await subscription.subscribe()
    for _, subscription, _ in held:
        await subscription.ready()
    for name in names:
        await publish(name, json.dumps(name))
    for name, _, events in held:
        equal([found.data for found in await events.until("publication")], [name], "the publications")
    name, subscription, events = held[0]
    await subscription.unsubscribe()
    await subscription.subscribe()
    await subscription.ready()
    await publish(name, "1")
    equal((await events.until("publication", 2))[1].data, 1, "the publication after a second subscription")
    await sdk.disconnect()


async def recovers_after_a_cut():
    events, sdk = Events(), client()
    subscription = sdk.new_subscription("py:cut", events=events)
    await sdk.connect()
    await subscription.subscribe()
    await subscription.ready()
    for number in range(1, 41):
        await publish("py:cut", str(number))
        if number % 10 == 5:
            # It may still be reconnecting after the last cut.
            await sdk.ready(timeout=10)
            sdk._conn.transport.abort()
    found = [held.data for held in await events.until("publication", 40)]
    equal(found, list(range(1, 41)), "each once and in order")
    await sdk.disconnect()


async def is_told_what_it_may_not_do():
    events, sdk = Events(), client(token=token(3600, ["py:some"]))
    await sdk.connect()
    await sdk.ready()
    subscription = sdk.new_subscription("py:forbidden", events=events)
    await subscription.subscribe()
    equal((await events.until("unsubscribed"))[0].code, 103, "a subscription")
    equal(await failed(sdk.publish("py:forbidden", 1)), 103, "a publication")
    equal(await failed(sdk.presence("py:some")), 108, "presence")
    equal(await failed(sdk.rpc("method", {})), 108, "a call")
    await sdk.disconnect()


async def sees_who_is_there_and_who_comes_and_goes():
    def named(user):
        return client(token=token(3600, sub=user, info={"name": user}))

    events, here, there = Events(), named("here"), named("there")
    subscription = here.new_subscription("py:room", events=events, join_leave=True)
    await here.connect()
    await subscription.subscribe()
    await events.until("join")
    other = there.new_subscription("py:room")
    await there.connect()
    await other.subscribe()
    equal([info.user for info in await events.until("join", 2)], ["here", "there"], "who came")
    clients = (await subscription.presence()).clients
    seen = sorted((info.user, info.conn_info["name"]) for info in clients.values())
    equal(seen, [("here", "here"), ("there", "there")], "who is there")
    stats = await there.presence_stats("py:room")
    equal((stats.num_clients, stats.num_users), (2, 2), "how many")
    # Away for a moment: nobody is told.
    there._conn.transport.abort()
    await asyncio.sleep(6)
    await other.ready(timeout=10)
    await other.unsubscribe()
    equal([info.user for info in await events.until("leave")], ["there"], "who went")
    equal(len(events.all("join")), 2, "who came, after all")
    await here.disconnect()
    await there.disconnect()


async def leaves_for_good_with_a_token_that_is_not_valid():
    events = Events()
    await client(events, token="no token").connect()
    equal((await events.until("disconnected"))[0].code, 3500, "the code")


async def gets_a_new_token_in_time_and_stays():
    given = []

    async def get_token():
        given.append(1)
        return token(5) if len(given) == 1 else ALL

    events, messages = Events(), Events()
    sdk = client(events, token="", get_token=get_token)
    subscription = sdk.new_subscription("py:token", events=messages)
    await sdk.connect()
    await subscription.subscribe()
    await subscription.ready()
    await asyncio.sleep(6)
    await publish("py:token", "1")
    await messages.until("publication")
    equal((len(given), len(events.all("connecting"))), (2, 1), "one token more, and no other connection")
    await sdk.disconnect()


async def gets_a_new_token_when_it_comes_with_an_old_one():
    given = []

    async def get_token():
        given.append(1)
        return ALL

    events = Events()
    sdk = client(events, token=token(-10), get_token=get_token)
    await sdk.connect()
    await events.until("connected")
    equal(len(given), 1, "one token")
    await sdk.disconnect()


async def goes_on_on_another_instance():
    """One that is killed, and one that stops."""
    for first, number, code in [
        (setup["killed"], signal.SIGKILL, 1),
        (setup["stopped"], signal.SIGTERM, 3001),
    ]:
        events, messages, channel = Events(), Events(), f"py:back:{code}"
        sdk = client(events)
        sdk._address = first["url"]
        subscription = sdk.new_subscription(channel, events=messages)
        await sdk.connect()
        await subscription.subscribe()
        await subscription.ready()
        sdk._address = setup["url"]
        await publish(channel, "1")
        await messages.until("publication")
        os.kill(first["pid"], number)
        for data in range(2, 6):
            await publish(channel, str(data))
        found = [held.data for held in await messages.until("publication", 5)]
        equal(found, [1, 2, 3, 4, 5], "each once and in order")
        equal([context.code for context in events.all("connecting")], [0, code], "why it connected")
        await sdk.disconnect()


async def comes_back_after_it_did_not_read_and_has_missed_nothing():
    events, messages, narrow = Events(), Events(), setup["narrow"]
    sdk = client(events)
    sdk._address = narrow["url"]
    subscription = sdk.new_subscription("py:slow", events=messages)
    await sdk.connect()
    await subscription.subscribe()
    await subscription.ready()
    sdk._address = setup["url"]
    # With the first message it subscribes again: there was no epoch before.
    await publish("py:slow", '{"number": 1}')
    await messages.until("publication")
    await subscription.ready()
    transport = sdk._conn.transport
    transport.pause_reading()
    count = 1
    # Its instance keeps 16 messages for a client whose socket is full.
    while await backlog(narrow) <= 16:
        count += 1
        await publish("py:slow", json.dumps({"number": count, "text": "x" * 60_000}))
    transport.resume_reading()
    found = [held.data["number"] for held in await messages.until("publication", count, seconds=60)]
    equal(found, list(range(1, count + 1)), "each once and in order")
    equal([context.code for context in events.all("connecting")], [0, 3008], "why it connected")
    await sdk.disconnect()


async def comes_back_after_it_left_pings_unanswered():
    events = Events()
    sdk = client(events)
    await sdk.connect()
    await events.until("connected")
    sdk._send_pong = False
    await events.until("connected", 2, seconds=40)
    equal([context.code for context in events.all("connecting")], [0, 3012], "why it connected")
    await sdk.disconnect()


async def leaves_for_good_after_the_codes_that_say_so():
    events = Events()
    sdk = client(events)
    await sdk.connect()
    await events.until("connected")
    await sdk._conn.send("no command")
    equal((await events.until("disconnected"))[0].code, 3501, "no command")
    # Without a function for another token.
    events = Events()
    sdk = client(events, token=token(2))
    await sdk.connect()
    equal((await events.until("disconnected"))[0].code, 1, "a token that ends: unauthorized")
    equal([context.code for context in events.all("connecting")], [0, 3005], "why it connected")


async def notices_that_the_server_is_silent():
    events = Events()
    sdk = client(events, max_server_ping_delay=0.5)
    await sdk.connect()
    await events.until("connected")
    os.kill(setup["pid"], signal.SIGSTOP)
    try:
        equal((await events.until("connecting", 2))[1].code, 2, "no ping")
    finally:
        os.kill(setup["pid"], signal.SIGCONT)
    await events.until("connected", 2)
    await sdk.disconnect()


async def main():
    checks = [
        connects_publishes_and_reads_the_history,
        has_many_channels_and_changes_them_at_any_time,
        recovers_after_a_cut,
        is_told_what_it_may_not_do,
        sees_who_is_there_and_who_comes_and_goes,
        leaves_for_good_with_a_token_that_is_not_valid,
        gets_a_new_token_in_time_and_stays,
        gets_a_new_token_when_it_comes_with_an_old_one,
        goes_on_on_another_instance,
        comes_back_after_it_did_not_read_and_has_missed_nothing,
        comes_back_after_it_left_pings_unanswered,
        leaves_for_good_after_the_codes_that_say_so,
        notices_that_the_server_is_silent,
    ]
    for check in checks:
        detail = ""
        try:
            await asyncio.wait_for(check(), 60)
        except Exception as error:
            detail = f"{type(error).__name__}: {error}" + ("" if str(error) else traceback.format_exc())
        name = check.__name__.replace("_", " ")
        print(json.dumps({"check": name, "ok": not detail, "detail": detail}), flush=True)


asyncio.run(main())

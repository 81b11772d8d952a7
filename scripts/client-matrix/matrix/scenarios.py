"""What happens to the clients, and what each did about it.

In every scenario all clients are connected at once, each through a proxy of its own. They see
messages m1 to m3, the connection breaks, m4 to m6 are published while they are away, and m7 to m9
once they are back."""

import asyncio
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from . import payloads, processes, servers
from .catalogue import Client, Installation, lines_of_page
from .cutter import Cutter
from .member import Member

# How long a client may take to come back: the slowest default waits 5 s after each failure.
PATIENCE = 13
TOKEN_SECONDS = 5
FLOOD = 1200


@dataclass
class Settings:
    """What a run is about."""

    binary: Path
    installation: Installation


class Stage:
    """Redis, two instances, and the clients of one scenario."""

    def __init__(self, settings: Settings, folder: Path, arguments: list):
        self.settings = settings
        self.redis = servers.Redis(folder)
        self.redis.start()
        base = ["--redis-url", self.redis.url, "--drain-seconds", 2, *arguments]
        self.first = servers.Instance(settings.binary, folder, "first", base)
        self.second = servers.Instance(settings.binary, folder, "second", base)
        self.members: list[Member] = []
        self.headers: dict = {}
        self.published = 0

    async def connect(self, clients: list[tuple[Client, str | None]], query="", token_url=None) -> None:
        for client, lines in clients:
            member = Member(client, lines, await Cutter(self.first.port).start())
            self.members.append(member)
            member.start(self.settings.installation, query, token_url)
        await processes.eventually(lambda: all(m.cutter.accepted() or m.gave_up for m in self.members), 60)
        for member in self.members:
            if not member.cutter.accepted():
                raise RuntimeError(f"{member.client.id} did not connect: {member.gave_up}, {member.events[-3:]}")

    def _channels(self) -> dict[str, bool]:
        """Those that the clients are on, and whether each is keyed."""
        keyed = {member.client.keyed for member in self.members}
        return {servers.KEYED_CHANNEL if one else servers.CHANNEL: one for one in keyed}

    async def send(self, payload: bytes) -> None:
        """Publishes a payload on each channel; on a keyed one, it is the value of a key of its own."""
        self.published += 1
        for channel, is_keyed in self._channels().items():
            key = f"m{self.published}" if is_keyed else None
            status = await asyncio.to_thread(self.second.publish, payload, self.headers, channel, key)
            if status != 200:
                raise RuntimeError(f"a publish was answered {status}")

    async def publish(self, count: int) -> None:
        for _ in range(count):
            await self.send(f"m{self.published + 1}".encode())

    async def flood(self, count: int, size: int) -> None:
        """Messages of a size, a hundred a request."""
        headers = self.headers | {"Content-Type": "application/x-ndjson"}
        for _ in range(count // 100):
            numbers = range(self.published + 1, self.published + 101)
            self.published += 100
            for channel, is_keyed in self._channels().items():
                keys = {n: {"key": f"m{n}"} if is_keyed else {} for n in numbers}
                batch = [json.dumps({"channel": channel, "data": f"m{n} ".ljust(size, "x")} | keys[n]) for n in numbers]
                status = await asyncio.to_thread(self.second.publish, "\n".join(batch).encode(), headers)
                if status != 200:
                    raise RuntimeError(f"a batch was answered {status}")

    async def seen(self, number: int, members=None, seconds: float = 6) -> bool:
        members = self.members if members is None else members
        return await processes.eventually(lambda: all(number in m.numbers() or m.gave_up for m in members), seconds)

    def hold(self) -> None:
        """Keeps whatever comes back waiting, until `release`."""
        for member in self.members:
            member.before = len(member.cutter.attempts)
            member.cutter.open_gate.clear()

    def release(self, port: int | None = None) -> None:
        for member in self.members:
            member.cutter.target = port or member.cutter.target
            member.cutter.open_gate.set()

    async def settle(self) -> None:
        """Waits for those that come back, and publishes the last three messages."""
        await processes.eventually(lambda: all(m.came_back() or m.gave_up for m in self.members), PATIENCE)
        await self.publish(3)
        await self.seen(self.published, [m for m in self.members if m.came_back()])
        # What is doubled comes a moment later.
        await asyncio.sleep(0.3)

    async def stop(self) -> None:
        for member in self.members:
            await asyncio.to_thread(member.stop)
            await member.cutter.stop()
        for instance in (self.first, self.second):
            instance.kill()
        self.redis.stop()


async def clean_end(stage: Stage) -> None:
    stage.hold()
    for member in stage.members:
        member.cutter.finish()
    await stage.publish(3)
    stage.release()


async def reset(stage: Stage) -> None:
    stage.hold()
    for member in stage.members:
        member.cutter.reset()
    await stage.publish(3)
    stage.release()


async def refused(stage: Stage) -> None:
    """As with a load balancer that reaches no instance for a while."""
    for member in stage.members:
        member.before = len(member.cutter.attempts)
        member.cutter.answer_status = 503
        member.cutter.reset()
    await stage.publish(3)
    await processes.eventually(
        lambda: all(len(m.cutter.attempts) > m.before or m.gave_up for m in stage.members), PATIENCE
    )
    await asyncio.sleep(1)
    for member in stage.members:
        member.cutter.answer_status = None


async def restart(stage: Stage) -> None:
    stage.hold()
    stage.first.drain()
    await asyncio.to_thread(stage.first.process.wait, 10)
    await stage.publish(3)
    stage.release(stage.second.port)


async def death(stage: Stage) -> None:
    stage.hold()
    stage.first.kill()
    await stage.publish(3)
    stage.release(stage.second.port)


async def outage(stage: Stage) -> None:
    """Redis is away when the clients come back: they get whatever livebridge answers then."""
    stage.redis.stop()
    await asyncio.to_thread(processes.wait_for_http, stage.first.url("/readyz"), 503)
    for member in stage.members:
        member.before = len(member.cutter.attempts)
        member.cutter.reset()
    await processes.eventually(
        lambda: all(len(m.cutter.attempts) > m.before or m.gave_up for m in stage.members), PATIENCE
    )
    await asyncio.sleep(1)
    stage.redis.start()
    for instance in (stage.first, stage.second):
        await asyncio.to_thread(processes.wait_for_http, instance.url("/readyz"), 200)
    await stage.publish(3)


async def falls_behind(stage: Stage) -> None:
    """The clients' side does not read while more comes than an instance keeps for a slow one."""
    for member in stage.members:
        member.before = len(member.cutter.attempts)
        member.cutter.reading.clear()
    await stage.flood(FLOOD, 8 << 10)
    for member in stage.members:
        member.cutter.reading.set()


async def expiry(stage: Stage) -> None:
    for member in stage.members:
        member.before = len(member.cutter.attempts)
    await asyncio.sleep(max(0, stage.token_end - time.time() + 1.5))
    await stage.publish(3)


# Name, what breaks, and settings of the instances.
SCENARIOS = {
    "end": (clean_end, []),
    "reset": (reset, []),
    "503": (refused, []),
    "restart": (restart, []),
    "death": (death, []),
    "outage": (outage, []),
    "behind": (falls_behind, ["--log-messages", 64, "--log-bytes", 1 << 20]),
    "expiry": (expiry, ["--token-secret", servers.SECRET, "--token-leeway-seconds", 0]),
}
QUICK = ("payloads", "reset", "503", "restart")


async def run(settings: Settings, name: str, clients: list[Client], with_lines: bool) -> dict:
    """Runs a scenario; returns a verdict for each client, and one for its example."""
    page = lines_of_page() if with_lines and name != "expiry" else {}
    pairs = [(client, None) for client in clients]
    pairs += [(client, page[client.id]) for client in clients if client.id in page]
    with tempfile.TemporaryDirectory(prefix="livebridge-clients-") as folder:
        break_it, arguments = SCENARIOS[name]
        stage = Stage(settings, Path(folder), arguments)
        try:
            query, token_url = "", None
            if name == "expiry":
                stage.headers["Authorization"] = "Bearer " + servers.token(3600)
                stage.token_end = int(time.time() + TOKEN_SECONDS + len(pairs) / 3)
                query = "&token=" + servers.token(stage.token_end - time.time())
            await stage.connect(pairs, query, token_url)
            await stage.publish(3)
            await stage.seen(3)
            await break_it(stage)
            await stage.settle()
            return {
                (m.client.id, m.lines is not None): verdict(stage, m) | {"asks": m.asked_with() if m.came_back() else ""}
                for m in stage.members
            }
        finally:
            await stage.stop()


def verdict(stage: Stage, member: Member) -> dict:
    """What a client did about it, in a word or two."""
    numbers = member.numbers()
    expected = list(range(1, stage.published + 1))
    detail = {"attempts": len(member.cutter.attempts) - member.before, "gave_up": member.gave_up}
    statuses = [attempt.status for attempt in member.cutter.attempts[member.before :]]
    if numbers == expected:
        word = "yes"
    elif not member.came_back():
        if member.gave_up:
            word = "no"
        elif statuses:
            word = "no, asks on"
        else:
            word = "no, silent"
    elif len(set(numbers)) < len(numbers):
        word = "repeats"
    elif numbers == sorted(numbers) and numbers[-1:] == expected[-1:]:
        word = "loses"
    else:
        word = "late"
    missing = sorted(set(expected) - set(numbers))
    return {"word": word, "missing": len(missing), "statuses": statuses[:6]} | detail


async def _received(stage: Stage, message: tuple, seconds: float) -> None:
    await processes.eventually(lambda: all(message in m.payloads() or m.gave_up for m in stage.members), seconds)


async def run_payloads(settings: Settings, clients: list[Client], quiet_seconds: float) -> dict:
    """What arrives of payloads that are not plain lines, and of a heartbeat."""
    with tempfile.TemporaryDirectory(prefix="livebridge-clients-") as folder:
        stage = Stage(settings, Path(folder), [])
        try:
            await stage.connect([(client, None) for client in clients])
            *small, large = payloads.PAYLOADS.values()
            last_small, end = (("message", f"p{len(small) + more}") for more in (0, 1))
            marked = [part for index, payload in enumerate(small) for part in (f"p{index}".encode(), payload)]
            for part in (*marked, last_small[1].encode()):
                await stage.send(part)
            await _received(stage, last_small, 6)
            prompt = {m.client.id: last_small in m.payloads() for m in stage.members}
            # Some parsers take seconds for it, and some clients end.
            for part in (large, end[1].encode()):
                await stage.send(part)
            await _received(stage, end, 30)
            before = {m.client.id: len(m.payloads()) for m in stage.members}
            await asyncio.sleep(quiet_seconds)
            found = {}
            for member in stage.members:
                cells = payloads.compare(member.client.transport, member.payloads())
                cells["prompt"] = "yes" if prompt[member.client.id] else "no"
                if quiet_seconds:
                    more = len(member.payloads()) - before[member.client.id]
                    cells["heartbeat"] = "a message" if more and end in member.payloads()[: -more or None] else "unseen"
                found[member.client.id] = cells
            return found
        finally:
            await stage.stop()

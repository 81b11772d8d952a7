"""The Centrifuge SDKs for Go and Java: programs of their own in sdk/, against three instances behind a balancer that sees which
of them answer. The programs stop and kill instances, and say what the SDK did. The programs of docs/client-examples.md then see
an instance die. Not run by CI: all need Go or Maven."""

import asyncio
import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from . import processes, servers
from .catalogue import ROOT, lines_of_page

SOURCES = ROOT / "sdk"
# Language and form of the protocol; the SDK for Java has only one.
PROGRAMS = [("go", "json"), ("go", "protobuf"), ("java", "protobuf")]
# What docs/centrifuge.md says of close codes.
BACK = [3000, 3001, 3005, 3008, 3010, 3011, 3012, 3013]
AWAY = [3500, 3501, 3502, 3503, 3507, 1009]
_TOOLS = {"go": ["go"], "java": ["mvn", "java"]}
_SETTINGS = ["--token-secret", servers.SECRET, "--token-leeway-seconds", 0, "--heartbeat-seconds", 1,
             "--max-message-bytes", 1 << 16, "--drain-seconds", 1]


class Balancer:
    """Relays each connection to the first instance that answers, and closes those of another port with the code in their
    path. Runs on a thread of its own."""

    def __init__(self, ports: list[int], port: int = 0):
        self._instances = ports
        self._tasks: set[asyncio.Task] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = self._listen(self._relay, port)
        self.closing = self._listen(_close, 0)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _listen(self, handler, port: int) -> int:
        def accept(reader, writer) -> None:
            # A task of our own: asyncio reports the cancellation of those that it makes for a handler.
            task = asyncio.ensure_future(handler(reader, writer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        server = asyncio.run_coroutine_threadsafe(asyncio.start_server(accept, "127.0.0.1", port), self._loop).result()
        return server.sockets[0].getsockname()[1]

    async def _cancel_all(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _relay(self, reader, writer) -> None:
        try:
            for port in self._instances:
                if await _answers(port):
                    await _relay(reader, writer, *await asyncio.open_connection("127.0.0.1", port))
                    return
        except OSError:
            pass
        finally:
            writer.close()


async def _answers(port: int) -> bool:
    try:
        async with asyncio.timeout(0.5):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            status = await reader.readline()
            writer.close()
            return status.split(b" ")[1:2] == [b"200"]
    except (OSError, TimeoutError):
        return False


async def _relay(client_reader, client_writer, server_reader, server_writer) -> None:
    """Until both sides have ended: a server that closes may go on reading."""
    async def copy(reader, writer):
        while data := await reader.read(64 << 10):
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    try:
        await asyncio.gather(copy(client_reader, server_writer), copy(server_reader, client_writer))
    finally:
        server_writer.close()


async def _close(reader, writer) -> None:
    """Takes a WebSocket, and closes it with the code in its path."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        code = int(head.split(" ")[1].strip("/"))
        lines = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        names = {name.lower(): value for name, value in lines.items()}
        digest = hashlib.sha1(names["sec-websocket-key"].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        answer = ["HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", "Upgrade: websocket",
                  f"Sec-WebSocket-Accept: {base64.b64encode(digest).decode()}"]
        if protocol := names.get("sec-websocket-protocol"):
            answer.append(f"Sec-WebSocket-Protocol: {protocol}")
        reason = b"a reason"
        close = bytes([0x88, 2 + len(reason)]) + code.to_bytes(2, "big") + reason
        writer.write("\r\n".join(answer).encode() + b"\r\n\r\n" + close)
        # The client completes the close.
        async with asyncio.timeout(5):
            await reader.read(1 << 10)
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


def _build(language: str, cache: Path, port: int) -> tuple[list, list]:
    """Builds the checks and the example of an SDK in the cache; returns the commands that run them. The example connects to a
    port."""
    folder = cache / f"sdk-{language}"
    shutil.copytree(SOURCES / language, folder, dirs_exist_ok=True)
    example = lines_of_page()[f"centrifuge-{language}"].replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    if language == "go":
        (folder / "example").mkdir(exist_ok=True)
        (folder / "example/main.go").write_text(example)
        _run(["go", "mod", "tidy"], folder)
        _run(["go", "build", "-o", "built/", "./..."], folder)
        return [folder / "built/sdk"], [folder / "built/example"]
    (folder / "src/main/java/Listen.java").write_text(example)
    _run(["mvn", "--quiet", "--batch-mode", "compile", "dependency:copy-dependencies", "-DoutputDirectory=libraries"], folder)
    command = ["java", "-cp", f"{folder / 'target/classes'}:{folder / 'libraries'}/*"]
    return [*command, "Checks"], [*command, "Listen"]


def _run(command: list, folder: Path) -> None:
    print("installing:", " ".join(command[:3]), "…", file=sys.stderr)
    subprocess.run(command, cwd=folder, check=True, stdin=subprocess.DEVNULL)


def _check(binary: Path, command: list, form: str, folder: Path) -> list[dict]:
    redis = servers.Redis(folder)
    redis.start()
    instances = [servers.Instance(binary, folder, name, ["--redis-url", redis.url, *_SETTINGS]) for name in ("one", "two", "three")]
    balancer = Balancer([instance.port for instance in instances])
    try:
        setup = {
            "url": f"ws://127.0.0.1:{balancer.port}/connection/websocket",
            "closing": f"ws://127.0.0.1:{balancer.closing}",
            "http": instances[-1].url(""),
            "pids": [instance.process.pid for instance in instances],
            "secret": servers.SECRET,
            "form": form,
            "back": BACK,
            "away": AWAY,
        }
        program = processes.start([*command, json.dumps(setup)], stdout=subprocess.PIPE)
        output, _ = program.communicate(timeout=600)
        processes.end(program)
        return [json.loads(line) for line in output.decode().splitlines() if line.startswith("{")]
    finally:
        balancer.stop()
        for instance in instances:
            instance.kill()
        redis.stop()


def _check_example(binary: Path, command: list, port: int, folder: Path) -> str:
    """Runs the program of the page while an instance dies; says what is wrong."""
    redis = servers.Redis(folder)
    redis.start()
    instances = [servers.Instance(binary, folder, name, ["--redis-url", redis.url]) for name in ("one", "two")]
    balancer = Balancer([instance.port for instance in instances], port)
    log = folder / "example.log"
    try:
        program = processes.start(command, stdout=log.open("wb"), stderr=(folder / "example.err").open("wb"))
        number = 0

        def publish(until) -> None:
            nonlocal number
            deadline = time.monotonic() + 30
            while not until() and time.monotonic() < deadline:
                number += 1
                instances[1].publish(str(number).encode())
                time.sleep(0.05)

        publish(lambda: log.stat().st_size > 0)
        first = number
        publish(lambda: number == first + 10)
        instances[0].kill()
        publish(lambda: number == first + 60)
        deadline = time.monotonic() + 30
        while log.read_text().split()[-1:] != [str(number)] and time.monotonic() < deadline:
            time.sleep(0.05)
        processes.end(program)
        seen = [int(word) for word in log.read_text().split()]
        if seen and seen == list(range(seen[0], number + 1)):
            return ""
        return f"printed {seen}, but {number} was the last; {processes.read_tail(folder / 'example.err')}"
    finally:
        balancer.stop()
        for instance in instances:
            instance.kill()
        redis.stop()


def main(options) -> int:
    """`scripts/clients sdk [go] [java]`."""
    wanted = options.names[1:] or list(_TOOLS)
    if unknown := set(wanted) - set(_TOOLS):
        sys.exit(f"scripts/clients sdk: no such SDK: {', '.join(sorted(unknown))}")
    failures = 0
    for language in wanted:
        missing = [tool for tool in _TOOLS[language] if not shutil.which(tool)]
        if missing:
            print(f"SKIPPED: {language}, since there is no {' and no '.join(missing)} on this machine")
            continue
        options.cache.mkdir(parents=True, exist_ok=True)
        port = processes.free_port()
        command, example = _build(language, options.cache, port)
        for form in [form for name, form in PROGRAMS if name == language]:
            with tempfile.TemporaryDirectory(prefix="livebridge-sdk-") as folder:
                results = _check(options.binary.resolve(), command, form, Path(folder))
            for result in results:
                if options.verbose or not result["ok"]:
                    print(f"  {language} ({form}): {result['check']}: {result['detail'] or 'as promised'}, {result['seconds']:.1f} s")
            wrong = sum(not result["ok"] for result in results) + (not results)
            print(f"{language} ({form}): {len(results) - wrong} checks passed, {wrong} failed")
            failures += wrong
        with tempfile.TemporaryDirectory(prefix="livebridge-sdk-") as folder:
            wrong = _check_example(options.binary.resolve(), example, port, Path(folder))
        print(f"{language}: the example {wrong or 'misses nothing when an instance dies'}")
        failures += bool(wrong)
    return 1 if failures else 0

"""What Redis clients do when the connection is cut after Redis has answered and before the answer
arrives: those that repeat the call by themselves publish a message twice, unless it has an id."""

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from . import processes, servers
from .catalogue import DOCS, ROOT, Client, Installation

PAGE = DOCS / "redis.md"
BEGIN, END = "<!-- made by scripts/clients redis: begin -->", "<!-- made by scripts/clients redis: end -->"
PUBLISHERS = ROOT / "redis"
MODES = ("default", "off", "id")


class AnswerCutter:
    """A proxy that, once armed, swallows the answer to the next request with `marker` (lower case)
    in it, and closes the connection."""

    def __init__(self, target: int, marker: bytes = b"fcall"):
        self.target = target
        self.marker = marker
        self.armed = False
        self._tasks: set[asyncio.Task] = set()

    async def start(self) -> "AnswerCutter":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader, writer) -> None:
        # A task of our own: asyncio reports the cancellation of those that it makes for a handler.
        task = asyncio.create_task(self._relay(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, reader, writer) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        cut = asyncio.Event()

        async def up():
            while data := await reader.read(64 << 10):
                # A request may come in several pieces; the marker is not cut in two by any of these
                # clients.
                if self.armed and self.marker in data.lower():
                    self.armed = False
                    cut.set()
                server_writer.write(data)

        async def down():
            while data := await server_reader.read(64 << 10):
                if cut.is_set():
                    return
                writer.write(data)

        # Whichever side ends first ends both.
        ways = {asyncio.create_task(up()), asyncio.create_task(down())}
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for side in (writer, server_writer):
                side.close()


def read() -> list[dict]:
    return tomllib.loads((PUBLISHERS / "publishers.toml").read_text())["client"]


class Programs:
    """Installs the publishers, and knows how each is started."""

    def __init__(self, cache: Path):
        self.cache = cache
        self.installation = Installation(cache)

    def install(self, entries: list[dict]) -> None:
        runtimes = {entry["runtime"] for entry in entries}
        as_clients = [self._client(entry) for entry in read()]
        if "node" in runtimes:
            # Platform packages of valkey-glide are optional dependencies, so they come without
            # scripts.
            self.installation.install_node("redis-node", [c for c in as_clients if c.runtime == "node"])
        self.installation.install([self._client(entry) for entry in entries if entry["runtime"] in ("python", "rust")])
        if "go" in runtimes:
            folder = self._copy("go")
            _run(["go", "mod", "tidy"], folder)
            _run(["go", "build", "-o", self.cache / "go-publisher", "."], folder)
        if "java" in runtimes:
            folder = self._copy("java")
            quiet = ["mvn", "--quiet", "--batch-mode"]
            _run([*quiet, "compile", "dependency:copy-dependencies", "-DoutputDirectory=libraries"], folder)

    def command(self, entry: dict, port: int, mode: str) -> tuple[list, dict]:
        name, environment = entry["id"], processes.environment()
        if entry["runtime"] == "python":
            environment["PYTHONPATH"] = f"{self.cache / 'python' / name}:{PUBLISHERS}"
            return [sys.executable, PUBLISHERS / f"{name}.py", port, mode], environment
        if entry["runtime"] == "node":
            folder = self.cache / "redis-node"
            for source in ("common.mjs", f"{name}.mjs"):
                shutil.copyfile(PUBLISHERS / source, folder / source)
            return ["node", folder / f"{name}.mjs", port, mode], environment
        if entry["runtime"] == "rust":
            return [self.cache / "rust" / "release" / name, port, mode], environment
        if entry["runtime"] == "go":
            return [self.cache / "go-publisher", port, mode], environment
        folder = self.cache / "redis-java"
        return ["java", "-cp", f"{folder / 'target/classes'}:{folder / 'libraries'}/*", name, port, mode], environment

    def _client(self, entry: dict) -> Client:
        return Client(entry["id"], entry["label"], entry["runtime"], "redis", entry.get("packages", []))

    def _copy(self, runtime: str) -> Path:
        target = self.cache / f"redis-{runtime}"
        shutil.copytree(PUBLISHERS / runtime, target, dirs_exist_ok=True)
        return target


class Server:
    """A Redis and the instance that has loaded livebridge's functions into it."""

    def __init__(self, binary: Path, folder: Path):
        self.port = processes.free_port()
        command = ["redis-server", "--port", self.port, "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        self.process = processes.start(command, stdout=(folder / "log").open("wb"), stderr=subprocess.STDOUT)
        for _ in range(200):
            if self.cli("PING") == "PONG":
                break
            processes.time.sleep(0.05)
        self.instance = servers.Instance(binary, folder, "reader", ["--redis-url", f"redis://127.0.0.1:{self.port}"])

    def cli(self, *words: str) -> str:
        done = subprocess.run(["redis-cli", "-p", str(self.port), *words], capture_output=True)
        return done.stdout.decode("utf-8", "replace").strip()

    def stop(self) -> None:
        self.instance.kill()
        processes.end(self.process)


async def try_out(programs: Programs, entry: dict, server: Server, cutter: AnswerCutter, mode: str) -> dict:
    """Publishes once through a cut: how often the message stands in the history, and what the
    program was told."""
    server.cli("FLUSHALL")
    command, environment = programs.command(entry, cutter.port, mode)
    process = processes.start(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True)
    try:
        first = await asyncio.to_thread(process.stdout.readline)
        if first.strip() != "ready":
            raise RuntimeError(f"{entry['id']}: {first}{process.stderr.read()[-2000:]}")
        cutter.armed = True
        process.stdin.write("\n")
        process.stdin.flush()
        said = await asyncio.wait_for(asyncio.to_thread(_outcome, process), 60)
        history = processes.http(server.instance.url("/channels/live/messages"))[2]
        stands = [message["data"] for message in json.loads(history)["messages"]].count("second")
        return {"stands": stands, "said": said.strip(), "cut": not cutter.armed}
    finally:
        cutter.armed = False
        processes.end(process)


def _outcome(process) -> str:
    """The program's last word; valkey-glide logs to the standard output before it."""
    for line in process.stdout:
        if line.startswith(("answered", "raised")):
            return line
    return "nothing"


async def measure(programs: Programs, entries: list[dict], binary: Path) -> dict:
    results: dict = {}
    with tempfile.TemporaryDirectory(prefix="livebridge-publishers-") as folder:
        server = Server(binary, Path(folder))
        cutter = AnswerCutter(server.port)
        try:
            await cutter.start()
            for entry in entries:
                for mode in MODES if entry.get("setting") else ("default", "id"):
                    found = await try_out(programs, entry, server, cutter, mode)
                    results.setdefault(entry["id"], {})[mode] = found
                    print(f"  {entry['id']}, {mode}: {found}", file=sys.stderr)
        finally:
            await cutter.stop()
            server.stop()
    return results


def _word(found: dict) -> str:
    if not found["cut"]:
        return "not cut"
    times = {0: "not there", 1: "once", 2: "**twice**"}.get(found["stands"], f"{found['stands']} times")
    return f"{times}, {'the call answers' if found['said'] == 'answered' else 'the call raises'}"


def render(entries: list[dict], results: dict) -> str:
    lines = ["| client | as it comes | with the setting | setting | with an `id` |", "| --- | --- | --- | --- | --- |"]
    for entry in entries:
        found = results.get(entry["id"])
        if not found:
            continue
        off = _word(found["off"]) if "off" in found else "–"
        row = [entry["label"], _word(found["default"]), off, entry.get("setting", "none needed"), _word(found["id"])]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def write(text: str) -> None:
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def _run(command: list, folder: Path) -> None:
    print("installing:", " ".join(str(part) for part in command[:3]), "…", file=sys.stderr)
    subprocess.run([str(part) for part in command], cwd=folder, check=True, stdin=subprocess.DEVNULL)


def main(options) -> int:
    """`scripts/clients redis`."""
    entries = [entry for entry in read() if not options.names[1:] or entry["id"] in options.names[1:]]
    programs = Programs(options.cache)
    programs.install(entries)
    results = asyncio.run(measure(programs, entries, options.binary.resolve()))
    kept = options.cache / "publishers.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    known.update(results)
    kept.write_text(json.dumps(known, indent=1))
    print(render(entries, results))
    if options.write:
        write(render(read(), known))
    return 0

"""What HTTP libraries do when the connection is cut after livebridge has stored a message and
before its answer arrives: those that repeat a POST by themselves publish it twice, unless it has an
`Idempotency-Key`."""

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
from .publishers import AnswerCutter

BEGIN, END = "<!-- made by scripts/clients http: begin -->", "<!-- made by scripts/clients http: end -->"
PAGE = DOCS / "publishing-clients.md"
PROGRAMS = ROOT / "http"
MODES = ("plain", "key")


def read() -> list[dict]:
    return tomllib.loads((PROGRAMS / "publishers.toml").read_text())["client"]


def _client(entry: dict) -> Client:
    return Client("http-" + entry["library"], entry["label"], entry["runtime"], "http", entry.get("packages", []))


def install(installation: Installation, entries: list[dict]) -> None:
    runtimes = {entry["runtime"] for entry in entries}
    if "node" in runtimes:
        installation.install_node("http-node", [_client(entry) for entry in read() if entry["runtime"] == "node"])
        shutil.copyfile(PROGRAMS / "publish.mjs", installation.cache / "http-node" / "publish.mjs")
    installation.install([_client(entry) for entry in entries if entry["runtime"] == "python"])
    if "go" in runtimes:
        subprocess.run(["go", "build", "-o", str(installation.cache / "http-go"), "."], cwd=PROGRAMS / "go", check=True)
    if "java" in runtimes:
        subprocess.run(["javac", "-d", str(installation.cache / "http-java"), str(PROGRAMS / "Publish.java")], check=True)
    if "maven" in runtimes:
        folder = installation.cache / "http-okhttp"
        shutil.copytree(PROGRAMS / "okhttp", folder, dirs_exist_ok=True)
        goals = ["compile", "dependency:copy-dependencies", "-DoutputDirectory=libraries"]
        subprocess.run(["mvn", "--quiet", "--batch-mode", *goals], cwd=folder, check=True)


def command(cache: Path, entry: dict, url: str, mode: str) -> tuple[list, dict]:
    library, runtime = entry["library"], entry["runtime"]
    path = str(cache / "python" / f"http-{library}")
    commands = {
        "node": ["node", cache / "http-node" / "publish.mjs", library, url, mode],
        "python": [sys.executable, PROGRAMS / "publish.py", library, url, mode],
        "go": [cache / "http-go", url, mode],
        "java": ["java", "-cp", cache / "http-java", "Publish", library, url, mode],
        "maven": ["java", "-cp", f"{cache / 'http-okhttp' / 'target/classes'}:{cache / 'http-okhttp' / 'libraries'}/*",
                  "PublishOkHttp", url, mode],
        "shell": ["bash", PROGRAMS / "publish.sh", url, mode],
    }
    return commands[runtime], processes.environment(PYTHONPATH=path, PYTHONDONTWRITEBYTECODE="1")


async def try_out(cache: Path, entry: dict, instance: servers.Instance, mode: str, number: int) -> dict:
    """The answer to message `number` is swallowed: how often it stands in the history, and what the
    program was told."""
    channel = f"{entry['library']}-{mode}-{number}"
    cutter = await AnswerCutter(instance.port, marker=f"n{number}".encode()).start()
    cutter.armed = True
    url = f"http://127.0.0.1:{cutter.port}/publish?channel={channel}"
    line, environment = command(cache, entry, url, mode)
    try:
        process = processes.start(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        said = await asyncio.to_thread(lambda: process.communicate(timeout=60)[0].splitlines())
        processes.end(process)
        body = processes.http(instance.url(f"/channels/{channel}/messages"))[2]
        stands = [message["data"] for message in json.loads(body)["messages"]].count(f"n{number}")
        told = said[number] if len(said) == 3 else "?"
        return {"stands": stands, "said": told, "cut": not cutter.armed}
    finally:
        await cutter.stop()


async def measure(cache: Path, binary: Path, entries: list[dict]) -> dict:
    results: dict = {}
    with tempfile.TemporaryDirectory(prefix="livebridge-publishers-") as folder:
        instance = servers.Instance(binary, Path(folder), "only", [])
        for entry in entries:
            for mode in MODES:
                for number in (0, 1):
                    found = await try_out(cache, entry, instance, mode, number)
                    results.setdefault(entry["library"], {})[f"{mode}-{number}"] = found
                    print(f"  {entry['library']}, {mode}, {number}: {found}", file=sys.stderr)
        instance.kill()
    return results


def _word(found: dict) -> str:
    if not found["cut"]:
        return "not cut"
    times = {1: "once", 2: "**twice**"}.get(found["stands"], f"{found['stands']} times")
    return f"{times}, {'answered' if found['said'] == '200' else 'raised'}"


def render(entries: list[dict], results: dict) -> str:
    lines = ["| library | new connection | kept connection | new, with a key | kept, with a key |",
             "| --- | --- | --- | --- | --- |"]
    for entry in entries:
        if found := results.get(entry["library"]):
            words = [_word(found[f"{mode}-{number}"]) for mode in MODES for number in (0, 1)]
            lines.append(f"| {entry['label']} | {' | '.join(words)} |")
    return "\n".join(lines)


def main(options) -> int:
    """`scripts/clients http`."""
    entries = [entry for entry in read() if not options.names[1:] or entry["library"] in options.names[1:]]
    installation = Installation(options.cache)
    install(installation, entries)
    results = asyncio.run(measure(options.cache, options.binary.resolve(), entries))
    text = render(entries, results)
    print(text)
    if options.write:
        page = PAGE.read_text()
        before, _, rest = page.partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}")
    return 0

"""The Centrifuge SDKs against an instance: what the scenarios of all clients do not see, such as the codes of errors, tokens
that are renewed, and a server that falls silent. The checks are programs of their own, in sdk/."""

import json
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import processes, servers
from .catalogue import ROOT, Client, Installation

# The fewest checks that a program must have reported: one that ends early has not passed.
FEWEST = 13
_SETTINGS = ["--token-secret", servers.SECRET, "--token-leeway-seconds", 0, "--max-message-bytes", 1 << 16]


def is_sdk(client: Client) -> bool:
    """Whether a client has checks of its own."""
    return client.transport == "centrifuge" and client.runtime in ("node", "python") and not client.keyed


def check(binary: Path, clients: list[Client], installation: Installation) -> int:
    """Runs the checks of the SDKs among the clients, at the same time; returns how many failed."""
    programs = [(client, form) for client in clients if is_sdk(client) for form in _forms(client)]
    began = time.monotonic()
    with ThreadPoolExecutor() as pool:
        failures = sum(pool.map(lambda program: _check(binary, *program, installation), programs))
    if programs:
        print(f"all SDKs: {time.monotonic() - began:.0f} s")
    return failures


def _forms(client: Client) -> list[str]:
    """The forms of the protocol that an SDK speaks; that for Python has only this one."""
    return ["json", "protobuf"] if client.runtime == "node" else ["json"]


def _check(binary: Path, client: Client, form: str, installation: Installation) -> int:
    with tempfile.TemporaryDirectory(prefix="livebridge-sdk-") as folder:
        results = _run(binary, Path(folder), client, form, installation)
    name = f"{client.id} ({form})"
    wrong = [result for result in results if not result["ok"]]
    for result in wrong:
        print(f"{name}: {result['check']}: {result['detail']}", file=sys.stderr)
    if len(results) < FEWEST:
        print(f"{name}: only {len(results)} checks were reported", file=sys.stderr)
        wrong.append({})
    print(f"{name}: {len(results) - len(wrong)} checks passed, {len(wrong)} failed")
    return len(wrong)


def _run(binary: Path, folder: Path, client: Client, form: str, installation: Installation) -> list[dict]:
    redis = servers.Redis(folder)
    redis.start()
    settings = ["--redis-url", redis.url, *_SETTINGS]
    often = [*settings, "--heartbeat-seconds", 1]
    # The second one is there to be killed, the third one to be stopped, and the fourth one for a client that does not read
    # and therefore answers no pings.
    instances = [
        servers.Instance(binary, folder, "one", often),
        servers.Instance(binary, folder, "two", often),
        servers.Instance(binary, folder, "three", [*often, "--max-frames-per-second", 50, "--drain-seconds", 1]),
        servers.Instance(binary, folder, "four", [*settings, "--heartbeat-seconds", 60, "--log-messages", 16]),
    ]
    try:
        urls = [f"ws://127.0.0.1:{instance.port}/connection/websocket" for instance in instances]
        pids = [instance.process.pid for instance in instances]
        setup = {
            "url": urls[0],
            "http": instances[0].url(""),
            "pid": pids[0],
            "killed": {"url": urls[1], "pid": pids[1]},
            "stopped": {"url": urls[2], "pid": pids[2]},
            "narrow": {"url": urls[3], "http": instances[3].url("")},
            "redis_port": redis.port,
            "secret": servers.SECRET,
            "form": form,
            "map_example": _map_example(),
        }
        command, environment = installation.sdk_command(client, json.dumps(setup))
        program = processes.start(command, env=environment, stdout=processes.subprocess.PIPE)
        output, _ = program.communicate(timeout=240)
        return [json.loads(line) for line in output.decode().splitlines() if line.startswith("{")]
    finally:
        for instance in instances:
            instance.kill()
        redis.stop()


def _map_example() -> str:
    """The lines of docs/centrifuge.md that keep a map."""
    section = (ROOT.parents[1] / "docs" / "centrifuge.md").read_text().partition("## Map subscriptions")[2]
    return re.search(r"```js\n(.*?)```", section, re.DOTALL)[1]

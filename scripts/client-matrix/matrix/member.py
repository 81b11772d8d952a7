"""One client under test: its program, its proxy, and what it has received."""

import json
import re
import signal
import subprocess
import threading

from . import processes
from .catalogue import Client, Installation
from .cutter import Cutter

# By transport. An SDK names its channel by a command.
ADDRESSES = {
    "ws": "ws://127.0.0.1:{port}/ws?channel=live",
    "sse": "http://127.0.0.1:{port}/events?channel=live",
    "centrifuge": "ws://127.0.0.1:{port}/connection/websocket",
}
_NUMBERED = re.compile(r"m(\d+)\b")


class Member:
    """A client's program while it runs. With `lines` it is its example in docs/client-examples.md."""

    def __init__(self, client: Client, lines: str | None, cutter: Cutter):
        self.client = client
        self.lines = lines
        self.cutter = cutter
        self.before = 0
        self.events: list[dict] = []
        self.gave_up: str | None = None
        self.process: subprocess.Popen | None = None

    def start(self, installation: Installation, query: str, token_url: str | None) -> None:
        url = ADDRESSES[self.client.transport].format(port=self.cutter.port)
        url += query if "?" in url else query.replace("&", "?", 1)
        command, environment = installation.command(self.client, url, self.lines)
        if token_url:
            environment["TOKEN_URL"] = token_url
        self.process = processes.start(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._read_errors, daemon=True).start()

    def stop(self) -> None:
        if self.process:
            processes.end(self.process, signal.SIGTERM, 5)

    def _read(self) -> None:
        for line in self.process.stdout:
            text = line.decode("utf-8", "replace").rstrip("\n")
            if self.lines is not None:
                self.events.append({"event": "message", "data": text})
                continue
            try:
                event = json.loads(text)
            except ValueError:
                event = {"event": "output", "data": text}
            self.events.append(event)
            if event["event"] == "closed" and not self.gave_up:
                self.gave_up = str(event.get("detail") or event.get("code") or "closed")

    def _read_errors(self) -> None:
        text = self.process.stderr.read().decode("utf-8", "replace")
        self.process.wait()
        if not self.gave_up:
            self.gave_up = (text.strip().splitlines() or ["ended"])[-1]

    # What it has received.

    def payloads(self) -> list[str | bytes]:
        """What the program's handler of messages got, in order."""
        kinds = {"message": "data", "binary": "data"}
        found = []
        for event in list(self.events):
            if event["event"] in kinds and event.get("type") in (None, "", "message"):
                data = event.get("data")
                found.append((event["event"], data))
        return found

    def numbers(self) -> list[int]:
        """The numbers of the messages m1, m2 …"""
        matches = (_NUMBERED.match(data or "") for kind, data in self.payloads() if kind == "message")
        return [int(match[1]) for match in matches if match]

    def came_back(self) -> bool:
        return self.cutter.accepted(self.before) > 0

    def asked_with(self) -> str:
        """How it said where to go on when it was let in again."""
        if self.client.transport == "centrifuge":
            return "a command"
        for attempt in self.cutter.attempts[self.before :]:
            if not attempt.accepted:
                continue
            if attempt.header("Last-Event-ID"):
                return "`Last-Event-ID`"
            parameter = re.search(r"[?&](lastEventId|evs_last_event_id|since)=[^& ]", attempt.target)
            if parameter:
                return f"`?{parameter[1]}=`"
        return "nothing"

"""A real Redis and real livebridge instances on free ports, and the tokens that an instance
takes."""

import base64
import hashlib
import hmac
import json
import signal
import time
from pathlib import Path

from . import processes

SECRET = "a secret of the client matrix for its own instances only"
CHANNEL = "live"
KEYED_CHANNEL = "sheet:live"
_RULES = """
[[channel]]
match = "*:room"
presence = true
join_leave = true

[[channel]]
match = "*:map:*"
keyed = true

[[channel]]
match = "sheet:*"
keyed = { keys = 10000, bytes = 16777216 }

[[channel]]
match = "*"
history = { messages = 5000, age = "1h" }
"""


class Redis:
    """A redis-server that keeps every write, so that a restart of it loses nothing."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.port = processes.free_port()
        self.process = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process = processes.start(
            ["redis-server", "--port", self.port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes",
             "--appendfsync", "always", "--dir", self.folder],
            stdout=(self.folder / "redis.log").open("ab"), stderr=processes.subprocess.STDOUT,
        )
        deadline = time.monotonic() + 10
        while True:
            try:
                with processes.socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                    connection.sendall(b"PING\r\n")
                    if connection.recv(64).startswith(b"+PONG"):
                        return
            except OSError:
                pass
            if time.monotonic() > deadline:
                raise RuntimeError("redis-server does not answer:\n" + processes.read_tail(self.folder / "redis.log"))
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process:
            processes.end(self.process, signal.SIGTERM)


class Instance:
    """A livebridge process."""

    def __init__(self, binary: Path, folder: Path, name: str, arguments: list, port: int | None = None):
        self.port = port or processes.free_port()
        self.log = folder / f"{name}.log"
        rules = folder / "rules.toml"
        rules.write_text(_RULES)
        command = [binary, "--listen", f"127.0.0.1:{self.port}", "--instance-name", name, "--rules", rules, *arguments]
        # Its own working directory: a livebridge.toml or .env of the caller's must not be read.
        self.process = processes.start(command, cwd=folder, stdout=self.log.open("wb"), stderr=processes.subprocess.STDOUT)
        try:
            processes.wait_for_http(self.url("/readyz"), 200, process=self.process)
        except RuntimeError as error:
            raise RuntimeError(f"{error}\n{processes.read_tail(self.log)}") from error

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def publish(self, payload: bytes, headers: dict | None = None, channel: str = CHANNEL, key: str | None = None) -> int:
        """Publishes; returns the status."""
        # No content type of urllib's own: a form would be no message.
        headers = {"Content-Type": "application/octet-stream"} | (headers or {})
        query = f"channel={channel}" + (f"&key={key}" if key else "")
        return processes.http(self.url(f"/publish?{query}"), payload, headers)[0]

    def drain(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        processes.end(self.process)


def version(binary: Path) -> str:
    """What the binary says of itself."""
    output = processes.subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    return output.strip()


def token(seconds: float, **claims) -> str:
    """A token (HS256) for the test's own secret."""

    def part(data: bytes) -> bytes:
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    content = {"exp": int(time.time() + seconds), "livebridge": {"subscribe": ["*"], "publish": ["*"]}} | claims
    text = part(b'{"alg":"HS256","typ":"JWT"}') + b"." + part(json.dumps(content).encode())
    return (text + b"." + part(hmac.digest(SECRET.encode(), text, hashlib.sha256))).decode()

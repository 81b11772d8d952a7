"""Child processes: each in a process group of its own, and all of them ended when the program
ends."""

import asyncio
import atexit
import os
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

_running: set[subprocess.Popen] = set()

# Settings of the caller's environment must not reach the programs that are tested.
_PRIVATE = ("LIVEBRIDGE_", "REDIS_URL", "LISTEN")


def environment(**more: str) -> dict[str, str]:
    """The caller's environment without livebridge's settings and without proxies, and `more`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE)}
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        kept.pop(name, None)
    return kept | more


def start(command: list, **options) -> subprocess.Popen:
    """Starts a program in a process group of its own."""
    options.setdefault("stdin", subprocess.DEVNULL)
    options.setdefault("env", environment())
    process = subprocess.Popen([str(part) for part in command], start_new_session=True, **options)
    _running.add(process)
    return process


def end(process: subprocess.Popen, signal_number: int = signal.SIGKILL, seconds: float = 10) -> None:
    """Signals a program, and kills what is left of its process group."""
    if process.poll() is None:
        process.send_signal(signal_number)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    _running.discard(process)


def end_all() -> None:
    """Kills every program that is still running."""
    for process in list(_running):
        end(process)


def end_all_at_exit() -> None:
    """Also when the caller is told to stop."""
    atexit.register(end_all)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: exit(1))


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, below those that the system gives to outgoing
    connections: one of them may be taken before the program that is to listen has started."""
    while True:
        port = random.randrange(15000, 32000)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def http(url: str, body: bytes | None = None, headers: dict | None = None, seconds: float = 10):
    """Sends a request; returns the status, the headers and the body, whatever the status is."""
    request = urllib.request.Request(url, data=body, headers=headers or {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=seconds) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def wait_for_http(url: str, status: int, seconds: float = 15, process: subprocess.Popen | None = None) -> None:
    """Waits until a URL answers with a status."""
    deadline = time.monotonic() + seconds
    seen = "nothing"
    while time.monotonic() < deadline:
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"{process.args[0]} ended with {process.returncode}")
        try:
            seen = http(url, seconds=2)[0]
            if seen == status:
                return
        except OSError as error:
            seen = error
        time.sleep(0.05)
    raise RuntimeError(f"{url}: {seen} instead of {status} within {seconds} s")


async def eventually(condition, seconds: float) -> bool:
    """Waits until a condition holds; says whether it did in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True


def read_tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])

"""What is checked of each proxy. Every check returns a word that says what was seen, and raises
where the page's promise does not hold."""

import re
import socket
import threading
import time

from . import wire

PROMPT = 1.0
CHANNEL = "live"
# Spellings under which an instance, or some proxy on its way, may take a path for /metrics.
METRICS = ["/metrics", "/metrics/", "/metrics//", "//metrics", "/metrics?a=b", "/metrics/?a=b", "/%6Detrics", "/./metrics",
           "/x/../metrics", "/metrics%2F", "/metrics#x"]


class Failure(Exception):
    """A promise that does not hold."""


def publish(port: int, text: str, key: str | None = None) -> int:
    lines = [f"Idempotency-Key: {key}"] if key else []
    return wire.ask(port, f"/publish?channel={CHANNEL}", *lines, method="POST", body=text.encode())[0]


def at_once(port: int, streams: dict[str, wire.Stream], text: str) -> str:
    """A message reaches the event stream and the WebSocket within a second."""
    began = time.monotonic()
    status = publish(port, text)
    if status != 200:
        raise Failure(f"a publish was answered {status}")
    for kind, stream in streams.items():
        if stream.wait_for(text.encode(), began + PROMPT - time.monotonic()) is None:
            how = "had ended" if stream.ended else "got nothing"
            raise Failure(f"{kind}: {how} within {PROMPT} s; status {stream.status}; last bytes {stream.received[-120:]!r}")
    return f"{(time.monotonic() - began) * 1000:.0f} ms"


def connect(port: int) -> dict[str, wire.Stream]:
    streams = {
        "event stream": wire.Stream(port, f"/events?channel={CHANNEL}", "sse"),
        "WebSocket": wire.Stream(port, f"/ws?channel={CHANNEL}&format=json", "ws"),
    }
    for kind, stream in streams.items():
        if stream.wait_for(b"epoch", 20) is None:
            raise Failure(f"{kind}: no welcome within 20 s; status {stream.status}; {stream.received[-200:]!r}")
    return streams


def silence(streams: dict[str, wire.Stream], seconds: float) -> None:
    """Reads for a time in which nobody publishes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for kind, stream in streams.items():
            stream.read(0.2)
            if stream.ended:
                raise Failure(f"{kind}: ended after {seconds - (end - time.monotonic()):.0f} s of silence")


def metrics_closed(port: int, instance: int) -> str:
    if wire.ask(instance, "/metrics")[0] != 200:
        raise Failure("the instance itself has no /metrics")
    seen = set()
    for target in METRICS:
        status, answer = wire.ask(port, target)
        if b"livebridge_" in answer:
            raise Failure(f"{target} shows the metrics")
        seen.add(status)
    return ", ".join(str(status) for status in sorted(seen))


class Recorder:
    """An HTTP server in the place of both instances that keeps the heads of requests."""

    def __init__(self, ports: list[int]):
        self.heads: list[bytes] = []
        self.listeners = []
        for port in ports:
            listener = socket.create_server(("127.0.0.1", port))
            self.listeners.append(listener)
            threading.Thread(target=self._serve, args=(listener,), daemon=True).start()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        head = b""
        with connection:
            connection.settimeout(10)
            try:
                while b"\r\n\r\n" not in head:
                    data = connection.recv(8192)
                    if not data:
                        return
                    head += data
                self.heads.append(head)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n")
            except OSError:
                return

    def close(self) -> None:
        for listener in self.listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()


def headers(port: int, recorder: Recorder) -> str:
    """What a client claims about its address does not get through; Host does, with its port."""
    deadline = time.monotonic() + 15
    while True:
        status, answer = wire.ask(port, "/marked", "X-Forwarded-For: 203.0.113.7", "Forwarded: for=203.0.113.7",
                                  "X-Request-Id: claimed")
        if status == 200:
            break
        if time.monotonic() > deadline:
            raise Failure(f"a request was answered {status} by the proxy: {answer[:200]!r}")
        time.sleep(0.3)
    head = next(head for head in reversed(recorder.heads) if b"/marked" in head.split(b"\r\n")[0]).decode("latin-1")
    found = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in head.split("\r\n")[1:] if line)}
    if "203.0.113.7" in head:
        raise Failure(f"a claimed address gets through: {head!r}")
    if found.get("x-forwarded-for") != "127.0.0.1":
        raise Failure(f"X-Forwarded-For is {found.get('x-forwarded-for')!r}")
    if found.get("host") != f"127.0.0.1:{port}":
        raise Failure(f"Host is {found.get('host')!r}")
    request_id = found.get("x-request-id", "none")
    return "request id of its own" if request_id not in ("claimed", "none") else f"request id {request_id}"


class Resuming(threading.Thread):
    """A client that comes back with its position for as long as it is wanted."""

    def __init__(self, port: int, kind: str):
        super().__init__(daemon=True)
        self.port, self.kind = port, kind
        self.numbers: list[int] = []
        self.position: str | None = None
        self.connections = 0
        self.wanted = True

    def run(self) -> None:
        while self.wanted:
            try:
                self._listen()
            except OSError:
                pass
            time.sleep(0.1)

    def _listen(self) -> None:
        since = f"&since={self.position}" if self.position else ""
        path = "/ws" if self.kind == "ws" else "/events"
        form = "&format=json" if self.kind == "ws" else ""
        stream = wire.Stream(self.port, f"{path}?channel={CHANNEL}{form}{since}", self.kind)
        taken = 0
        while self.wanted and not stream.ended:
            stream.read(0.2)
            if stream.status not in (0, 101, 200):
                break
            taken = self._take(stream, taken)
        self.connections += taken > 0
        stream.close()

    def _take(self, stream: wire.Stream, taken: int) -> int:
        """Takes whole messages out of what has come; the last byte of each is known by both
        forms."""
        # Latin-1 keeps the count of bytes; what is looked for is ASCII.
        text = stream.body[taken:].decode("latin-1")
        if self.kind == "ws":
            pattern = re.compile(r'\{"event":"welcome".*?"epoch":"(\w+)","offset":(\d+)[^]]*\]\}|'
                                 r'"epoch":"(\w+)","offset":(\d+),"data":"n(\d+)"\}')
        else:
            pattern = re.compile(r"id: (\w+):(\d+)\nevent: livebridge:welcome\n|id: (\w+):(\d+)\ndata: n(\d+)\n")
        end = 0
        for match in pattern.finditer(text):
            welcome = match[1] is not None
            self.position = f"{match[1]}:{match[2]}" if welcome else f"{match[3]}:{match[4]}"
            if not welcome:
                self.numbers.append(int(match[5]))
            end = match.end()
        return taken + end


def resume(port: int, stage, count: int = 60) -> str:
    """Both instances are restarted one after the other while messages are published through the
    proxy."""
    clients = [Resuming(port, "sse"), Resuming(port, "ws")]
    for client in clients:
        client.start()
    if not _until(lambda: all(client.position for client in clients), 10):
        raise Failure("a client that resumes did not connect")
    statuses: list[int] = []
    restarts = threading.Thread(target=stage.restart_both, daemon=True)
    restarts.start()
    number = 0
    while restarts.is_alive() or number < count:
        number += 1
        deadline = time.monotonic() + 20
        while True:
            try:
                status = publish(port, f"n{number}", f"run-{port}-{number}")
            except OSError:
                status = 0
            statuses.append(status)
            if status == 200:
                break
            if time.monotonic() > deadline:
                raise Failure(f"message {number} could not be published: {status}")
            time.sleep(0.1)
        time.sleep(0.05)
    expected = list(range(1, number + 1))
    _until(lambda: all(client.numbers == expected for client in clients), 15)
    for client in clients:
        client.wanted = False
    for client in clients:
        client.join()
        if client.numbers != expected:
            missing = sorted(set(expected) - set(client.numbers))
            raise Failure(f"{client.kind}: {len(client.numbers)} of {number}, missing {missing[:10]}")
    again = len(statuses) - statuses.count(200)
    refused = sorted({status for status in statuses if status != 200})
    return f"{number} messages" + (f", {again} publishes again after {refused}" if again else ", each published at once")


def _until(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True



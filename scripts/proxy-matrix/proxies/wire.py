"""Bare sockets that speak as much HTTP and WebSocket as the checks need: nothing normalises a path
or hides a delay."""

import base64
import os
import socket
import time


def ask(port: int, target: str, *lines: str, method: str = "GET", body: bytes = b"", seconds: float = 10) -> tuple[int, bytes]:
    """Sends one request with exactly this target; returns the status and all that came."""
    with socket.create_connection(("127.0.0.1", port), seconds) as connection:
        connection.settimeout(seconds)
        head = [f"{method} {target} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Connection: close", *lines]
        if body:
            head.append(f"Content-Length: {len(body)}")
        connection.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + body)
        answer = b""
        try:
            while data := connection.recv(64 << 10):
                answer += data
        except (TimeoutError, ConnectionResetError):
            pass
    parts = answer.split(b" ", 2)
    return (int(parts[1]) if len(parts) > 2 and parts[0].startswith(b"HTTP/") else 0), answer


class Stream:
    """An open event stream or WebSocket; what arrives is kept as bytes."""

    def __init__(self, port: int, path: str, kind: str, *lines: str):
        self.kind = kind
        self.received = b""
        self.ended = False
        self.connection = socket.create_connection(("127.0.0.1", port), 5)
        if kind == "ws":
            key = base64.b64encode(os.urandom(16)).decode()
            lines += ("Connection: Upgrade", "Upgrade: websocket", f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13")
        else:
            # As browsers ask: a proxy that compresses does it here.
            lines += ("Accept: text/event-stream", "Accept-Encoding: gzip, deflate, br")
        head = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Origin: http://127.0.0.1:{port}", *lines]
        self.connection.sendall("\r\n".join(head).encode() + b"\r\n\r\n")

    def read(self, seconds: float) -> None:
        """Takes in what comes within a time; answers pings."""
        self.connection.settimeout(max(seconds, 0.001))
        try:
            data = self.connection.recv(64 << 10)
        except (TimeoutError, BlockingIOError):
            return
        except OSError:
            data = b""
        if not data:
            self.ended = True
        self.received += data
        if self.kind == "ws" and data.startswith(b"\x89\x00"):
            # A pong, masked with zeros.
            self.connection.sendall(b"\x8a\x80\x00\x00\x00\x00")

    def wait_for(self, text: bytes, seconds: float) -> float | None:
        """How long it took until a text had arrived; None if it did not."""
        began = time.monotonic()
        while text not in self.received:
            left = began + seconds - time.monotonic()
            if left <= 0 or self.ended:
                return None
            self.read(min(left, 1))
        return time.monotonic() - began

    @property
    def body(self) -> bytes:
        """What came after the head, without the framing of chunks. Notices the last chunk."""
        head, _, rest = self.received.partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" not in head.lower():
            return rest
        body = b""
        while True:
            size, separator, rest = rest.partition(b"\r\n")
            if not separator:
                return body
            length = int(size.split(b";")[0], 16)
            if length == 0:
                self.ended = True
                return body
            body += rest[:length]
            rest = rest[length + 2 :]

    @property
    def status(self) -> int:
        return int(self.received.split(b" ", 2)[1]) if self.received.startswith(b"HTTP/") else 0

    def close(self) -> None:
        self.connection.close()

"""A TCP proxy between one client and the instances: it resets, ends, refuses or holds connections
on demand, and records what the client asked for."""

import asyncio
import re
import socket
import struct

_HEAD_LIMIT = 64 << 10
# A close frame with code 1000, as a server sends it.
_CLOSE_1000 = b"\x88\x02\x03\xe8"
# The answer to a subscription of an SDK: in JSON, or in Protobuf, where it is field 6 after the id of the command.
_SUBSCRIBED = re.compile(rb'"subscribe":\{|\x08[\x01-\x7f]\x32')


def abort_with_reset(writer: asyncio.StreamWriter) -> None:
    """Closes a connection with RST instead of FIN."""
    linger = struct.pack("ii", 1, 0)
    try:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    except OSError:
        pass
    writer.transport.abort()


def _is_whole(response: bytes) -> bool:
    """Whether a refusal has arrived: the connection ends then, so that the next attempt has one of
    its own."""
    head, _, body = response.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return len(body) >= int(line.split(b":")[1])
    return False


def _without_reuse(request: bytes) -> bytes:
    """A request after which the connection ends, so that each request of a client is an attempt of
    its own."""
    if b"\r\nupgrade:" in request.lower():
        return request
    lines = [line for line in request.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([lines[0], b"Connection: close", *lines[1:]])


class Attempt:
    """A connection that the client opened."""

    def __init__(self):
        self.request = b""
        self.response = b""
        self.status = None
        self.body_seen = False
        # Of an SDK: whether its subscription was answered.
        self.subscribed = False
        self.client: asyncio.StreamWriter | None = None
        self.server: asyncio.StreamWriter | None = None

    @property
    def accepted(self) -> bool:
        """The instance let the client in, and has sent something or accepted a WebSocket. An SDK subscribes
        after that."""
        if b" /connection/websocket" in self.request:
            return self.subscribed
        return self.status == 101 or (self.status == 200 and self.body_seen)

    @property
    def target(self) -> str:
        return self.request.split(b"\r\n", 1)[0].decode("latin-1")

    def header(self, name: str) -> str | None:
        for line in self.request.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.strip().lower() == name.lower().encode():
                return value.strip().decode("latin-1")
        return None


class Cutter:
    """One proxy on a port of its own."""

    def __init__(self, target: int):
        self.target = target
        self.attempts: list[Attempt] = []
        self.answer_status: int | None = None
        self.open_gate = asyncio.Event()
        self.open_gate.set()
        self.reading = asyncio.Event()
        self.reading.set()
        self._server = None
        self._tasks: set[asyncio.Task] = set()

    async def start(self) -> "Cutter":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_HEAD_LIMIT)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        self._server.close()
        self.reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # What a test does.

    def reset(self) -> None:
        """Ends every connection with a TCP reset."""
        for attempt in self.attempts:
            for writer in (attempt.client, attempt.server):
                if writer and not writer.is_closing():
                    abort_with_reset(writer)

    def finish(self) -> None:
        """Ends every connection as a server does that has nothing more to say."""
        for attempt in self.attempts:
            writer = attempt.client
            if not writer or writer.is_closing():
                continue
            if attempt.status == 101:
                writer.write(_CLOSE_1000)
            elif b"transfer-encoding: chunked" in attempt.response.lower():
                writer.write(b"0\r\n\r\n")
            if attempt.server:
                attempt.server.transport.abort()
            writer.close()

    def accepted(self, since: int = 0) -> int:
        """How many connections an instance let in, of those after the first `since`."""
        return sum(attempt.accepted for attempt in self.attempts[since:])

    # What it does by itself.

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        attempt = Attempt()
        attempt.client = writer
        try:
            attempt.request = await reader.readuntil(b"\r\n\r\n")
            # A browser asks for a page first, which is no attempt to subscribe.
            if any(path in attempt.request for path in (b" /events?", b" /ws?", b" /connection/websocket")):
                self.attempts.append(attempt)
            if self.answer_status is not None:
                await self._answer(attempt, writer)
                return
            await self.open_gate.wait()
            await self._relay(attempt, reader, writer)
        except ConnectionResetError:
            # What one side has seen, the other is to see.
            abort_with_reset(writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        except asyncio.CancelledError:
            if task.cancelling() and not self._server.is_serving():
                return
            raise
        finally:
            self._tasks.discard(task)
            for side in (attempt.client, attempt.server):
                if side:
                    side.close()

    async def _answer(self, attempt: Attempt, writer: asyncio.StreamWriter) -> None:
        """Answers in the instances' place, as a load balancer does that reaches none of them."""
        attempt.status = self.answer_status
        body = b"no instance\n"
        head = f"HTTP/1.1 {attempt.status} Refused\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
        writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
        await writer.drain()

    async def _relay(self, attempt: Attempt, reader, writer) -> None:
        # A small receive buffer: a client that does not read is felt by the instance soon.
        upstream = socket.socket()
        upstream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        upstream.setblocking(False)
        await asyncio.get_running_loop().sock_connect(upstream, ("127.0.0.1", self.target))
        server_reader, attempt.server = await asyncio.open_connection(sock=upstream, limit=64 << 10)
        attempt.server.write(_without_reuse(attempt.request))
        up = asyncio.create_task(self._up(reader, attempt.server))
        self._tasks.add(up)
        try:
            await self._down(attempt, server_reader, writer)
        finally:
            up.cancel()
            self._tasks.discard(up)

    async def _up(self, reader, writer) -> None:
        try:
            while data := await reader.read(64 << 10):
                writer.write(data)
                await writer.drain()
            # The client has gone. An instance that is not told would go on for ever.
            writer.transport.abort()
        except OSError:
            pass

    async def _down(self, attempt: Attempt, reader, writer) -> None:
        while True:
            await self.reading.wait()
            data = await reader.read(64 << 10)
            await self.reading.wait()
            if not data:
                return
            if attempt.status not in (101, 200):
                attempt.response += data
                head, separator, rest = attempt.response.partition(b"\r\n\r\n")
                if separator:
                    attempt.status = int(head.split(b" ", 2)[1])
                    attempt.body_seen = bool(rest)
            else:
                attempt.body_seen = True
                attempt.subscribed |= bool(_SUBSCRIBED.search(data))
            writer.write(data)
            await writer.drain()
            if attempt.status not in (None, 101, 200) and _is_whole(attempt.response):
                return

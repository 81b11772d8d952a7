#!/usr/bin/env bash
# PyPI requests-sse 0.5.3 and aiohttp-sse-client2 0.3.0, and how long they wait before they
# reconnect
#
# Guess:  as long as `retry:` says (the standard's reconnection time), and longer only after
#         attempts that failed.
# Seen:   twice as long, after the first clean end already: they double the time before they wait.
#         Without a `retry:` the documented 5 seconds are 10.
source "$(dirname "$0")/common.bash"
pip_install requests-sse==0.5.3 requests==2.34.2 aiohttp-sse-client2==0.3.0 aiohttp==3.14.5

cat >"$folder/run.py" <<'PY'
import asyncio, socket, sys, threading, time

EVENT = b"retry: 1000\ndata: one\n\n"
times = []

def serve(listener):
    while True:
        connection, _ = listener.accept()
        times.append(time.monotonic())
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n"
                           b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(EVENT), EVENT))
        connection.close()

listener = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=serve, args=(listener,), daemon=True).start()
url = f"http://127.0.0.1:{listener.getsockname()[1]}/"

def with_requests():
    from requests_sse import EventSource
    with EventSource(url) as source:
        for _ in source:
            pass

async def with_aiohttp():
    from aiohttp_sse_client2.client import EventSource
    async with EventSource(url) as source:
        async for _ in source:
            pass

run = with_requests if sys.argv[1] == "requests-sse" else lambda: asyncio.run(with_aiohttp())
threading.Thread(target=run, daemon=True).start()
while len(times) < 2:
    time.sleep(0.05)
print(round(times[1] - times[0]))
PY
for name in requests-sse aiohttp-sse-client2; do
    expect "$name, told 'retry: 1000', waits (seconds)" "$(python3 "$folder/run.py" "$name")" 2
done

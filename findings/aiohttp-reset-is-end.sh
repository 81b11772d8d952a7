#!/usr/bin/env bash
# PyPI aiohttp 3.14.5, websockets 17.4: `async for` over a WebSocket that is reset
#
# Guess:  the loop raises, as that of websockets does: a reset is not the end of a conversation.
# Seen:   aiohttp's loop just ends; nothing but close_code (1006) and exception() tell it from a
#         clean close. A program that waits for an exception to reconnect takes a crash for the end.
source "$(dirname "$0")/common.bash"
pip_install aiohttp==3.14.5 websockets==17.4

cat >"$folder/run.py" <<'PY'
import asyncio, base64, hashlib, socket, struct, threading, time
import aiohttp, websockets.asyncio.client

def serve(listener):
    while True:
        connection, _ = listener.accept()
        request = connection.recv(4096)
        key = next(line.split(b": ")[1] for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                           b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n\x81\x03one")
        time.sleep(0.3)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

listener = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=serve, args=(listener,), daemon=True).start()
url = f"ws://127.0.0.1:{listener.getsockname()[1]}/"

async def with_aiohttp():
    async with aiohttp.ClientSession() as session, session.ws_connect(url) as client:
        async for _ in client:
            pass
        return f"ends, close_code {client.close_code}"

async def with_websockets():
    async with websockets.asyncio.client.connect(url) as client:
        async for _ in client:
            pass
    return "ends"

async def word(run):
    try:
        return await run()
    except Exception as error:
        return f"raises {type(error).__name__}"

async def main():
    print(f"aiohttp {await word(with_aiohttp)}; websockets {await word(with_websockets)}")

asyncio.run(main())
PY
expect "after a reset" "$(python3 "$folder/run.py")" "aiohttp ends, close_code 1006; websockets raises ConnectionClosedError"

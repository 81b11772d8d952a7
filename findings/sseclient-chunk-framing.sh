#!/usr/bin/env bash
# PyPI sseclient 0.0.27 with requests 2.34.2 (urllib3 2) and a response in chunks
#
# Guess:  requests takes the framing of chunks away, as for every other user of a response.
# Seen:   sseclient reads from the socket beneath it. The sizes of chunks are lines of the stream to
#         it (and ignored as unknown fields); the last chunk, an empty line of its own, is an event
#         without data; an event whose chunk border lies within a line loses its second half; and
#         the end of the response is not noticed until the connection ends.
# So:     one event, one chunk, and `Connection: close`.
source "$(dirname "$0")/common.bash"
pip_install sseclient==0.0.27 requests==2.34.2

cat >"$folder/run.py" <<'PY'
import socket, threading, time
import requests, sseclient

def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)

def serve(listener):
    connection, _ = listener.accept()
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n")
    connection.sendall(chunk(b"data: whole\n\n") + chunk(b"data: hel") + chunk(b"lo\n\n") + chunk(b""))
    # The response has ended; the connection is kept for another request, as is usual.
    time.sleep(30)

listener = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=serve, args=(listener,), daemon=True).start()
url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
seen = []

def listen():
    for event in sseclient.SSEClient(url):
        seen.append(event.data)

threading.Thread(target=listen, daemon=True).start()
time.sleep(3)
# A client that had noticed the end would have asked again by now (retry is 3 s at most); nobody
# accepts, so look at the data.
print(seen)
PY
expect "sseclient 0.0.27 received" "$(python3 "$folder/run.py")" "['whole', 'hel', '']"

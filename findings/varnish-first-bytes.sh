#!/usr/bin/env bash
# Varnish 7.1.1 (Debian 12) and the first bytes of a body that has neither a length nor chunks
#
# Guess:  with streaming, which is the default, every byte is passed on when it arrives.
# Seen:   what the server sent in one packet with the head waits until the server sends more, 4 s
#         here, and for an event stream until its next event or comment. Sent a moment after the
#         head, or in chunks, it is passed on at once.
# So:     an event stream is sent in chunks.
source "$(dirname "$0")/common.bash"
PATH=$PATH:/usr/sbin
command -v varnishd >/dev/null || { echo "needs Debian's varnish"; exit 77; }

cat >"$folder/server.py" <<'PY'
import socket, threading, time

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"

def serve(connection):
    request = b""
    while b"\r\n\r\n" not in request:
        request += connection.recv(4096)
    event = b"data: first\n\n"
    if b"chunked" in request:
        head, event = HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n%s\r\n" % (len(event), event)
    else:
        head = HEAD + b"Connection: close\r\n\r\n"
    if b"together" in request:
        connection.sendall(head + event)
    else:
        connection.sendall(head)
        time.sleep(0.3)
        connection.sendall(event)
    time.sleep(4)
    connection.sendall(event)
    connection.close()

listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
PY
python3 "$folder/server.py" >"$folder/port" &
printf 'vcl 4.1;\nbackend one { .host = "127.0.0.1"; .port = "%s"; }\nsub vcl_recv { return (pass); }\n' \
    "$(first_line "$folder/port")" >"$folder/default.vcl"
port=$((20000 + RANDOM % 10000))
varnishd -F -n "$folder/work" -a "127.0.0.1:$port" -f "$folder/default.vcl" -s malloc,16m -j none >/dev/null 2>&1 &
for _ in $(seq 100); do (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break || sleep 0.1; done

# Whether the first event comes within two seconds.
look() {
    local got
    got=$(curl -sN --max-time 2 "http://127.0.0.1:$port/$1" || true)
    [[ $got == *first* ]] && echo "at once" || echo "held back"
}
expect "close-delimited, with the head" "$(look together)" "held back"
expect "close-delimited, after the head" "$(look apart)" "at once"
expect "in chunks, with the head" "$(look chunked-together)" "at once"

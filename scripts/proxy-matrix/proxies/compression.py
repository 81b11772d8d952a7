"""Which proxies compress an event stream when they are told to compress, which of them pass small
events on all the same, and which leave it alone for `Cache-Control: no-transform`. The page's table
says what was seen."""

import socket
import tempfile
import threading
import time
import zlib
from pathlib import Path

from matrix import processes

from . import programs, wire

PROMPT = 3.0

# Each compresses text/event-stream, as one gets who asks for it by name.
TEXTS = {
    "nginx": """
        server {
            listen 8080;
            gzip on;
            gzip_proxied any;
            gzip_types text/event-stream;
            location / { proxy_pass http://127.0.0.1:8001; proxy_http_version 1.1; proxy_set_header
            Host $http_host; proxy_set_header Connection ""; } }""",
    "haproxy": """
        defaults
            mode http
            timeout connect 2s
            timeout client 1m
            timeout server 1m
        listen all
            bind 127.0.0.1:8080
            compression algo gzip
            compression type text/event-stream
            server one 127.0.0.1:8001
        """,
    "caddy": """
        example.org {
            encode gzip {
                match header Content-Type text/event-stream*
            }
            reverse_proxy 127.0.0.1:8001
        }""",
    "apache": """
        # a2enmod proxy proxy_http filter deflate
        Listen 8080
        AddOutputFilterByType DEFLATE text/event-stream
        ProxyPreserveHost on
        ProxyPass / http://127.0.0.1:8001/
        """,
    "lighttpd": """
        server.modules = ( "mod_deflate", "mod_proxy" )
        server.port = 8080
        server.stream-response-body = 2
        deflate.mimetypes = ( "text/event-stream" )
        deflate.allowed-encodings = ( "gzip" )
        proxy.server = ( "" => (( "host" => "127.0.0.1", "port" => 8001 )))
        """,
    "varnish": """
        vcl 4.1;
        backend one { .host = "127.0.0.1"; .port = "8001"; }
        sub vcl_recv { return (pass); }
        sub vcl_backend_response { set beresp.do_gzip = true; }
        """,
    "envoy": """
static_resources:
  listeners:
  - address: { socket_address: { address: 127.0.0.1, port_value: 8080 } }
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: all
          route_config:
            virtual_hosts:
            - name: all
              domains: [ "*" ]
              routes: [ { match: { prefix: / }, route: { cluster: one, timeout: 0s } } ]
          http_filters:
          - name: envoy.filters.http.compressor
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.compressor.v3.Compressor
              response_direction_config:
                common_config: { min_content_length: 30, content_type: [ text/event-stream ] }
              compressor_library:
                name: gzip
                typed_config:
                  "@type": type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: one
    load_assignment:
      cluster_name: one
      endpoints:
      - lb_endpoints:
        - endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: 8001 } } }
    """,
}


class Upstream:
    """A server of event streams in chunks, with the `Cache-Control` that the path names."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            while True:
                head = b""
                while b"\r\n\r\n" not in head:
                    data = connection.recv(8192)
                    if not data:
                        return
                    head += data
                if b"/healthz" in head.split(b"\r\n")[0]:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n")
                    continue
                more = b", no-transform" if b"no-transform" in head.split(b"\r\n")[0] else b""
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                                   b"Cache-Control: no-cache" + more + b"\r\nX-Accel-Buffering: no\r\n"
                                   b"Transfer-Encoding: chunked\r\n\r\n")
                # One small event, and then nothing, as on a channel where little happens.
                time.sleep(0.3)
                event = b"data: a small event\n\n"
                connection.sendall(b"%x\r\n%s\r\n" % (len(event), event))
                time.sleep(PROMPT + 1)
        except OSError:
            pass
        finally:
            connection.close()


def look(port: int, path: str) -> dict:
    """Whether the stream is compressed, and whether anything of it arrives within some seconds."""
    stream = wire.Stream(port, path, "sse")
    deadline = time.monotonic() + PROMPT
    while time.monotonic() < deadline:
        stream.read(0.2)
    head, _, rest = stream.received.partition(b"\r\n\r\n")
    stream.close()
    body = stream.body if rest else b""
    if compressed := b"content-encoding: gzip" in head.lower():
        body = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(body)
    return {"compressed": compressed, "arrives": b"a small event" in body}


def run(name: str) -> dict:
    upstream = Upstream()
    with tempfile.TemporaryDirectory(prefix="livebridge-proxies-", ignore_cleanup_errors=True) as folder:
        ports = programs.Ports(processes.free_port(), upstream.port, upstream.port)
        text = programs.with_ports(TEXTS[name], ports)
        proxy = programs.start(name, Path(folder) / name, text, ports)
        try:
            return {"plain": look(ports.proxy, "/events?plain"), "no-transform": look(ports.proxy, "/events?no-transform")}
        finally:
            processes.end(proxy, programs.PROGRAMS[name].signal)
            upstream.listener.close()


def main(names: list[str]) -> None:
    """Prints a row for each proxy, as docs/load-balancers.md has them."""
    print("| proxy, told to compress `text/event-stream` | without `no-transform` | with it |\n| --- | --- | --- |")
    for name in names:
        if name not in TEXTS:
            continue
        found = run(name)
        words = []
        for seen in found.values():
            how = "compressed" if seen["compressed"] else "as it is"
            words.append(f"{how}, {'at once' if seen['arrives'] else '**held back**'}")
        print(f"| {name} {programs.version(name)} | {' | '.join(words)} |", flush=True)

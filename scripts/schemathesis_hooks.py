"""What schemathesis has no notion of: a connection that becomes a WebSocket, and a body of JSON lines."""
import json

import schemathesis
from requests.adapters import HTTPAdapter

send_http = HTTPAdapter.send


def send(self, request, **options):
    response = send_http(self, request, **{**options, "stream": True})
    if response.status_code == 101:
        # No HTTP request may follow on it.
        response._content, response._content_consumed = b"", True
        response.raw.close()
        self.close()
    elif not options.get("stream"):
        response.content
    return response


HTTPAdapter.send = send


@schemathesis.serializer("application/x-ndjson")
def lines(ctx, value):
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()

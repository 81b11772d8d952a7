"""What every program here reports: one JSON object a line, for matrix/member.py."""

import base64
import json
import sys

URL = sys.argv[1]


def report(event: str, **fields) -> None:
    """Prints a line. Long messages are cut: their beginning and their length tell them apart."""
    data = fields.get("data")
    if isinstance(data, str) and len(data) > 400:
        fields["data"] = f"{data[:400]}… {len(data)}"
    print(json.dumps({"event": event, **fields}), flush=True)


def frame(data: str | bytes) -> None:
    """Reports a message of a WebSocket."""
    if isinstance(data, str):
        report("message", data=data)
    else:
        report("binary", data=base64.b64encode(data).decode())


def finish(run) -> None:
    """Runs a program that ends when its library gives up, and reports how it ended."""
    try:
        run()
        report("closed", detail="the loop ended")
    except Exception as error:
        report("closed", detail=f"{type(error).__name__}: {error}")

"""Payloads that are more than a plain line, and what of them arrives."""

import base64

PAYLOADS = {
    "lines": b"first\nsecond\n\nfourth\n",
    "empty": b"",
    "spaces": b"  two spaces first",
    "u2028": "a\u2028b\u2029c\u0085d\u000be".encode(),
    "cr": b"a\rb\r\nc",
    "umlaut": "gr\u00fc\u00dfe \U0001f600".encode(),
    "binary": b"\xff\x00\x01\xfe",
    # As much as an instance takes by default (--max-message-bytes).
    "large": b"x" * (1 << 20),
}


def _expected(transport: str, name: str) -> tuple[str, str]:
    payload = PAYLOADS[name]
    if name == "binary":
        encoded = base64.b64encode(payload).decode()
        return ("binary", encoded) if transport != "sse" else ("message", f"data:application/octet-stream;base64,{encoded}")
    text = payload.decode()
    if transport == "sse":
        # An event stream has but one kind of line end (docs/protocol.md).
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    # The programs report the beginning and the length of a long message.
    return "message", text if len(text) <= 400 else f"{text[:400]}… {len(text)}"


def compare(transport: str, received: list[tuple]) -> dict[str, str]:
    """A word for each payload: what stood between its two neighbours."""
    cells = {}
    for index, name in enumerate(PAYLOADS):
        start, end = ("message", f"p{index}"), ("message", f"p{index + 1}")
        if start not in received or end not in received:
            cells[name] = "lost"
            continue
        between = received[received.index(start) + 1 : received.index(end)]
        if between == [_expected(transport, name)]:
            cells[name] = "yes"
        elif not between:
            cells[name] = "dropped"
        elif len(between) > 1:
            cells[name] = "split"
        else:
            cells[name] = "changed"
    return cells

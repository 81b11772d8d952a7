"""What every Python publisher here does: connect, wait for a line, publish, say what came of it."""

import sys

PORT = int(sys.argv[1])
MODE = sys.argv[2]


def call(payload: str) -> tuple:
    """The arguments after FCALL."""
    more = ("id", "order-17") if MODE == "id" and payload == "second" else ()
    return ("livebridge_publish", 1, "live", payload, *more)


def wait() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def done(error: Exception | None = None) -> None:
    print(f"raised {type(error).__name__}: {error}" if error else "answered", flush=True)

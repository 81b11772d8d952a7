"""What the scripts that start servers on this machine share: free ports, and waiting for something to happen."""
import socket
import sys
import time
from pathlib import Path


def free_port():
    """A port of loopback that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(what, ask, patience=120):
    """Asks until the answer is true, and returns it; ends the program if that takes more than `patience` seconds. A server
    that cannot be reached has not answered yet."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            if answer := ask():
                return answer
        except OSError:
            pass
        time.sleep(0.02)
    sys.exit(f"{Path(sys.argv[0]).name}: not within {patience} s: {what}")

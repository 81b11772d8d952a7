"""curl -N: prints the stream as it comes; reconnecting is left to the shell."""

import subprocess
import sys

from report import URL, report

curl = subprocess.Popen(["curl", "--silent", "--show-error", "--fail", "-N", URL], stdout=subprocess.PIPE)
lines: list[str] = []
kind = ""
# Only as much of a parser as tells messages apart: what curl prints is the stream itself.
for line in curl.stdout:
    text = line.decode("utf-8", "replace").rstrip("\n")
    if text.startswith("data:"):
        lines.append(text[5:].removeprefix(" "))
    elif text.startswith("event:"):
        kind = text[6:].strip()
    elif not text:
        if lines:
            report("message", type=kind, data="\n".join(lines))
        lines, kind = [], ""
report("closed", detail=f"curl exited with {curl.wait()}")
sys.exit(0)

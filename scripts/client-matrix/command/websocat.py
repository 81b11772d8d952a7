"""websocat: prints a line for each message; reconnecting is left to the shell.

In its text mode a message of several lines is several lines of output, and a binary one is not told apart."""

import subprocess

from report import URL, report

websocat = subprocess.Popen(["websocat", "--text", URL], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
for line in websocat.stdout:
    report("message", data=line.decode("utf-8", "replace").rstrip("\n"))
report("closed", detail=f"websocat exited with {websocat.wait()}")

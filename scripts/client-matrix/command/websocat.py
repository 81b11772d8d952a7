"""websocat: prints a line for each message; reconnecting is left to the shell.

In its text mode it prints the line ends of a message as spaces. By default an empty message ends
its output."""

import subprocess

from report import URL, report

websocat = subprocess.Popen(["websocat", "--text", "--no-exit-on-zeromsg", URL], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
for line in websocat.stdout:
    report("message", data=line.decode("utf-8", "replace").rstrip("\n"))
report("closed", detail=f"websocat exited with {websocat.wait()}")

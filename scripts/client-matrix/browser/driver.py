"""Runs a script in a page of headless Chromium, through chromedriver, and prints what it reports.

The page is of the same origin as the address: pages of other origins may not connect. What the
script says with report() or console.log() becomes a line each."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

# What a script finds: the address, and report() as the programs of the other runtimes have it.
PRELUDE = """
window.lines = [];
const url = %s;
const short = (text) =>
  typeof text === "string" && text.length > 400 ? `${text.slice(0, 400)}… ${text.length}` : text;
const report = (event, fields = {}) => {
  window.lines.push(JSON.stringify({ event, ...fields, data: short(fields.data) }));
};
const base64 = (buffer) => btoa(String.fromCharCode(...new Uint8Array(buffer)));
const frame = (data) =>
  typeof data === "string" ? report("message", { data }) : report("binary", { data: base64(data) });
console.log = (...words) => window.lines.push(words.join(" "));
"""


class Driver:
    """A chromedriver and its one session."""

    def __init__(self):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.process = subprocess.Popen(
            ["chromedriver", f"--port={self.port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.session = ""

    def call(self, method: str, path: str, body: dict | None = None):
        data = json.dumps(body if body is not None else {}).encode() if method == "POST" else None
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=data, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as response:
            return json.load(response)["value"]

    def start(self, page: str) -> None:
        deadline = time.monotonic() + 20
        while True:
            try:
                if self.call("GET", "/status")["ready"]:
                    break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                     "--disable-background-networking", "--disable-component-update", "--disable-sync",
                     "--disable-dev-shm-usage"]
        capabilities = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": {"args": arguments}}}
        self.session = "/session/" + self.call("POST", "/session", {"capabilities": capabilities})["sessionId"]
        self.call("POST", self.session + "/url", {"url": page})

    def run(self, script: str):
        return self.call("POST", self.session + "/execute/sync", {"script": script, "args": []})

    def stop(self) -> None:
        try:
            if self.session:
                self.call("DELETE", self.session)
        except OSError:
            pass
        self.process.terminate()


def main() -> None:
    program, url = Path(sys.argv[1]), sys.argv[2]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    driver = Driver()
    try:
        driver.start(re.sub(r"^ws(://[^/]+)/.*|^http(://[^/]+)/.*", r"http\1\2/healthz", url))
        driver.run(PRELUDE % json.dumps(url) + program.read_text())
        while True:
            for line in driver.run("return window.lines.splice(0)"):
                print(line, flush=True)
            time.sleep(0.1)
    finally:
        driver.stop()


main()

"""The clients of clients.toml: how each is installed, and how a program that uses it is started."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from . import processes

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT.parent.parent / "docs"
# The page with the table, and the one with a program for each client.
PAGE = DOCS / "clients.md"
EXAMPLES = DOCS / "client-examples.md"
# What packages depend on is not pinned by name: pip gets a list, npm takes what was there that day.
CONSTRAINTS = ROOT / "constraints.txt"
NPM_DATE = "2026-11-28"
_LINES = re.compile(r"<!-- run: (\S+) -->\s*\n+```\w*\n(.*?)\n```", re.S)


@dataclass
class Client:
    """A row of the table."""

    id: str
    label: str
    runtime: str
    transport: str
    packages: list[str] = field(default_factory=list)
    # Of a page: the script of the first package.
    script: str = ""
    keyed: bool = False
    quick: bool = False

    @property
    def program(self) -> Path:
        suffix = {"node": ".mjs", "python": ".py", "browser": ".js", "command": ".py", "rust": ".rs"}[self.runtime]
        folder = "rust/src/bin" if self.runtime == "rust" else self.runtime
        return ROOT / folder / (self.id + suffix)


def read() -> list[Client]:
    """All clients, in the order of the table."""
    return [Client(**entry) for entry in tomllib.loads((ROOT / "clients.toml").read_text())["client"]]


def lines_of_page() -> dict[str, str]:
    """The programs that stand in docs/client-examples.md, by client."""
    return dict(_LINES.findall(EXAMPLES.read_text()))


class NotInstalled(RuntimeError):
    """A package could not be downloaded, built or installed."""


class Installation:
    """Pinned packages in a folder of their own, installed once for each set of pins."""

    def __init__(self, cache: Path):
        self.cache = cache
        cache.mkdir(parents=True, exist_ok=True)

    def install_what_can_be(self, clients: list[Client]) -> tuple[list[Client], list[str]]:
        """Returns the clients that are installed, and the reasons why the others are not. Once the
        installer of a runtime has failed, no other package of that runtime is asked for."""
        installed, reasons = [], {}
        for client in clients:
            if client.runtime in reasons and not self._is_installed(client):
                continue
            try:
                self.install([client])
                installed.append(client)
            except NotInstalled as error:
                reasons[client.runtime] = str(error)
        return installed, list(reasons.values())

    def _is_installed(self, client: Client) -> bool:
        return client.runtime == "python" and self._is_done(self.cache / "python" / client.id, _python_pins(client))

    def install(self, clients: list[Client]) -> None:
        """Installs what these clients need.

        Raises NotInstalled."""
        runtimes = {client.runtime for client in clients}
        if "node" in runtimes:
            self.install_node("node", [client for client in read() if client.runtime == "node"])
        for client in clients:
            if client.packages and client.runtime == "python":
                self._python(client)
            if client.packages and client.runtime == "command":
                self._command(client)
            if client.packages and client.runtime == "browser":
                self.install_node("browser", [client])
        if "rust" in runtimes:
            self._rust()

    def command(self, client: Client, url: str, lines: str | None) -> tuple[list, dict]:
        """The command that runs a client's program (or its example) against a URL, and its
        environment."""
        program = client.program
        if lines is not None:
            program = self._page_program(client, url, lines)
        if client.runtime == "node":
            # Modules are looked up beside the program.
            target = self.cache / "node" / (program.stem + "-" + _digest(program.read_text()) + ".mjs")
            _place(ROOT / "node" / "report.mjs", self.cache / "node" / "report.mjs")
            _place(program, target)
            return ["node", "--no-warnings", target, url], processes.environment()
        if client.runtime == "python":
            path = f"{self.cache / 'python' / client.id}:{ROOT / 'python'}"
            return [sys.executable, "-u", program, url], processes.environment(PYTHONPATH=path, PYTHONDONTWRITEBYTECODE="1")
        if client.runtime == "browser":
            program = self._with_package(client, program)
            return [sys.executable, "-u", ROOT / "browser" / "driver.py", program, url], processes.environment()
        if client.runtime == "rust":
            name = client.id if lines is None else "page-" + client.id
            return [self.cache / "rust" / "release" / name, url], processes.environment()
        if lines is not None:
            return ["bash", program], processes.environment()
        path = f"{self.cache / 'bin' / 'bin'}:{processes.os.environ['PATH']}"
        return [sys.executable, "-u", program, url], processes.environment(PATH=path, PYTHONPATH=str(ROOT / "python"))

    def sdk_command(self, client: Client, setup: str) -> tuple[list, dict]:
        """The command that runs the checks of an SDK, and its environment."""
        if client.runtime == "node":
            source = ROOT / "sdk" / "javascript.mjs"
            target = self.cache / "node" / f"sdk-{_digest(source.read_text())}.mjs"
            _place(source, target)
            return ["node", "--no-warnings", target, setup], processes.environment()
        path = str(self.cache / "python" / client.id)
        environment = processes.environment(PYTHONPATH=path, PYTHONDONTWRITEBYTECODE="1")
        return [sys.executable, "-u", ROOT / "sdk" / "python.py", setup], environment

    def _with_package(self, client: Client, program: Path) -> Path:
        """A program of a page, behind the script that its package has for pages."""
        if not client.script:
            return program
        name = client.packages[0].partition("=")[0]
        text = (self.cache / "browser" / "node_modules" / name / client.script).read_text() + program.read_text()
        target = self.cache / "browser" / f"{client.id}-{_digest(text)}.js"
        target.write_text(text)
        return target

    def _page_program(self, client: Client, url: str, lines: str) -> Path:
        """A file with a client's example, whose address is that of the test."""
        address = re.match(r"\w+://([^/]+)/", url)[1]
        text = lines.replace("127.0.0.1:8000", address)
        if client.runtime == "rust":
            return client.program
        folder = self.cache / "page"
        folder.mkdir(exist_ok=True)
        target = folder / f"{client.id}-{_digest(text)}{client.program.suffix}"
        target.write_text(text)
        return target

    def install_node(self, name: str, clients: list[Client]) -> None:
        """Installs the packages of several clients into one folder."""
        pins = {}
        for client in clients:
            for package in client.packages:
                package, _, pin = package.partition("=")
                pins[package] = pin
        text = json.dumps({"private": True, "type": "module", "dependencies": pins}, indent=1)
        folder = self.cache / name
        folder.mkdir(exist_ok=True)
        if self._is_done(folder, text + NPM_DATE):
            return
        shutil.rmtree(folder / "node_modules", ignore_errors=True)
        (folder / "package.json").write_text(text)
        options = ["--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", "--omit=peer", f"--before={NPM_DATE}"]
        _run(["npm", "install", "--loglevel=error", *options], cwd=folder)
        self._done(folder, text + NPM_DATE)

    def _python(self, client: Client) -> None:
        # A folder for each: two of them have a module of the same name.
        folder = self.cache / "python" / client.id
        pins = _python_pins(client)
        if self._is_done(folder, pins):
            return
        shutil.rmtree(folder, ignore_errors=True)
        options = ["--quiet", "--disable-pip-version-check", "--no-warn-script-location", "--root-user-action=ignore"]
        _run([sys.executable, "-m", "pip", "install", *options, "--target", folder,
              "--constraint", CONSTRAINTS, *client.packages])
        self._done(folder, pins)

    def _command(self, client: Client) -> None:
        folder = self.cache / "bin"
        folder.mkdir(exist_ok=True)
        for package in client.packages:
            name, _, version = package.partition("==")
            stamp = folder / f"{name}-{version}"
            if not stamp.exists():
                _run(["cargo", "install", "--quiet", "--locked", "--root", folder, "--version", version, name])
                stamp.touch()

    def _rust(self) -> None:
        """Builds the Rust programs, and those that stand in the page."""
        folder = self.cache / "rust-source"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(ROOT / "rust", folder)
        page = lines_of_page()
        for client in read():
            if client.runtime == "rust" and client.id in page:
                (folder / "src" / "bin" / f"page-{client.id}.rs").write_text(_rust_page(page[client.id]))
        _run(["cargo", "build", "--quiet", "--locked", "--release", "--target-dir", self.cache / "rust"], cwd=folder)

    def _is_done(self, folder: Path, pins: str) -> bool:
        stamp = folder / ".pins"
        return stamp.exists() and stamp.read_text() == pins

    def _done(self, folder: Path, pins: str) -> None:
        (folder / ".pins").write_text(pins)


def _rust_page(text: str) -> str:
    """The page's program, whose address is that of the test: the first argument has it."""
    return re.sub(
        r'"(\w+)://127\.0\.0\.1:8000([^"]*)"',
        r"""(&*format!("\1://{}\2", std::env::args().nth(1).unwrap().split('/').nth(2).unwrap()))""",
        text,
    )


def _python_pins(client: Client) -> str:
    return f"{client.packages} {_digest(CONSTRAINTS.read_text())}"


def _place(source: Path, target: Path) -> None:
    """Copies a file in one step: another program may be reading the old one."""
    partial = target.with_suffix(".partial")
    shutil.copyfile(source, partial)
    partial.replace(target)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _run(command: list, **options) -> None:
    """Runs an installer, and again up to twice where it fails: a download may.

    Raises NotInstalled."""
    command = [str(part) for part in command]
    title = " ".join([Path(command[0]).name, *command[1:3], "…"])
    for pause in (5, 10, None):
        print("installing:", title, file=sys.stderr)
        try:
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=600, **options)
            return
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(f"installing failed: {error}", file=sys.stderr)
        if pause:
            time.sleep(pause)
    raise NotInstalled(f"'{title}' failed three times")

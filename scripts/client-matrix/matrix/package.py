"""The npm package of livebridge.js: its types are those of the source, and it is as small as docs/clients.md says. What
`npm pack` makes of static/ is installed into a project, checked there by tsc, bundled by esbuild, and run in Chromium."""

import gzip
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import catalogue, processes, servers

STATIC = catalogue.ROOT.parent.parent / "static"
PROJECT = catalogue.ROOT / "package"
_TOOLS = catalogue.Client("package", "", "node", "", ["esbuild=0.28.2", "typescript=7.0.2"])
# In bytes, minified and then compressed by gzip -9. All that a page loads, but the part for tabs that share.
MOST_BYTES = 6000
# What the program in package/ reports.
_EXPECTED = {"published 1", "own {\"n\":1}", "shared {\"n\":1}"}


def main(options) -> int:
    """Returns 0 if all is as it should be."""
    installation = catalogue.Installation(options.cache)
    try:
        installation.install_node("package-tools", [_TOOLS])
    except catalogue.NotInstalled as error:
        if not options.skip_uninstallable:
            raise
        print(f"SKIPPED: the package, since its tools could not be installed: {error}")
        return 0
    tools = installation.cache / "package-tools" / "node_modules" / ".bin"
    with tempfile.TemporaryDirectory(prefix="livebridge-package-") as name:
        folder = Path(name)
        checks = [_check_types(tools, folder), _check_project(tools, folder), _check_size(tools)]
        checks.append(_check_page(tools, folder, options.binary.resolve()))
    print(f"{sum(checks)} passed, {len(checks) - sum(checks)} failed")
    return 0 if all(checks) else 1


def _run(command: list, **more) -> bool:
    return subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, timeout=300, **more).returncode == 0


def _check_types(tools: Path, folder: Path) -> bool:
    """The source has no wrong types, and static/types is what it says of itself."""
    made = folder / "types"
    passed = _run([tools / "tsc", "-p", STATIC, "--outDir", made])
    for kept in sorted((STATIC / "types").iterdir()):
        if kept.read_text() != (made / kept.name).read_text():
            print(f"static/types/{kept.name} is not what tsc makes of the source: tsc -p static", file=sys.stderr)
            passed = False
    return passed


def _check_project(tools: Path, folder: Path) -> bool:
    """A project that has only the package sees its types."""
    project = folder / "project"
    project.mkdir()
    packed = subprocess.run(["npm", "pack", "--json", "--pack-destination", folder, STATIC], check=True, capture_output=True, text=True)
    tarball = folder / json.loads(packed.stdout)[0]["filename"]
    (project / "package.json").write_text(json.dumps({"private": True, "type": "module"}))
    (project / "page.ts").write_text((PROJECT / "page.ts").read_text())
    options = ["--no-audit", "--no-fund", "--offline", "--loglevel=error"]
    return _run(["npm", "install", *options, tarball], cwd=project, stdout=subprocess.DEVNULL) and _run(
        [tools / "tsc", "--noEmit", "--strict", "--target", "es2022", "--module", "esnext", "--moduleResolution", "bundler", "page.ts"],
        cwd=project,
    )


def _check_size(tools: Path) -> bool:
    """Prints what a page loads, and what it loads besides for tabs that share."""
    outside = ["--external:./livebridge-shared.js"]
    page = _minified(tools, STATIC / "livebridge.js", outside)
    parts = ("connection", "message", "publish", "socket")
    known = [f"--external:./livebridge-{part}.js" for part in parts]
    shared = _minified(tools, STATIC / "livebridge-shared.js", known)
    names = ["livebridge.js", *(f"livebridge-{part}.js" for part in parts)]
    served = sum(len(gzip.compress((STATIC / name).read_bytes(), 9)) for name in names)
    print(f"minified, gzip -9: {page} bytes, {shared} more where tabs share; as served to a page: {served}")
    return page <= MOST_BYTES


def _minified(tools: Path, source: Path, options: list) -> int:
    command = [tools / "esbuild", source, "--bundle", "--minify", "--format=esm", *options]
    text = subprocess.run([str(part) for part in command], check=True, capture_output=True).stdout
    return len(gzip.compress(text, 9))


def _check_page(tools: Path, folder: Path, binary: Path) -> bool:
    """The bundle works in a browser."""
    project = folder / "project"
    bundle = project / "page.js"
    if not _run([tools / "esbuild", "page.ts", "--bundle", "--minify", "--format=iife", "--log-level=error",
                 "--log-override:empty-import-meta=silent", f"--outfile={bundle}"], cwd=project):
        return False
    instance = servers.Instance(binary, folder, "one", [])
    seen: set[str] = set()
    program = processes.start([sys.executable, "-u", catalogue.ROOT / "browser" / "driver.py", bundle, instance.url("/")],
                              stdout=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 30
        while not _EXPECTED <= seen and time.monotonic() < deadline and (line := program.stdout.readline()):
            seen.add(line.decode().strip())
    finally:
        processes.end(program, processes.signal.SIGTERM, 5)
        instance.kill()
    if not _EXPECTED <= seen:
        print(f"the page reported {seen}", file=sys.stderr)
    return _EXPECTED <= seen

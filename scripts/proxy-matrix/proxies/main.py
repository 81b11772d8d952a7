"""The command line of scripts/proxies."""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from matrix import processes, servers

from . import checks, compression, programs


class Stage:
    """Redis and two instances on ports that stay the same over restarts."""

    def __init__(self, binary: Path, folder: Path, notice: str):
        self.binary, self.folder = binary, folder
        self.redis = servers.Redis(folder)
        self.redis.start()
        self.arguments = ["--redis-url", self.redis.url, "--drain-seconds", 2, "--drain-notice-seconds", notice,
                          "--trusted-proxy", "127.0.0.1"]
        self.instances = [servers.Instance(binary, folder, name, self.arguments) for name in ("lb-1", "lb-2")]

    @property
    def ports(self) -> list[int]:
        return [instance.port for instance in self.instances]

    def restart_both(self) -> None:
        for index, instance in enumerate(self.instances):
            time.sleep(1)
            processes.end(instance.process, signal.SIGTERM, 20)
            time.sleep(1)
            self.instances[index] = servers.Instance(
                self.binary, self.folder, f"lb-{index + 1}", self.arguments, port=instance.port
            )
            # The proxy has to take it in again before the other one goes.
            time.sleep(3)

    def stop_instances(self) -> None:
        for instance in self.instances:
            instance.kill()

    def stop(self) -> None:
        self.stop_instances()
        self.redis.stop()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/proxies", description="Runs the proxies of docs/load-balancers.md.")
    parser.add_argument("names", nargs="*", help=f"only these: {', '.join(programs.PROGRAMS)}")
    parser.add_argument("--binary", type=Path, default=programs.REPOSITORY / "target/release/livebridge")
    parser.add_argument("--install", action="store_true", help="install what is missing")
    parser.add_argument("--compression", action="store_true", help="only: who compresses event streams")
    parser.add_argument("--quick", action="store_true", help="without the 40 seconds of silence")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "livebridge-proxies",
                        help="where Envoy is installed")
    return parser.parse_intermixed_args()


def run(name: str, binary: Path, quiet_seconds: float) -> dict[str, str]:
    """Runs all checks of a proxy; a check that fails does not stop the next."""
    seen: dict[str, str] = {}

    def check(title: str, run_check) -> None:
        try:
            seen[title] = run_check() or "ok"
        except (checks.Failure, OSError) as failure:
            seen[title] = f"FAILED: {failure}"
        print(f"  {name}: {title}: {seen[title]}", flush=True)

    with tempfile.TemporaryDirectory(prefix="livebridge-proxies-", ignore_cleanup_errors=True) as folder:
        folder = Path(folder)
        options = programs.text_of_page(name, programs.Ports(0, 0, 0))[1]
        stage = Stage(binary, folder, options.get("notice", "0"))
        proxy = recorder = None
        try:
            ports = programs.Ports(processes.free_port(), *stage.ports)
            text = programs.text_of_page(name, ports)[0]
            proxy = programs.start(name, folder / name, text, ports)
            streams: dict = {}

            def after_silence() -> str:
                checks.silence(streams, quiet_seconds)
                return checks.at_once(ports.proxy, streams, "after silence")

            check("connected", lambda: streams.update(checks.connect(ports.proxy)))
            check("at once", lambda: checks.at_once(ports.proxy, streams, "first"))
            if quiet_seconds:
                check(f"after {quiet_seconds:.0f} s of silence", after_silence)
            check("/metrics closed", lambda: checks.metrics_closed(ports.proxy, ports.first))
            for stream in streams.values():
                stream.close()
            check("resume over restarts", lambda: checks.resume(ports.proxy, stage))
            stage.stop_instances()
            recorder = checks.Recorder(stage.ports)
            check("headers", lambda: checks.headers(ports.proxy, recorder))
        finally:
            if recorder:
                recorder.close()
            if proxy:
                processes.end(proxy, programs.PROGRAMS[name].signal)
            stage.stop()
    return seen


def main() -> int:
    options = arguments()
    processes.end_all_at_exit()
    if not options.binary.exists():
        sys.exit(f"scripts/proxies: {options.binary} is not there: cargo build --release, or say --binary")
    names = options.names or list(programs.PROGRAMS)
    if unknown := set(names) - set(programs.PROGRAMS):
        sys.exit(f"scripts/proxies: no such proxy: {', '.join(unknown)}")
    programs.add_to_path(options.cache)
    if options.install:
        programs.install(names, options.cache)
    if options.compression:
        compression.main([name for name in names if shutil.which(programs.PROGRAMS[name].executable)])
        return 0
    passed = failed = skipped = 0
    for name in names:
        if not shutil.which(programs.PROGRAMS[name].executable):
            print(f"{name}: not installed ({programs.PROGRAMS[name].package})")
            skipped += 1
            continue
        print(f"{name} {programs.version(name)}", flush=True)
        try:
            seen = run(name, options.binary.resolve(), 0 if options.quick else 40)
        except RuntimeError as error:
            seen = {"start": f"FAILED: {error}"}
            print(f"  {name}: {seen['start']}")
        failed += sum(word.startswith("FAILED") for word in seen.values())
        passed += sum(not word.startswith("FAILED") for word in seen.values())
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0

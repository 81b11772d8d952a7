"""The command line of scripts/clients."""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

from . import catalogue, http_publishers, native_sdks, package, processes, publishers, scenarios, sdk, servers, table

REPOSITORY = catalogue.ROOT.parent.parent


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/clients",
        description="Runs client libraries, unmodified, against real livebridge instances, and says what each does.",
        epilog="Needs redis-server, and node, python3, chromium and chromedriver, cargo or curl for those of their kind.",
    )
    parser.add_argument("names", nargs="*", help="only these clients (the ids of client-matrix/clients.toml); 'redis' or 'http': those that publish; 'sdk': the Centrifuge SDKs for Go and Java; 'package': the npm package of livebridge.js")
    parser.add_argument("--binary", type=Path, default=REPOSITORY / "target/release/livebridge", help="which livebridge")
    parser.add_argument("--quick", action="store_true", help="what takes seconds: Node and Python, five scenarios")
    parser.add_argument("--only", action="append", help="only this scenario; may repeat")
    parser.add_argument("--write", action="store_true", help="write the tables into their page of docs/")
    parser.add_argument("--check", action="store_true", help="fail where docs/clients.md says otherwise")
    parser.add_argument("--skip-uninstallable", action="store_true",
                        help="skip clients whose packages can't be installed, instead of failing")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "livebridge-client-matrix",
                        help="where packages are installed, and results kept until all are there")
    parser.add_argument("--verbose", action="store_true", help="print what each verdict rests on")
    return parser.parse_intermixed_args()


async def measure(options: argparse.Namespace, clients: list, installation) -> dict:
    """Results by client and column."""
    settings = scenarios.Settings(options.binary.resolve(), installation)
    wanted = options.only or (scenarios.QUICK if options.quick else ["payloads", *scenarios.SCENARIOS])
    results: dict = {client.id: {} for client in clients}
    for name in wanted:
        began = time.monotonic()
        if name == "payloads":
            quiet = 0 if options.quick else 17
            for client, cells in (await scenarios.run_payloads(settings, clients, quiet)).items():
                results[client] |= cells
        else:
            for (client, of_page), found in (await scenarios.run(settings, name, clients, True)).items():
                results[client][("page " if of_page else "") + name] = found["word"]
                if not of_page and found["asks"]:
                    seen = results[client].setdefault("asks", found["asks"])
                    if found["asks"] not in seen.split(", "):
                        results[client]["asks"] = f"{seen}, {found['asks']}"
                if options.verbose:
                    print(f"  {name}: {client}{' (page)' if of_page else ''}: {found}", file=sys.stderr)
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return results


def check(options: argparse.Namespace, clients: list, results: dict, installation) -> int:
    """Compares with the page. Clients that differ are measured once more: on a busy machine one may
    have been late."""
    passed, differences = table.check(clients, results)
    if differences:
        for text in sum(differences.values(), []):
            print(f"measured again: {text}", file=sys.stderr)
        again = [client for client in clients if client.id in differences]
        results |= asyncio.run(measure(options, again, installation))
        passed, differences = table.check(clients, results)
    for text in sum(differences.values(), []):
        print(text, file=sys.stderr)
    failed = sum(map(len, differences.values()))
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


def main() -> int:
    options = arguments()
    processes.end_all_at_exit()
    if not options.binary.exists():
        sys.exit(f"scripts/clients: {options.binary} is not there: cargo build --release, or say --binary")
    if options.names[:1] == ["redis"]:
        return publishers.main(options)
    if options.names[:1] == ["http"]:
        return http_publishers.main(options)
    if options.names[:1] == ["sdk"]:
        return native_sdks.main(options)
    if options.names[:1] == ["package"]:
        return package.main(options)
    clients = catalogue.read()
    unknown = set(options.names) - {client.id for client in clients}
    if unknown:
        sys.exit(f"scripts/clients: no such client: {', '.join(sorted(unknown))}")
    clients = [client for client in clients if not options.names or client.id in options.names]
    if options.quick:
        clients = [client for client in clients if client.quick]
    installation = catalogue.Installation(options.cache)
    skipped = ""
    if options.skip_uninstallable:
        wanted = len(clients)
        clients, reasons = installation.install_what_can_be(clients)
        if reasons:
            count = f"{wanted - len(clients)} of {wanted} clients"
            skipped = f"SKIPPED: {count}, since packages could not be installed: {'; '.join(reasons)}"
            print(skipped, flush=True)
        if not clients:
            return 0
    else:
        installation.install(clients)
    results = asyncio.run(measure(options, clients, installation))
    print(table.render(clients, results))
    kept = options.cache / "results.json"
    if not options.quick:
        of_binary = table.fingerprint(options.binary)
        known = json.loads(kept.read_text()) if kept.exists() else {}
        known = known if known.get("binary") == of_binary else {"binary": of_binary, "results": {}}
        for client, cells in results.items():
            known["results"].setdefault(client, {}).update(cells)
        kept.write_text(json.dumps(known, indent=1))
        results = known["results"]
    if options.write:
        table.write(catalogue.read(), results, servers.version(options.binary))
    status = check(options, clients, results, installation) if options.check else 0
    if options.check and sdk.check(options.binary.resolve(), clients, installation):
        status = 1
    if skipped:
        print(skipped)
    return status

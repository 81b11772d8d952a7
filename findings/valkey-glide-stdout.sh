#!/usr/bin/env bash
# PyPI valkey-glide 2.5.3 and where its warnings go
#
# Guess:  to the standard error, or into Python's logging.
# Seen:   to the standard output, with terminal colours, with the default settings: a program whose
#         output is data has a line of log in it after the first broken connection. (npm
#         @valkey/valkey-glide 2.5.2 does the same.)
source "$(dirname "$0")/common.bash"
command -v redis-server >/dev/null || { echo "needs redis-server"; exit 77; }
pip_install valkey-glide==2.5.3

port=$((20000 + RANDOM % 10000))
redis-server --port "$port" --bind 127.0.0.1 --save "" --dir "$folder" >/dev/null &
for _ in $(seq 100); do redis-cli -p "$port" ping 2>/dev/null | grep -q PONG && break || sleep 0.1; done

cat >"$folder/run.py" <<'PY'
import asyncio, subprocess, sys
from glide import GlideClient, GlideClientConfiguration, NodeAddress

async def main():
    port = int(sys.argv[1])
    client = await GlideClient.create(GlideClientConfiguration([NodeAddress("127.0.0.1", port)], request_timeout=3000))
    waiting = asyncio.create_task(client.custom_command(["BLPOP", "nothing", "5"]))
    await asyncio.sleep(0.5)
    subprocess.run(["redis-cli", "-p", str(port), "client", "kill", "type", "normal", "skipme", "yes"], capture_output=True)
    try:
        await waiting
    except Exception:
        pass

asyncio.run(main())
PY
python3 "$folder/run.py" "$port" >"$folder/output" 2>"$folder/errors" || true
grep -q WARN "$folder/output" && where="standard output" || where="not on the standard output"
expect "a warning of a lost connection" "$where" "standard output"

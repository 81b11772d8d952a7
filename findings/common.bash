# What every finding needs: a folder and processes that end with it, and a word at the end. Sourced.
set -euo pipefail

folder=$(mktemp -d "${TMPDIR:-/tmp}/livebridge-finding-XXXXXX")
finish() {
    for pid in $(jobs -p); do kill -- "-$pid" 2>/dev/null || kill "$pid" 2>/dev/null || true; done
    rm -rf "$folder"
}
trap finish EXIT
trap 'exit 1' TERM INT HUP
set -m # a process group for each program, so that all of it ends

npm_install() { # PACKAGE@VERSION…
    (cd "$folder" && echo '{"private":true,"type":"module"}' >package.json &&
        npm install --no-package-lock --no-audit --no-fund --ignore-scripts --loglevel=error "$@" >/dev/null)
}
pip_install() { # PACKAGE==VERSION…
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target "$folder/python" "$@"
    export PYTHONPATH="$folder/python" PYTHONDONTWRITEBYTECODE=1
}
# Waits until a file has a line; prints it.
first_line() {
    for _ in $(seq 100); do
        [ -s "$1" ] && { head -n 1 "$1"; return; }
        sleep 0.1
    done
    echo "nothing in $1" >&2
    return 1
}
# Compares what was seen with what is on record.
expect() { # WHAT SEEN RECORDED
    printf '%s: %s\n' "$1" "$2"
    [ "$2" = "$3" ] || { printf 'CHANGED: on record is: %s\n' "$3" >&2; exit 1; }
}

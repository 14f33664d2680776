# Shared by the scripts of this folder: a server to test, started and stopped, and assertions.
#
#   SERVER    the etcd binary under test; ours from the dev profile when it is not set
#   WORK      a throwaway folder, removed at the end

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
SERVER=${SERVER:-$TARGET/debug/etcd}
WORK=$(mktemp -d)
SERVER_PID=
SERVER_LOG=$WORK/server.log
export ETCDCTL_API=3

cleanup() {
    stop_server
    rm -rf "$WORK"
}
trap cleanup EXIT

fail() {
    echo "FAILED: $*" >&2
    [ -z "$SERVER_PID" ] || { echo "--- end of the server's log" >&2; tail -n 20 "$SERVER_LOG" >&2; }
    exit 1
}

# A port of the loopback address is in use.
taken() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

free_port() {
    local port
    for _ in $(seq 100); do
        port=$((20000 + RANDOM % 12000))
        taken "$port" || { echo "$port"; return; }
    done
    fail "no free port in 100 tries"
}

# With SCHEME=https, the line that says so has to do: whom the server takes is the suite's affair.
healthy() {
    if [ "${SCHEME:-http}" = https ]; then
        grep -q 'ready to serve client requests' "$SERVER_LOG"
    else
        etcdctl --endpoints="127.0.0.1:$1" endpoint health >/dev/null 2>&1
    fi
}

# Starts the server on a port with an empty data directory and waits until it is healthy. Further arguments are flags.
start_server() {
    local port=$1 peer flags=()
    shift
    [ -x "$SERVER" ] || fail "$SERVER is not there: build it first"
    if taken "$port"; then
        fail "port $port is taken: end what listens there, since this suite needs it"
    fi
    # On its usual port a server is started as users do it, without a word on addresses.
    if [ "$port" != 2379 ]; then
        peer=$(free_port)
        flags=(--listen-client-urls="${SCHEME:-http}://127.0.0.1:$port" --advertise-client-urls="${SCHEME:-http}://127.0.0.1:$port"
            --listen-peer-urls="http://127.0.0.1:$peer" --initial-advertise-peer-urls="http://127.0.0.1:$peer"
            --initial-cluster="default=http://127.0.0.1:$peer")
    fi
    rm -rf "$WORK/data"
    # Nothing of our own environment: a variable that a flag names as well ends an etcd.
    env -i PATH="$PATH" "$SERVER" --data-dir="$WORK/data" "${flags[@]}" "$@" >"$SERVER_LOG" 2>&1 &
    SERVER_PID=$!
    for _ in $(seq 300); do
        kill -0 "$SERVER_PID" 2>/dev/null || fail "the server ended at its start"
        if taken "$port" && healthy "$port"; then
            return
        fi
        sleep 0.1
    done
    fail "the server is not healthy after 30 seconds"
}

stop_server() {
    [ -n "$SERVER_PID" ] || return 0
    kill "$SERVER_PID" 2>/dev/null || true
    wait "$SERVER_PID" 2>/dev/null || true
    SERVER_PID=
}

#!/usr/bin/env bash
# A real etcd's data directory, taken over by ours: after a stop in order and after SIGKILL, with and without raft
# snapshots. Keys, revisions and HashKV are compared, a watch goes back, writes go on; and the way back through a
# snapshot that etcd's own tool restores.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

OURS=$SERVER
THEIRS=$(command -v etcd)

at() {
    local port=$1
    shift
    etcdctl --endpoints="127.0.0.1:$port" "$@"
}

# Starts the binary in SERVER on a folder, which may have been used.
start_on() {
    local port=$1 dir=$2
    env -i PATH="$PATH" "$SERVER" --data-dir="$dir" --listen-client-urls="http://127.0.0.1:$port" \
        --advertise-client-urls="http://127.0.0.1:$port" --listen-peer-urls="http://127.0.0.1:$PEER" \
        --initial-advertise-peer-urls="http://127.0.0.1:$PEER" --initial-cluster="default=http://127.0.0.1:$PEER" \
        >"$SERVER_LOG" 2>&1 &
    SERVER_PID=$!
    for _ in $(seq 300); do
        kill -0 "$SERVER_PID" 2>/dev/null || fail "the server ended at its start"
        at "$port" endpoint health >/dev/null 2>&1 && return
        sleep 0.1
    done
    fail "the server is not healthy after 30 seconds"
}

hash_of() {
    at "$1" endpoint hashkv -w json | sed 's/.*"hash":\([0-9]*\).*/\1/'
}

keys_of() {
    at "$1" get --prefix / -w json | sed 's/"header":{[^}]*},//'
}

# fill PORT COUNT
fill() {
    local port=$1 i lease
    lease=$(at "$port" lease grant 36000 | sed 's/lease \([0-9a-f]*\) .*/\1/')
    for i in $(seq "$2"); do
        at "$port" put "/k/$((i % 37))" "value $i" >/dev/null
    done
    at "$port" put /leased x --lease="$lease" >/dev/null
    at "$port" del /k/3 >/dev/null
    at "$port" txn <<<$'\n\nput /txn/1 a\nput /txn/2 b\n\n\n' >/dev/null
    at "$port" compaction 10 >/dev/null
    at "$port" put /last "of all" >/dev/null
}

# taken_over SIGNAL COUNT FLAGS...
taken_over() {
    local signal=$1 count=$2 port keys hash out
    shift 2
    port=$(free_port)
    PEER=$(free_port)
    rm -rf "$WORK/dir"
    SERVER=$THEIRS start_on "$port" "$WORK/dir"
    if [ $# -gt 0 ]; then
        # The flag of this run.
        stop_server
        rm -rf "$WORK/dir"
        printf '#!/bin/sh\nexec %s "$@" %s\n' "$THEIRS" "$*" >"$WORK/etcd"
        chmod +x "$WORK/etcd"
        SERVER=$WORK/etcd start_on "$port" "$WORK/dir"
    fi
    fill "$port" "$count"
    keys=$(keys_of "$port")
    hash=$(hash_of "$port")
    kill "-$signal" "$SERVER_PID"
    wait "$SERVER_PID" 2>/dev/null || true
    SERVER_PID=
    SERVER=$OURS start_on "$port" "$WORK/dir"
    [ "$(keys_of "$port")" = "$keys" ] || fail "the keys differ after SIG$signal, $count puts"
    [ "$(hash_of "$port")" = "$hash" ] || fail "HashKV differs: $hash, $(hash_of "$port")"
    [ -e "$WORK/dir/member/snap/db.etcd" ] || fail "etcd's database is not kept"
    out=$(timeout 3 etcdctl --endpoints="127.0.0.1:$port" watch /last --rev=11 || true)
    [[ $out == *"of all"* ]] || fail "a watch from the past says: $out"
    at "$port" put /goes on >/dev/null
    keys=$(keys_of "$port")
    at "$port" snapshot save "$WORK/back" >/dev/null 2>&1
    stop_server
    SERVER=$OURS start_on "$port" "$WORK/dir"
    [ "$(keys_of "$port")" = "$keys" ] || fail "the keys differ after a restart"
    stop_server
    rm -rf "$WORK/dir" "$WORK/restored"
    etcdctl snapshot restore "$WORK/back" --data-dir "$WORK/restored" --name default \
        --initial-cluster "default=http://127.0.0.1:$PEER" \
        --initial-advertise-peer-urls "http://127.0.0.1:$PEER" >/dev/null 2>&1 || fail "etcd's tool does not restore"
    SERVER=$THEIRS start_on "$port" "$WORK/restored"
    [ "$(keys_of "$port")" = "$keys" ] || fail "the keys differ in etcd again"
    stop_server
    rm -f "$WORK/back"
}

taken_over TERM 60
taken_over KILL 60
taken_over KILL 150 --snapshot-count=100
taken_over TERM 150 --snapshot-count=100
echo "etcd's data directories are taken over, and go back"

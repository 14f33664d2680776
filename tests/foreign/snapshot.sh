#!/usr/bin/env bash
# Snapshots both ways between ours and a real etcd: saved from ours with each etcdctl, restored by etcd's tool, served by
# a real etcd; saved from a real etcd, imported by ours. Keys and HashKV are compared, damaged files refused.
#
#   snapshot.sh [ETCDCTL]...    Debian's and ours when none is named

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

BOLT=$TARGET/debug/examples/bolt
OURS=$SERVER
THEIRS=$(command -v etcd)

# at PORT ARGUMENTS...: Debian's etcdctl.
at() {
    local port=$1
    shift
    etcdctl --endpoints="127.0.0.1:$port" "$@"
}

# The hash, the compacted revision and the revision.
hash_of() {
    at "$1" endpoint hashkv -w json |
        sed 's/.*"revision":\([0-9]*\).*"hash":\([0-9]*\),*\("compact_revision":\([0-9]*\)\)*.*/\2 \4 \1/'
}

# Fills what listens on a port: versions, deletions, leases, transactions, a compaction, long values, a user.
fill() {
    local port=$1 lease i
    lease=$(at "$port" lease grant 36000 | sed 's/lease \([0-9a-f]*\) .*/\1/')
    for i in $(seq 40); do
        at "$port" put "/registry/pods/$((i % 23))" "$(head -c $((i * 37)) /dev/zero | tr '\0' "$((i % 10))")" >/dev/null
    done
    at "$port" put /leased x --lease="$lease" >/dev/null
    at "$port" put /empty "" >/dev/null
    head -c 100000 /dev/urandom | base64 -w 0 | at "$port" put /long >/dev/null
    at "$port" del --prefix /registry/pods/1 >/dev/null
    at "$port" txn <<<$'\n\nput /txn/1 a\nput /txn/2 b\n\n\n' >/dev/null
    at "$port" compaction 30 --physical >/dev/null
    at "$port" put /registry/pods/2 again >/dev/null
}

restored_by_etcd() {
    local ctl=$1 port keys hash revision out
    port=$(free_port)
    SERVER=$OURS start_server "$port"
    fill "$port"
    keys=$(at "$port" get --prefix / -w json | sed 's/"header":{[^}]*},//')
    hash=$(hash_of "$port")
    out=$("$ctl" --endpoints="127.0.0.1:$port" snapshot save "$WORK/ours.snapshot" 2>"$WORK/err") || fail "save: $(cat "$WORK/err")"
    [[ $out == "Snapshot saved at $WORK/ours.snapshot"* ]] || fail "save says: $out"
    [ ! -e "$WORK/ours.snapshot.part" ] || fail "the .part file is left"
    stop_server
    [ $(($(stat -c %s "$WORK/ours.snapshot") % 512)) = 32 ] || fail "no hash at the end"
    revision=$(etcdctl snapshot status "$WORK/ours.snapshot" -w json | sed 's/.*"revision":\([0-9]*\).*/\1/')
    [ "$revision" = "${hash##* }" ] || fail "snapshot status: revision $revision, and HashKV says $hash"
    "$BOLT" check "$WORK/ours.snapshot" >/dev/null

    rm -rf "$WORK/restored"
    port=$(free_port)
    local peer
    peer=$(free_port)
    etcdctl snapshot restore "$WORK/ours.snapshot" --data-dir "$WORK/restored" --name default \
        --initial-cluster "default=http://127.0.0.1:$peer" \
        --initial-advertise-peer-urls "http://127.0.0.1:$peer" >/dev/null 2>&1 || fail "etcd's tool does not restore it"
    KEEP=$WORK/restored SERVER=$THEIRS start_on "$port" "$peer"
    [ "$(at "$port" get --prefix / -w json | sed 's/"header":{[^}]*},//')" = "$keys" ] || fail "other keys after the restore"
    [ "$(hash_of "$port")" = "$hash" ] || fail "HashKV $(hash_of "$port") after the restore, and $hash before"
    at "$port" put /more x >/dev/null
    at "$port" defrag >/dev/null || fail "etcd does not defragment it"
    at "$port" compaction "$revision" --physical >/dev/null
    [ "$(at "$port" get /more --print-value-only)" = x ] || fail "the restored etcd does not go on"
    stop_server
    echo "snapshot of ours by $ctl: restored and served by etcd"
}

# start_on PORT PEER: the server on the data of $KEEP.
start_on() {
    local port=$1 peer=$2
    env -i PATH="$PATH" "$SERVER" --data-dir="$KEEP" --listen-client-urls="http://127.0.0.1:$port" \
        --advertise-client-urls="http://127.0.0.1:$port" --listen-peer-urls="http://127.0.0.1:$peer" \
        --initial-advertise-peer-urls="http://127.0.0.1:$peer" --initial-cluster="default=http://127.0.0.1:$peer" \
        >"$SERVER_LOG" 2>&1 &
    SERVER_PID=$!
    for _ in $(seq 300); do
        kill -0 "$SERVER_PID" 2>/dev/null || fail "the server ended at its start"
        if taken "$port" && at "$port" endpoint health >/dev/null 2>&1; then
            return
        fi
        sleep 0.1
    done
    fail "the server is not healthy after 30 seconds"
}

imported_by_ours() {
    local ctl=$1 port hash out
    port=$(free_port)
    SERVER=$THEIRS start_server "$port"
    fill "$port"
    hash=$(hash_of "$port")
    "$ctl" --endpoints="127.0.0.1:$port" snapshot save "$WORK/theirs.snapshot" >/dev/null 2>&1 || fail "save from etcd"
    stop_server
    rm -f "$WORK/imported"
    out=$("$BOLT" import "$WORK/theirs.snapshot" "$WORK/imported")
    [ "$(sed -n 's/^hashkv //p' <<<"$out")" = "$hash" ] || fail "import: $out; etcd's HashKV is $hash"
    rm -f "$WORK/imported"
    head -c -1 "$WORK/theirs.snapshot" >"$WORK/cut"
    ! "$BOLT" import "$WORK/cut" "$WORK/imported" >/dev/null 2>&1 || fail "a file that lacks a byte is imported"
    [ ! -e "$WORK/imported" ] || fail "a refused import leaves a store"
    echo "snapshot of etcd by $ctl: imported by ours"
}

# What cannot be saved ends alike with both tools: the same code, the same error.
refused_alike() {
    local ctl code said arguments first=
    for ctl in "$(command -v etcdctl)" "$TARGET/debug/etcdctl"; do
        said=
        for arguments in "" "$WORK/a $WORK/b" "$WORK/none/file" "--endpoints=127.0.0.1:1,127.0.0.1:2 $WORK/file"; do
            code=0
            # shellcheck disable=SC2086 # one word for each argument
            "$ctl" snapshot save $arguments >"$WORK/out" 2>"$WORK/err" || code=$?
            said+="$code $(cat "$WORK/out")$(grep -v '^{' "$WORK/err")"$'\n'
        done
        [ -n "$first" ] || first=$said
        [ "$said" = "$first" ] || fail "refused otherwise:"$'\n'"$first--- by $ctl"$'\n'"$said"
    done
    echo "snapshot save: refused alike by both tools"
}

refused_alike
[ $# -gt 0 ] || set -- "$(command -v etcdctl)" "$TARGET/debug/etcdctl"
for ctl in "$@"; do
    restored_by_etcd "$ctl"
    imported_by_ours "$ctl"
done

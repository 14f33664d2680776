#!/usr/bin/env bash
# A session as users have it, through an etcdctl, with every output compared: put, get with prefixes and at old
# revisions, watch from a past revision, a transaction, a lease that expires and takes its keys along, compaction and
# the error after it. Then the same over TLS, with a certificate that the server made and with certificates for clients; and through
# a unix socket.
#
#   etcdctl.sh [ETCDCTL]...    Debian's and ours when none is named

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

CHECKS=0

# expect WHAT EXPECTED ACTUAL
expect() {
    CHECKS=$((CHECKS + 1))
    [ "$3" = "$2" ] || fail "$1:"$'\n'"--- expected"$'\n'"$2"$'\n'"--- found"$'\n'"$3"
}

# What every call has beside its arguments.
SECURE=()

ctl() {
    "$CTL" --endpoints="${ENDPOINT:-$SCHEME://127.0.0.1:$PORT}" "${SECURE[@]}" "$@"
}

# refused WHAT TEXT ARGUMENTS...: ends with 1, says "Error: TEXT" on standard error and nothing on standard output.
refused() {
    local what=$1 text=$2 code=0
    shift 2
    ctl "$@" >"$WORK/out" 2>"$WORK/err" || code=$?
    expect "$what, exit code" 1 "$code"
    expect "$what, standard output" "" "$(cat "$WORK/out")"
    # etcdctl 3.4 logs a line of JSON before it.
    expect "$what, error" "Error: $text" "$(grep -v '^{' "$WORK/err" | tail -n 1)"
}

# watched LINES ARGUMENTS...: the first lines of a watch.
watched() {
    local lines=$1 line out= fd pid
    shift
    exec {fd}< <(exec "$CTL" --endpoints="${ENDPOINT:-$SCHEME://127.0.0.1:$PORT}" "${SECURE[@]}" watch "$@" 2>&1)
    pid=$!
    for _ in $(seq "$lines"); do
        IFS= read -r -t 20 line <&"$fd" || { out+="(nothing more came)"$'\n'; break; }
        out+=$line$'\n'
    done
    kill "$pid" 2>/dev/null || true
    exec {fd}<&-
    printf '%s' "$out"
}

lines() {
    printf '%s\n' "$@"
}

keys_and_revisions() {
    expect "put" OK "$(ctl put foo bar)"
    ctl put foo1 bar1 >/dev/null
    ctl put foo bar_new >/dev/null
    ctl put foo1 bar1_new >/dev/null
    expect "get" "$(lines foo bar_new)" "$(ctl get foo)"
    expect "get, value only" bar_new "$(ctl get --print-value-only foo)"
    expect "get by prefix" "$(lines foo bar_new foo1 bar1_new)" "$(ctl get --prefix foo)"
    expect "get of a half open interval" "$(lines foo bar_new)" "$(ctl get foo foo1)"
    expect "get by prefix, limited" "$(lines foo bar_new)" "$(ctl get --prefix --limit=1 foo)"
    expect "get by prefix, descending" "$(lines foo1 bar1_new foo bar_new)" \
        "$(ctl get --prefix --sort-by=KEY --order=DESCEND foo)"
    expect "get keys only" "$(lines foo "" foo1)" "$(ctl get --prefix --keys-only foo | sed '$d')"
    expect "get in hex" "$(lines '\x66\x6f\x6f' '\x62\x61\x72\x5f\x6e\x65\x77')" "$(ctl get foo --hex)"
    expect "get from a key" "$(lines foo1 bar1_new)" "$(ctl get --from-key foo1)"
    expect "revision 4" "$(lines foo bar_new foo1 bar1)" "$(ctl get --prefix --rev=4 foo)"
    expect "revision 3" "$(lines foo bar foo1 bar1)" "$(ctl get --prefix --rev=3 foo)"
    expect "revision 2" "$(lines foo bar)" "$(ctl get --prefix --rev=2 foo)"
    expect "revision 1" "" "$(ctl get --prefix --rev=1 foo)"
    refused "a future revision" "etcdserver: mvcc: required revision is a future revision" get --rev=99 foo
    refused "an empty key" "etcdserver: key is not provided" put "" value
}

watches() {
    expect "watch from revision 2" "$(lines PUT foo bar PUT foo bar_new)" "$(watched 6 --rev=2 foo)"
    expect "watch of a prefix from revision 3" "$(lines PUT foo1 bar1 PUT foo bar_new PUT foo1 bar1_new)" \
        "$(watched 9 --rev=3 --prefix foo)"
    expect "watch with the pair before" "$(lines PUT foo bar foo bar_new)" "$(watched 5 --rev=4 --prev-kv foo)"
}

transactions() {
    local yes no
    yes=$(ctl txn <<<$'value("foo") = "bar_new"\nversion("foo") > "1"\n\nput result yes\nget foo\n\nput result no\n\n')
    expect "a transaction that holds" "$(lines SUCCESS "" OK "" foo bar_new)" "$yes"
    expect "its effect" yes "$(ctl get --print-value-only result)"
    no=$(ctl txn <<<$'create("nothing") > "0"\n\nput result again\n\ndel result\n\n')
    expect "a transaction that does not hold" "$(lines FAILURE "" 1)" "$no"
    expect "its effect" "" "$(ctl get result)"
}

deletions() {
    ctl put zoo 1 >/dev/null
    ctl put zoo1 2 >/dev/null
    ctl put zoo2 3 >/dev/null
    expect "del" 1 "$(ctl del zoo)"
    expect "del of nothing" 0 "$(ctl del zoo)"
    expect "del with the pair before" "$(lines 1 zoo1 2)" "$(ctl del --prev-kv zoo1)"
    expect "del by prefix" 1 "$(ctl del --prefix zoo)"
}

leases() {
    local granted id revision
    granted=$(ctl lease grant 2)
    [[ $granted =~ ^lease\ ([0-9a-f]{16})\ granted\ with\ TTL\(2s\)$ ]] || fail "lease grant: $granted"
    id=${BASH_REMATCH[1]}
    expect "lease list" "$(lines "found 1 leases" "$id")" "$(ctl lease list)"
    ctl put leased1 x --lease="$id" >/dev/null
    ctl put leased2 y --lease="$id" >/dev/null
    expect "keys of a lease" "granted with TTL(2s)" \
        "$(ctl lease timetolive --keys "$id" | grep -o 'granted with TTL(2s)')"
    expect "the end of a lease" "$(lines DELETE leased1 "" DELETE leased2 "")" \
        "$(revision=$(ctl get leased1 -w json | sed 's/.*"revision":\([0-9]*\).*/\1/') && watched 6 --prefix --rev=$((revision + 1)) leased)"
    expect "its keys are gone" "" "$(ctl get --prefix leased)"
    expect "it is gone" "lease $id already expired" "$(ctl lease timetolive "$id")"
    refused "a put with it" "etcdserver: requested lease not found" put leased1 z --lease="$id"
    id=$(ctl lease grant 1000 | sed 's/lease \([0-9a-f]*\) .*/\1/')
    ctl put leased3 x --lease="$id" >/dev/null
    expect "lease keep-alive" "lease $id keepalived with TTL(1000)" "$(ctl lease keep-alive --once "$id")"
    expect "lease revoke" "lease $id revoked" "$(ctl lease revoke "$id")"
    expect "its key is gone" "" "$(ctl get leased3)"
}

compaction() {
    expect "compaction" "compacted revision 5" "$(ctl compaction 5)"
    refused "a compacted revision" "etcdserver: mvcc: required revision has been compacted" get --rev=4 foo
    refused "a compaction again" "etcdserver: mvcc: required revision has been compacted" compaction 5
    expect "the revision of the compaction" "$(lines foo bar_new)" "$(ctl get --rev=5 foo)"
    expect "the newest" "$(lines foo bar_new)" "$(ctl get foo)"
}

# Where it dials an endpoint by itself, etcdctl 3.4 names the server as it was given, with the scheme.
endpoints() {
    local given
    for given in "127.0.0.1:$PORT" "http://127.0.0.1:$PORT" "http://localhost:$PORT"; do
        expect "status of $given" "$given" "$("$CTL" --endpoints="$given" endpoint status | cut -d, -f1)"
        expect "a hash of $given" "$given" "$("$CTL" --endpoints="$given" endpoint hashkv | cut -d, -f1)"
        expect "a get at $given" "$(lines foo bar_new)" "$("$CTL" --endpoints="$given" get foo)"
    done
}

# A certificate of the authority: certify NAME EXTENSIONS
certify() {
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" \
        -keyout "$WORK/$1.key" -out "$WORK/$1.csr" 2>/dev/null
    openssl x509 -req -in "$WORK/$1.csr" -CA "$WORK/ca.crt" -CAkey "$WORK/ca.key" -CAcreateserial -days 2 \
        -extfile <(printf '%s' "$2") -out "$WORK/$1.crt" 2>/dev/null
}

# An answer of any kind is no refusal: with TLS 1.3 a client learns of one after its handshake.
turned_away() {
    local what=$1
    shift
    if "$CTL" --endpoints="https://127.0.0.1:$PORT" --command-timeout=2s --dial-timeout=2s "$@" get foo >"$WORK/out" 2>&1; then
        fail "$what: $(cat "$WORK/out")"
    fi
    CHECKS=$((CHECKS + 1))
}

secure_sessions() {
    SCHEME=https
    start_server "$PORT" --auto-tls
    SECURE=(--cacert "$WORK/data/fixtures/client/cert.pem")
    turned_away "a client that knows no authority"
    keys_and_revisions
    watches
    SECURE=(--insecure-transport=false --insecure-skip-tls-verify)
    transactions
    stop_server

    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=ca" -days 2 \
        -keyout "$WORK/ca.key" -out "$WORK/ca.crt" 2>/dev/null
    certify server "subjectAltName=IP:127.0.0.1"
    certify client ""
    SECURE=(--cacert "$WORK/ca.crt" --cert "$WORK/client.crt" --key "$WORK/client.key")
    start_server "$PORT" --client-cert-auth --trusted-ca-file="$WORK/ca.crt" --cert-file="$WORK/server.crt" \
        --key-file="$WORK/server.key"
    turned_away "a client without a certificate" --cacert "$WORK/ca.crt"
    keys_and_revisions
    watches
    leases
    stop_server
    SCHEME=http SECURE=()
}

unix_socket() {
    start_server "$PORT" --listen-client-urls="http://127.0.0.1:$PORT,unix://$WORK/client.sock"
    ENDPOINT=unix://$WORK/client.sock
    keys_and_revisions
    watches
    stop_server
    ENDPOINT=
}

command -v openssl >/dev/null || fail "openssl is not there: install it first"
SCHEME=http
[ $# -gt 0 ] || set -- "$(command -v etcdctl)" "$TARGET/debug/etcdctl"
for CTL in "$@"; do
    [ -x "$CTL" ] || fail "$CTL is not there: install or build it first"
    PORT=$(free_port)
    CHECKS=0
    start_server "$PORT"
    for part in keys_and_revisions watches transactions deletions leases compaction endpoints; do
        $part
    done
    stop_server
    secure_sessions
    # Debian's names the server by a path that h2 refuses (docs/compatibility.md).
    case $("$CTL" version) in *" 3.4."*) ;; *) unix_socket ;; esac
    echo "etcdctl session with $CTL: $CHECKS checks passed"
done

#!/usr/bin/env bash
# Three members as users run them, through an etcdctl: the member list, health, status and hashes of all, a new leader, a
# member that is added as a learner, promoted, moved and removed.
#
#   cluster.sh [ETCDCTL]...    Debian's and ours when none is named

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

PIDS=()
end_all() {
    [ ${#PIDS[@]} -eq 0 ] || kill "${PIDS[@]}" 2>/dev/null || true
    for pid in "${PIDS[@]}"; do wait "$pid" 2>/dev/null || true; done
    PIDS=()
}
trap 'end_all; cleanup' EXIT

CHECKS=0

# matches WHAT PATTERN ACTUAL: an extended regular expression for the whole of it.
matches() {
    CHECKS=$((CHECKS + 1))
    [[ $3 =~ ^($2)$ ]] || fail "$1:"$'\n'"--- pattern"$'\n'"$2"$'\n'"--- found"$'\n'"$3"
}

ctl() {
    "$CTL" --endpoints="$ENDPOINTS" --command-timeout=20s "$@" 2>"$WORK/err" || { cat "$WORK/err"; return 1; }
}

# With etcdctl 3.4 errors follow a line of log.
refusal() {
    ctl "$@" >/dev/null || true
    grep '^Error' "$WORK/err" | tail -n 1
}

# Asks again while the connections are too young (five seconds) for a change of the members.
patiently() {
    local out
    for _ in $(seq 100); do
        if out=$(ctl "$@"); then echo "$out"; return; fi
        [[ $out == *"unhealthy cluster"* ]] || break
        sleep 0.2
    done
    fail "$*: $out"
}

# The ids of those that say that they lead: that stands before two numbers at least, in other columns in 3.4 and in 3.7.
leaders() {
    ctl endpoint status "$@" | grep -E ', true, false, [0-9]+, [0-9]+, ' | cut -d, -f2 | tr -d ' '
}

# start NAME PEER CLIENT CLUSTER STATE
start() {
    env -i PATH="$PATH" "$SERVER" --name="$1" --data-dir="$WORK/$1" --listen-client-urls="http://127.0.0.1:$3" \
        --advertise-client-urls="http://127.0.0.1:$3" --listen-peer-urls="http://127.0.0.1:$2" \
        --initial-advertise-peer-urls="http://127.0.0.1:$2" --initial-cluster="$4" --initial-cluster-state="$5" \
        >>"$WORK/$1.log" 2>&1 &
    PIDS+=($!)
}

wait_until_healthy() {
    for _ in $(seq 300); do
        if ctl endpoint health >/dev/null; then return; fi
        sleep 0.1
    done
    tail -n 5 "$WORK"/*.log >&2
    fail "the members are not healthy after 30 seconds"
}

session() {
    local name cluster= peers=() clients=() id leader target out new
    rm -rf "$WORK"/infra*
    for name in 1 2 3; do
        peers[name]=$(free_port)
        clients[name]=$(free_port)
        cluster+=${cluster:+,}infra$name=http://127.0.0.1:${peers[name]}
    done
    ENDPOINTS=127.0.0.1:${clients[1]},127.0.0.1:${clients[2]},127.0.0.1:${clients[3]}
    for name in 1 2 3; do start "infra$name" "${peers[name]}" "${clients[name]}" "$cluster" new; done
    wait_until_healthy

    matches "put" OK "$(ctl put foo bar)"
    for name in 1 2 3; do
        matches "get from member $name" $'foo\nbar' "$("$CTL" --endpoints="127.0.0.1:${clients[name]}" get foo)"
    done
    out=$(ctl member list)
    matches "member list" "([0-9a-f]+, started, infra[123], http://127.0.0.1:[0-9]+, http://127.0.0.1:[0-9]+, false"$'\n?'"){3}" "$out"
    ENDPOINTS=127.0.0.1:${clients[1]}
    # 3.4 says it on its standard error.
    out=$(ctl endpoint health --cluster) || fail "endpoint health --cluster: $out"
    out+=$(grep 'is healthy' "$WORK/err" || true)
    matches "endpoint health --cluster" "(http://127.0.0.1:[0-9]+ is healthy: successfully committed proposal: took = [0-9.]+[mµ]?s"$'\n?'"){3}" \
        "$out"
    matches "hashes are equal" 1 "$(ctl endpoint hashkv --cluster | cut -d, -f2 | sort -u | wc -l)"
    matches "status names one leader" 1 "$(leaders --cluster | wc -l)"
    ENDPOINTS=127.0.0.1:${clients[1]},127.0.0.1:${clients[2]},127.0.0.1:${clients[3]}

    leader=$(leaders)
    target=$(ctl endpoint status | grep -v "$leader" | head -n 1 | cut -d, -f2 | tr -d ' ')
    matches "move-leader" "Leadership transferred from $leader to $target" "$(ctl move-leader "$target")"
    matches "the new leader" "$target" "$(leaders)"

    new=$(free_port)
    peers[4]=$(free_port)
    out=$(patiently member add infra4 --learner --peer-urls="http://127.0.0.1:${peers[4]}")
    id=$(sed -n 's/^Member  *\([0-9a-f]*\) added .*/\1/p' <<<"$out")
    matches "member add" '"infra4"' "$(sed -n 's/^ETCD_NAME=//p' <<<"$out")"
    matches "the state to start with" '"existing"' "$(sed -n 's/^ETCD_INITIAL_CLUSTER_STATE=//p' <<<"$out")"
    cluster=$(sed -n 's/^ETCD_INITIAL_CLUSTER="\(.*\)"/\1/p' <<<"$out")
    matches "not started yet" "$id, unstarted, , http://127.0.0.1:${peers[4]}, , true" "$(ctl member list | grep "$id")"
    matches "a learner that has nothing" "Error: etcdserver: can only promote a learner member which is in sync with leader" \
        "$(refusal member promote "$id")"
    start infra4 "${peers[4]}" "$new" "$cluster" existing
    for _ in $(seq 300); do
        if out=$(ctl member promote "$id"); then break; fi
        sleep 0.1
    done
    matches "member promote" "Member  *$id promoted in cluster  *[0-9a-f]+" "$out"
    ENDPOINTS=$ENDPOINTS,127.0.0.1:$new
    wait_until_healthy
    matches "the new member has it all" $'foo\nbar' "$("$CTL" --endpoints="127.0.0.1:$new" get foo)"

    matches "URLs of another" "Error: etcdserver: Peer URLs already exists" \
        "$(refusal member update "$id" --peer-urls="http://127.0.0.1:${peers[1]}")"
    matches "member update" "Member  *$id updated in cluster  *[0-9a-f]+" \
        "$(ctl member update "$id" --peer-urls="http://127.0.0.1:${peers[4]},http://localhost:${peers[4]}")"
    ENDPOINTS=127.0.0.1:${clients[1]},127.0.0.1:${clients[2]},127.0.0.1:${clients[3]}
    matches "member remove" "Member  *$id removed from cluster  *[0-9a-f]+" "$(patiently member remove "$id")"
    wait "${PIDS[3]}" 2>/dev/null || true
    unset 'PIDS[3]'
    matches "it is gone for good" "Error: etcdserver: member not found" "$(refusal member remove "$id")"
    matches "three are left" 3 "$(ctl member list | wc -l)"
    end_all
}

[ $# -gt 0 ] || set -- "$(command -v etcdctl)" "$TARGET/debug/etcdctl"
for CTL in "$@"; do
    [ -x "$CTL" ] || fail "$CTL is not there"
    session
done
echo "cluster: $CHECKS checks passed"

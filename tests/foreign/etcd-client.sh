#!/usr/bin/env bash
# Runs the tests that the Rust crate etcd-client ships against a server on port 2379, where they look for it.
#
# Left out, because the server does not serve it yet: test_lock (Lock), test_election (Election), test_auth, test_role,
# test_user (Auth), test_alarm, test_snapshot, test_move_leader (Maintenance). The crate itself marks
# test_cluster as ignored: it adds members that never start.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

VERSION=0.17.0
TESTS=(test_put test_get test_delete test_compact test_txn test_watch test_grant_revoke test_keep_alive
    test_time_to_live test_leases test_status test_defragment test_hash test_hash_kv test_remove_and_add_endpoint)

# Its source comes out of the registry's cache, where a manifest that depends on it has brought it.
mkdir -p "$WORK/fetch/src"
cat >"$WORK/fetch/Cargo.toml" <<EOF
[package]
name = "fetch"
version = "0.0.0"
edition = "2021"
[dependencies]
etcd-client = "=$VERSION"
[workspace]
EOF
touch "$WORK/fetch/src/lib.rs"
(cd "$WORK/fetch" && cargo fetch --quiet)
source=$(cd "$WORK/fetch" && cargo metadata --format-version 1 --quiet | python3 -c '
import json, os, sys
packages = json.load(sys.stdin)["packages"]
print(next(os.path.dirname(p["manifest_path"]) for p in packages if p["name"] == "etcd-client"))')
cp -r "$source" "$WORK/etcd-client"
printf '\n[workspace]\n' >>"$WORK/etcd-client/Cargo.toml"

cd "$WORK/etcd-client"
export CARGO_TARGET_DIR=$TARGET/foreign
cargo build --quiet --locked --tests
start_server 2379
# A compaction takes away what another test has just written, so one after the other.
cargo test --quiet --locked --test client -- --exact --test-threads=1 "${TESTS[@]}" | tee "$WORK/client.txt"
cargo test --quiet --locked --test namespace -- --test-threads=1 | tee "$WORK/namespace.txt"
grep -q "test result: ok. ${#TESTS[@]} passed" "$WORK/client.txt" || fail "not all of the ${#TESTS[@]} tests ran"
grep -q "test result: ok. 1 passed" "$WORK/namespace.txt" || fail "the test of namespaces did not run"

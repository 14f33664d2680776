#!/usr/bin/env python3
"""Writes mvcc_golden.txt: a history, and the HashKV that a real etcd gives at many of its revisions.

Usage: mvcc_golden.py http://127.0.0.1:PORT > mvcc_golden.txt     (a fresh etcd 3.4; needs etcdctl)

One operation a line; operations between `txn` and `end` share a revision. Compactions are physical, so that the
hash does not depend on timing.
"""

import base64
import json
import os
import random
import subprocess
import sys
import urllib.request

URL = sys.argv[1]
RANDOM = random.Random(2026)


def call(path, **body):
    request = urllib.request.Request(f"{URL}/v3/{path}", json.dumps(body).encode())
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def b64(text):
    return base64.b64encode(text.encode()).decode()


def put(key, value, lease=0):
    print("put", key, value or "-", lease)
    return {"requestPut": {"key": b64(key), "value": b64(value), "lease": str(lease)}}


def delete(key, end=None):
    """`end` None: one key; "": every key >= key."""
    print("delete", key, "-" if end is None else end or "*")
    body = {"key": b64(key)}
    if end is not None:
        body["range_end"] = b64(end or "\0")
    return {"requestDeleteRange": body}


def run(op):
    [(kind, body)] = op.items()
    return call({"requestPut": "kv/put", "requestDeleteRange": "kv/deleterange"}[kind], **body)


def revision():
    return int(call("kv/range", key=b64("none"))["header"]["revision"])


def hash_at(at):
    command = ["etcdctl", "--endpoints", URL, "endpoint", "hashkv", "-w", "json", "--rev", str(at)]
    environment = {**os.environ, "ETCDCTL_API": "3"}
    answer = json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
    print("hashkv", at, answer[0]["HashKV"]["hash"], answer[0]["HashKV"]["compact_revision"])


def compact(at):
    print("compact", at)
    call("kv/compaction", revision=str(at), physical=True)


def random_op():
    key = f"key{RANDOM.randrange(20):02}" + "/long" * (RANDOM.randrange(20) == 0) * 40
    if RANDOM.random() < 0.3:
        return delete(key, RANDOM.choice([None, None, None, f"key{RANDOM.randrange(20):02}"]))
    value = RANDOM.choice(["", "v", "value" * RANDOM.randrange(1, 100)])
    return put(key, value, RANDOM.choice([0, 0, 7, 1 << 40]))


def random_txn():
    print("txn")
    used, ops = set(), []
    for _ in range(RANDOM.randrange(1, 6)):
        key = RANDOM.choice("abcdefghij")
        if key not in used:
            used.add(key)
            ops.append(put(f"txn/{key}", key) if RANDOM.random() < 0.7 else delete(f"txn/{key}"))
    call("kv/txn", success=ops)
    print("end")


def main():
    for lease in [7, 1 << 40]:
        call("lease/grant", ID=str(lease), TTL="9000000")
    hash_at(0)
    compacted = 0
    for round_number in range(300):
        if RANDOM.random() < 0.2:
            random_txn()
        else:
            run(random_op())
        if round_number % 6 == 0:
            hash_at(RANDOM.randrange(compacted + 1, revision() + 1) if revision() > compacted else 0)
        if round_number % 25 == 24 and revision() > compacted:
            compacted = RANDOM.randrange(compacted + 1, revision() + 1)
            compact(compacted)
            hash_at(0)
    # Everything deleted: the keep set is empty from here on. Then compactions at and above the tombstones.
    run(delete("a", ""))
    hash_at(0)
    compact(revision() - 1)
    hash_at(0)
    compact(revision())
    hash_at(0)
    run(put("phoenix", "again"))
    hash_at(0)
    compact(revision())
    hash_at(0)
    run(delete("phoenix"))
    compact(revision())
    hash_at(0)
    run(put("after", ""))
    hash_at(0)


main()

#!/usr/bin/env python3
"""Writes small.snapshot and small.txt beside this file: what a real etcd saved, and what it says of it.

Usage: make.py http://127.0.0.1:PORT     (a fresh etcd 3.4; needs etcdctl 3.4)

small.txt: `status HASH REVISION ENTRIES SIZE` as etcdctl's `snapshot status` prints it (of all buckets), then `hashkv REVISION HASH
COMPACTED` at some revisions (0: the current), then `count PREFIX KEYS`.
"""

import base64
import json
import os
import random
import subprocess
import sys
import urllib.request

URL = sys.argv[1]
HERE = os.path.dirname(os.path.abspath(__file__))
RANDOM = random.Random(7)


def call(path, **body):
    request = urllib.request.Request(f"{URL}/v3/{path}", json.dumps(body).encode())
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def b64(text):
    return base64.b64encode(text.encode()).decode()


def ctl(*args):
    return subprocess.run(["etcdctl", "--endpoints", URL, *args], check=True, capture_output=True,
                          env={**os.environ, "ETCDCTL_API": "3"}).stdout.decode()


leases = [call("lease/grant", TTL=3600 * 24 * 365 * 10 + i, ID=1000 + i)["ID"] for i in range(3)]
for i in range(260):
    key = f"/registry/{RANDOM.choice(['pods', 'nodes', 'events'])}/{RANDOM.randrange(120):03}"
    lease = RANDOM.choice([0, 0, *leases])
    call("kv/put", key=b64(key), value=b64("v" * RANDOM.randrange(120)), lease=lease)
    if i % 9 == 0:
        call("kv/deleterange", key=b64(f"/registry/pods/{RANDOM.randrange(120):03}"))
    if i % 20 == 0:
        call("kv/txn", success=[{"requestPut": {"key": b64(f"/txn/{i}/{n}"), "value": b64("x")}} for n in range(4)])
    if i == 150:
        call("kv/compaction", revision="100", physical=True)
call("kv/put", key=b64("/big"), value=b64("b" * 9000))
call("kv/put", key=b64("/empty"), value="")
call("lease/revoke", ID=leases[2])
call("auth/user/add", name="someone", password="secret")
call("auth/role/add", name="readers")
call("auth/role/grant", name="readers", perm={"permType": "READ", "key": b64("/registry/"), "range_end": b64("/registry0")})
call("auth/user/grant", user="someone", role="readers")

snapshot = os.path.join(HERE, "small.snapshot")
ctl("snapshot", "save", snapshot)
status = json.loads(subprocess.run(["etcdctl", "snapshot", "status", snapshot, "-w", "json"], check=True,
                                   capture_output=True, env={**os.environ, "ETCDCTL_API": "3"}).stdout)
with open(os.path.join(HERE, "small.txt"), "w") as out:
    print("status", status["hash"], status["revision"], status["totalKey"], status["totalSize"], file=out)
    for revision in [101, 120, 150, 200, 250, 0]:
        got = json.loads(ctl("endpoint", "hashkv", "-w", "json", "--rev", str(revision)))[0]["HashKV"]
        print("hashkv", revision, got["hash"], got["compact_revision"], file=out)
    for prefix in ["/registry/", "/registry/pods/", "/txn/", "/"]:
        end = prefix[:-1] + "0"
        print("count", prefix, call("kv/range", key=b64(prefix), range_end=b64(end), count_only=True)["count"], file=out)

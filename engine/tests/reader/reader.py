#!/usr/bin/env python3
"""Reads a store's file by docs/format.md alone; shares no code with the engine.

    reader.py FILE

Verifies all that the page says of the newest checkpoint: checksums, page headers, cells, order, heads, sums, the owners of
extents, and that the bitmaps have exactly the pages that are reached. Prints what the trees hold; the first thing that is
not as it should be ends it with exit code 1. Compressed values are decompressed if the command zstd is there; if it is
not, their stored bytes are verified, and what the reference says of the value is believed.
"""

import hashlib
import shutil
import struct
import subprocess
import sys

PAGE = 4096
REGION = 32768
SET_ASIDE = 6
TREES = ["key", "index", "lease keys", "meta", "lease", "alarm", "auth", "authUsers", "authRoles", "members",
         "members_removed", "cluster"]
INDEX = 1


class Wrong(Exception):
    pass


def need(true, *what):
    if not true:
        raise Wrong(" ".join(str(w) for w in what))


def table():
    rows = []
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
        rows.append(n)
    return rows


CRC_TABLE = table()


def crc32c(data, crc=0):
    crc ^= 0xFFFFFFFF
    rows = CRC_TABLE
    for byte in data:
        crc = rows[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def times(matrix, vector):
    total, i = 0, 0
    while vector:
        if vector & 1:
            total ^= matrix[i]
        vector >>= 1
        i += 1
    return total


def zeros_operators():
    """The effect of 2^k zero bytes on a checksum, as matrices over GF(2)."""
    matrix = [0x82F63B78] + [1 << i for i in range(31)]
    operators = []
    for k in range(64 + 3):
        if k >= 3:
            operators.append(matrix)
        matrix = [times(matrix, row) for row in matrix]
    return operators


OPERATORS = zeros_operators()


def combine(a, b, b_bytes):
    k = 0
    while b_bytes:
        if b_bytes & 1:
            a = times(OPERATORS[k], a)
        b_bytes >>= 1
        k += 1
    return a ^ b


class Sums:
    def __init__(self, count=0, size=0, crc=0, live=0):
        self.all = (count, size, crc, live)

    def then(self, other):
        (c1, s1, r1, l1), (c2, s2, r2, l2) = self.all, other.all
        return Sums(c1 + c2, s1 + s2, combine(r1, r2, s2), l1 + l2)


def integer(data, at, size, signed=False):
    return int.from_bytes(data[at:at + size], "little", signed=signed)


class Part:
    """A key or value: its bytes (None if it is compressed), its length and its checksum."""

    def __init__(self, data, size, crc, stored=None):
        self.data, self.size, self.crc, self.stored = data, size, crc, stored

    def sums(self):
        return Sums(0, self.size, self.crc)


def short(data):
    return Part(data, len(data), crc32c(data))


class Reader:
    def __init__(self, path):
        with open(path, "rb") as file:
            self.file = file.read()
        self.reached = set()
        self.compressed = []

    def pages(self, first, count):
        need(first >= SET_ASIDE and (first + count) * PAGE <= len(self.file), "pages", first, count, "leave the file")
        need(first // REGION == (first + count - 1) // REGION, "extent", first, "cuts a region")
        need(first % REGION >= SET_ASIDE, "page", first, "is set aside")
        for page in range(first, first + count):
            need(page not in self.reached, "page", page, "is reached twice")
            self.reached.add(page)
        return self.file[first * PAGE:(first + count) * PAGE]

    def meta(self):
        whole = []
        for slot in (0, 1):
            page = self.file[slot * PAGE:(slot + 1) * PAGE]
            if crc32c(page[:4092]) == integer(page, 4092, 4):
                need(page[:8] == b"TRILITH\0" and integer(page, 8, 4) == 1, "meta page", slot, "is of another format")
                need(integer(page, 12, 4) == PAGE and integer(page, 52, 4) == len(TREES), "meta page", slot)
                whole.append(page)
        need(whole, "no meta page is whole")
        return max(whole, key=lambda page: integer(page, 16, 8))

    def read(self):
        meta = self.meta()
        print("checkpoint", integer(meta, 16, 8))
        print("applied", integer(meta, 24, 8), integer(meta, 32, 8))
        for n in range(16):
            print("counter", n, integer(meta, 64 + 8 * n, 8))
        trees = []
        for number, name in enumerate(TREES):
            root = meta[192 + 48 * number:192 + 48 * (number + 1)]
            page, check = integer(root, 0, 8), integer(root, 8, 8)
            sums = Sums(integer(root, 16, 8), integer(root, 24, 8), integer(root, 32, 4),
                        integer(root, 40, 8, signed=True))
            self.entries = []
            if page == 0:
                need(not any(root), "root of the empty tree", name)
            else:
                found = self.node(number, page, check, None, None, None)
                need(found.all == sums.all, "sums of tree", name, sums.all, found.all)
            trees.append((name, sums.all, self.entries))
        self.bitmaps(meta)
        self.decompress()
        for name, sums, entries in trees:
            digest = hashlib.sha256()
            for key, value in entries:
                digest.update(struct.pack("<I", key.size) + key.data)
                digest.update(struct.pack("<II", value.size, value.crc))
            print("tree", name.replace(" ", "_"), *sums, digest.hexdigest())
        print("pages", len(self.reached))

    def node(self, tree, number, check, level, low, high):
        page = self.pages(number, 1)
        need(crc32c(page) == check, "checksum of page", number)
        need(integer(page, 0, 8) == number, "number of page", number)
        kind = page[16]
        need(kind == (1 if page[17] == 0 else 2), "kind of page", number)
        need(level is None or page[17] == level, "level of page", number)
        need(page[18] == tree, "tree of page", number)
        need(page[19] == (1 if tree == INDEX else 0), "order of page", number)
        cells, area, dead, prefix = (integer(page, at, 2) for at in (20, 22, 24, 28))
        need(cells > 0 and 32 + 6 * cells <= area <= PAGE and prefix <= 124, "header of page", number)
        taken, extents, keys, values, children = [], {}, [], [], []
        for i in range(cells):
            at = integer(page, 32 + 6 * i, 2)
            end, key, rest = self.cell(page, at, kind, extents)
            taken.append((at, end))
            keys.append(key)
            (values if kind == 1 else children).append(rest)
        self.filled(number, area, dead, taken)
        self.heads(number, page, kind, prefix, keys)
        for before, after in zip(keys[kind - 1:], keys[kind:]):
            need(order(tree, before.data) < order(tree, after.data), "keys of page", number)
        if kind == 1:
            need(low is None or order(tree, low) <= order(tree, keys[0].data), "first key of page", number)
            need(high is None or order(tree, keys[-1].data) < order(tree, high), "last key of page", number)
            return self.leaf(tree, keys, values)
        need(keys[0].size == 0, "first key of branch", number)
        sums = Sums()
        for i, (child, check, expected) in enumerate(children):
            bounds = keys[i].data if i else low, keys[i + 1].data if i + 1 < cells else high
            found = self.node(tree, child, check, page[17] - 1, *bounds)
            need(found.all == expected.all, "sums of page", child, expected.all, found.all)
            sums = sums.then(found)
        return sums

    def leaf(self, tree, keys, values):
        sums = Sums()
        for key, value in zip(keys, values):
            live = 0
            if tree == INDEX and value.size <= 512:
                live = {1: 1, 2: -1}.get(value.data[0], 0)
            sums = sums.then(key.sums()).then(value.sums()).then(Sums(1, 0, 0, live))
            self.entries.append((key, value))
        return sums

    def cell(self, page, at, kind, extents):
        flags, size = page[at], integer(page, at + 1, 2)
        need(flags & ~(3 if kind == 1 else 1) == 0, "flags", flags)
        key_at = at + (5 if kind == 1 else 35)
        end = key_at + size
        key = short(page[key_at:end])
        if flags & 1:
            need(size == 128, "beginning of a long key", size)
            whole = self.long(page[end:end + 28], 960, extents)
            need(whole.data is not None and whole.data[:128] == key.data, "long key")
            key, end = whole, end + 28
        else:
            need(size <= 960, "short key", size)
        if kind == 2:
            sums = Sums(integer(page, at + 13, 6), integer(page, at + 19, 6), integer(page, at + 25, 4),
                        integer(page, at + 29, 6, signed=True))
            return end, key, (integer(page, at + 3, 6), integer(page, at + 9, 4), sums)
        size = integer(page, at + 3, 2)
        if flags & 2:
            need(size == 0, "bytes of a long value in the cell", size)
            return end + 28, key, self.long(page[end:end + 28], 512, extents)
        need(size <= 512, "short value", size)
        return end + size, key, short(page[end:end + size])

    def long(self, reference, inline, extents):
        """`extents`: those of the page so far, by first page: bytes, and what is referred to."""
        first, pages = integer(reference, 0, 6), integer(reference, 6, 2)
        at, stored, size, stored_crc, crc = (integer(reference, n, 4) for n in (8, 12, 16, 20, 24))
        if first not in extents:
            extents[first] = (self.pages(first, pages), [])
        data, parts = extents[first]
        need(len(data) == pages * PAGE, "two lengths of extent", first)
        need(inline < size <= 64 << 20 and 0 < stored <= size and at % 8 == 0, "reference into extent", first)
        need(at + stored <= len(data), "end of a long part in extent", first)
        need(all(at + stored <= a or b <= at for a, b in parts), "parts of extent", first, "overlap")
        parts.append((at, at + stored))
        data = data[at:at + stored]
        need(crc32c(data) == stored_crc, "checksum in extent", first)
        if stored == size:
            need(crc == stored_crc, "checksums of a part that is not compressed")
            return Part(data, size, crc)
        need(inline == 512 and size >= 1024, "only values of 1 KiB are compressed")
        part = Part(None, size, crc, data)
        self.compressed.append(part)
        return part

    def decompress(self):
        zstd = shutil.which("zstd")
        print("compressed", len(self.compressed))
        if not zstd or not self.compressed:
            return
        frames = b"".join(part.stored for part in self.compressed)
        data = subprocess.run([zstd, "-dcq"], input=frames, stdout=subprocess.PIPE, check=True).stdout
        at = 0
        for part in self.compressed:
            need(crc32c(data[at:at + part.size]) == part.crc, "checksum of a compressed value")
            at += part.size
        need(at == len(data), "bytes of the compressed values", at, len(data))

    @staticmethod
    def filled(number, area, dead, taken):
        taken.sort()
        need(taken[0][0] >= area and taken[-1][1] <= PAGE, "cells of page", number)
        need(all(a[1] <= b[0] for a, b in zip(taken, taken[1:])), "cells of page", number, "overlap")
        need(sum(b - a for a, b in taken) + dead == PAGE - area, "dead bytes of page", number)

    @staticmethod
    def heads(number, page, kind, prefix, keys):
        stems = [key.data[:len(key.data) - min(12, len(key.data))] if page[19] else key.data for key in keys]
        before = 0
        for i in range(kind - 1, len(keys)):
            need(stems[i][:prefix] == stems[kind - 1][:prefix] and len(stems[i]) >= prefix, "prefix of page", number)
            head = integer(page, 32 + 6 * i + 2, 4)
            need(head == int.from_bytes(stems[i][prefix:prefix + 4].ljust(4, b"\0"), "big"), "head in page", number)
            need(head >= before, "heads of page", number)
            before = head

    def bitmaps(self, meta):
        regions, high = integer(meta, 48, 4), integer(meta, 40, 8)
        used = set()
        for region in range(regions):
            place = meta[2048 + region // 8] >> region % 8 & 1
            first = region * REGION + (4 if place else 2)
            bitmap = self.file[first * PAGE:(first + 2) * PAGE]
            need(bitmap[:8] == b"TRILBITS" and integer(bitmap, 16, 4) == region, "bitmap of region", region)
            need(integer(bitmap, 8, 8) <= integer(meta, 16, 8), "checkpoint of bitmap", region)
            need(crc32c(bitmap[:20] + bitmap[24:]) == integer(bitmap, 20, 4), "checksum of bitmap", region)
            for n in range(REGION):
                if integer(bitmap, 32 + n // 64 * 8, 8) >> n % 64 & 1:
                    used.add(region * REGION + n)
            need(all(region * REGION + n in used for n in range(SET_ASIDE)), "pages set aside in region", region)
            used -= {region * REGION + n for n in range(SET_ASIDE)}
        need(used == self.reached, "bitmaps and pages reached differ:", sorted(used ^ self.reached)[:10])
        need(max(used, default=0) < high <= len(self.file) // PAGE, "high water", high)


def order(tree, key):
    return (key[:-12], key[-12:]) if tree == INDEX else (key, b"")


if __name__ == "__main__":
    try:
        Reader(sys.argv[1]).read()
    except Wrong as wrong:
        sys.exit(f"{sys.argv[1]}: {wrong}")

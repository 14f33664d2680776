//! A reader of the file in another language, written from `docs/format.md` alone, finds what the engine put there, and
//! every rule of that page kept. Needs Python: `tests/real` runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use trilith_disk::RealDisk;
use trilith_engine::{KeyRange, Options, Store, TreeId};

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn folder(name: &str) -> Folder {
    let path = std::env::temp_dir().join(format!("trilith-reader-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    Folder(path)
}

/// splitmix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Mostly short; half of the long ones can be compressed.
    fn bytes(&mut self, long: usize) -> Vec<u8> {
        let len = if self.below(4) == 0 { self.below(long) } else { self.below(80) };
        match self.below(2) {
            0 => (0..len).map(|_| self.next() as u8).collect(),
            _ => (0..len).map(|i| b"{\"kind\":\"Pod\"},"[i % 15]).collect(),
        }
    }
}

fn checkpoint(store: &mut Store) {
    store.publish();
    let done = store.begin_checkpoint().unwrap().run().unwrap();
    store.finish_checkpoint(done).unwrap();
}

/// A store with a history: puts, deletes and a compaction, long keys and values, several checkpoints.
fn fill(path: &Path, compress: bool) -> Store {
    let (path, disk) = (path.to_owned(), Arc::new(RealDisk));
    let mut store =
        Store::open(Options { path, disk, map: true, dirty_bytes_max: 1 << 30, compress }).unwrap();
    let mut rng = Rng(if compress { 2 } else { 1 });
    for round in 0..6 {
        for _ in 0..250 {
            let n = rng.below(300);
            let mut key = format!("/registry/{n}").into_bytes();
            key.resize(key.len() + [0, 0, 0, 100, 900, 1500][n % 6], b'x');
            let mut txn = store.txn();
            match rng.below(5) {
                0 => drop(txn.delete_range(KeyRange { start: &key, end: None }).unwrap()),
                _ => txn.put(&key, &rng.bytes(9000), n as i64 % 3).unwrap(),
            }
            let (tree, n) = (TreeId::ALL[3 + rng.below(9)], rng.below(40));
            let mut key = n.to_string().into_bytes();
            key.resize(key.len() + [0, 70, 1200][n % 3], b'y');
            store.insert(tree, &key, &rng.bytes(1500)).unwrap();
        }
        if round == 3 {
            let revision = store.view().revision() - 100;
            store.compact(revision).unwrap();
            while !store.compact_step(1000).unwrap() {}
        }
        store.set_applied(round * 250 + 7, round + 1);
        checkpoint(&mut store);
    }
    store.insert(TreeId::Meta, b"large", &vec![5; 200_000]).unwrap();
    for tree in [TreeId::Alarm, TreeId::Cluster] {
        while let Some(key) = store.view().last(tree).unwrap().key().map(<[u8]>::to_vec) {
            store.remove(tree, &key).unwrap();
        }
    }
    checkpoint(&mut store);
    store.check().unwrap();
    store
}

/// The lines on the trees as the reader prints them.
fn trees(store: &Store) -> Vec<String> {
    let all = KeyRange { start: b"", end: Some(b"") };
    let live = store.view().keys(all, 0).unwrap().count();
    let names = [
        "key",
        "index",
        "lease_keys",
        "meta",
        "lease",
        "alarm",
        "auth",
        "authUsers",
        "authRoles",
        "members",
        "members_removed",
        "cluster",
    ];
    let line = |(tree, name): (TreeId, &str)| {
        let (mut count, mut bytes, mut crc, mut digest) = (0, 0, 0, Sha256::new());
        let mut cursor = store.view().seek(tree, b"").unwrap();
        while let (Some(key), Some(value)) = (cursor.key(), cursor.value().unwrap()) {
            count += 1;
            bytes += key.len() + value.len();
            crc = crc32c::crc32c_append(crc32c::crc32c_append(crc, key), &value);
            digest.update((key.len() as u32).to_le_bytes());
            digest.update(key);
            digest.update((value.len() as u32).to_le_bytes());
            digest.update(crc32c::crc32c(&value).to_le_bytes());
            cursor.next().unwrap();
        }
        let live = if tree == TreeId::Index { live } else { 0 };
        let digest: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("tree {name} {count} {bytes} {crc} {live} {digest}")
    };
    TreeId::ALL.into_iter().zip(names).map(line).collect()
}

fn read(path: &Path) -> Output {
    let reader = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reader/reader.py");
    Command::new("python3").arg(reader).arg(path).output().expect("python3 is there")
}

#[test]
fn another_reader_finds_the_same() {
    for compress in [false, true] {
        let folder = folder(if compress { "compressed" } else { "plain" });
        let path = folder.0.join("db");
        let store = fill(&path, compress);
        let output = read(&path);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines: Vec<&str> = text.lines().collect();
        let has = |line: String| assert!(lines.contains(&&line[..]), "no line {line:?} in\n{text}");
        has(format!("checkpoint {}", store.checkpoint_number()));
        has("applied 1257 6".to_owned());
        (0..16).for_each(|n| has(format!("counter {n} {}", store.view().counter(n))));
        trees(&store).into_iter().for_each(has);
        let compressed = lines.iter().find_map(|line| line.strip_prefix("compressed ")).unwrap();
        assert_eq!(compressed != "0", compress, "{compressed} values");
    }
}

#[test]
fn another_reader_notices_a_flipped_bit() {
    let folder = folder("flipped");
    let path = folder.0.join("db");
    drop(fill(&path, false));
    let whole = std::fs::read(&path).unwrap();
    // Many pages of a file with a history are free: a flip there is no damage.
    let (mut rng, mut noticed) = (Rng(3), 0);
    for _ in 0..12 {
        let mut damaged = whole.clone();
        let at = 6 * 4096 + rng.below(damaged.len() - 6 * 4096);
        damaged[at] ^= 1 << rng.below(8);
        std::fs::write(&path, damaged).unwrap();
        let output = read(&path);
        noticed += usize::from(output.status.code() == Some(1) && output.stdout.starts_with(b"checkpoint"));
    }
    assert!(noticed >= 3, "{noticed} of 12");
}

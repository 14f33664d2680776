//! `etcdutl` as a process: on a snapshot that a real etcd 3.4.23 wrote, and on the data directories it makes.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use trilith_disk::RealDisk;
use trilith_engine::{Options, Store, TreeId};
use trilith_wal::{IoChoice, Wal};

const ETCDUTL: &str = env!("CARGO_BIN_EXE_etcdutl");
/// Written by etcd 3.4.23; engine/tests/bolt/small.txt has what it and its tool said of it.
const SNAPSHOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../engine/tests/bolt/small.snapshot");

/// A temporary folder that goes when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("trilith-utl-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn run(args: &[&str]) -> Output {
    Command::new(ETCDUTL).args(args).output().unwrap()
}

fn said(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The exit code and the last line of standard error.
fn refused(args: &[&str]) -> (i32, String) {
    let output = run(args);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = errors.split_once("Error: ").map(|(_, text)| text.trim_end().to_owned());
    (output.status.code().unwrap(), last.unwrap_or_else(|| panic!("{args:?} is not refused: {output:?}")))
}

#[test]
fn status_says_what_etcds_tool_says() {
    assert_eq!(said(&["snapshot", "status", SNAPSHOT]), "cd9652fb, 285, 203, 86 kB, \n");
    assert_eq!(
        said(&["snapshot", "status", SNAPSHOT, "-w", "json"]),
        "{\"hash\":3449180923,\"revision\":285,\"totalKey\":203,\"totalSize\":86016,\"version\":\"\"}\n"
    );
    assert_eq!(
        said(&["-w", "fields", "snapshot", "status", SNAPSHOT]),
        "\"Hash\" : 3449180923\n\"Revision\" : 285\n\"Keys\" : 203\n\"Size\" : 86016\n\"Version\" : \n"
    );
    let table = said(&["snapshot", "status", SNAPSHOT, "--write-out=table"]);
    assert!(table.contains("│ cd9652fb │      285 │        203 │      86 kB │         │"), "{table}");
    assert_eq!(said(&["hashkv", SNAPSHOT]), "3767851565, 285, 100\n");
    assert_eq!(said(&["hashkv", SNAPSHOT, "--rev", "150"]), "2672607364, 150, 100\n");
    assert_eq!(refused(&["hashkv", SNAPSHOT, "--rev", "99"]).0, 1);
}

#[test]
fn damage_is_refused_with_its_place() {
    let folder = Folder::new("damage");
    let whole = std::fs::read(SNAPSHOT).unwrap();
    let cut = folder.path("cut");
    std::fs::write(&cut, &whole[..50_000]).unwrap();
    let mut flipped = whole.clone();
    flipped[4096 * 5 + 9] ^= 1;
    let harmed = folder.path("harmed");
    std::fs::write(&harmed, &flipped).unwrap();
    for command in [&["status"][..], &["restore", "--data-dir", &folder.path("data")]] {
        for (file, what) in [(&cut, "truncated"), (&harmed, "page 5")] {
            let (code, text) = refused(&[&["snapshot"], command, &[file]].concat());
            assert!(code == 1 && text.contains(what) && text.contains(file.as_str()), "{command:?}: {text}");
        }
    }
    assert!(!Path::new(&folder.path("data")).exists(), "a failed restore leaves nothing");
}

#[test]
fn a_restore_makes_a_data_directory_of_a_new_cluster() {
    let folder = Folder::new("restore");
    let data = folder.path("data");
    said(&["snapshot", "restore", SNAPSHOT, "--data-dir", &data]);
    // What is in the history is the snapshot's.
    let db = folder.path("data/member/snap/db");
    assert_eq!(said(&["hashkv", &db]), "3767851565, 285, 100\n");
    let status = said(&["snapshot", "status", &db]);
    assert!(status.contains(", 285, 203, "), "{status}");
    // The log begins with the one member.
    let options = trilith_wal::Options {
        dir: folder.path("data/member/wal").into(),
        disk: Arc::new(RealDisk),
        io: IoChoice::Sync,
        segment_bytes: 64_000_000,
        fsync: true,
        max_segments: 0,
    };
    let (log, replay) = Wal::open(options, 0).unwrap();
    drop(log);
    assert_eq!(replay.metadata.node_id, 0x8e9e_05c5_2164_694d);
    assert_eq!(replay.metadata.cluster_id, 0xcdf8_1819_4e3a_8c32);
    assert_eq!((replay.entries.len(), replay.last_index), (1, 1));
    assert_eq!(replay.hard_state.commit, Some(1));
    let mark = replay.snapshots.last().unwrap();
    assert_eq!((mark.index, mark.term), (Some(1), Some(1)));
    assert_eq!(mark.conf_state.as_ref().unwrap().voters, [0x8e9e_05c5_2164_694d]);
    // And back.
    let exported = folder.path("exported");
    assert_eq!(said(&["export", &exported, "--data-dir", &data]), format!("Snapshot saved at {exported}\n"));
    assert_eq!(said(&["hashkv", &exported]), "3767851565, 285, 100\n");
    let again = folder.path("again");
    said(&["snapshot", "restore", &exported, "--data-dir", &again]);
    assert_eq!(said(&["hashkv", &folder.path("again/member/snap/db")]), "3767851565, 285, 100\n");

    let wanted = format!("data-dir \"{data}\" not empty or could not be read");
    assert_eq!(refused(&["snapshot", "restore", SNAPSHOT, "--data-dir", &data]), (1, wanted));
}

#[test]
fn a_restore_takes_bare_files_and_lifts_revisions_when_told() {
    let folder = Folder::new("bare");
    let (bare, data) = (folder.path("bare"), folder.path("data"));
    let whole = std::fs::read(SNAPSHOT).unwrap();
    std::fs::write(&bare, &whole[..whole.len() - 32]).unwrap();
    let restore = ["snapshot", "restore", bare.as_str(), "--data-dir", data.as_str()];
    let missing = "snapshot missing hash but --skip-hash-check=false".to_owned();
    assert_eq!(refused(&restore), (1, missing));
    let lifted = [&restore[..], &["--skip-hash-check", "--bump-revision", "1000"]].concat();
    let group = "if any flags in the group [bump-revision mark-compacted] are set they must all be set; \
                 missing [mark-compacted]";
    assert_eq!(refused(&lifted), (1, group.to_owned()));
    said(&[&lifted[..], &["--mark-compacted"]].concat());
    let hash = said(&["hashkv", &folder.path("data/member/snap/db")]);
    assert!(hash.ends_with(", 1285, 1285\n"), "{hash}");
}

/// What was removed is given back, and what is there is the same.
#[test]
fn defrag_makes_the_store_short() {
    let folder = Folder::new("defrag");
    let data = folder.path("data");
    said(&["snapshot", "restore", SNAPSHOT, "--data-dir", &data]);
    let db = folder.path("data/member/snap/db");
    let mut store = open(&db);
    for n in 0..600u32 {
        let value: Vec<u8> = (0..3000u32).map(|i| (i.wrapping_mul(n + 7) >> 3) as u8).collect();
        store.insert(TreeId::AuthUsers, &n.to_be_bytes(), &value).unwrap();
    }
    checkpoint(&mut store);
    for n in 0..600u32 {
        store.remove(TreeId::AuthUsers, &n.to_be_bytes()).unwrap();
    }
    checkpoint(&mut store);
    // A store that is open belongs to somebody.
    let (code, text) = refused(&["defrag", "--data-dir", &data]);
    let wanted =
        format!("Failed to defragment etcd data[{data}] ({db}: another process has this store open)");
    assert_eq!((code, text), (1, wanted));
    drop(store);
    let long = std::fs::metadata(&db).unwrap().len();
    assert_eq!(said(&["defrag", "--data-dir", &data]), "");
    let short = std::fs::metadata(&db).unwrap().len();
    assert!(short * 3 < long, "{short} of {long} bytes");
    assert_eq!(said(&["hashkv", &db]), "3767851565, 285, 100\n");
    open(&db).check().unwrap();
    let (code, text) = refused(&["defrag", "--data-dir", &folder.path("nothing")]);
    assert!(code == 1 && text.contains("no such file or directory"), "{text}");
}

/// The version that an export carries, which decides which etcd takes it.
#[test]
fn migrate_sets_the_storage_version() {
    let folder = Folder::new("migrate");
    let data = folder.path("data");
    said(&["snapshot", "restore", SNAPSHOT, "--data-dir", &data]);
    let db = folder.path("data/member/snap/db");
    let mut exports = 0;
    let mut version = |target: &str, force: &[&str]| {
        said(&[&["migrate", "--data-dir", &data, "--target-version", target][..], force].concat());
        exports += 1;
        let file = folder.path(&format!("exported-{exports}"));
        said(&["export", &file, "--data-dir", &data]);
        let status = said(&["snapshot", "status", &file]);
        status.strip_suffix('\n').unwrap().rsplit_once(", ").unwrap().1.to_owned()
    };
    assert_eq!(version("3.6", &[]), "3.6.0");
    assert_eq!(version("3.6", &[]), "3.6.0");
    assert_eq!(version("3.5", &[]), "");
    assert_eq!(version("3.7", &[]), "3.7.0");
    let later = ["migrate", "--data-dir", data.as_str(), "--target-version", "3.8"];
    let unknown = "cannot create migration plan: version \"3.8.0\" is not supported".to_owned();
    assert_eq!(refused(&later), (1, unknown));
    assert_eq!(version("3.8", &["--force"]), "3.8.0");
    assert_eq!(said(&["hashkv", &db]), "3767851565, 285, 100\n");
    // A database of etcd's own is not ours to change.
    let bolt = folder.path("etcd/member/snap");
    std::fs::create_dir_all(&bolt).unwrap();
    std::fs::copy(SNAPSHOT, format!("{bolt}/db")).unwrap();
    let (code, text) = refused(&["migrate", "--data-dir", &folder.path("etcd"), "--target-version", "3.6"]);
    assert!(
        code == 1 && text.ends_with("is no store of this version: etcd's own etcdutl knows it"),
        "{text}"
    );
}

fn open(path: &str) -> Store {
    let options = Options {
        path: path.into(),
        disk: Arc::new(RealDisk),
        map: true,
        dirty_bytes_max: 1 << 30,
        compress: false,
    };
    Store::open(options).unwrap()
}

fn checkpoint(store: &mut Store) {
    store.publish();
    let job = store.begin_checkpoint().unwrap();
    store.finish_checkpoint(job.run().unwrap()).unwrap();
}

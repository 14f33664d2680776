//! Starts on a data directory that etcd left: the log in etcd's format, and a bbolt database behind it.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{Bed, get_range};
use trilith_disk::Disk;
use trilith_disk::sim::{SimDisk, Survivors};
use trilith_engine::bolt::Export;
use trilith_engine::{Options, Store, TreeId};

const DB: &str = "data/member/snap/db";

fn open_store(disk: &SimDisk) -> Store {
    let disk = Arc::new(disk.clone());
    Store::open(Options { path: DB.into(), disk, map: false, dirty_bytes_max: 1 << 20, compress: true })
        .unwrap()
}

/// A directory as etcd 3.4 leaves it when it is killed: entries in the log that the database does not have yet, no term
/// and no configuration in it. With the number of keys.
fn etcds(change: impl FnOnce(&mut Store)) -> (SimDisk, usize) {
    let mut bed = Bed::new();
    for i in 0..20 {
        bed.put(&format!("k{i}"), "of the database");
    }
    let mut bed = bed.restart();
    for i in 20..30 {
        bed.put(&format!("k{i}"), "of the log");
    }
    let disk = bed.disk.fork();
    drop(bed);
    let mut store = open_store(&disk);
    store.remove(TreeId::Meta, b"confState").unwrap();
    store.remove(TreeId::Meta, b"storageVersion").unwrap();
    let (applied, _) = store.applied();
    store.set_applied(applied, 0);
    change(&mut store);
    store.publish();
    let bolt = Path::new("data/member/snap/bolt");
    Export::new(store.reader().root()).unwrap().save(&disk, bolt, &mut |_| ()).unwrap();
    drop(store);
    disk.rename(bolt, Path::new(DB)).unwrap();
    disk.sync_dir(Path::new("data/member/snap")).unwrap();
    (disk, 30)
}

fn names(disk: &SimDisk) -> Vec<String> {
    let paths = disk.list(Path::new("data/member/snap")).unwrap();
    paths.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_database_becomes_a_store_and_is_kept() {
    let (disk, keys) = etcds(|_| ());
    let mut bed = Bed::on(disk.clone());
    assert_eq!(names(&disk), ["db", "db.etcd"]);
    assert_eq!(bed.range(get_range("k", "l")).unwrap().count, keys as i64);
    let revision = bed.revision();
    assert_eq!(bed.put("after", "it").header.unwrap().revision, revision + 1);
    let mut bed = bed.restart();

    assert_eq!(bed.range(get_range("k", "l")).unwrap().count, keys as i64);
    assert_eq!(names(&disk), ["db", "db.etcd"]);
}

#[test]
fn a_cut_at_any_point_leaves_etcds_directory_or_ours() {
    let (disk, keys) = etcds(|_| ());
    let begin = disk.op_count();
    drop(Bed::on(disk.clone()));
    for cut in begin..=disk.op_count() {
        for survivors in [Survivors::None, Survivors::All, Survivors::Random(cut as u64)] {
            let left = disk.crash(cut, survivors);
            let mut bed = Bed::on(left.clone());
            assert_eq!(
                bed.range(get_range("k", "l")).unwrap().count,
                keys as i64,
                "cut at {cut}, {survivors:?}"
            );
            assert!(names(&left).contains(&"db.etcd".to_owned()), "cut at {cut}, {survivors:?}");
        }
    }
}

#[test]
fn what_cannot_be_carried_on_is_refused_and_left_alone() {
    let auth = |store: &mut Store| store.insert(TreeId::Auth, b"authEnabled", &[1]).unwrap();
    let two = |store: &mut Store| {
        store.insert(TreeId::Members, b"1", br#"{"id":1,"peerURLs":["http://a:1"]}"#).unwrap()
    };
    for (change, why) in [(&auth as &dyn Fn(&mut Store), "auth is enabled"), (&two, "a cluster of 2 members")]
    {
        let (disk, _) = etcds(change);
        let error = Bed::try_on(disk.clone()).err().expect("it is refused").to_string();
        assert!(error.contains(why), "{error}");
        assert_eq!(names(&disk), ["db"]);
    }
}

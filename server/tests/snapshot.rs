//! Maintenance.Snapshot: what the messages say, what the file holds, and that a slow client stops nobody.
#![allow(clippy::unwrap_used)]

mod common;
mod support;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use common::{Bed, decode, delete};
use trilith_disk::sim::SimDisk;
use trilith_disk::{Disk, Open};
use trilith_engine::bolt::{Import, import};
use trilith_engine::{Options, Store};
use trilith_proto::etcdserverpb as pb;
use trilith_server::service::snapshot;

/// All messages of a snapshot.
fn messages(bed: &mut Bed) -> Vec<pb::SnapshotResponse> {
    let handle = bed.handle.clone();
    bed.run(async move {
        let mut stream = snapshot::begin(&handle, pb::SnapshotRequest {});
        let mut all = Vec::new();
        loop {
            let part = stream.next_part().await.unwrap();
            if part.is_empty() {
                return all;
            }
            all.extend(part.into_iter().map(decode::<pb::SnapshotResponse>));
        }
    })
}

fn import_of(file: &[u8]) -> Store {
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new("d")).unwrap();
    disk.open(Path::new("d/snapshot"), Open::CreateNew).unwrap().write_all_at(file, 0).unwrap();
    let disk: Arc<dyn Disk> = Arc::new(disk);
    let options = Import {
        disk: disk.clone(),
        from: "d/snapshot".into(),
        to: "d/db".into(),
        skip_hash_check: false,
        bump_revision: 0,
        memory: 0,
    };
    import(&options, &mut |_, _| ()).unwrap();
    Store::open(Options { path: "d/db".into(), disk, map: false, dirty_bytes_max: 1 << 20, compress: true })
        .unwrap()
}

#[test]
fn x10_the_messages_are_etcds_and_the_file_is_the_store() {
    let mut bed = Bed::new();
    bed.grant(5, 600).unwrap();
    for i in 0..400 {
        bed.put(&format!("k{:03}", i % 130), &"v".repeat(i));
    }
    bed.try_put(pb::PutRequest { lease: 5, ..common::put("leased", "x") }).unwrap();
    bed.delete(delete("k01", "k02")).unwrap();
    bed.compact(200, true).unwrap();
    let messages = messages(&mut bed);
    let (last, database) = messages.split_last().unwrap();
    let total: u64 = database.iter().map(|message| message.blob.len() as u64).sum();
    assert!(total.is_multiple_of(4096) && database.len() > 2);
    let mut left = total;
    for (i, message) in messages.iter().enumerate() {
        assert!(message.header.is_none(), "H5");
        assert_eq!(message.version, "3.7.0");
        if i < database.len() {
            assert!(message.blob.len() == 32 << 10 || i + 1 == database.len());
            left -= message.blob.len() as u64;
        }
        assert_eq!(message.remaining_bytes, left);
    }
    assert_eq!((last.blob.len(), last.remaining_bytes), (32, 0));

    let file: Vec<u8> = messages.iter().flat_map(|message| message.blob.to_vec()).collect();
    let copy = import_of(&file);
    copy.check().unwrap();
    let root = bed.handle.root();
    assert_eq!(copy.applied(), root.applied());
    assert_eq!(copy.view().hash_kv(0).unwrap(), root.view().hash_kv(0).unwrap());
    assert_eq!(copy.view().hash().unwrap(), root.view().hash().unwrap());
    assert_eq!(copy.view().lease_keys(5).unwrap(), ["leased"]);
}

#[test]
fn a_client_that_takes_nothing_holds_up_nobody() {
    let folder = support::Folder::new("snapshot");
    let member = support::start(&folder, &[]);
    let file = support::block_on(async {
        let client = support::Client::connect(member.address).await;
        for i in 0..200 {
            // Values that no compression makes small.
            let value: Vec<u8> =
                (0..20_000u32).map(|n| (n.wrapping_mul(2_654_435_769) >> 7) as u8 ^ i as u8).collect();
            client.put(&format!("k{i}"), value).await;
        }
        let path = "/etcdserverpb.Maintenance/Snapshot";
        let mut stream = client.open(path, &pb::SnapshotRequest {}, true).await;
        let first: pb::SnapshotResponse = stream.next().await.unwrap();
        // The window is full now, and stays so.
        let other = support::Client::connect(member.address).await;
        for i in 0..200 {
            other.put(&format!("later{i}"), Bytes::from_static(b"x")).await;
        }
        let mut file = first.blob.to_vec();
        let mut last = first;
        loop {
            match stream.next::<pb::SnapshotResponse>().await {
                Ok(message) => {
                    file.extend_from_slice(&message.blob);
                    last = message;
                }
                Err(end) => {
                    assert_eq!(end, "0 ");
                    break;
                }
            }
        }
        assert_eq!((last.remaining_bytes, last.blob.len()), (0, 32));
        assert!(file.len() > 4_000_000);
        file
    });
    // It is the store as it was when the call began.
    let copy = import_of(&file);
    assert_eq!(copy.view().revision(), 201);
    member.stop();
}

//! The core on real files, driven by tokio: batches from many tasks and threads, an end in order, a second start.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::Arc;

use prost::Message;
use tokio::sync::oneshot;
use trilith_disk::{Disk, RealDisk};
use trilith_proto::etcdserverpb as pb;
use trilith_server::core::{self, Config, Core, Handle};
use trilith_server::reply::Body;
use trilith_server::service;
use trilith_server::status;
use trilith_wal::IoChoice;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("trilith-driver-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Folder(path)
    }

    fn config(&self, wal_io: IoChoice) -> Config {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let base = Config::new(self.0.clone(), disk);
        Config { wal_io, wal_segment_bytes: 1 << 20, checkpoint_log_bytes: 64 << 10, unix_ms: 1, ..base }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs a member on a thread of its own for as long as `work` takes; the work runs on this thread's runtime.
fn with_member<F: Future>(config: Config, work: impl FnOnce(Handle) -> F) -> F::Output {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (give, handle) = std::sync::mpsc::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let member = std::thread::spawn(move || {
        let (core, handle) = Core::open(config).unwrap();
        give.send(handle).unwrap();
        runtime().block_on(core::run(core, |_| {}, async {
            let _ = stopped.await;
        }))
    });
    let handle = handle.recv().unwrap();
    let output = runtime().block_on(async {
        assert!(handle.ready().await);
        work(handle.clone()).await
    });
    stop.send(()).unwrap();
    member.join().unwrap().unwrap();
    let runtime = runtime();
    let refused =
        runtime.block_on(service::kv::put(&handle, pb::PutRequest { key: "x".into(), ..Default::default() }));
    assert_eq!(refused.unwrap_err(), status::STOPPED);
    output
}

async fn put(handle: Handle, key: String) -> i64 {
    let request = pb::PutRequest { key: key.into(), value: vec![b'v'; 500].into(), ..Default::default() };
    let reply = service::kv::put(&handle, request).await.unwrap();
    pb::PutResponse::decode(reply.message()).unwrap().header.unwrap().revision
}

async fn count(handle: &Handle) -> (i64, i64) {
    let request =
        pb::RangeRequest { key: "k".into(), range_end: "l".into(), count_only: true, ..Default::default() };
    let Body::Whole(reply) = service::kv::range(handle, request).await.unwrap() else {
        panic!("a count is small")
    };
    let response = pb::RangeResponse::decode(reply.message()).unwrap();
    (response.count, response.header.unwrap().revision)
}

fn puts_survive(name: &str, io: IoChoice) {
    let folder = Folder::new(name);
    with_member(folder.config(io), async |handle: Handle| {
        let tasks = tokio::task::LocalSet::new();
        tasks
            .run_until(async {
                let calls: Vec<_> = (0..500)
                    .map(|i| tokio::task::spawn_local(put(handle.clone(), format!("k{i:04}"))))
                    .collect();
                let mut revisions = Vec::new();
                for call in calls {
                    revisions.push(call.await.unwrap());
                }
                revisions.sort_unstable();
                assert_eq!(revisions, (2..502).collect::<Vec<_>>(), "each put has a revision of its own");
            })
            .await;
        assert_eq!(count(&handle).await, (500, 501));
    });
    with_member(folder.config(io), async |handle: Handle| {
        assert_eq!(count(&handle).await, (500, 501));
        assert_eq!(put(handle.clone(), "k-next".into()).await, 502);
        assert_eq!(count(&handle).await, (501, 502), "a read after the answer sees the put");
    });
}

/// On real files, through the map, with readers on the way.
#[test]
fn defragment_cuts_the_file_under_readers() {
    let folder = Folder::new("defragment");
    let config = folder.config(IoChoice::Sync);
    let file = folder.0.join("member/snap/db");
    let length = || std::fs::metadata(&file).unwrap().len();
    with_member(config, async |handle: Handle| {
        for n in 0..6000 {
            put(handle.clone(), format!("k{n:05}")).await;
        }
        let old = handle.root();
        for n in (0..6000).filter(|n| n % 10 != 0) {
            let request = pb::DeleteRangeRequest { key: format!("k{n:05}").into(), ..Default::default() };
            service::kv::delete_range(&handle, request).await.unwrap();
        }
        let (_, revision) = count(&handle).await;
        let request = pb::CompactionRequest { revision, physical: true };
        service::kv::compact(&handle, request).await.unwrap();
        let defragment = || service::maintenance::defragment(&handle, pb::DefragmentRequest {});
        defragment().await.unwrap();
        let full = length();
        assert!(full > 3_000_000, "the old root needs it all: {full}");
        let mut cursor = old.view().seek(trilith_engine::TreeId::Key, b"").unwrap();
        let mut entries = 0;
        while cursor.value().unwrap().is_some() {
            cursor.next().unwrap();
            entries += 1;
        }
        assert!(entries >= 6000);
        drop(cursor);
        drop(old);
        let (a, b) = tokio::join!(defragment(), defragment());
        a.and(b).unwrap();
        let cut = length();
        assert!(cut < 1_000_000, "{cut} of {full} bytes for 300,000");
        assert_eq!(count(&handle).await.0, 600);
    });
    with_member(folder.config(IoChoice::Sync), async |handle: Handle| {
        assert_eq!(count(&handle).await.0, 600);
    });
}

#[test]
fn puts_survive_on_plain_calls() {
    puts_survive("sync", IoChoice::Sync);
}

#[test]
fn puts_survive_on_what_the_kernel_offers() {
    puts_survive("auto", IoChoice::Auto);
}

//! A member on a simulated disk, stepped by hand: no clock, no network, no threads but those of long reads.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use prost::Message;
use trilith_disk::Disk;
use trilith_disk::sim::SimDisk;
use trilith_proto::etcdserverpb as pb;
use trilith_proto::etcdserverpb::request_op::Request as Op;
use trilith_proto::etcdserverpb::response_op::Response;
use trilith_server::core::{Config, Core, Fatal, Handle};
use trilith_server::reply::{Body, Reply};
use trilith_server::service;
use trilith_server::status::Status;

pub struct Bed {
    pub core: Core,
    pub handle: Handle,
    pub disk: SimDisk,
    pub now: Duration,
    /// How long a slice of a compaction is said to take.
    pub slice: Duration,
    runtime: tokio::runtime::Runtime,
}

pub fn config(disk: &SimDisk) -> Config {
    Config {
        map: false,
        wal_segment_bytes: 256 << 10,
        checkpoint_log_bytes: 16 << 10,
        checkpoint_log_entries: 0,
        checkpoint_interval: Duration::from_secs(5),
        seed: 7,
        unix_ms: 1_700_000_000_000,
        ..Config::new("data".into(), Arc::new(disk.clone()) as Arc<dyn Disk>)
    }
}

impl Bed {
    /// A new member that is ready.
    pub fn new() -> Bed {
        Bed::on(SimDisk::new())
    }

    /// The member that this disk holds, ready.
    pub fn on(disk: SimDisk) -> Bed {
        Bed::try_on(disk).unwrap_or_else(|error| panic!("the member starts: {error}"))
    }

    pub fn try_on(disk: SimDisk) -> Result<Bed, Fatal> {
        Bed::with(config(&disk), disk)
    }

    pub fn with(config: Config, disk: SimDisk) -> Result<Bed, Fatal> {
        let (core, handle) = Core::open(config)?;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let slice = Duration::from_micros(100);
        let mut bed = Bed { core, handle, disk, now: Duration::ZERO, slice, runtime };
        let handle = bed.handle.clone();
        assert!(bed.try_run(async move { handle.ready().await })?);
        Ok(bed)
    }

    /// Stops in order and starts again.
    pub fn restart(mut self) -> Bed {
        self.core.close(self.now).unwrap();
        if let Some(job) = self.core.begin_last_checkpoint() {
            self.core.checkpoint_finished(job.run()).unwrap();
        }
        self.core.flush().unwrap();
        let disk = self.disk.clone();
        drop(self);
        Bed::on(disk)
    }

    /// Goes down without any order, losing nothing that was written, and starts again.
    pub fn kill(self) -> Bed {
        let disk = self.disk.fork();
        drop(self);
        Bed::on(disk)
    }

    pub fn step(&mut self) -> Result<(), Fatal> {
        self.core.step(self.now)?;
        if let Some(job) = self.core.begin_checkpoint() {
            self.core.checkpoint_finished(job.run())?;
        }
        if let Some(scan) = self.core.begin_shrink_scan() {
            self.core.shrink_scanned(scan.run());
        }
        if let Some(job) = self.core.begin_compaction()? {
            self.core.compaction_found(job.run());
        }
        if self.core.remove_slice()? {
            self.core.slice_took(self.slice);
        }
        Ok(())
    }

    /// Lets time pass, in steps of 50 ms.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = (self.now + Duration::from_millis(50)).min(end);
            self.step().unwrap();
        }
    }

    /// Drives a call to its end.
    pub fn run<F: Future>(&mut self, call: F) -> F::Output {
        self.try_run(call).unwrap()
    }

    /// Drives a call to its end, or the member to its own.
    pub fn try_run<F: Future>(&mut self, call: F) -> Result<F::Output, Fatal> {
        let mut call = pin!(call);
        for _ in 0..1_000_000 {
            if let Some(output) = self.poll(call.as_mut()) {
                return Ok(output);
            }
            self.step()?;
        }
        panic!("the call does not end");
    }

    pub fn poll<F: Future>(&mut self, call: std::pin::Pin<&mut F>) -> Option<F::Output> {
        let _runtime = self.runtime.enter();
        match call.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    pub fn put(&mut self, key: &str, value: &str) -> pb::PutResponse {
        self.try_put(put(key, value)).unwrap()
    }

    pub fn try_put(&mut self, request: pb::PutRequest) -> Result<pb::PutResponse, Status> {
        let call = service::kv::put(&self.handle, request);
        self.run(call).map(decode)
    }

    pub fn range(&mut self, request: pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
        let handle = self.handle.clone();
        self.run(async move { service::kv::range(&handle, request).await }).map(|body| decode(whole(body)))
    }

    pub fn get(&mut self, key: &str) -> Option<String> {
        let response = self.range(get(key)).unwrap();
        response.kvs.first().map(|kv| text(&kv.value))
    }

    pub fn delete(&mut self, request: pb::DeleteRangeRequest) -> Result<pb::DeleteRangeResponse, Status> {
        let call = service::kv::delete_range(&self.handle, request);
        self.run(call).map(decode)
    }

    pub fn txn(&mut self, request: pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        let handle = self.handle.clone();
        self.run(async move { service::kv::txn(&handle, request).await }).map(decode)
    }

    pub fn compact(&mut self, revision: i64, physical: bool) -> Result<pb::CompactionResponse, Status> {
        let call = service::kv::compact(&self.handle, pb::CompactionRequest { revision, physical });
        let mut call = pin!(call);
        for _ in 0..1_000_000 {
            if let Some(outcome) = self.poll(call.as_mut()) {
                return outcome.map(decode);
            }
            self.now += Duration::from_millis(1);
            self.step().unwrap();
        }
        panic!("the compaction does not end");
    }

    pub fn grant(&mut self, id: i64, ttl: i64) -> Result<pb::LeaseGrantResponse, Status> {
        let handle = self.handle.clone();
        let request = pb::LeaseGrantRequest { id, ttl };
        self.run(async move { service::lease::grant(&handle, request).await }).map(decode)
    }

    pub fn revoke(&mut self, id: i64) -> Result<pb::LeaseRevokeResponse, Status> {
        let handle = self.handle.clone();
        self.run(async move { service::lease::revoke(&handle, pb::LeaseRevokeRequest { id }).await })
            .map(decode)
    }

    pub fn keep_alive(&mut self, id: i64) -> pb::LeaseKeepAliveResponse {
        let handle = self.handle.clone();
        let request = pb::LeaseKeepAliveRequest { id };
        decode(self.run(async move { service::lease::keep_alive(&handle, request).await }).unwrap())
    }

    pub fn time_to_live(&mut self, id: i64) -> pb::LeaseTimeToLiveResponse {
        let handle = self.handle.clone();
        let request = pb::LeaseTimeToLiveRequest { id, keys: true };
        decode(self.run(async move { service::lease::time_to_live(&handle, request).await }).unwrap())
    }

    pub fn leases(&mut self) -> Vec<i64> {
        let handle = self.handle.clone();
        let call = async move { service::lease::leases(&handle, pb::LeaseLeasesRequest {}).await };
        let response: pb::LeaseLeasesResponse = decode(self.run(call).unwrap());
        response.leases.iter().map(|lease| lease.id).collect()
    }

    /// The current revision.
    pub fn revision(&self) -> i64 {
        self.handle.root().view().revision()
    }
}

/// An answer in one piece.
pub fn whole(body: Body) -> Reply {
    let mut parts = match body {
        Body::Whole(reply) => return reply,
        Body::Parts(parts) => parts,
    };
    let mut bytes = BytesMut::new();
    while let Some(part) = parts.next() {
        bytes.extend_from_slice(&part.unwrap());
    }
    Reply(bytes.freeze())
}

pub fn decode<M: Message + Default>(reply: Reply) -> M {
    let frame = reply.0;
    assert_eq!(frame[0], 0, "not compressed");
    assert_eq!(u32::from_be_bytes(frame[1..5].try_into().unwrap()) as usize, frame.len() - 5);
    let message = M::decode(frame.slice(5..)).unwrap();
    assert_eq!(message.encode_to_vec(), frame[5..], "fields stand in the order of their numbers");
    message
}

pub fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub fn text(bytes: &Bytes) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest { key: bytes(key), value: bytes(value), ..Default::default() }
}

pub fn get(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: bytes(key), ..Default::default() }
}

pub fn get_range(key: &str, end: &str) -> pb::RangeRequest {
    pb::RangeRequest { range_end: bytes(end), ..get(key) }
}

pub fn delete(key: &str, end: &str) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: bytes(key), range_end: bytes(end), ..Default::default() }
}

pub fn op(request: Op) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

pub fn op_put(key: &str, value: &str) -> pb::RequestOp {
    op(Op::RequestPut(put(key, value)))
}

pub fn op_get(key: &str) -> pb::RequestOp {
    op(Op::RequestRange(get(key)))
}

pub fn op_delete(key: &str, end: &str) -> pb::RequestOp {
    op(Op::RequestDeleteRange(delete(key, end)))
}

pub fn op_txn(success: Vec<pb::RequestOp>, failure: Vec<pb::RequestOp>) -> pb::RequestOp {
    op(Op::RequestTxn(txn(success, failure)))
}

pub fn txn(success: Vec<pb::RequestOp>, failure: Vec<pb::RequestOp>) -> pb::TxnRequest {
    pb::TxnRequest { compare: vec![], success, failure }
}

pub fn keys(response: &pb::RangeResponse) -> String {
    response.kvs.iter().map(|kv| text(&kv.key)).collect::<Vec<_>>().join(" ")
}

pub fn revision_of(header: &Option<pb::ResponseHeader>) -> i64 {
    header.as_ref().unwrap().revision
}

pub fn inner(response: &pb::TxnResponse, at: usize) -> &Response {
    response.responses[at].response.as_ref().unwrap()
}

pub fn inner_range(response: &pb::TxnResponse, at: usize) -> &pb::RangeResponse {
    match inner(response, at) {
        Response::ResponseRange(range) => range,
        other => panic!("a range, not {other:?}"),
    }
}

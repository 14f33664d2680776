//! Applies committed entries: each becomes changes of the store and, where somebody waits, an encoded answer.
//!
//! Promises: the same entries in the same order make the same store on every member, whoever waits for them.
//! It must never read a clock, never wait and never refuse an entry because of anything but the store's own
//! state. An entry that it does not understand is a named error that stops the member.

pub mod alarm;
pub mod command;
pub mod conf_change;
pub mod downgrade;
pub mod key_set;
pub mod list;
pub mod members;
pub mod quota;
pub mod range;
#[cfg(test)]
mod tests;
pub mod txn;
mod v2;
pub mod v2_store;

use std::sync::Mutex;
use std::time::Duration;

use bytes::BytesMut;
use prost::Message;
use trilith_engine::{Change, KeyRange, Store, StoreError, TreeId};
use trilith_proto::{etcdserverpb as pb, leasepb, membershippb};

use self::alarm::Alarms;
use self::command::{BadRequest, Command};
use self::quota::Quota;
use self::range::{Budget, ReadError};
use self::txn::{Execution, Target, TxnError};
use crate::lease::Lessor;
use crate::reply::Reply;
use crate::status::{self, Status};

/// Room for an answer that holds no pairs.
const SMALL_REPLY_BYTES: usize = 64;

/// What a waiter gets.
pub type Answer = Result<Reply, Status>;

/// Why the member cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The disk, or the store's own state.
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// The entry is not understood.
    #[error("{0}")]
    Request(#[from] BadRequest),
    /// A broken rule of the log's content.
    #[error("{0}")]
    Broken(String),
}

/// The circumstances of an entry.
#[derive(Debug)]
pub struct Context<'c> {
    /// Of the answers; the revision is filled in.
    pub header: pb::ResponseHeader,
    /// The core's time.
    pub now: Duration,
    /// Whether anybody waits for the answer.
    pub wanted: bool,
    /// Told of grants and revocations.
    pub lessor: &'c Mutex<Lessor>,
    /// What refuses commands.
    pub alarms: &'c mut Alarms,
    /// How large the store may become.
    pub quota: Quota,
    /// What is left of leases is stored in a cluster of any version.
    pub keeps_checkpoints: bool,
    /// Collects what watchers will see.
    pub changes: &'c mut Vec<Change>,
}

/// What an entry came to.
#[derive(Debug)]
pub enum Applied {
    /// Answered at once.
    Done(Answer),
    /// To be answered when no compaction is left to do (C3).
    AfterCompaction(Answer),
    /// Carried out, though there was no room for it: answered with NO_SPACE when the alarm stands (X5).
    OverQuota,
}

impl Context<'_> {
    fn header(&self, store: &Store) -> Option<pb::ResponseHeader> {
        Some(pb::ResponseHeader { revision: store.view().revision(), ..self.header })
    }
}

/// The version of clusters whose members all store what is left of leases.
const CHECKPOINTS_STORED: (u32, u32, u32) = (3, 6, 0);

/// Applies a request to the writer's state.
pub fn apply(store: &mut Store, command: Command, cx: &mut Context<'_>) -> Result<Applied, ApplyError> {
    if let Some(refused) = cx.alarms.refusal(&command) {
        return Ok(Applied::Done(Err(refused)));
    }
    let had_room = cx.quota.has_room(quota::db_size(store), quota::cost(&command));
    let answer = match command {
        Command::Put(request) => in_txn(store, cx, |txn, header, buf| txn::put(txn, &request, header, buf))?,
        Command::DeleteRange(request) => {
            in_txn(store, cx, |txn, header, buf| txn::run_delete(txn, &request, header, buf))?
        }
        Command::Txn(request) => apply_txn(store, &request, cx)?,
        Command::Range(request) => apply_range(store, &request, cx)?,
        Command::Compaction(request) => return compact(store, &request, cx),
        Command::LeaseGrant(request) => grant(store, &request, cx)?,
        Command::LeaseRevoke(request) => revoke(store, request.id, cx)?,
        Command::LeaseCheckpoint(request) => checkpoint_leases(store, &request, cx)?,
        Command::Alarm(request) => alarm(store, &request, cx)?,
        Command::ClusterVersionSet(request) => set_cluster_version(store, &request)?,
        Command::ClusterMemberAttrSet(request) => set_member_attributes(store, request)?,
        Command::DowngradeInfoSet(request) => {
            downgrade::set(store, &request)?;
            empty_answer()
        }
        _ => Err(Status::unimplemented("Auth")),
    };
    Ok(if answer.is_ok() && !had_room { Applied::OverQuota } else { Applied::Done(answer) })
}

/// X1.
fn alarm(store: &mut Store, request: &pb::AlarmRequest, cx: &mut Context<'_>) -> Result<Answer, ApplyError> {
    let alarms = cx.alarms.apply(store, request)?;
    Ok(Ok(Reply::of(&pb::AlarmResponse { header: cx.header(store), alarms })))
}

/// An answer without content: for requests that only members make.
fn empty_answer() -> Answer {
    Ok(Reply::of(&pb::EmptyResponse {}))
}

/// Sorts errors: what the request is answered with, and what stops the member.
fn answer(outcome: Result<Reply, TxnError>) -> Result<Answer, ApplyError> {
    match outcome {
        Ok(reply) => Ok(Ok(reply)),
        Err(TxnError::Refused(status) | TxnError::Read(ReadError::Refused(status))) => Ok(Err(status)),
        Err(TxnError::Read(ReadError::Store(e @ (StoreError::Compacted | StoreError::Future)))) => {
            Ok(Err(e.into()))
        }
        Err(TxnError::Read(ReadError::Store(e))) => Err(e.into()),
        Err(TxnError::Read(ReadError::OverBudget)) => {
            Err(ApplyError::Broken("the writer's reads have no budget, yet it is spent".into()))
        }
        Err(TxnError::Broken(what)) => Err(ApplyError::Broken(what.into())),
    }
}

fn in_txn(
    store: &mut Store,
    cx: &mut Context<'_>,
    run: impl FnOnce(&mut trilith_engine::Txn<'_>, pb::ResponseHeader, &mut BytesMut) -> Result<(), TxnError>,
) -> Result<Answer, ApplyError> {
    let mut txn = store.txn();
    let outcome = Reply::try_build(SMALL_REPLY_BYTES, |buf| run(&mut txn, cx.header, buf));
    cx.changes.extend(txn.end());
    answer(outcome)
}

fn apply_txn(
    store: &mut Store,
    request: &pb::TxnRequest,
    cx: &mut Context<'_>,
) -> Result<Answer, ApplyError> {
    let mut how = Execution::new(Budget::UNLIMITED, cx.wanted);
    let path = match txn::decide(store.view(), request, &mut how.budget)
        .and_then(|path| txn::check(store.view(), request, &path).map(|()| path))
    {
        Ok(path) => path,
        Err(refused) => return answer(Err(refused)),
    };
    in_txn(store, cx, |txn, header, buf| {
        txn::execute(&mut Target::Write(txn), request, &path, header, &mut how, buf)
    })
}

/// I4: only where somebody waits.
fn apply_range(store: &Store, request: &pb::RangeRequest, cx: &Context<'_>) -> Result<Answer, ApplyError> {
    if !cx.wanted {
        return Ok(empty_answer());
    }
    let view = store.view();
    let header = pb::ResponseHeader { revision: view.revision(), ..cx.header };
    let mut budget = Budget::UNLIMITED;
    answer(Reply::try_build(SMALL_REPLY_BYTES, |buf| {
        range::range(view, request, header, &mut budget, buf).map_err(TxnError::from)
    }))
}

fn compact(
    store: &mut Store,
    request: &pb::CompactionRequest,
    cx: &Context<'_>,
) -> Result<Applied, ApplyError> {
    let answer = match store.compact(request.revision) {
        Ok(()) => Ok(Reply::of(&pb::CompactionResponse { header: cx.header(store) })),
        Err(e @ (StoreError::Compacted | StoreError::Future)) => Err(e.into()),
        Err(e) => return Err(e.into()),
    };
    Ok(if request.physical { Applied::AfterCompaction(answer) } else { Applied::Done(answer) })
}

fn lock(lessor: &Mutex<Lessor>) -> std::sync::MutexGuard<'_, Lessor> {
    lessor.lock().expect("no holder of this lock panics")
}

fn grant(store: &mut Store, request: &pb::LeaseGrantRequest, cx: &Context<'_>) -> Result<Answer, ApplyError> {
    let granted = lock(cx.lessor).grant(request.id, request.ttl, cx.now);
    let ttl = match granted {
        Ok(ttl) => ttl,
        Err(status) => return Ok(Err(status)),
    };
    put_lease(store, &leasepb::Lease { id: request.id, ttl, remaining_ttl: 0 })?;
    let response =
        pb::LeaseGrantResponse { header: cx.header(store), id: request.id, ttl, error: String::new() };
    Ok(Ok(Reply::of(&response)))
}

fn put_lease(store: &mut Store, lease: &leasepb::Lease) -> Result<(), StoreError> {
    store.insert(TreeId::Lease, &lease.id.to_be_bytes(), &lease.encode_to_vec())
}

/// L11: the attached keys go in byte order within one transaction, and the record with them.
fn revoke(store: &mut Store, id: i64, cx: &mut Context<'_>) -> Result<Answer, ApplyError> {
    if store.view().get(TreeId::Lease, &id.to_be_bytes())?.is_none() {
        return Ok(Err(status::LEASE_NOT_FOUND));
    }
    let keys = store.view().lease_keys(id)?;
    let mut txn = store.txn();
    for key in &keys {
        txn.delete_range(KeyRange { start: key, end: None })?;
    }
    cx.changes.extend(txn.end());
    store.remove(TreeId::Lease, &id.to_be_bytes())?;
    lock(cx.lessor).revoke(id);
    Ok(Ok(Reply::of(&pb::LeaseRevokeResponse { header: cx.header(store) })))
}

/// L12: leases that are still there get their remaining TTL; in their records too, unless the cluster has members that
/// do not do so.
fn checkpoint_leases(
    store: &mut Store,
    request: &pb::LeaseCheckpointRequest,
    cx: &Context<'_>,
) -> Result<Answer, ApplyError> {
    let version = members::cluster_version(store.view())?;
    let version = version.as_deref().and_then(members::parse_version);
    let stored = cx.keeps_checkpoints || version >= Some(CHECKPOINTS_STORED);
    for checkpoint in &request.checkpoints {
        let Some(mut lease) = get_lease(store, checkpoint.id)? else { continue };
        if stored {
            lease.remaining_ttl = checkpoint.remaining_ttl;
            put_lease(store, &lease)?;
        }
        lock(cx.lessor).checkpoint(checkpoint.id, checkpoint.remaining_ttl, cx.now);
    }
    Ok(Ok(Reply::of(&pb::LeaseCheckpointResponse { header: cx.header(store) })))
}

fn get_lease(store: &Store, id: i64) -> Result<Option<leasepb::Lease>, ApplyError> {
    let Some(value) = store.view().get(TreeId::Lease, &id.to_be_bytes())? else { return Ok(None) };
    decode_lease(&value).map(Some)
}

fn decode_lease(value: &[u8]) -> Result<leasepb::Lease, ApplyError> {
    leasepb::Lease::decode(value).map_err(|e| ApplyError::Broken(format!("a record of tree lease: {e}")))
}

/// V3: the leases of the store, at the start.
pub fn restore_leases(store: &Store, lessor: &mut Lessor) -> Result<(), ApplyError> {
    let view = store.view();
    let mut cursor = view.seek(TreeId::Lease, b"")?;
    while cursor.key().is_some() {
        if let Some(value) = cursor.value()? {
            let lease = decode_lease(&value)?;
            lessor.restore(lease.id, lease.ttl, lease.remaining_ttl);
        }
        cursor.next()?;
    }
    Ok(())
}

fn set_cluster_version(
    store: &mut Store,
    request: &membershippb::ClusterVersionSetRequest,
) -> Result<Answer, ApplyError> {
    if members::parse_version(&request.ver).is_none() {
        return Err(ApplyError::Broken(format!(
            "cluster version {:?} is not of the form X.Y.Z",
            request.ver
        )));
    }
    members::put_cluster_version(store, &request.ver)?;
    Ok(empty_answer())
}

/// A member that is gone meanwhile is passed over, as its removal came first.
fn set_member_attributes(
    store: &mut Store,
    request: membershippb::ClusterMemberAttrSetRequest,
) -> Result<Answer, ApplyError> {
    let attributes = request.member_attributes.unwrap_or_default();
    if let Some(mut member) = members::get(store.view(), request.member_id)? {
        (member.name, member.client_urls) = (attributes.name, attributes.client_urls);
        members::put(store, &member)?;
    }
    Ok(empty_answer())
}

//! Put, DeleteRange and Txn: the effects on the store and the encoded answers.
//!
//! A transaction goes in three steps, as the reference has it (T8 to T13): every comparison, of nested
//! transactions too, is decided on the state before it; then the taken path is checked as a whole; then it is
//! executed, and from there on nothing may fail but the disk. A read-only transaction runs the same steps on a
//! published root.

use bytes::{Bytes, BytesMut};
use trilith_engine::{KeyRange, StoreError, TreeId, Txn, View};
use trilith_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use trilith_proto::etcdserverpb::request_op::Request as Op;
use trilith_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader, TxnRequest,
};

use super::key_set::KeySet;
use super::range::{self, Budget, ReadError, key_range};
use crate::reply::{check_len, embedded_len, put_bool, put_embedded, put_int64, put_message};
use crate::status::{self, Status};

const FIELD_HEADER: u32 = 1;
const PUT_PREV_KV: u32 = 2;
const DELETE_DELETED: u32 = 2;
const DELETE_PREV_KVS: u32 = 3;
const TXN_SUCCEEDED: u32 = 2;
const TXN_RESPONSES: u32 = 3;

/// Field numbers of ResponseOp.
const OP_RANGE: u32 = 1;
const OP_PUT: u32 = 2;
const OP_DELETE: u32 = 3;
const OP_TXN: u32 = 4;

/// Why a request had no effect, or why it must stop the member.
#[derive(Debug, thiserror::Error)]
pub enum TxnError {
    /// The answer is this error; nothing was changed.
    #[error("{0}")]
    Refused(Status),
    /// The read exceeds its budget, or the store failed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A checked transaction could not be executed: members would differ.
    #[error("a checked transaction cannot be executed: {0}")]
    Broken(&'static str),
}

impl From<StoreError> for TxnError {
    fn from(error: StoreError) -> TxnError {
        TxnError::Read(ReadError::Store(error))
    }
}

impl From<Status> for TxnError {
    fn from(status: Status) -> TxnError {
        TxnError::Refused(status)
    }
}

/// Where operations are executed.
#[derive(Debug)]
pub enum Target<'t, 's> {
    /// A published root: for transactions that only read.
    Read(View<'t>),
    /// The writer.
    Write(&'t mut Txn<'s>),
}

impl<'s> Target<'_, 's> {
    fn view(&self) -> View<'_> {
        match self {
            Target::Read(view) => *view,
            Target::Write(txn) => txn.view(),
        }
    }

    fn revision(&self) -> i64 {
        match self {
            Target::Read(view) => view.revision(),
            Target::Write(txn) => txn.revision(),
        }
    }

    fn writer(&mut self) -> Result<&mut Txn<'s>, TxnError> {
        match self {
            Target::Write(txn) => Ok(txn),
            Target::Read(_) => Err(TxnError::Broken("a write in a read-only transaction")),
        }
    }
}

/// What executing needs besides the operations.
#[derive(Debug)]
pub struct Execution {
    /// Bound for what is read.
    pub budget: Budget,
    /// Whether anybody waits for the answer; without, ranges need not be read (T15).
    pub wanted: bool,
    /// Length of the answer so far when that is more than may be sent: then it is not wanted any more.
    pub too_long: Option<u64>,
}

impl Execution {
    /// The circumstances at the beginning.
    pub fn new(budget: Budget, wanted: bool) -> Execution {
        Execution { budget, wanted, too_long: None }
    }
}

/// T14: every operation reads.
pub fn is_read_only(request: &TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).all(|op| matches!(op.request, Some(Op::RequestRange(_))))
}

/// T14: every operation is a serializable read.
pub fn is_serializable(request: &TxnRequest) -> bool {
    request
        .success
        .iter()
        .chain(&request.failure)
        .all(|op| matches!(&op.request, Some(Op::RequestRange(range)) if range.serializable))
}

/// Which branches are taken: of a transaction, and in order of those nested in its taken branch.
#[derive(Debug)]
pub struct Path {
    succeeded: bool,
    nested: Vec<Path>,
}

impl Path {
    fn ops<'r>(&self, request: &'r TxnRequest) -> &'r [RequestOp] {
        if self.succeeded { &request.success } else { &request.failure }
    }
}

/// T8: decides every comparison on one state.
pub fn decide(view: View<'_>, request: &TxnRequest, budget: &mut Budget) -> Result<Path, TxnError> {
    let mut path = Path { succeeded: true, nested: Vec::new() };
    for compare in &request.compare {
        if !holds(view, compare, budget)? {
            path.succeeded = false;
            break;
        }
    }
    for op in path.ops(request) {
        if let Some(Op::RequestTxn(nested)) = &op.request {
            let taken = decide(view, nested, budget)?;
            path.nested.push(taken);
        }
    }
    Ok(path)
}

/// T5 to T7: one comparison, on every key of its interval.
fn holds(view: View<'_>, compare: &Compare, budget: &mut Budget) -> Result<bool, TxnError> {
    let by_value = compare.target == CompareTarget::Value as i32;
    let mut any = false;
    for meta in view.keys(key_range(&compare.key, &compare.range_end), 0)? {
        let meta = meta?;
        any = true;
        budget.spend(Budget::KEY)?;
        let facts = [meta.version, meta.create_revision, meta.modified.main, meta.lease];
        let ordering = if by_value {
            let stored = view.kv(meta.modified)?;
            budget.spend(stored.len())?;
            let wanted = match &compare.target_union {
                Some(TargetUnion::Value(value)) => value.as_ref(),
                _ => &[],
            };
            range::stored_value(Bytes::copy_from_slice(&stored))?.as_ref().cmp(wanted)
        } else {
            compare_number(compare, facts)
        };
        if !accepts(compare.result, ordering) {
            return Ok(false);
        }
    }
    if any {
        return Ok(true);
    }
    Ok(!by_value && accepts(compare.result, compare_number(compare, [0; 4])))
}

/// `facts`: version, create revision, mod revision, lease. An unknown target compares equal; a union that is not
/// the target's counts as 0.
fn compare_number(compare: &Compare, facts: [i64; 4]) -> std::cmp::Ordering {
    let [version, create, modified, lease] = facts;
    let target = CompareTarget::try_from(compare.target);
    let have = match target {
        Ok(CompareTarget::Version) => version,
        Ok(CompareTarget::Create) => create,
        Ok(CompareTarget::Mod) => modified,
        Ok(CompareTarget::Lease) => lease,
        Ok(CompareTarget::Value) | Err(_) => return std::cmp::Ordering::Equal,
    };
    let want = match (target, &compare.target_union) {
        (Ok(CompareTarget::Version), Some(TargetUnion::Version(v)))
        | (Ok(CompareTarget::Create), Some(TargetUnion::CreateRevision(v)))
        | (Ok(CompareTarget::Mod), Some(TargetUnion::ModRevision(v)))
        | (Ok(CompareTarget::Lease), Some(TargetUnion::Lease(v))) => *v,
        _ => 0,
    };
    have.cmp(&want)
}

fn accepts(result: i32, ordering: std::cmp::Ordering) -> bool {
    match CompareResult::try_from(result) {
        Ok(CompareResult::Equal) => ordering.is_eq(),
        Ok(CompareResult::NotEqual) => ordering.is_ne(),
        Ok(CompareResult::Greater) => ordering.is_gt(),
        Ok(CompareResult::Less) => ordering.is_lt(),
        Err(_) => true,
    }
}

/// T9: checks the taken path before anything is changed: every put of it, then every range.
pub fn check(view: View<'_>, request: &TxnRequest, path: &Path) -> Result<(), TxnError> {
    check_puts(view, request, path, &mut KeySet::default())?;
    check_ranges(view, request, path)
}

/// `deleted` gathers what the path has deleted so far. A put that keeps value or lease of a key that is deleted before
/// it ends an etcd at its execution; here it is refused like one on a missing key.
fn check_puts<'r>(
    view: View<'_>,
    request: &'r TxnRequest,
    path: &Path,
    deleted: &mut KeySet<'r>,
) -> Result<(), TxnError> {
    let mut nested = path.nested.iter();
    for op in path.ops(request) {
        match &op.request {
            Some(Op::RequestPut(put)) => {
                // In a transaction etcd looks for the key before the lease; else for the lease first.
                check_kept(view, put)?;
                check_lease(view, put)?;
                let keeps = put.ignore_value || put.ignore_lease;
                if keeps && deleted.covers(&put.key) {
                    return Err(status::KEY_NOT_FOUND.into());
                }
            }
            Some(Op::RequestDeleteRange(delete)) => {
                add_deleted(deleted, key_range(&delete.key, &delete.range_end))
            }
            Some(Op::RequestTxn(inner)) => check_puts(view, inner, next(&mut nested)?, deleted)?,
            Some(Op::RequestRange(_)) | None => {}
        }
    }
    Ok(())
}

fn add_deleted<'r>(deleted: &mut KeySet<'r>, range: KeyRange<'r>) {
    match range.end {
        None => deleted.add_key(range.start),
        Some([]) => deleted.add_from(range.start),
        Some(end) => deleted.add_interval(range.start, end),
    }
}

fn check_ranges(view: View<'_>, request: &TxnRequest, path: &Path) -> Result<(), TxnError> {
    let mut nested = path.nested.iter();
    for op in path.ops(request) {
        match &op.request {
            Some(Op::RequestRange(range)) => check_range(view, range)?,
            Some(Op::RequestTxn(inner)) => check_ranges(view, inner, next(&mut nested)?)?,
            Some(Op::RequestPut(_) | Op::RequestDeleteRange(_)) | None => {}
        }
    }
    Ok(())
}

fn next<'p>(paths: &mut std::slice::Iter<'p, Path>) -> Result<&'p Path, TxnError> {
    paths.next().ok_or(TxnError::Broken("a nested transaction has no decided path"))
}

/// T9, T10: here a negative revision is taken as a number.
fn check_range(view: View<'_>, range: &RangeRequest) -> Result<(), TxnError> {
    match range.revision {
        0 => Ok(()),
        revision if revision > view.revision() => Err(status::FUTURE_REV.into()),
        revision if revision < view.compact_revision() => Err(status::COMPACTED.into()),
        _ => Ok(()),
    }
}

/// P2.
fn check_lease(view: View<'_>, put: &PutRequest) -> Result<(), TxnError> {
    if put.lease != 0 && view.get(TreeId::Lease, &put.lease.to_be_bytes())?.is_none() {
        return Err(status::LEASE_NOT_FOUND.into());
    }
    Ok(())
}

/// P3.
fn check_kept(view: View<'_>, put: &PutRequest) -> Result<(), TxnError> {
    if (put.ignore_value || put.ignore_lease) && range::current(view, &put.key)?.is_none() {
        return Err(status::KEY_NOT_FOUND.into());
    }
    Ok(())
}

/// Executes a checked transaction and appends its TxnResponse. `header` lacks only the revision; nested answers
/// carry none but an empty header (H3).
pub fn execute(
    target: &mut Target<'_, '_>,
    request: &TxnRequest,
    path: &Path,
    header: ResponseHeader,
    how: &mut Execution,
    buf: &mut BytesMut,
) -> Result<(), TxnError> {
    let mut responses = BytesMut::new();
    run_ops(target, request, path, how, &mut responses)?;
    if let Some(len) = how.too_long {
        check_len(len)?;
    }
    put_message(buf, FIELD_HEADER, &ResponseHeader { revision: target.revision(), ..header });
    put_bool(buf, TXN_SUCCEEDED, path.succeeded);
    buf.extend_from_slice(&responses);
    Ok(())
}

/// T11 to T13: the operations of the taken branch, in order; appends `responses` fields.
fn run_ops(
    target: &mut Target<'_, '_>,
    request: &TxnRequest,
    path: &Path,
    how: &mut Execution,
    responses: &mut BytesMut,
) -> Result<(), TxnError> {
    let mut nested = path.nested.iter();
    let mut op_buf = BytesMut::new();
    for op in path.ops(request) {
        op_buf.clear();
        let field = match &op.request {
            Some(Op::RequestRange(range)) => {
                let header = ResponseHeader { revision: target.revision(), ..Default::default() };
                if how.wanted {
                    range::range(target.view(), range, header, &mut how.budget, &mut op_buf)?;
                }
                OP_RANGE
            }
            Some(Op::RequestPut(put)) => {
                run_put(target.writer()?, put, ResponseHeader::default(), &mut op_buf)?;
                OP_PUT
            }
            Some(Op::RequestDeleteRange(delete)) => {
                run_delete(target.writer()?, delete, ResponseHeader::default(), &mut op_buf)?;
                OP_DELETE
            }
            Some(Op::RequestTxn(inner)) => {
                let inner_path = next(&mut nested)?;
                let mut inner_responses = BytesMut::new();
                run_ops(target, inner, inner_path, how, &mut inner_responses)?;
                put_message(&mut op_buf, FIELD_HEADER, &ResponseHeader::default());
                put_bool(&mut op_buf, TXN_SUCCEEDED, inner_path.succeeded);
                op_buf.extend_from_slice(&inner_responses);
                OP_TXN
            }
            None => continue,
        };
        if how.wanted {
            put_op(responses, field, &op_buf);
            if check_len(responses.len() as u64).is_err() {
                (how.wanted, how.too_long) = (false, Some(responses.len() as u64));
                *responses = BytesMut::new();
            }
        }
    }
    Ok(())
}

/// Appends ResponseOp{field: message} as an element of `responses`.
fn put_op(responses: &mut BytesMut, field: u32, message: &[u8]) {
    use prost::encoding::{WireType, encode_key, encode_varint};
    encode_key(TXN_RESPONSES, WireType::LengthDelimited, responses);
    encode_varint(embedded_len(field, message.len()) as u64, responses);
    put_embedded(responses, field, message);
}

/// A put outside a transaction: checks (lease first), then the effect, then its PutResponse.
pub fn put(
    txn: &mut Txn<'_>,
    request: &PutRequest,
    header: ResponseHeader,
    buf: &mut BytesMut,
) -> Result<(), TxnError> {
    check_lease(txn.view(), request)?;
    check_kept(txn.view(), request)?;
    run_put(txn, request, header, buf)
}

fn run_put(
    txn: &mut Txn<'_>,
    request: &PutRequest,
    header: ResponseHeader,
    buf: &mut BytesMut,
) -> Result<(), TxnError> {
    let keeps = request.ignore_value || request.ignore_lease;
    let previous = if request.prev_kv || keeps { range::current(txn.view(), &request.key)? } else { None };
    match &previous {
        Some(kept) if keeps => {
            let value = if request.ignore_value {
                range::stored_value(kept.stored.clone())?
            } else {
                request.value.clone()
            };
            let lease = if request.ignore_lease { kept.lease } else { request.lease };
            txn.put(&request.key, &value, lease)?;
        }
        None if keeps => return Err(TxnError::Broken("a put that keeps value or lease finds no key")),
        _ => txn.put(&request.key, &request.value, request.lease)?,
    }
    put_message(buf, FIELD_HEADER, &ResponseHeader { revision: txn.revision(), ..header });
    if let Some(previous) = previous.filter(|_| request.prev_kv) {
        put_embedded(buf, PUT_PREV_KV, &previous.stored);
    }
    Ok(())
}

/// D2 to D5: deletes and appends the DeleteRangeResponse.
pub fn run_delete(
    txn: &mut Txn<'_>,
    request: &DeleteRangeRequest,
    header: ResponseHeader,
    buf: &mut BytesMut,
) -> Result<(), TxnError> {
    let bounds: KeyRange<'_> = key_range(&request.key, &request.range_end);
    let mut previous = BytesMut::new();
    if request.prev_kv {
        let view = txn.view();
        for meta in view.keys(bounds, 0)? {
            put_embedded(&mut previous, DELETE_PREV_KVS, &view.kv(meta?.modified)?);
        }
    }
    let deleted = txn.delete_range(bounds)?;
    put_message(buf, FIELD_HEADER, &ResponseHeader { revision: txn.revision(), ..header });
    put_int64(buf, DELETE_DELETED, deleted);
    buf.extend_from_slice(&previous);
    Ok(())
}

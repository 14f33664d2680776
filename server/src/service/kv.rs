//! KV: Range, RangeStream, Put, DeleteRange, Txn, Compact.

use bytes::{Bytes, BytesMut};
use trilith_engine::Root;
use trilith_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use trilith_proto::etcdserverpb::request_op::Request as Op;
use trilith_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader, TxnRequest,
};

use super::intervals;
use crate::apply::command::Command;
use crate::apply::list;
use crate::apply::quota;
use crate::apply::range::{self, Budget, ReadError};
use crate::apply::txn::{self, Execution, Target, TxnError};
use crate::blocking;
use crate::core::Handle;
use crate::reply::{Body, Reply, put_embedded};
use crate::status::{self, Status};

/// Room for an answer that may hold a pair.
const REPLY_BYTES: usize = 256;
/// Field of RangeStreamResponse.
const FIELD_RANGE_RESPONSE: u32 = 1;
/// R15: keys in the first chunk of a stream.
const FIRST_CHUNK_KEYS: usize = 10;

/// Reads an interval: here within a small budget; if that does not do, anew on a thread that may block.
pub async fn range(handle: &Handle, request: RangeRequest) -> Result<Body, Status> {
    if handle.is_learner() && !request.serializable {
        return Err(status::NOT_SUPPORTED_FOR_LEARNER);
    }
    check_range(&request)?;
    if !request.serializable {
        handle.read_point().await?;
    }
    let root = handle.root();
    let header = header(handle, &root);
    let mut budget = Budget::INLINE;
    let small =
        Reply::try_build(REPLY_BYTES, |buf| range::range(root.view(), &request, header, &mut budget, buf));
    match small {
        Err(ReadError::OverBudget) => {}
        done => return Ok(done?.into()),
    }
    blocking::read(move || Ok(list::answer(root, request, header)?)).await
}

/// Writes a pair.
pub fn put(
    handle: &Handle,
    request: PutRequest,
) -> impl Future<Output = Result<Reply, Status>> + Send + use<> {
    propose(handle, check_put(&request), Command::Put(request))
}

/// Deletes an interval.
pub fn delete_range(
    handle: &Handle,
    request: DeleteRangeRequest,
) -> impl Future<Output = Result<Reply, Status>> + Send + use<> {
    propose(handle, check_delete(&request), Command::DeleteRange(request))
}

/// Marks old revisions as gone; with `physical` answers when they are.
pub fn compact(
    handle: &Handle,
    request: CompactionRequest,
) -> impl Future<Output = Result<Reply, Status>> + Send + use<> {
    propose(handle, Ok(()), Command::Compaction(request))
}

/// Compares, then runs one of two lists of operations as a whole.
pub async fn txn(handle: &Handle, request: TxnRequest) -> Result<Reply, Status> {
    if let Some(refused) = handle.over_quota(quota::cost_of_txn(&request)) {
        return Err(refused.await);
    }
    check_txn(&request, handle.max_txn_ops())?;
    intervals::check(&request.success)?;
    intervals::check(&request.failure)?;
    if !txn::is_read_only(&request) {
        let proposed = handle.propose(&Command::Txn(request));
        return proposed.await;
    }
    if !txn::is_serializable(&request) {
        handle.read_point().await?;
    }
    let root = handle.root();
    let header = header(handle, &root);
    let run = move |budget: &mut Budget| {
        let mut how = Execution::new(*budget, true);
        match read_txn(&root, &request, header, &mut how) {
            Ok(reply) => Ok(Ok(reply)),
            Err(TxnError::Refused(status)) => Ok(Err(status)),
            Err(TxnError::Broken(what)) => Ok(Err(Status::internal(what))),
            Err(TxnError::Read(error)) => Err(error),
        }
    };
    match run(&mut { Budget::INLINE }) {
        Err(ReadError::OverBudget) => {}
        done => return done.map_err(Status::from)?,
    }
    blocking::read(move || run(&mut { Budget::UNLIMITED }).map_err(Status::from)?).await
}

fn read_txn(
    root: &Root,
    request: &TxnRequest,
    header: ResponseHeader,
    how: &mut Execution,
) -> Result<Reply, TxnError> {
    let view = root.view();
    let path = txn::decide(view, request, &mut how.budget)?;
    txn::check(view, request, &path)?;
    Reply::try_build(REPLY_BYTES, |buf| {
        txn::execute(&mut Target::Read(view), request, &path, header, how, buf)
    })
}

fn propose(
    handle: &Handle,
    checked: Result<(), Status>,
    command: Command,
) -> impl Future<Output = Result<Reply, Status>> + Send + use<> {
    let proposed = match handle.over_quota(quota::cost(&command)) {
        Some(refused) => Err(refused),
        None => Ok(checked.map(|()| handle.propose(&command))),
    };
    async move {
        match proposed {
            Ok(proposed) => proposed?.await,
            Err(refused) => Err(refused.await),
        }
    }
}

fn header(handle: &Handle, root: &Root) -> ResponseHeader {
    handle.header(root.view().revision(), root.applied().1)
}

/// R1.
fn check_range(request: &RangeRequest) -> Result<(), Status> {
    if request.key.is_empty() {
        return Err(status::EMPTY_KEY);
    }
    if SortOrder::try_from(request.sort_order).is_err() || SortTarget::try_from(request.sort_target).is_err()
    {
        return Err(status::INVALID_SORT_OPTION);
    }
    Ok(())
}

/// P1.
fn check_put(request: &PutRequest) -> Result<(), Status> {
    if request.key.is_empty() {
        return Err(status::EMPTY_KEY);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(status::VALUE_PROVIDED);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(status::LEASE_PROVIDED);
    }
    Ok(())
}

/// D1.
fn check_delete(request: &DeleteRangeRequest) -> Result<(), Status> {
    if request.key.is_empty() { Err(status::EMPTY_KEY) } else { Ok(()) }
}

/// T1, T2: what is nested gets what this level leaves of the operations allowed.
fn check_txn(request: &TxnRequest, max_ops: usize) -> Result<(), Status> {
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len());
    let left = max_ops.checked_sub(ops).ok_or(status::TOO_MANY_OPS)?;
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(status::EMPTY_KEY);
    }
    request.success.iter().chain(&request.failure).try_for_each(|op| check_op(op, left))
}

fn check_op(op: &RequestOp, max_ops: usize) -> Result<(), Status> {
    match &op.request {
        Some(Op::RequestRange(range)) => check_range(range),
        Some(Op::RequestPut(put)) => check_put(put),
        Some(Op::RequestDeleteRange(delete)) => check_delete(delete),
        Some(Op::RequestTxn(txn)) => check_txn(txn, max_ops),
        None => Err(status::KEY_NOT_FOUND),
    }
}

/// A range in chunks, all from one root (R15, R16).
#[derive(Debug)]
pub struct RangeStream {
    root: Root,
    request: RangeRequest,
    header: ResponseHeader,
    revision: i64,
    chunk_bytes: usize,
    chunk_keys: usize,
    sent: usize,
    /// Where to go on; None after the last message.
    next: Option<Bytes>,
}

/// Begins a range whose answer comes in chunks.
pub async fn range_stream(handle: &Handle, request: RangeRequest) -> Result<RangeStream, Status> {
    check_range(&request)?;
    if range::is_real_sort(&request) {
        return Err(status::RANGE_STREAM_SORT);
    }
    if range::has_filters(&request) {
        return Err(status::RANGE_STREAM_FILTER);
    }
    if !request.serializable {
        handle.read_point().await?;
    }
    let root = handle.root();
    let header = header(handle, &root);
    let revision = if request.revision > 0 { request.revision } else { header.revision };
    Ok(RangeStream {
        header,
        revision,
        chunk_bytes: handle.max_request_bytes(),
        chunk_keys: FIRST_CHUNK_KEYS,
        sent: 0,
        next: Some(request.key.clone()),
        root,
        request,
    })
}

impl RangeStream {
    /// The next message, and what is left; no message after the last one.
    pub async fn next_chunk(mut self) -> Result<(Option<Reply>, RangeStream), Status> {
        let Some(start) = self.next.take() else { return Ok((None, self)) };
        blocking::read(move || {
            trilith_failpoint::hit("beforeRangeStreamChunk");
            let chunk = self.chunk(&start)?;
            Ok((Some(chunk), self))
        })
        .await
    }

    fn chunk(&mut self, start: &[u8]) -> Result<Reply, ReadError> {
        let view = self.root.view();
        if self.request.count_only {
            let count = range::count_from(view, &self.request, start, self.revision)?;
            return Ok(stream_reply(&range::last_chunk(&self.header, &[], false, count)));
        }
        let limit = usize::try_from(self.request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let keys = self.chunk_keys.min(limit - self.sent);
        // So that what is held for a client stays bounded where great values follow small ones.
        let bytes_max = self.chunk_bytes.saturating_mul(2);
        let mut kvs = BytesMut::with_capacity(REPLY_BYTES);
        let (read, next) =
            range::chunk(view, &self.request, start, self.revision, keys, bytes_max, &mut kvs)?;
        self.sent += read;
        if kvs.len() < self.chunk_bytes / 2 {
            self.chunk_keys = keys.saturating_mul(2);
        } else if kvs.len() > self.chunk_bytes.saturating_mul(2) {
            self.chunk_keys = (keys / 2).max(1);
        }
        let beyond = match next {
            Some(next) if self.sent < limit => {
                self.next = Some(next);
                return Ok(stream_reply(&kvs));
            }
            Some(next) => range::count_from(view, &self.request, &next, self.revision)?,
            None => 0,
        };
        let message = range::last_chunk(&self.header, &kvs, beyond > 0, self.sent + beyond);
        Ok(stream_reply(&message))
    }
}

fn stream_reply(message: &[u8]) -> Reply {
    Reply::build(message.len() + REPLY_BYTES, |buf| put_embedded(buf, FIELD_RANGE_RESPONSE, message))
}

//! Range: reads a view and writes the encoded RangeResponse, from the stored bytes where nothing must be changed.
//!
//! Used alike by the handler (on a published root) and by transactions (on the writer's own state). The rules are
//! R1 to R12 of the reference; the checks of the request itself are the handler's.

use bytes::{Bytes, BytesMut};
use prost::Message;
use trilith_engine::{KeyMeta, KeyRange, Keys, StoreError, Value, View};
use trilith_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use trilith_proto::etcdserverpb::{RangeRequest, ResponseHeader};
use trilith_proto::mvccpb;

use crate::reply::{put_bool, put_embedded, put_int64, put_message};
use crate::status::Status;

const FIELD_HEADER: u32 = 1;
const FIELD_KVS: u32 = 2;
const FIELD_MORE: u32 = 3;
const FIELD_COUNT: u32 = 4;

/// How much a read may do where it stands, before it must go on elsewhere.
#[derive(Debug, Clone, Copy)]
pub struct Budget(usize);

impl Budget {
    /// What may be done on a thread that drives connections: some hundred microseconds.
    pub const INLINE: Budget = Budget(64 * 1024);
    /// No bound: for threads that may block, and for the writer.
    pub const UNLIMITED: Budget = Budget(usize::MAX);
    /// What looking at one key costs, in bytes.
    pub(super) const KEY: usize = 64;

    pub(super) fn spend(&mut self, bytes: usize) -> Result<(), ReadError> {
        self.0 = self.0.checked_sub(bytes).ok_or(ReadError::OverBudget)?;
        Ok(())
    }
}

/// Why a read gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Too much work for this thread: to be begun anew on another.
    #[error("the read exceeds its budget")]
    OverBudget,
    /// The store's error.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<ReadError> for Status {
    fn from(error: ReadError) -> Status {
        match error {
            ReadError::OverBudget => Status::internal(error),
            ReadError::Store(error) => error.into(),
        }
    }
}

/// An interval from its wire form (R2): no end is one key, an end of one zero byte is every key from the start.
pub fn key_range<'k>(key: &'k [u8], range_end: &'k [u8]) -> KeyRange<'k> {
    let end = match range_end {
        [] => None,
        [0] => Some(&range_end[..0]),
        end => Some(end),
    };
    KeyRange { start: key, end }
}

/// The pair that a live key has now.
pub fn current(view: View<'_>, key: &[u8]) -> Result<Option<Current>, StoreError> {
    let Some(meta) = view.keys(KeyRange { start: key, end: None }, 0)?.next().transpose()? else {
        return Ok(None);
    };
    let stored = Bytes::copy_from_slice(&view.kv(meta.modified)?);
    Ok(Some(Current { lease: meta.lease, stored }))
}

/// A live pair, copied out of the store.
#[derive(Debug, Clone)]
pub struct Current {
    /// The lease it is attached to; 0 for none.
    pub lease: i64,
    /// mvccpb.KeyValue.
    pub stored: Bytes,
}

/// The value inside a stored pair.
pub fn stored_value(stored: Bytes) -> Result<Bytes, StoreError> {
    let pair = mvccpb::KeyValue::decode(stored)
        .map_err(|error| StoreError::Inconsistent(format!("stored pair: {error}")))?;
    Ok(pair.value)
}

/// Appends the RangeResponse to `buf`. The header comes with its revision (R4).
pub fn range(
    view: View<'_>,
    request: &RangeRequest,
    header: ResponseHeader,
    budget: &mut Budget,
    buf: &mut BytesMut,
) -> Result<(), ReadError> {
    put_message(buf, FIELD_HEADER, &header);
    let bounds = key_range(&request.key, &request.range_end);
    let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let (more, count) = if request.count_only {
        (false, count_all(view, bounds, request.revision, budget)?)
    } else if sorted_order(request).is_none() && !has_filters(request) {
        in_key_order(view, bounds, request, limit, budget, buf)?
    } else {
        sorted(view, bounds, request, limit, budget, buf)?
    };
    put_bool(buf, FIELD_MORE, more);
    put_int64(buf, FIELD_COUNT, count as i64);
    Ok(())
}

/// R11: whether a bound on revisions is set.
pub fn has_filters(request: &RangeRequest) -> bool {
    request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

/// R8: whether a sort asks for more than the order that keys come in.
pub fn is_real_sort(request: &RangeRequest) -> bool {
    let by_key = request.sort_target == SortTarget::Key as i32;
    match request.sort_order() {
        SortOrder::None => false,
        SortOrder::Ascend => !by_key,
        SortOrder::Descend => true,
    }
}

/// The sort to do, with R9: a target other than the key is sorted by, ascending, though no order was asked for.
fn sorted_order(request: &RangeRequest) -> Option<SortOrder> {
    let by_key = request.sort_target == SortTarget::Key as i32;
    match request.sort_order() {
        SortOrder::None | SortOrder::Ascend if by_key => None,
        SortOrder::None => Some(SortOrder::Ascend),
        order => Some(order),
    }
}

fn count_all(
    view: View<'_>,
    bounds: KeyRange<'_>,
    revision: i64,
    budget: &mut Budget,
) -> Result<usize, ReadError> {
    count_rest(view.keys(bounds, revision)?, budget)
}

/// How many keys an iterator has left: known at the current revision, else counted.
fn count_rest(keys: Keys<'_>, budget: &mut Budget) -> Result<usize, ReadError> {
    let allowed = budget.0 / Budget::KEY;
    let mut steps = allowed;
    let count = keys.remaining_within(&mut steps)?.ok_or(ReadError::OverBudget)?;
    budget.spend((allowed - steps) * Budget::KEY)?;
    Ok(count as usize)
}

/// R7: the usual case; pairs go from the pages into the answer.
fn in_key_order(
    view: View<'_>,
    bounds: KeyRange<'_>,
    request: &RangeRequest,
    limit: usize,
    budget: &mut Budget,
    buf: &mut BytesMut,
) -> Result<(bool, usize), ReadError> {
    let mut count = 0;
    let mut keys = view.keys(bounds, request.revision)?;
    while count < limit {
        let Some(meta) = keys.next().transpose()? else { return Ok((false, count)) };
        budget.spend(Budget::KEY)?;
        put_pair(view, request, &meta, budget, buf)?;
        count += 1;
    }
    let beyond = count_rest(keys, budget)?;
    Ok((beyond > 0, count + beyond))
}

/// R8 to R11: keys are gathered, filtered and sorted, then cut to the limit.
fn sorted(
    view: View<'_>,
    bounds: KeyRange<'_>,
    request: &RangeRequest,
    limit: usize,
    budget: &mut Budget,
    buf: &mut BytesMut,
) -> Result<(bool, usize), ReadError> {
    let all = is_real_sort(request) || has_filters(request);
    let fetch = if all { usize::MAX } else { limit.saturating_add(1) };
    let mut count = 0;
    let mut found = Vec::new();
    for meta in view.keys(bounds, request.revision)? {
        let meta = meta?;
        budget.spend(Budget::KEY)?;
        if count < fetch && passes(request, &meta) {
            found.push(meta);
        }
        count += 1;
    }
    if let Some(order) = sorted_order(request) {
        sort(view, request, order, budget, &mut found)?;
    }
    for meta in found.iter().take(limit) {
        put_pair(view, request, meta, budget, buf)?;
    }
    Ok((found.len() > limit, count))
}

fn passes(request: &RangeRequest, meta: &KeyMeta<'_>) -> bool {
    let within = |value: i64, min: i64, max: i64| (min == 0 || value >= min) && (max == 0 || value <= max);
    within(meta.modified.main, request.min_mod_revision, request.max_mod_revision)
        && within(meta.create_revision, request.min_create_revision, request.max_create_revision)
}

fn sort(
    view: View<'_>,
    request: &RangeRequest,
    order: SortOrder,
    budget: &mut Budget,
    found: &mut Vec<KeyMeta<'_>>,
) -> Result<(), ReadError> {
    match request.sort_target() {
        SortTarget::Key => found.sort_by(|a, b| a.key.cmp(&b.key)),
        SortTarget::Version => found.sort_by_key(|meta| meta.version),
        SortTarget::Create => found.sort_by_key(|meta| meta.create_revision),
        SortTarget::Mod => found.sort_by_key(|meta| meta.modified.main),
        SortTarget::Value => {
            let mut by_value = Vec::with_capacity(found.len());
            for meta in found.drain(..) {
                let stored = view.kv(meta.modified)?;
                budget.spend(stored.len())?;
                by_value.push((stored_value(Bytes::copy_from_slice(&stored))?, meta));
            }
            by_value.sort_by(|a, b| a.0.cmp(&b.0));
            found.extend(by_value.into_iter().map(|(_, meta)| meta));
        }
    }
    if order == SortOrder::Descend {
        found.reverse();
    }
    Ok(())
}

/// Appends one pair to `kvs`. R12: without values the index answers, and knows of no lease unless values were
/// looked at for the sort.
fn put_pair(
    view: View<'_>,
    request: &RangeRequest,
    meta: &KeyMeta<'_>,
    budget: &mut Budget,
    buf: &mut BytesMut,
) -> Result<(), ReadError> {
    if request.keys_only {
        let lease = if request.sort_target == SortTarget::Value as i32 { meta.lease } else { 0 };
        let pair = mvccpb::KeyValue {
            key: Bytes::copy_from_slice(&meta.key),
            create_revision: meta.create_revision,
            mod_revision: meta.modified.main,
            version: meta.version,
            value: Bytes::new(),
            lease,
        };
        put_message(buf, FIELD_KVS, &pair);
        return Ok(());
    }
    let stored: Value<'_> = view.kv(meta.modified)?;
    budget.spend(stored.len())?;
    put_embedded(buf, FIELD_KVS, &stored);
    Ok(())
}

/// A chunk of a streamed range: pairs from `start` on, at most `limit`; the key to go on from, if there is one.
pub fn chunk(
    view: View<'_>,
    request: &RangeRequest,
    start: &[u8],
    revision: i64,
    limit: usize,
    buf: &mut BytesMut,
) -> Result<(usize, Option<Bytes>), ReadError> {
    let bounds = KeyRange { start, ..key_range(&request.key, &request.range_end) };
    let mut budget = Budget::UNLIMITED;
    let mut written = 0;
    for meta in view.keys(bounds, revision)? {
        let meta = meta?;
        if written == limit {
            return Ok((written, Some(Bytes::copy_from_slice(&meta.key))));
        }
        put_pair(view, request, &meta, &mut budget, buf)?;
        written += 1;
    }
    Ok((written, None))
}

/// How many live keys the request's interval has from `start` on.
pub fn count_from(
    view: View<'_>,
    request: &RangeRequest,
    start: &[u8],
    revision: i64,
) -> Result<usize, ReadError> {
    let bounds = KeyRange { start, ..key_range(&request.key, &request.range_end) };
    let mut budget = Budget::UNLIMITED;
    count_all(view, bounds, revision, &mut budget)
}

/// The last message of a stream: the pairs of its chunk, and what stands on no other message.
pub fn last_chunk(header: &ResponseHeader, kvs: &[u8], more: bool, count: usize) -> BytesMut {
    let mut message = BytesMut::with_capacity(kvs.len() + header.encoded_len() + 32);
    put_message(&mut message, FIELD_HEADER, header);
    message.extend_from_slice(kvs);
    put_bool(&mut message, FIELD_MORE, more);
    put_int64(&mut message, FIELD_COUNT, count as i64);
    message
}

//! Range: reads a view and writes the encoded RangeResponse, from the stored bytes where nothing must be changed.
//!
//! Used alike by the handler (on a published root) and by transactions (on the writer's own state). The rules are
//! R1 to R12 of the reference; the checks of the request itself are the handler's.

use std::cmp::Ordering;

use bytes::{Bytes, BytesMut};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use trilith_engine::{KeyMeta, KeyRange, Keys, Revision, StoreError, Value, View};
use trilith_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use trilith_proto::etcdserverpb::{RangeRequest, ResponseHeader};
use trilith_proto::mvccpb;

use crate::reply::{embedded_len, put_bool, put_embedded, put_embedded_parts, put_int64, put_message};
use crate::status::Status;

pub(super) const FIELD_HEADER: u32 = 1;
const FIELD_KVS: u32 = 2;
const FIELD_MORE: u32 = 3;
const FIELD_COUNT: u32 = 4;

/// How much a read may do where it stands, before it must go on elsewhere.
#[derive(Debug, Clone, Copy)]
pub struct Budget(usize);

impl Budget {
    /// What may be done on a thread that drives connections: some hundred microseconds.
    pub const INLINE: Budget = Budget(64 * 1024);
    /// What an answer may hold that is made in one piece.
    pub const WHOLE: Budget = Budget(1 << 20);
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
    /// What is to be answered instead.
    #[error(transparent)]
    Refused(#[from] Status),
}

impl From<ReadError> for Status {
    fn from(error: ReadError) -> Status {
        match error {
            ReadError::OverBudget => Status::internal(error),
            ReadError::Store(error) => error.into(),
            ReadError::Refused(status) => status,
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

/// The interval of a range from a key of it on.
pub(super) fn bounds_from<'k>(request: &'k RangeRequest, start: &'k [u8]) -> KeyRange<'k> {
    KeyRange { start, ..key_range(&request.key, &request.range_end) }
}

/// The value inside a stored pair.
pub fn stored_value(stored: Bytes) -> Result<Bytes, StoreError> {
    let pair = mvccpb::KeyValue::decode(stored)
        .map_err(|error| StoreError::Inconsistent(format!("stored pair: {error}")))?;
    Ok(pair.value)
}

/// Where the field `value` stands in a stored pair, and within it the value itself; empty at its place when the
/// value is.
fn value_field(stored: &[u8]) -> Result<(std::ops::Range<usize>, std::ops::Range<usize>), StoreError> {
    const LEASE: u32 = 6;
    const VALUE: u32 = 5;
    let malformed = |error| StoreError::Inconsistent(format!("stored pair: {error}"));
    let mut rest = stored;
    loop {
        let begin = stored.len() - rest.len();
        if rest.is_empty() {
            return Ok((begin..begin, begin..begin));
        }
        let (field, wire_type) = decode_key(&mut rest).map_err(malformed)?;
        if field >= LEASE {
            return Ok((begin..begin, begin..begin));
        }
        let after_key = rest;
        skip_field(wire_type, field, &mut rest, DecodeContext::default()).map_err(malformed)?;
        if field == VALUE && wire_type == WireType::LengthDelimited {
            let mut value = after_key;
            decode_varint(&mut value).map_err(malformed)?;
            let end = stored.len() - rest.len();
            return Ok((begin..end, stored.len() - value.len()..end));
        }
    }
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
    let (more, count) = if request.count_only {
        (false, count_all(view, key_range(&request.key, &request.range_end), request.revision, budget)?)
    } else if let Some(order) = sorted_order(request) {
        let (found, more, count) = sorted(view, request, order, budget)?;
        for one in &found {
            budget.spend(put_found(view, request, one, buf)?)?;
        }
        (more, count)
    } else {
        in_key_order(view, request, budget, &mut |meta, budget| put_pair(view, request, meta, budget, buf))?
    };
    put_tail(buf, more, count);
    Ok(())
}

/// What follows the pairs.
pub(super) fn put_tail(buf: &mut BytesMut, more: bool, count: usize) {
    put_bool(buf, FIELD_MORE, more);
    put_int64(buf, FIELD_COUNT, count as i64);
}

/// The most pairs that the answer may have.
fn limit_of(request: &RangeRequest) -> usize {
    usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX)
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
pub(super) fn sorted_order(request: &RangeRequest) -> Option<SortOrder> {
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

/// R7, R11: the usual case. Hands the pairs of the answer to `each`, in key order; whether more than the limit pass,
/// and how many keys there are.
pub(super) fn in_key_order<'v>(
    view: View<'v>,
    request: &RangeRequest,
    budget: &mut Budget,
    each: &mut impl FnMut(&KeyMeta<'v>, &mut Budget) -> Result<(), ReadError>,
) -> Result<(bool, usize), ReadError> {
    let (limit, filtered) = (limit_of(request), has_filters(request));
    let mut keys = view.keys(key_range(&request.key, &request.range_end), request.revision)?;
    let (mut count, mut passed) = (0, 0);
    while passed < limit {
        let Some(meta) = keys.next().transpose()? else { return Ok((false, count)) };
        budget.spend(Budget::KEY)?;
        count += 1;
        if !filtered || passes(request, &meta) {
            each(&meta, budget)?;
            passed += 1;
        }
    }
    if !filtered {
        let beyond = count_rest(keys, budget)?;
        return Ok((beyond > 0, count + beyond));
    }
    let mut more = false;
    while !more {
        let Some(meta) = keys.next().transpose()? else { return Ok((false, count)) };
        budget.spend(Budget::KEY)?;
        count += 1;
        more = passes(request, &meta);
    }
    Ok((true, count + count_rest(keys, budget)?))
}

/// A pair that was found for a sorted answer.
#[derive(Debug)]
pub(super) struct Found {
    modified: Revision,
    /// Ascends with what is sorted by; for values only as far as their first bytes go.
    rank: u128,
}

/// R8 to R11: the pairs of the answer in their order, whether more than the limit pass, and how many keys there are.
pub(super) fn sorted(
    view: View<'_>,
    request: &RangeRequest,
    order: SortOrder,
    budget: &mut Budget,
) -> Result<(Vec<Found>, bool, usize), ReadError> {
    let limit = limit_of(request);
    let all = is_real_sort(request) || has_filters(request);
    let fetch = if all { usize::MAX } else { limit.saturating_add(1) };
    let mut count = 0;
    let mut found = Vec::new();
    for meta in view.keys(key_range(&request.key, &request.range_end), request.revision)? {
        let meta = meta?;
        budget.spend(Budget::KEY)?;
        if count < fetch && passes(request, &meta) {
            found.push(Found { modified: meta.modified, rank: rank(view, request, &meta, budget)? });
        }
        count += 1;
    }
    sort(view, request, &mut found)?;
    if order == SortOrder::Descend {
        found.reverse();
    }
    let more = found.len() > limit;
    found.truncate(limit);
    Ok((found, more, count))
}

pub(super) fn passes(request: &RangeRequest, meta: &KeyMeta<'_>) -> bool {
    let within = |value: i64, min: i64, max: i64| (min == 0 || value >= min) && (max == 0 || value <= max);
    within(meta.modified.main, request.min_mod_revision, request.max_mod_revision)
        && within(meta.create_revision, request.min_create_revision, request.max_create_revision)
}

fn rank(
    view: View<'_>,
    request: &RangeRequest,
    meta: &KeyMeta<'_>,
    budget: &mut Budget,
) -> Result<u128, ReadError> {
    // None of these is negative.
    let number = match request.sort_target() {
        // They are found in that order.
        SortTarget::Key => 0,
        SortTarget::Version => meta.version,
        SortTarget::Create => meta.create_revision,
        SortTarget::Mod => meta.modified.main,
        SortTarget::Value => {
            let stored = view.kv(meta.modified)?;
            budget.spend(stored.len())?;
            let (_, value) = value_field(&stored)?;
            let mut first = [0; 16];
            let len = value.len().min(first.len());
            first[..len].copy_from_slice(&stored[value.start..value.start + len]);
            return Ok(u128::from_be_bytes(first));
        }
    };
    Ok(number as u128)
}

/// Sorts ascending; what is equal stays in the order of keys. Values that begin alike are looked at again.
fn sort(view: View<'_>, request: &RangeRequest, found: &mut [Found]) -> Result<(), ReadError> {
    if request.sort_target() != SortTarget::Value {
        found.sort_by_key(|one| one.rank);
        return Ok(());
    }
    let mut failed = None;
    found.sort_by(|a, b| {
        a.rank.cmp(&b.rank).then_with(|| match compare_values(view, a, b) {
            Ok(ordering) => ordering,
            Err(error) => {
                failed = Some(error);
                Ordering::Equal
            }
        })
    });
    failed.map_or(Ok(()), |error| Err(error.into()))
}

fn compare_values(view: View<'_>, a: &Found, b: &Found) -> Result<Ordering, StoreError> {
    let (a, b) = (view.kv(a.modified)?, view.kv(b.modified)?);
    Ok(a[value_field(&a)?.1].cmp(&b[value_field(&b)?.1]))
}

/// Appends a found pair to `kvs`; bytes that were looked at.
pub(super) fn put_found(
    view: View<'_>,
    request: &RangeRequest,
    found: &Found,
    buf: &mut BytesMut,
) -> Result<usize, ReadError> {
    let stored = view.kv(found.modified)?;
    if request.keys_only {
        let [front, back] = without_value(request, &stored)?;
        put_embedded_parts(buf, FIELD_KVS, front, back);
    } else {
        put_embedded(buf, FIELD_KVS, &stored);
    }
    Ok(stored.len())
}

/// Bytes that `put_found` appends.
pub(super) fn found_len(view: View<'_>, request: &RangeRequest, found: &Found) -> Result<usize, ReadError> {
    let len = if request.keys_only {
        without_value(request, &view.kv(found.modified)?)?.map(<[u8]>::len).iter().sum()
    } else {
        view.kv_len(found.modified)?
    };
    Ok(embedded_len(FIELD_KVS, len))
}

/// R12: a stored pair without its value, and without its lease unless values were looked at for the sort.
fn without_value<'p>(request: &RangeRequest, stored: &'p [u8]) -> Result<[&'p [u8]; 2], StoreError> {
    let (field, _) = value_field(stored)?;
    let lease = if request.sort_target() == SortTarget::Value { &stored[field.end..] } else { &[] };
    Ok([&stored[..field.start], lease])
}

/// Appends one pair to `kvs`.
pub(super) fn put_pair(
    view: View<'_>,
    request: &RangeRequest,
    meta: &KeyMeta<'_>,
    budget: &mut Budget,
    buf: &mut BytesMut,
) -> Result<(), ReadError> {
    if request.keys_only {
        put_message(buf, FIELD_KVS, &key_only(meta));
        return Ok(());
    }
    let stored: Value<'_> = view.kv(meta.modified)?;
    budget.spend(stored.len())?;
    put_embedded(buf, FIELD_KVS, &stored);
    Ok(())
}

/// Bytes that `put_pair` appends.
pub(super) fn pair_len(
    view: View<'_>,
    request: &RangeRequest,
    meta: &KeyMeta<'_>,
) -> Result<usize, ReadError> {
    let len = if request.keys_only { key_only(meta).encoded_len() } else { view.kv_len(meta.modified)? };
    Ok(embedded_len(FIELD_KVS, len))
}

/// R12: without values the index answers, and knows of no lease.
fn key_only(meta: &KeyMeta<'_>) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: Bytes::copy_from_slice(&meta.key),
        create_revision: meta.create_revision,
        mod_revision: meta.modified.main,
        version: meta.version,
        value: Bytes::new(),
        lease: 0,
    }
}

/// A chunk of a streamed range: pairs from `start` on, at most `limit`, up to that which reaches `bytes_max`; the key to
/// go on from, if there is one.
pub fn chunk(
    view: View<'_>,
    request: &RangeRequest,
    start: &[u8],
    revision: i64,
    limit: usize,
    bytes_max: usize,
    buf: &mut BytesMut,
) -> Result<(usize, Option<Bytes>), ReadError> {
    let mut budget = Budget::UNLIMITED;
    let mut written = 0;
    for meta in view.keys(bounds_from(request, start), revision)? {
        let meta = meta?;
        if written == limit || buf.len() >= bytes_max {
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
    let mut budget = Budget::UNLIMITED;
    count_all(view, bounds_from(request, start), revision, &mut budget)
}

/// The last message of a stream: the pairs of its chunk, and what stands on no other message.
pub fn last_chunk(header: &ResponseHeader, kvs: &[u8], more: bool, count: usize) -> BytesMut {
    let mut message = BytesMut::with_capacity(kvs.len() + header.encoded_len() + 32);
    put_message(&mut message, FIELD_HEADER, header);
    message.extend_from_slice(kvs);
    put_tail(&mut message, more, count);
    message
}

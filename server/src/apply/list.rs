//! A range whose answer is too large to be held: measured first, then encoded in parts.
//!
//! gRPC wants the length of a message before its first byte, so the range is walked twice on one root: once for the
//! lengths, once for the bytes. Promises: the parts together are the bytes that [`range::range`] makes; what is held is
//! a part (and for a real sort some 32 bytes per key), never the answer. A page that turns out damaged on the second
//! walk ends the parts with an error.

use bytes::{Bytes, BytesMut};
use trilith_engine::{Root, StoreError};
use trilith_proto::etcdserverpb::{RangeRequest, ResponseHeader};

use super::range::{self, Budget, FIELD_HEADER, Found, ReadError};
use crate::reply::{self, Body, FRAME_HEADER_BYTES, Parts, Reply, put_message};
use crate::status::Status;

/// A part ends with the pair that reaches this many bytes.
const PART_BYTES: usize = 256 << 10;
/// Room for an answer that may hold a pair.
const REPLY_BYTES: usize = 4 << 10;

/// Answers a range: whole when it is small enough, else in parts. Blocks for as long as it takes to read.
pub fn answer(root: Root, request: RangeRequest, header: ResponseHeader) -> Result<Body, ReadError> {
    let mut budget = if request.count_only { Budget::UNLIMITED } else { Budget::WHOLE };
    let whole =
        Reply::try_build(REPLY_BYTES, |buf| range::range(root.view(), &request, header, &mut budget, buf));
    match whole {
        Err(ReadError::OverBudget) => {}
        done => return done.map(Body::Whole),
    }
    Ok(Body::Parts(Box::new(List::new(root, request, header)?)))
}

/// What the first walk finds.
#[derive(Debug)]
struct Plan {
    pairs: usize,
    /// Bytes of the fields `kvs`.
    pairs_len: usize,
    more: bool,
    count: usize,
    /// The pairs in their order, when that is not the order of keys.
    sorted: Option<Vec<Found>>,
}

impl Plan {
    fn new(root: &Root, request: &RangeRequest) -> Result<Plan, ReadError> {
        let (view, mut budget) = (root.view(), Budget::UNLIMITED);
        let (mut pairs, mut pairs_len) = (0, 0);
        if let Some(order) = range::sorted_order(request) {
            let (found, more, count) = range::sorted(view, request, order, &mut budget)?;
            for one in &found {
                pairs_len += range::found_len(view, request, one)?;
            }
            return Ok(Plan { pairs: found.len(), pairs_len, more, count, sorted: Some(found) });
        }
        let (more, count) = range::in_key_order(view, request, &mut budget, &mut |meta, _| {
            pairs += 1;
            pairs_len += range::pair_len(view, request, meta)?;
            Ok(())
        })?;
        Ok(Plan { pairs, pairs_len, more, count, sorted: None })
    }
}

/// Where the second walk stands.
#[derive(Debug)]
enum Position {
    Begin,
    /// So many pairs are encoded; in key order the next one is at or after this key.
    Pairs(usize, Bytes),
    End,
}

/// A range's answer in parts.
#[derive(Debug)]
struct List {
    root: Root,
    request: RangeRequest,
    header: ResponseHeader,
    plan: Plan,
    /// Bytes of the frame.
    len: u64,
    sent: u64,
    position: Position,
}

impl List {
    fn new(root: Root, request: RangeRequest, header: ResponseHeader) -> Result<List, ReadError> {
        let plan = Plan::new(&root, &request)?;
        let mut ends = BytesMut::new();
        put_message(&mut ends, FIELD_HEADER, &header);
        range::put_tail(&mut ends, plan.more, plan.count);
        let message_len = (ends.len() + plan.pairs_len) as u64;
        reply::check_len(message_len)?;
        let len = message_len + FRAME_HEADER_BYTES as u64;
        Ok(List { root, request, header, plan, len, sent: 0, position: Position::Begin })
    }

    fn part(&mut self) -> Result<Bytes, ReadError> {
        let mut buf = BytesMut::with_capacity(PART_BYTES + REPLY_BYTES);
        let (mut done, mut key) = match std::mem::replace(&mut self.position, Position::End) {
            Position::Begin => {
                reply::put_frame_header(&mut buf, self.len - FRAME_HEADER_BYTES as u64)?;
                put_message(&mut buf, FIELD_HEADER, &self.header);
                (0, self.request.key.clone())
            }
            Position::Pairs(done, key) => (done, key),
            Position::End => return Err(changed()),
        };
        self.put_pairs(&mut buf, &mut done, &mut key)?;
        if done < self.plan.pairs {
            self.position = Position::Pairs(done, key);
        } else {
            range::put_tail(&mut buf, self.plan.more, self.plan.count);
        }
        self.sent += buf.len() as u64;
        let ends = matches!(self.position, Position::End);
        if self.sent > self.len || (ends && self.sent != self.len) {
            return Err(changed());
        }
        Ok(buf.freeze())
    }

    /// Encodes pairs until the part is full; afterwards `key` is where to go on.
    fn put_pairs(&self, buf: &mut BytesMut, done: &mut usize, key: &mut Bytes) -> Result<(), ReadError> {
        let (view, request, plan) = (self.root.view(), &self.request, &self.plan);
        if let Some(sorted) = &plan.sorted {
            for found in &sorted[*done..] {
                if buf.len() >= PART_BYTES {
                    break;
                }
                range::put_found(view, request, found, buf)?;
                *done += 1;
            }
            return Ok(());
        }
        if *done == plan.pairs {
            return Ok(());
        }
        let mut budget = Budget::UNLIMITED;
        for meta in view.keys(range::bounds_from(request, key), request.revision)? {
            let meta = meta?;
            if !range::passes(request, &meta) {
                continue;
            }
            if buf.len() >= PART_BYTES {
                *key = Bytes::copy_from_slice(&meta.key);
                return Ok(());
            }
            range::put_pair(view, request, &meta, &mut budget, buf)?;
            *done += 1;
            if *done == plan.pairs {
                return Ok(());
            }
        }
        Err(changed())
    }
}

/// What cannot be, since a root does not change; told rather than asserted, as bytes of a file are behind it.
fn changed() -> ReadError {
    StoreError::Inconsistent("a range has not the length that was found before".into()).into()
}

impl Parts for List {
    fn next(&mut self) -> Option<Result<Bytes, Status>> {
        if matches!(self.position, Position::End) {
            return None;
        }
        let part = self.part().map_err(Status::from);
        if part.is_err() {
            self.position = Position::End;
        }
        Some(part)
    }
}

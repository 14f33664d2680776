//! Which keys the operations of a transaction put and delete: none may be put twice, or put and deleted (T3, T4).

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;

use trilith_proto::etcdserverpb::RequestOp;
use trilith_proto::etcdserverpb::request_op::Request as Op;

use crate::status::{self, Status};

/// Deleted keys: intervals that do not overlap, by start, and beside them every single key.
///
/// The ends are taken as they stand in the request. So a delete from a key on, whose end is a single zero byte,
/// collides with no put, like any other that ends before it starts; etcd has it so.
#[derive(Default)]
struct Deletes<'r> {
    keys: HashSet<&'r [u8]>,
    intervals: BTreeMap<&'r [u8], &'r [u8]>,
}

impl<'r> Deletes<'r> {
    fn add(&mut self, key: &'r [u8], end: &'r [u8]) {
        if end.is_empty() {
            self.keys.insert(key);
        }
        if end <= key {
            return;
        }
        let (mut start, mut end) = (key, end);
        if let Some((before, until)) = self.intervals.range(..=start).next_back()
            && *until >= start
        {
            (start, end) = (*before, end.max(*until));
        }
        let swallowed: Vec<_> = self.intervals.range(start..=end).map(|(start, _)| *start).collect();
        for other in swallowed {
            end = self.intervals.remove(other).map_or(end, |until| end.max(until));
        }
        self.intervals.insert(start, end);
    }

    fn covers(&self, key: &[u8]) -> bool {
        let before = self.intervals.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back();
        self.keys.contains(key) || before.is_some_and(|(_, until)| key < *until)
    }

    fn absorb(&mut self, other: Deletes<'r>) {
        for (start, end) in other.intervals {
            self.add(start, end);
        }
        self.keys.extend(other.keys);
    }
}

/// Checks one branch.
pub(super) fn check(ops: &[RequestOp]) -> Result<(), Status> {
    collect(ops).map(|_| ())
}

type Puts<'r> = HashSet<&'r [u8]>;

/// Deletes of this level first, then what is nested, sibling by sibling, then the puts of this level.
fn collect(ops: &[RequestOp]) -> Result<(Puts<'_>, Deletes<'_>), Status> {
    let mut deletes = Deletes::default();
    let mut puts = Puts::new();
    for op in ops {
        if let Some(Op::RequestDeleteRange(delete)) = &op.request {
            deletes.add(&delete.key, &delete.range_end);
        }
    }
    for op in ops {
        let Some(Op::RequestTxn(nested)) = &op.request else { continue };
        let (then_puts, then_deletes) = collect(&nested.success)?;
        let (else_puts, else_deletes) = collect(&nested.failure)?;
        // Only one of the branches is taken: they may put the same key.
        let taken_before = |key: &[u8]| puts.contains(key) || deletes.covers(key);
        if then_puts.iter().chain(&else_puts).any(|key| taken_before(key)) {
            return Err(status::DUPLICATE_KEY);
        }
        puts.extend(then_puts);
        puts.extend(else_puts);
        deletes.absorb(then_deletes);
        deletes.absorb(else_deletes);
    }
    for op in ops {
        let Some(Op::RequestPut(put)) = &op.request else { continue };
        if deletes.covers(&put.key) || !puts.insert(&put.key) {
            return Err(status::DUPLICATE_KEY);
        }
    }
    Ok((puts, deletes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_intervals_cover_what_the_single_ones_cover() {
        let intervals: [(&[u8], &[u8]); 7] = [
            (b"d", b"f"),
            (b"a", b"b"),
            (b"b", b"c"),
            (b"k", b""),
            (b"p", b"a"),
            (b"e", b"j"),
            (b"0", b"\0"),
        ];
        let mut deletes = Deletes::default();
        for (key, end) in intervals {
            deletes.add(key, end);
        }
        for byte in 0..=255_u8 {
            for key in [vec![byte], vec![byte, 0], vec![byte, b'x']] {
                let expected = intervals.iter().any(|(start, end)| match end {
                    [] => key == *start,
                    end => key.as_slice() >= *start && key.as_slice() < *end,
                });
                assert_eq!(deletes.covers(&key), expected, "{key:?}");
            }
        }
    }
}

//! Which keys the operations of a transaction put and delete: none may be put twice, or put and deleted (T3, T4).

use std::collections::HashSet;

use trilith_proto::etcdserverpb::request_op::Request as Op;
use trilith_proto::etcdserverpb::{DeleteRangeRequest, RequestOp};

use crate::apply::key_set::KeySet;
use crate::status::{self, Status};

/// The ends are taken as they stand in the request. So a delete from a key on, whose end is a single zero byte,
/// collides with no put, like any other that ends before it starts; etcd has it so.
fn add<'r>(deletes: &mut KeySet<'r>, delete: &'r DeleteRangeRequest) {
    if delete.range_end.is_empty() {
        deletes.add_key(&delete.key);
    } else {
        deletes.add_interval(&delete.key, &delete.range_end);
    }
}

/// Checks one branch.
pub(super) fn check(ops: &[RequestOp]) -> Result<(), Status> {
    collect(ops).map(|_| ())
}

type Puts<'r> = HashSet<&'r [u8]>;

/// Deletes of this level first, then what is nested, sibling by sibling, then the puts of this level.
fn collect(ops: &[RequestOp]) -> Result<(Puts<'_>, KeySet<'_>), Status> {
    let mut deletes = KeySet::default();
    let mut puts = Puts::new();
    for op in ops {
        if let Some(Op::RequestDeleteRange(delete)) = &op.request {
            add(&mut deletes, delete);
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

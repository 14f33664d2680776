//! The quota: how large the store may become before writes are refused, and what a write is reckoned to cost (X4).

use trilith_engine::Store;
use trilith_proto::etcdserverpb::request_op::Request as Op;
use trilith_proto::etcdserverpb::{PutRequest, RequestOp, TxnRequest};

use super::command::Command;

/// --quota-backend-bytes=0.
const DEFAULT_BYTES: i64 = 2 << 30;
/// etcd's estimate for what a pair costs beside its key and value, in bytes.
const PAIR_BYTES: u64 = 256;
/// What a lease is reckoned to cost, in bytes.
pub const COST_OF_LEASE: u64 = 64;

/// The quota of this member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota(i64);

impl Quota {
    /// From --quota-backend-bytes: 0 is the default of 2 GiB, less is no quota.
    pub fn new(backend_bytes: i64) -> Quota {
        Quota(if backend_bytes == 0 { DEFAULT_BYTES } else { backend_bytes })
    }

    /// What Status shows: bytes; negative for no quota.
    pub fn bytes(self) -> i64 {
        self.0
    }

    /// Whether a store of so many bytes has room for something of that cost. What costs nothing always has.
    pub fn has_room(self, db_size: u64, cost: u64) -> bool {
        match u64::try_from(self.0) {
            Ok(limit) => cost == 0 || db_size.saturating_add(cost) < limit,
            Err(_) => true,
        }
    }
}

/// The store's size as the quota and Status know it, in bytes: of the file, with what the next checkpoint will add.
pub fn db_size(store: &Store) -> u64 {
    store.size_bytes().max(db_size_in_use(store))
}

/// The same without free pages.
pub fn db_size_in_use(store: &Store) -> u64 {
    store.size_in_use_bytes() + store.dirty_bytes() as u64
}

/// What a command is reckoned to add to the store, in bytes; 0 for those that are never refused for lack of space.
pub fn cost(command: &Command) -> u64 {
    match command {
        Command::Put(put) => cost_of_put(put),
        Command::Txn(txn) => cost_of_txn(txn),
        Command::LeaseGrant(_) => COST_OF_LEASE,
        _ => 0,
    }
}

fn cost_of_put(put: &PutRequest) -> u64 {
    PAIR_BYTES + put.key.len() as u64 + put.value.len() as u64
}

/// The cost of a transaction: of the dearer of its branches.
pub fn cost_of_txn(txn: &TxnRequest) -> u64 {
    let sum = |ops: &[RequestOp]| ops.iter().map(cost_of_op).sum::<u64>();
    sum(&txn.success).max(sum(&txn.failure))
}

fn cost_of_op(op: &RequestOp) -> u64 {
    match &op.request {
        Some(Op::RequestPut(put)) => cost_of_put(put),
        Some(Op::RequestTxn(txn)) => cost_of_txn(txn),
        Some(Op::RequestRange(_) | Op::RequestDeleteRange(_)) | None => 0,
    }
}

#[cfg(test)]
mod tests {
    use trilith_proto::etcdserverpb::{LeaseGrantRequest, RangeRequest};

    use super::*;

    fn put(len: usize) -> RequestOp {
        let put = PutRequest { key: "k".into(), value: vec![0; len].into(), ..Default::default() };
        RequestOp { request: Some(Op::RequestPut(put)) }
    }

    #[test]
    fn x4_costs() {
        let nested = TxnRequest { success: vec![put(9), put(9)], ..Default::default() };
        let nested = RequestOp { request: Some(Op::RequestTxn(nested)) };
        let read = RequestOp { request: Some(Op::RequestRange(RangeRequest::default())) };
        let txn = |success: Vec<RequestOp>, failure: Vec<RequestOp>| {
            cost(&Command::Txn(TxnRequest { success, failure, ..Default::default() }))
        };
        assert_eq!(txn(vec![read.clone()], vec![]), 0);
        assert_eq!(txn(vec![put(9)], vec![put(99), read]), 356);
        assert_eq!(txn(vec![nested, put(0)], vec![put(99)]), 2 * 266 + 257);
        assert_eq!(cost(&Command::LeaseGrant(LeaseGrantRequest::default())), 64);
    }

    #[test]
    fn x4_room() {
        assert_eq!(Quota::new(0).bytes(), 2_147_483_648);
        assert!(Quota::new(1000).has_room(899, 100));
        assert!(!Quota::new(1000).has_room(900, 100));
        assert!(Quota::new(1000).has_room(5000, 0));
        assert!(Quota::new(-1).has_room(u64::MAX, u64::MAX));
    }
}

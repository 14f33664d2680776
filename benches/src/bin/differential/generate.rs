//! Random requests: mostly valid ones on few keys, so that they meet, and a few of every invalid kind.

use bytes::Bytes;
use trilith_benches::rng::Rng;
use trilith_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use trilith_proto::etcdserverpb::*;

use crate::op::{Op, Response};

/// Lease ids that are granted and revoked again and again; one that is negative, one that is the largest.
const LEASES: [i64; 9] = [1, 2, 3, 4, 5, 77, 1 << 40, -5, i64::MAX];
/// No lease that takes part in other operations expires during a run.
const TTL_MIN_SECONDS: i64 = 3600;
/// etcd's limit of operations in a transaction.
const TXN_OPS_MAX: usize = 128;
/// etcd's limit of a request's size.
const REQUEST_BYTES_MAX: usize = 1_572_864;

/// Makes operations; knows the revisions so far.
#[derive(Debug)]
pub(crate) struct Generator {
    rng: Rng,
    /// Current revision of the store.
    pub(crate) revision: i64,
    /// Newest compaction; 0 before the first.
    pub(crate) compacted: i64,
    /// The compaction before.
    compacted_before: i64,
    pending: Vec<Op>,
    values: u64,
    /// Whether the transaction in the making deletes; else its puts may keep value or lease of their key. Both in one
    /// transaction end etcd 3.4's process: what was checked before is no longer there when the put runs.
    deleting: bool,
}

impl Generator {
    pub(crate) fn new(seed: u64) -> Generator {
        Generator {
            rng: Rng::new(seed),
            revision: 1,
            compacted: 0,
            compacted_before: 0,
            pending: Vec::new(),
            values: 0,
            deleting: false,
        }
    }

    /// Takes note of the revisions that an answer shows.
    pub(crate) fn learn(&mut self, op: &Op, response: &Response) {
        self.revision = self.revision.max(response.revision());
        if let (Op::Compact(request), Response::Compact(_)) = (op, response)
            && request.revision > self.compacted
        {
            self.compacted_before = self.compacted;
            self.compacted = request.revision;
        }
    }

    pub(crate) fn next_op(&mut self) -> Op {
        if let Some(op) = self.pending.pop() {
            return op;
        }
        match self.rng.below(1000) {
            0..300 => Op::Put(self.put()),
            300..370 => Op::Delete(self.delete()),
            370..600 => {
                self.deleting = self.rng.chance(60);
                Op::Txn(self.txn(2))
            }
            600..880 => Op::Range(self.range()),
            880..910 => Op::Grant(self.grant()),
            910..925 => Op::Revoke(LeaseRevokeRequest { id: self.lease() }),
            925..955 => {
                Op::TimeToLive(LeaseTimeToLiveRequest { id: self.lease(), keys: self.rng.chance(70) })
            }
            955..980 => Op::KeepAlive(LeaseKeepAliveRequest { id: self.lease() }),
            980..992 => Op::Leases,
            992..996 => self.short_lease(),
            996..998 => Op::Compact(self.compaction()),
            _ => Op::Put(self.odd_put()),
        }
    }

    /// What to ask so that both sides have finished their compactions and hash the same revisions: a revision that
    /// is no compaction's, since a newer etcd answers those from its memory (X9).
    pub(crate) fn hash(&mut self) -> Vec<Op> {
        let settle = CompactionRequest { revision: self.compacted, physical: true };
        let end = PutRequest { key: "hash".into(), value: self.value(), ..Default::default() };
        let mut ops = vec![Op::Compact(settle), Op::Put(end), Op::HashKv(HashKvRequest { revision: 0 })];
        if self.revision > self.compacted + 1 {
            let revision = self.rng.between(self.compacted + 1, self.revision);
            ops.push(Op::HashKv(HashKvRequest { revision }));
        }
        if self.compacted > 1 && self.compacted - 1 != self.compacted_before {
            ops.push(Op::HashKv(HashKvRequest { revision: self.compacted - 1 }));
        }
        ops.push(Op::HashKv(HashKvRequest { revision: self.revision + 1000 }));
        ops
    }

    fn key(&mut self) -> Bytes {
        const FIRST: &[u8] = b"abcde";
        const LATER: &[u8] = &[b'a', b'b', 0, 0xff, b'/'];
        let mut key = vec![*self.rng.pick(FIRST)];
        for _ in 0..self.rng.below(3) {
            key.push(*self.rng.pick(LATER));
        }
        match self.rng.below(1000) {
            0..8 => return Bytes::new(),
            8..14 => key.resize(3000, b'k'),
            14..16 => key.resize(20_000, b'k'),
            _ => {}
        }
        key.into()
    }

    fn value(&mut self) -> Bytes {
        self.values += 1;
        let len = match self.rng.below(1000) {
            0..50 => return Bytes::new(),
            50..150 => return Bytes::from_static(b"same"),
            150..960 => self.rng.below(40) as usize,
            960..999 => self.rng.below(9000) as usize,
            _ => self.rng.below(300_000) as usize,
        };
        let mut value = format!("{}-", self.values).into_bytes();
        value.resize(len.max(value.len()), b'v');
        value.into()
    }

    /// Key and range end, of every kind that means something.
    fn interval(&mut self, single_percent: u64) -> (Bytes, Bytes) {
        let key = self.key();
        if self.rng.chance(single_percent) {
            return (key, Bytes::new());
        }
        match self.rng.below(100) {
            0..45 => (key, self.key()),
            45..80 => {
                let end = prefix_end(&key);
                (key, end)
            }
            80..93 => (key, Bytes::from_static(&[0])),
            _ => (Bytes::from_static(&[0]), Bytes::from_static(&[0])),
        }
    }

    fn past(&mut self) -> i64 {
        match self.rng.below(100) {
            0..70 => self.rng.between(self.compacted, self.revision.max(self.compacted)),
            70..80 => self.compacted,
            80..88 => self.rng.between(0, self.compacted),
            88..96 => self.revision + self.rng.between(1, 100),
            _ => -self.rng.between(1, 3),
        }
    }

    fn bound(&mut self) -> i64 {
        if self.rng.chance(90) { 0 } else { self.revision - self.rng.between(-2, 60) }
    }

    pub(crate) fn range(&mut self) -> RangeRequest {
        let (key, range_end) = self.interval(35);
        let rng = &mut self.rng;
        let limit = if rng.chance(35) { rng.between(-1, 8) } else { 0 };
        let (mut sort_order, mut sort_target) = (0, 0);
        if rng.chance(30) {
            sort_order = rng.between(0, 2) as i32;
            sort_target = rng.between(0, 4) as i32;
        }
        let serializable = rng.chance(50);
        let keys_only = rng.chance(15);
        let count_only = rng.chance(10);
        let revision = if self.rng.chance(60) { 0 } else { self.past() };
        RangeRequest {
            key,
            range_end,
            limit,
            revision,
            sort_order,
            sort_target,
            serializable,
            keys_only,
            count_only,
            min_mod_revision: self.bound(),
            max_mod_revision: self.bound(),
            min_create_revision: self.bound(),
            max_create_revision: self.bound(),
        }
    }

    fn lease(&mut self) -> i64 {
        if self.rng.chance(3) { self.rng.between(100, 110) } else { *self.rng.pick(&LEASES) }
    }

    fn put(&mut self) -> PutRequest {
        let mut request = PutRequest { key: self.key(), value: self.value(), ..Default::default() };
        request.prev_kv = self.rng.chance(25);
        if self.rng.chance(20) {
            request.lease = self.lease();
        }
        if self.rng.chance(6) {
            request.ignore_value = true;
            if self.rng.chance(90) {
                request.value = Bytes::new();
            }
        }
        if self.rng.chance(6) {
            request.ignore_lease = true;
            if self.rng.chance(90) {
                request.lease = 0;
            }
        }
        request
    }

    /// Puts of sizes around the limit: refused by the server, or by gRPC itself.
    fn odd_put(&mut self) -> PutRequest {
        let len = match self.rng.below(10) {
            0 => REQUEST_BYTES_MAX + 600_000,
            1..4 => REQUEST_BYTES_MAX + 1000,
            _ => self.rng.below(100_000) as usize,
        };
        PutRequest { key: self.key(), value: vec![b'V'; len].into(), ..Default::default() }
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        let (key, range_end) =
            if self.rng.chance(80) { (self.key(), Bytes::new()) } else { self.interval(0) };
        DeleteRangeRequest { key, range_end, prev_kv: self.rng.chance(30) }
    }

    fn compaction(&mut self) -> CompactionRequest {
        let revision = match self.rng.below(100) {
            0..60 => self.rng.between(self.compacted, self.revision),
            60..80 => self.revision,
            80..92 => self.rng.between(-1, self.compacted),
            _ => self.revision + self.rng.between(1, 10),
        };
        CompactionRequest { revision, physical: self.rng.chance(60) }
    }

    fn grant(&mut self) -> LeaseGrantRequest {
        let ttl = match self.rng.below(20) {
            0 => 9_000_000_001,
            1 => 9_000_000_000,
            _ => TTL_MIN_SECONDS + self.rng.between(0, 100_000),
        };
        LeaseGrantRequest { ttl, id: self.lease() }
    }

    /// A lease whose time is raised to the minimum: revoked at once, since its end would come at any time.
    fn short_lease(&mut self) -> Op {
        let id = 1_000_000 + self.rng.between(0, 100);
        let ttl = *self.rng.pick(&[0, -1, 1, 2]);
        self.pending.push(Op::Revoke(LeaseRevokeRequest { id }));
        Op::Grant(LeaseGrantRequest { ttl, id })
    }

    fn txn(&mut self, depth: u32) -> TxnRequest {
        if self.rng.below(2000) == 0 {
            return self.long_txn();
        }
        let compare = (0..self.rng.below(3)).map(|_| self.compare()).collect();
        let mut branch = || (0..self.rng.below(4)).map(|_| self.request_op(depth)).collect();
        let (success, failure) = (branch(), branch());
        TxnRequest { compare, success, failure }
    }

    fn long_txn(&mut self) -> TxnRequest {
        let len = TXN_OPS_MAX + self.rng.below(2) as usize;
        let op = |i: usize| {
            let put = PutRequest { key: format!("long{i}").into(), value: "x".into(), ..Default::default() };
            RequestOp { request: Some(request_op::Request::RequestPut(put)) }
        };
        TxnRequest { success: (0..len).map(op).collect(), ..Default::default() }
    }

    fn request_op(&mut self, depth: u32) -> RequestOp {
        use request_op::Request;
        let request = match self.rng.below(1000) {
            0..5 => None,
            5..400 if self.deleting => Some(Request::RequestPut(PutRequest {
                ignore_value: false,
                ignore_lease: false,
                ..self.put()
            })),
            400..600 if self.deleting => Some(Request::RequestDeleteRange(self.delete())),
            5..540 if !self.deleting => Some(Request::RequestPut(self.put())),
            540..850 => Some(Request::RequestRange(self.range())),
            _ if depth > 0 => Some(Request::RequestTxn(self.txn(depth - 1))),
            _ => Some(Request::RequestRange(self.range())),
        };
        RequestOp { request }
    }

    fn compare(&mut self) -> Compare {
        let (key, range_end) = self.interval(80);
        let target = *self.rng.pick(&[
            CompareTarget::Version,
            CompareTarget::Create,
            CompareTarget::Mod,
            CompareTarget::Value,
            CompareTarget::Lease,
        ]);
        let result = *self.rng.pick(&[
            CompareResult::Equal,
            CompareResult::Greater,
            CompareResult::Less,
            CompareResult::NotEqual,
        ]);
        let number = match self.rng.below(4) {
            0 => 0,
            1 => self.rng.between(0, 4),
            _ => self.revision - self.rng.between(0, 30),
        };
        let target_union = match target {
            _ if self.rng.chance(5) => None,
            CompareTarget::Version => Some(TargetUnion::Version(self.rng.between(0, 5))),
            CompareTarget::Create => Some(TargetUnion::CreateRevision(number)),
            CompareTarget::Mod => Some(TargetUnion::ModRevision(number)),
            CompareTarget::Value => Some(TargetUnion::Value(self.value())),
            CompareTarget::Lease => Some(TargetUnion::Lease(self.lease())),
        };
        // Numbers that no version knows are compared too.
        let odd = |rng: &mut Rng, number: i32| if rng.chance(1) { 9 } else { number };
        let (target, result) = (odd(&mut self.rng, target as i32), odd(&mut self.rng, result as i32));
        Compare { result, target, key, range_end, target_union }
    }
}

/// The end of the interval of all keys with a prefix; a single zero byte when there is none.
fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::from_static(&[0])
}

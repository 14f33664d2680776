//! What the clients of a round send, and what they were told: the raw material of the check.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use trilith_benches::Result;
use trilith_benches::client::{Client, path};
use trilith_benches::rng::Rng;
use trilith_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use trilith_proto::etcdserverpb::request_op::Request;
use trilith_proto::etcdserverpb::response_op;
use trilith_proto::etcdserverpb::*;

/// Keys that all clients write.
const KEYS: u64 = 300;
/// Values are this long at most, in bytes; a few are much longer.
const VALUE_BYTES_MAX: u64 = 400;
const LONG_VALUE_BYTES: u64 = 60_000;

/// One change that a write asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// This value for this key; no two puts of a run have the same value.
    Put { key: Bytes, value: Bytes },
    /// The end of all keys from the first to before the second.
    Delete { key: Bytes, end: Bytes },
}

/// A write that was sent.
#[derive(Debug)]
pub(crate) struct Write {
    /// The changes of the branch for "the compare holds", and of the other one; a plain write has both alike.
    pub(crate) branches: [Vec<Change>; 2],
    /// None when the server was killed before it answered.
    pub(crate) answer: Option<Acknowledged>,
}

/// The answer to a write.
#[derive(Debug)]
pub(crate) struct Acknowledged {
    pub(crate) revision: i64,
    /// Which branch ran.
    pub(crate) branch: usize,
    /// Keys deleted by each of its deletions, in order.
    pub(crate) deleted: Vec<i64>,
}

/// A linearizable read that was answered: what stood under a key at a revision.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) key: Bytes,
    pub(crate) revision: i64,
    pub(crate) value: Option<Bytes>,
}

/// What all clients of a round share.
#[derive(Debug, Default)]
pub(crate) struct Round {
    /// Newest revision that any answer has shown: whatever is sent later comes after it.
    pub(crate) shown: Cell<i64>,
    pub(crate) writes: RefCell<Vec<Write>>,
    pub(crate) reads: RefCell<Vec<Read>>,
    /// The first answer that came out of order.
    pub(crate) disorder: RefCell<Option<String>>,
}

impl Round {
    fn show(&self, what: &str, floor: i64, revision: i64) {
        if revision < floor {
            self.disorder.borrow_mut().get_or_insert_with(|| {
                format!("{what} was answered at revision {revision} after revision {floor} had been shown")
            });
        }
        self.shown.set(self.shown.get().max(revision));
    }
}

/// One client: writes and reads until its connection ends, which is how a round goes.
pub(crate) async fn client(mut client: Client, round: Rc<Round>, mut rng: Rng, name: String) {
    let mut count = 0;
    loop {
        count += 1;
        let step = if rng.chance(12) {
            read(&mut client, &round, &mut rng).await
        } else {
            write(&mut client, &round, &mut rng, &format!("{name}-{count}")).await
        };
        if step.is_err() {
            return;
        }
    }
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("k{number:03}"))
}

fn put(rng: &mut Rng, key: Bytes, name: &str) -> Change {
    let len = if rng.below(300) == 0 { LONG_VALUE_BYTES } else { rng.below(VALUE_BYTES_MAX) };
    let mut value = name.as_bytes().to_vec();
    value.push(b' ');
    value.resize(value.len().max(len as usize), b'.');
    Change::Put { key, value: value.into() }
}

fn delete(rng: &mut Rng) -> Change {
    let first = rng.below(KEYS);
    let last = first + if rng.chance(70) { 1 } else { 3 };
    Change::Delete { key: key(first), end: key(last) }
}

async fn read(client: &mut Client, round: &Round, rng: &mut Rng) -> Result<()> {
    let request = RangeRequest { key: key(rng.below(KEYS)), ..Default::default() };
    let floor = round.shown.get();
    let response: RangeResponse = client.call(path::RANGE, &request).await?;
    let revision = response.header.map_or(0, |header| header.revision);
    round.show("a read", floor, revision);
    let value = response.kvs.into_iter().next().map(|kv| kv.value);
    round.reads.borrow_mut().push(Read { key: request.key, revision, value });
    Ok(())
}

async fn write(client: &mut Client, round: &Round, rng: &mut Rng, name: &str) -> Result<()> {
    let first = rng.below(KEYS);
    let one = put(rng, key(first), name);
    let branches = match rng.below(10) {
        0..6 => [vec![one.clone()], vec![one]],
        6 => {
            let one = delete(rng);
            [vec![one.clone()], vec![one]]
        }
        // Keys of one branch differ: etcd refuses a key that is put twice.
        _ => {
            let second = put(rng, key(first + KEYS), &format!("{name}b"));
            let other = Change::Delete { key: key(first), end: key(first + 2) };
            [vec![one.clone(), second.clone()], vec![second, other]]
        }
    };
    let at = round.writes.borrow().len();
    let plain = branches[0] == branches[1];
    let compared = key(first);
    round.writes.borrow_mut().push(Write { branches: branches.clone(), answer: None });
    let floor = round.shown.get();
    let answer = if plain {
        send_plain(client, &branches[0][0]).await?
    } else {
        send_txn(client, compared, &branches).await?
    };
    let changed = !answer.deleted.iter().all(|n| *n == 0) || branches[answer.branch].iter().any(is_put);
    // What changes something gets a revision that nobody has seen.
    round.show("a write", floor + i64::from(changed), answer.revision);
    round.writes.borrow_mut()[at].answer = Some(answer);
    Ok(())
}

pub(crate) fn is_put(change: &Change) -> bool {
    matches!(change, Change::Put { .. })
}

fn put_request(key: &Bytes, value: &Bytes) -> PutRequest {
    PutRequest { key: key.clone(), value: value.clone(), ..Default::default() }
}

fn delete_request(key: &Bytes, end: &Bytes) -> DeleteRangeRequest {
    DeleteRangeRequest { key: key.clone(), range_end: end.clone(), ..Default::default() }
}

fn revision(header: Option<ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

async fn send_plain(client: &mut Client, change: &Change) -> Result<Acknowledged> {
    match change {
        Change::Put { key, value } => {
            let r: PutResponse = client.call(path::PUT, &put_request(key, value)).await?;
            Ok(Acknowledged { revision: revision(r.header), branch: 0, deleted: Vec::new() })
        }
        Change::Delete { key, end } => {
            let r: DeleteRangeResponse = client.call(path::DELETE_RANGE, &delete_request(key, end)).await?;
            Ok(Acknowledged { revision: revision(r.header), branch: 0, deleted: vec![r.deleted] })
        }
    }
}

/// The first branch when the key is there.
async fn send_txn(client: &mut Client, key: Bytes, branches: &[Vec<Change>; 2]) -> Result<Acknowledged> {
    let op = |change: &Change| RequestOp {
        request: Some(match change {
            Change::Put { key, value } => Request::RequestPut(put_request(key, value)),
            Change::Delete { key, end } => Request::RequestDeleteRange(delete_request(key, end)),
        }),
    };
    let request = TxnRequest {
        compare: vec![Compare {
            result: CompareResult::Greater as i32,
            target: CompareTarget::Create as i32,
            key,
            target_union: Some(TargetUnion::CreateRevision(0)),
            ..Default::default()
        }],
        success: branches[0].iter().map(op).collect(),
        failure: branches[1].iter().map(op).collect(),
    };
    let response: TxnResponse = client.call(path::TXN, &request).await?;
    let deleted = response.responses.iter().filter_map(|op| match &op.response {
        Some(response_op::Response::ResponseDeleteRange(r)) => Some(r.deleted),
        _ => None,
    });
    Ok(Acknowledged {
        revision: revision(response.header),
        branch: usize::from(!response.succeeded),
        deleted: deleted.collect(),
    })
}

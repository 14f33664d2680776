//! When two answers are equal: what is each member's own is taken out first, and what etcd 3.4.23 and 3.7.1 are known
//! to answer differently stands in one table.

use trilith_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use trilith_proto::etcdserverpb::*;
use trilith_proto::mvccpb::KeyValue;

use crate::op::{Op, Response};

/// A difference that is right: applied to both answers before they are compared.
struct Difference {
    /// The rule in the facts about etcd v3.7.1 that it follows from.
    rule: &'static str,
    /// What differs, and why it may.
    why: &'static str,
    apply: fn(&Op, &mut Response),
}

const DIFFERENCES: [Difference; 6] = [
    Difference {
        rule: "H1",
        why: "cluster, member and term are each server's own",
        apply: |_, response| headers(response, &mut |h| *h = own_header(h)),
    },
    Difference {
        rule: "R10",
        why: "a sort by anything but the key leaves ties in no order, also at the cut of a limit",
        apply: |op, response| ranges(op, response, &mut order_ties),
    },
    Difference {
        rule: "R12",
        why: "since 3.7 keys_only leaves out the lease, unless the order is by value",
        apply: |op, response| {
            ranges(op, response, &mut |request, range| {
                if request.keys_only {
                    range.kvs.iter_mut().for_each(|kv| kv.lease = 0);
                }
            });
        },
    },
    Difference {
        rule: "L8",
        why: "the keys of a lease come in no order",
        apply: |_, response| {
            if let Response::TimeToLive(r) = response {
                r.keys.sort();
            }
        },
    },
    Difference {
        rule: "L10",
        why: "leases are ordered by the time left, which two servers do not measure at the same moment",
        apply: |_, response| {
            if let Response::Leases(r) = response {
                r.leases.sort_by_key(|lease| lease.id);
            }
        },
    },
    Difference {
        rule: "X9",
        why: "hash_revision came with 3.6",
        apply: |_, response| {
            if let Response::HashKv(r) = response {
                r.hash_revision = 0;
            }
        },
    },
];

/// What is known to differ, for the head of a run's report.
pub(crate) fn known_differences() -> impl Iterator<Item = String> {
    DIFFERENCES.iter().map(|d| format!("{}: {}", d.rule, d.why))
}

/// None when the answers are equal; else what differs, line by line.
///
/// `ttl_slack` is how many seconds the remaining time of a lease may differ.
pub(crate) fn difference(op: &Op, etcd: &Response, ours: &Response, ttl_slack: i64) -> Option<String> {
    if etcd == ours {
        return None;
    }
    let (mut left, mut right) = (etcd.clone(), ours.clone());
    for difference in &DIFFERENCES {
        (difference.apply)(op, &mut left);
        (difference.apply)(op, &mut right);
    }
    if let (Response::TimeToLive(l), Response::TimeToLive(r)) = (&mut left, &mut right)
        && l.ttl >= 0
        && r.ttl >= 0
        && (l.ttl - r.ttl).abs() <= ttl_slack
    {
        r.ttl = l.ttl;
    }
    (left != right && !same_refusal(&left, &right)).then(|| explain(&left, &right))
}

/// Too long for gRPC itself: each implementation has its own text for it.
fn same_refusal(left: &Response, right: &Response) -> bool {
    const RESOURCE_EXHAUSTED: u32 = 8;
    match (left, right) {
        (Response::Error { code: l, message }, Response::Error { code: r, .. }) => {
            *l == RESOURCE_EXHAUSTED
                && l == r
                && message.starts_with("grpc: received message larger than max")
        }
        _ => false,
    }
}

/// The lines in which two values differ.
pub(crate) fn explain(etcd: &impl std::fmt::Debug, ours: &impl std::fmt::Debug) -> String {
    const LINES_MAX: usize = 40;
    let (left, right) = (format!("{etcd:#?}"), format!("{ours:#?}"));
    let (left, right): (Vec<&str>, Vec<&str>) = (left.lines().collect(), right.lines().collect());
    let same = left.iter().zip(&right).take_while(|(l, r)| l == r).count();
    let tail = left[same..].iter().rev().zip(right[same..].iter().rev()).take_while(|(l, r)| l == r).count();
    let mut out = format!("first difference at line {} of the answer:\n", same + 1);
    for line in &left[same.saturating_sub(3)..same] {
        out += &format!("        {line}\n");
    }
    let mut side = |name: &str, lines: &[&str]| {
        for line in lines.iter().take(LINES_MAX) {
            let line: String = line.chars().take(300).collect();
            out += &format!("  {name}  {line}\n");
        }
        if lines.len() > LINES_MAX {
            out += &format!("  {name}  ... {} lines more\n", lines.len() - LINES_MAX);
        }
    };
    side("etcd", &left[same..left.len() - tail]);
    side("ours", &right[same..right.len() - tail]);
    out
}

fn own_header(header: &ResponseHeader) -> ResponseHeader {
    // Zero stays zero: whether an inner header has an id at all is no member's own affair.
    ResponseHeader {
        cluster_id: u64::from(header.cluster_id != 0),
        member_id: u64::from(header.member_id != 0),
        revision: header.revision,
        raft_term: u64::from(header.raft_term != 0),
    }
}

fn headers(response: &mut Response, apply: &mut dyn FnMut(&mut ResponseHeader)) {
    let header = match response {
        Response::Range(r) => &mut r.header,
        Response::Put(r) => &mut r.header,
        Response::Delete(r) => &mut r.header,
        Response::Txn(r) => return txn_headers(r, apply),
        Response::Compact(r) => &mut r.header,
        Response::Grant(r) => &mut r.header,
        Response::Revoke(r) => &mut r.header,
        Response::KeepAlive(r) => &mut r.header,
        Response::TimeToLive(r) => &mut r.header,
        Response::Leases(r) => &mut r.header,
        Response::HashKv(r) => &mut r.header,
        Response::Restarted | Response::Error { .. } => return,
    };
    header.iter_mut().for_each(apply);
}

fn txn_headers(txn: &mut TxnResponse, apply: &mut dyn FnMut(&mut ResponseHeader)) {
    use response_op::Response as Inner;
    txn.header.iter_mut().for_each(&mut *apply);
    for op in &mut txn.responses {
        match &mut op.response {
            Some(Inner::ResponseRange(r)) => r.header.iter_mut().for_each(&mut *apply),
            Some(Inner::ResponsePut(r)) => r.header.iter_mut().for_each(&mut *apply),
            Some(Inner::ResponseDeleteRange(r)) => r.header.iter_mut().for_each(&mut *apply),
            Some(Inner::ResponseTxn(r)) => txn_headers(r, apply),
            None => {}
        }
    }
}

type OnRange<'a> = &'a mut dyn FnMut(&RangeRequest, &mut RangeResponse);

/// Every range in an answer with its request, those in transactions too.
fn ranges(op: &Op, response: &mut Response, apply: OnRange<'_>) {
    match (op, response) {
        (Op::Range(request), Response::Range(range)) => apply(request, range),
        (Op::Txn(request), Response::Txn(txn)) => txn_ranges(request, txn, apply),
        _ => {}
    }
}

fn txn_ranges(request: &TxnRequest, txn: &mut TxnResponse, apply: OnRange<'_>) {
    use request_op::Request;
    use response_op::Response as Inner;
    let branch = if txn.succeeded { &request.success } else { &request.failure };
    for (op, answer) in branch.iter().zip(&mut txn.responses) {
        match (&op.request, &mut answer.response) {
            (Some(Request::RequestRange(r)), Some(Inner::ResponseRange(a))) => apply(r, a),
            (Some(Request::RequestTxn(r)), Some(Inner::ResponseTxn(a))) => txn_ranges(r, a, apply),
            _ => {}
        }
    }
}

/// Puts ties of a sort into key order; where a limit cut through ties, only how many there are is compared.
fn order_ties(request: &RangeRequest, range: &mut RangeResponse) {
    let custom = request.sort_target != SortTarget::Key as i32;
    if !custom || range.kvs.is_empty() {
        return;
    }
    let tie = |kv: &KeyValue| match request.sort_target {
        t if t == SortTarget::Version as i32 => kv.version.to_be_bytes().to_vec(),
        t if t == SortTarget::Create as i32 => kv.create_revision.to_be_bytes().to_vec(),
        t if t == SortTarget::Mod as i32 => kv.mod_revision.to_be_bytes().to_vec(),
        // keys_only takes the values away after the sort, so any order is one of ties.
        _ => kv.value.to_vec(),
    };
    let bounds = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    // With order NONE and no filter the limit was applied in key order before the sort (R8, R9): no tie was cut.
    let by_key_first = request.sort_order == SortOrder::None as i32 && bounds.iter().all(|bound| *bound == 0);
    let cut = range.more && !by_key_first;
    let last = tie(&range.kvs[range.kvs.len() - 1]);
    let mut begin = 0;
    while begin < range.kvs.len() {
        let value = tie(&range.kvs[begin]);
        let len = range.kvs[begin..].iter().take_while(|kv| tie(kv) == value).count();
        let group = &mut range.kvs[begin..begin + len];
        if cut && value == last {
            group.iter_mut().for_each(|kv| *kv = KeyValue::default());
        } else {
            group.sort_by(|a, b| a.key.cmp(&b.key));
        }
        begin += len;
    }
}

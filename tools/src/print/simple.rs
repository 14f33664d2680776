//! The simple format: what people read, and scripts cut.

use std::io::Write;

use trilith_proto::etcdserverpb as pb;
use trilith_proto::etcdserverpb::response_op::Response;
use trilith_proto::mvccpb::KeyValue;
use trilith_proto::mvccpb::event::EventType;

use super::{Answer, table};

/// Writing to a `Vec` cannot fail.
macro_rules! line {
    ($out:expr, $($text:tt)*) => {
        let _ = writeln!($out, $($text)*);
    };
}

pub(super) fn render(answer: &Answer<'_>, hex: bool, value_only: bool) -> Vec<u8> {
    let mut view = View { out: Vec::new(), hex, value_only };
    let out = &mut view.out;
    match answer {
        Answer::Get(answer) => view.get(answer),
        Answer::Put(answer) => view.put(answer),
        Answer::Delete(answer) => view.delete(answer),
        Answer::Txn(answer) => view.txn(answer),
        Answer::Watch(answer) => view.watch(answer),
        Answer::Grant(answer) => {
            line!(out, "lease {:016x} granted with TTL({}s)", answer.id, answer.ttl);
        }
        Answer::Revoke(id, _) => {
            line!(out, "lease {id:016x} revoked");
        }
        Answer::KeepAlive(answer) => {
            line!(out, "lease {:016x} keepalived with TTL({})", answer.id, answer.ttl);
        }
        Answer::TimeToLive { answer, keys } => time_to_live(out, answer, *keys),
        Answer::Leases(answer) => {
            line!(out, "found {} leases", answer.leases.len());
            for lease in &answer.leases {
                line!(out, "{:016x}", lease.id);
            }
        }
        Answer::Alarm(answer) => answer.alarms.iter().for_each(|found| alarm(out, found)),
        Answer::Downgrade { action, answer } => {
            line!(out, "Downgrade {action} success, cluster version {}", answer.version);
        }
        Answer::MemberList(answer) => rows(out, &table::member_list(answer).1),
        Answer::MemberAdd(answer) => {
            let member = answer.member.clone().unwrap_or_default();
            let how = if member.is_learner { " as learner " } else { " " };
            line!(out, "Member {:16x} added{how}to cluster {:16x}", member.id, cluster(&answer.header));
        }
        Answer::MemberRemove(id, answer) => {
            line!(out, "Member {id:16x} removed from cluster {:16x}", cluster(&answer.header));
        }
        Answer::MemberUpdate(id, answer) => {
            line!(out, "Member {id:16x} updated in cluster {:16x}", cluster(&answer.header));
        }
        Answer::MemberPromote(id, answer) => {
            line!(out, "Member {id:16x} promoted in cluster {:16x}", cluster(&answer.header));
        }
        Answer::MoveLeader(from, to, _) => {
            line!(out, "Leadership transferred from {from:x} to {to:x}");
        }
        Answer::Health(endpoints) => {
            for health in endpoints.iter().filter(|health| health.healthy()) {
                let (endpoint, took) = (&health.endpoint, &health.took);
                line!(out, "{endpoint} is healthy: successfully committed proposal: took = {took}");
            }
        }
        Answer::Status(endpoints) => rows(out, &table::status(endpoints).1),
        Answer::HashKv(endpoints) => rows(out, &table::hash_kv(endpoints).1),
    }
    view.out
}

/// Protobuf's compact text, with a space after each field.
fn alarm(out: &mut Vec<u8>, found: &pb::AlarmMember) {
    if found.member_id != 0 {
        let _ = write!(out, "memberID:{} ", found.member_id);
    }
    if found.alarm != 0 {
        let _ = write!(out, "alarm:{} ", alarm_type(found.alarm));
    }
    out.push(b'\n');
}

fn cluster(header: &Option<pb::ResponseHeader>) -> u64 {
    header.unwrap_or_default().cluster_id
}

fn rows(out: &mut Vec<u8>, rows: &[Vec<String>]) {
    for row in rows {
        line!(out, "{}", row.join(", "));
    }
}

fn time_to_live(out: &mut Vec<u8>, answer: &pb::LeaseTimeToLiveResponse, keys: bool) {
    let (id, granted, left) = (answer.id, answer.granted_ttl, answer.ttl);
    if granted == 0 && left == -1 {
        line!(out, "lease {id:016x} already expired");
        return;
    }
    let _ = write!(out, "lease {id:016x} granted with TTL({granted}s), remaining({left}s)");
    if keys {
        out.extend_from_slice(b", attached keys([");
        out.extend_from_slice(&answer.keys.join(&b' '));
        out.extend_from_slice(b"])");
    }
    out.push(b'\n');
}

struct View {
    out: Vec<u8>,
    hex: bool,
    value_only: bool,
}

impl View {
    fn pair(&mut self, kv: &KeyValue) {
        if !self.value_only {
            self.bytes(&kv.key);
        }
        self.bytes(&kv.value);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        if self.hex {
            for byte in bytes {
                let _ = write!(self.out, "\\x{byte:02x}");
            }
        } else {
            self.out.extend_from_slice(bytes);
        }
        self.out.push(b'\n');
    }

    fn get(&mut self, answer: &pb::RangeResponse) {
        answer.kvs.iter().for_each(|kv| self.pair(kv));
    }

    fn put(&mut self, answer: &pb::PutResponse) {
        self.out.extend_from_slice(b"OK\n");
        answer.prev_kv.iter().for_each(|kv| self.pair(kv));
    }

    fn delete(&mut self, answer: &pb::DeleteRangeResponse) {
        line!(self.out, "{}", answer.deleted);
        answer.prev_kvs.iter().for_each(|kv| self.pair(kv));
    }

    fn txn(&mut self, answer: &pb::TxnResponse) {
        self.out.extend_from_slice(if answer.succeeded { b"SUCCESS\n" } else { b"FAILURE\n" });
        for inner in &answer.responses {
            self.out.push(b'\n');
            match &inner.response {
                Some(Response::ResponseRange(answer)) => self.get(answer),
                Some(Response::ResponsePut(answer)) => self.put(answer),
                Some(Response::ResponseDeleteRange(answer)) => self.delete(answer),
                Some(Response::ResponseTxn(answer)) => self.txn(answer),
                None => self.out.extend_from_slice(b"unexpected response\n"),
            }
        }
    }

    fn watch(&mut self, answer: &pb::WatchResponse) {
        for event in &answer.events {
            line!(self.out, "{}", event_type(event.r#type));
            event.prev_kv.iter().chain(&event.kv).for_each(|kv| self.pair(kv));
        }
    }
}

/// The alarm's name; of one that nobody knows, its number.
pub(super) fn alarm_type(number: i32) -> String {
    match pb::AlarmType::try_from(number) {
        Ok(known) => known.as_str_name().to_owned(),
        Err(_) => number.to_string(),
    }
}

/// The event type's name; of one that nobody knows, its number.
pub(crate) fn event_type(number: i32) -> String {
    match EventType::try_from(number) {
        Ok(known) => known.as_str_name().to_owned(),
        Err(_) => number.to_string(),
    }
}

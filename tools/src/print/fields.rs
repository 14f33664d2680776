//! The fields format: one `"Name" : value` a line.

use std::fmt::{Display, Write};

use trilith_proto::etcdserverpb as pb;
use trilith_proto::etcdserverpb::response_op::Response;
use trilith_proto::mvccpb::KeyValue;

use super::Answer;
use super::simple::{alarm_type, event_type};
use crate::gotext::quote;

pub(super) fn render(answer: &Answer<'_>, hex: bool) -> String {
    let mut view = View { out: String::new(), hex };
    match answer {
        Answer::Get(answer) => view.get(answer),
        Answer::Put(answer) => view.put(answer),
        Answer::Delete(answer) => view.delete(answer),
        Answer::Txn(answer) => view.txn(answer),
        Answer::Watch(answer) => view.watch(answer),
        Answer::Grant(answer) => {
            view.header(&answer.header);
            view.lease("ID", answer.id);
            view.field("TTL", answer.ttl);
        }
        Answer::Revoke(_, answer) => view.header(&answer.header),
        Answer::KeepAlive(answer) => {
            view.header(&answer.header);
            view.lease("ID", answer.id);
            view.field("TTL", answer.ttl);
        }
        Answer::TimeToLive { answer, .. } => {
            view.header(&answer.header);
            view.lease("ID", answer.id);
            view.field("TTL", answer.ttl);
            view.field("GrantedTTL", answer.granted_ttl);
            answer.keys.iter().for_each(|key| view.field("Key", quote(key)));
        }
        Answer::Leases(answer) => {
            view.header(&answer.header);
            answer.leases.iter().for_each(|lease| view.lease("ID", lease.id));
        }
        Answer::Alarm(answer) => {
            if answer.header.is_some() {
                view.header(&answer.header);
            }
            for found in &answer.alarms {
                view.id("MemberID", found.member_id);
                view.field("AlarmType", alarm_type(found.alarm));
                view.out.push('\n');
            }
        }
        // The printer refuses it.
        Answer::Downgrade { .. } => {}
        Answer::MemberList(answer) => {
            view.header(&answer.header);
            answer.members.iter().for_each(|member| view.member(member));
        }
        // The printer refuses them, as etcd's does.
        Answer::MemberAdd(_)
        | Answer::MemberRemove(..)
        | Answer::MemberUpdate(..)
        | Answer::MemberPromote(..)
        | Answer::MoveLeader(..) => {}
        Answer::Health(endpoints) => {
            for health in *endpoints {
                view.field("Endpoint", quote(health.endpoint.as_bytes()));
                view.field("Health", health.healthy());
                view.field("Took", &health.took);
                view.field("Error", &health.error);
                view.out.push('\n');
            }
        }
        Answer::Status(endpoints) => {
            endpoints.iter().for_each(|(endpoint, answer)| view.status(endpoint, answer))
        }
        Answer::HashKv(endpoints) => {
            for (endpoint, answer) in *endpoints {
                view.header(&answer.header);
                view.field("Endpoint", quote(endpoint.as_bytes()));
                view.field("Hash", answer.hash);
                view.field("HashRevision", answer.hash_revision);
                view.out.push('\n');
            }
        }
    }
    view.out
}

struct View {
    out: String,
    hex: bool,
}

impl View {
    fn field(&mut self, name: &str, value: impl Display) {
        let _ = writeln!(self.out, "\"{name}\" : {value}");
    }

    /// An id of a member or a cluster.
    fn id(&mut self, name: &str, id: u64) {
        if self.hex { self.field(name, format_args!("{id:x}")) } else { self.field(name, id) }
    }

    fn lease(&mut self, name: &str, id: i64) {
        if self.hex { self.field(name, format_args!("{id:016x}")) } else { self.field(name, id) }
    }

    fn header(&mut self, header: &Option<pb::ResponseHeader>) {
        let header = header.unwrap_or_default();
        self.id("ClusterID", header.cluster_id);
        self.id("MemberID", header.member_id);
        if header.revision > 0 {
            self.field("Revision", header.revision);
        }
        self.field("RaftTerm", header.raft_term);
    }

    fn pair(&mut self, prefix: &str, kv: &KeyValue) {
        self.field(&format!("{prefix}Key"), quote(&kv.key));
        self.field(&format!("{prefix}CreateRevision"), kv.create_revision);
        self.field(&format!("{prefix}ModRevision"), kv.mod_revision);
        self.field(&format!("{prefix}Version"), kv.version);
        self.field(&format!("{prefix}Value"), quote(&kv.value));
        self.lease(&format!("{prefix}Lease"), kv.lease);
    }

    fn get(&mut self, answer: &pb::RangeResponse) {
        self.header(&answer.header);
        answer.kvs.iter().for_each(|kv| self.pair("", kv));
        self.field("More", answer.more);
        self.field("Count", answer.count);
    }

    fn put(&mut self, answer: &pb::PutResponse) {
        self.header(&answer.header);
        answer.prev_kv.iter().for_each(|kv| self.pair("Prev", kv));
    }

    fn delete(&mut self, answer: &pb::DeleteRangeResponse) {
        self.header(&answer.header);
        self.field("Deleted", answer.deleted);
        answer.prev_kvs.iter().for_each(|kv| self.pair("Prev", kv));
    }

    fn txn(&mut self, answer: &pb::TxnResponse) {
        self.header(&answer.header);
        self.field("Succeeded", answer.succeeded);
        for inner in &answer.responses {
            match &inner.response {
                Some(Response::ResponseRange(answer)) => self.get(answer),
                Some(Response::ResponsePut(answer)) => self.put(answer),
                Some(Response::ResponseDeleteRange(answer)) => self.delete(answer),
                Some(Response::ResponseTxn(answer)) => self.txn(answer),
                None => self.field("Unknown", "\"<nil>\""),
            }
        }
    }

    fn watch(&mut self, answer: &pb::WatchResponse) {
        self.header(&answer.header);
        for event in &answer.events {
            self.field("Type", event_type(event.r#type));
            event.prev_kv.iter().for_each(|kv| self.pair("Prev", kv));
            event.kv.iter().for_each(|kv| self.pair("", kv));
        }
    }

    fn member(&mut self, member: &pb::Member) {
        self.id("ID", member.id);
        self.field("Name", quote(member.name.as_bytes()));
        member.peer_ur_ls.iter().for_each(|url| self.field("PeerURL", quote(url.as_bytes())));
        member.client_ur_ls.iter().for_each(|url| self.field("ClientURL", quote(url.as_bytes())));
        self.field("IsLearner", member.is_learner);
        self.out.push('\n');
    }

    fn status(&mut self, endpoint: &str, answer: &pb::StatusResponse) {
        let downgrade = answer.downgrade_info.clone().unwrap_or_default();
        self.header(&answer.header);
        self.field("Version", quote(answer.version.as_bytes()));
        self.field("StorageVersion", quote(answer.storage_version.as_bytes()));
        self.field("DBSize", answer.db_size);
        self.field("DBSizeInUse", answer.db_size_in_use);
        self.field("DBSizeQuota", answer.db_size_quota);
        self.field("Leader", answer.leader);
        self.field("IsLearner", answer.is_learner);
        self.field("RaftIndex", answer.raft_index);
        self.field("RaftTerm", answer.raft_term);
        self.field("RaftAppliedIndex", answer.raft_applied_index);
        self.field("Errors", format_args!("[{}]", answer.errors.join(" ")));
        self.field("Endpoint", quote(endpoint.as_bytes()));
        self.field("DowngradeTargetVersion", quote(downgrade.target_version.as_bytes()));
        self.field("DowngradeEnabled", downgrade.enabled);
        self.out.push('\n');
    }
}

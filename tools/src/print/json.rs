//! The JSON format: Go's encoding of etcd's messages, and of the few structures that etcd's client wraps around them.

use trilith_proto::etcdserverpb as pb;
use trilith_proto::etcdserverpb::response_op::Response;
use trilith_proto::mvccpb::{Event, KeyValue};

use super::{Answer, Health};
use crate::gojson::{Object, array, bytes, object};

pub(super) fn render(answer: &Answer<'_>, hex: bool) -> String {
    let mut text = String::new();
    let out = &mut text;
    match answer {
        Answer::Get(answer) => range(out, answer),
        Answer::Put(answer) => put(out, answer),
        Answer::Delete(answer) => delete(out, answer),
        Answer::Txn(answer) => txn(out, answer),
        Answer::Watch(answer) => watch(out, answer),
        Answer::Grant(answer) => object(out, |o| {
            header_members(o, &answer.header);
            o.plain("ID", answer.id);
            o.plain("TTL", answer.ttl);
            o.text("Error", &answer.error);
        }),
        Answer::Revoke(_, answer) => object(out, |o| header_set(o, &answer.header)),
        Answer::KeepAlive(answer) => object(out, |o| {
            header_members(o, &answer.header);
            o.plain("ID", answer.id);
            o.plain("TTL", answer.ttl);
        }),
        Answer::TimeToLive { answer, .. } => time_to_live(out, answer),
        Answer::Leases(answer) => object(out, |o| {
            header_members(o, &answer.header);
            array(o.name("leases"), &answer.leases, |out, lease| object(out, |o| o.plain("id", lease.id)));
        }),
        Answer::Alarm(answer) => object(out, |o| {
            header_set(o, &answer.header);
            array_set(o, "alarms", &answer.alarms, |out, found| {
                object(out, |o| {
                    o.plain_set("memberID", found.member_id);
                    o.plain_set("alarm", found.alarm);
                });
            });
        }),
        Answer::Downgrade { answer, .. } => object(out, |o| {
            header_set(o, &answer.header);
            o.text_set("version", &answer.version);
        }),
        Answer::MemberList(answer) if hex => member_list_hex(out, answer),
        Answer::MemberList(answer) => object(out, |o| {
            header_set(o, &answer.header);
            array_set(o, "members", &answer.members, member);
        }),
        Answer::MemberAdd(answer) => object(out, |o| {
            header_set(o, &answer.header);
            if let Some(added) = &answer.member {
                member(o.name("member"), added);
            }
            array_set(o, "members", &answer.members, member);
        }),
        Answer::MemberRemove(_, pb::MemberRemoveResponse { header, members })
        | Answer::MemberUpdate(_, pb::MemberUpdateResponse { header, members })
        | Answer::MemberPromote(_, pb::MemberPromoteResponse { header, members }) => object(out, |o| {
            header_set(o, header);
            array_set(o, "members", members, member);
        }),
        Answer::MoveLeader(_, _, answer) => object(out, |o| header_set(o, &answer.header)),
        Answer::Health(endpoints) => array(out, *endpoints, health),
        Answer::Status(endpoints) => array(out, *endpoints, |out, (endpoint, answer)| {
            object(out, |o| {
                o.text("Endpoint", endpoint);
                status(o.name("Status"), answer);
            });
        }),
        Answer::HashKv(endpoints) => array(out, *endpoints, |out, (endpoint, answer)| {
            object(out, |o| {
                o.text("Endpoint", endpoint);
                hash_kv(o.name("HashKV"), answer);
            });
        }),
    }
    text.push('\n');
    text
}

/// An array of messages, unless it is empty.
fn array_set<T>(o: &mut Object<'_>, name: &str, items: &[T], each: impl Fn(&mut String, &T)) {
    if !items.is_empty() {
        array(o.name(name), items, each);
    }
}

fn header_set(o: &mut Object<'_>, header: &Option<pb::ResponseHeader>) {
    if header.is_some() {
        object(o.name("header"), |o| header_members(o, header));
    }
}

fn header_members(o: &mut Object<'_>, header: &Option<pb::ResponseHeader>) {
    if let Some(header) = header {
        o.plain_set("cluster_id", header.cluster_id);
        o.plain_set("member_id", header.member_id);
        o.plain_set("revision", header.revision);
        o.plain_set("raft_term", header.raft_term);
    }
}

fn pair(out: &mut String, kv: &KeyValue) {
    object(out, |o| {
        o.bytes_set("key", &kv.key);
        o.plain_set("create_revision", kv.create_revision);
        o.plain_set("mod_revision", kv.mod_revision);
        o.plain_set("version", kv.version);
        o.bytes_set("value", &kv.value);
        o.plain_set("lease", kv.lease);
    });
}

fn range(out: &mut String, answer: &pb::RangeResponse) {
    object(out, |o| {
        header_set(o, &answer.header);
        array_set(o, "kvs", &answer.kvs, pair);
        o.plain_set("more", answer.more);
        o.plain_set("count", answer.count);
    });
}

fn put(out: &mut String, answer: &pb::PutResponse) {
    object(out, |o| {
        header_set(o, &answer.header);
        if let Some(kv) = &answer.prev_kv {
            pair(o.name("prev_kv"), kv);
        }
    });
}

fn delete(out: &mut String, answer: &pb::DeleteRangeResponse) {
    object(out, |o| {
        header_set(o, &answer.header);
        o.plain_set("deleted", answer.deleted);
        array_set(o, "prev_kvs", &answer.prev_kvs, pair);
    });
}

fn txn(out: &mut String, answer: &pb::TxnResponse) {
    object(out, |o| {
        header_set(o, &answer.header);
        o.plain_set("succeeded", answer.succeeded);
        array_set(o, "responses", &answer.responses, |out, inner| {
            object(out, |o| response(o.name("Response"), inner.response.as_ref()));
        });
    });
}

fn response(out: &mut String, response: Option<&Response>) {
    let Some(response) = response else {
        out.push_str("null");
        return;
    };
    object(out, |o| match response {
        Response::ResponseRange(answer) => range(o.name("response_range"), answer),
        Response::ResponsePut(answer) => put(o.name("response_put"), answer),
        Response::ResponseDeleteRange(answer) => delete(o.name("response_delete_range"), answer),
        Response::ResponseTxn(answer) => txn(o.name("response_txn"), answer),
    });
}

/// etcd's client has a structure of its own here, whose members have capitals and are never left out.
fn watch(out: &mut String, answer: &pb::WatchResponse) {
    object(out, |o| {
        object(o.name("Header"), |o| header_members(o, &answer.header));
        array(o.name("Events"), &answer.events, event);
        o.plain("CompactRevision", answer.compact_revision);
        o.plain("Canceled", answer.canceled);
        o.plain("Created", answer.created);
    });
}

fn event(out: &mut String, event: &Event) {
    object(out, |o| {
        o.plain_set("type", event.r#type);
        if let Some(kv) = &event.kv {
            pair(o.name("kv"), kv);
        }
        if let Some(kv) = &event.prev_kv {
            pair(o.name("prev_kv"), kv);
        }
    });
}

fn time_to_live(out: &mut String, answer: &pb::LeaseTimeToLiveResponse) {
    object(out, |o| {
        header_members(o, &answer.header);
        o.plain("id", answer.id);
        o.plain("ttl", answer.ttl);
        o.plain("granted-ttl", answer.granted_ttl);
        let keys = o.name("keys");
        match answer.keys.as_slice() {
            [] => keys.push_str("null"),
            all => array(keys, all, |out, key| bytes(out, key)),
        }
    });
}

fn member(out: &mut String, member: &pb::Member) {
    object(out, |o| {
        o.plain_set("ID", member.id);
        member_names(o, member);
    });
}

fn member_names(o: &mut Object<'_>, member: &pb::Member) {
    o.text_set("name", &member.name);
    o.texts_set("peerURLs", &member.peer_ur_ls);
    o.texts_set("clientURLs", &member.client_ur_ls);
    o.plain_set("isLearner", member.is_learner);
}

/// The only answer of ours whose JSON knows `--hex`.
fn member_list_hex(out: &mut String, answer: &pb::MemberListResponse) {
    object(out, |o| {
        let header = answer.header.unwrap_or_default();
        object(o.name("header"), |o| {
            o.text("cluster_id", &format!("{:x}", header.cluster_id));
            o.text("member_id", &format!("{:x}", header.member_id));
            o.plain_set("revision", header.revision);
            o.plain_set("raft_term", header.raft_term);
        });
        array(o.name("members"), &answer.members, |out, member| {
            object(out, |o| {
                o.text("ID", &format!("{:x}", member.id));
                member_names(o, member);
            });
        });
    });
}

fn health(out: &mut String, health: &Health) {
    object(out, |o| {
        o.text("endpoint", &health.endpoint);
        o.plain("health", health.healthy());
        o.text("took", &health.took);
        o.text_set("error", &health.error);
    });
}

fn status(out: &mut String, answer: &pb::StatusResponse) {
    object(out, |o| {
        header_set(o, &answer.header);
        o.text_set("version", &answer.version);
        o.plain_set("dbSize", answer.db_size);
        o.plain_set("leader", answer.leader);
        o.plain_set("raftIndex", answer.raft_index);
        o.plain_set("raftTerm", answer.raft_term);
        o.plain_set("raftAppliedIndex", answer.raft_applied_index);
        o.texts_set("errors", &answer.errors);
        o.plain_set("dbSizeInUse", answer.db_size_in_use);
        o.plain_set("isLearner", answer.is_learner);
        o.text_set("storageVersion", &answer.storage_version);
        o.plain_set("dbSizeQuota", answer.db_size_quota);
        if let Some(downgrade) = &answer.downgrade_info {
            object(o.name("downgradeInfo"), |o| {
                o.plain_set("enabled", downgrade.enabled);
                o.text_set("targetVersion", &downgrade.target_version);
            });
        }
    });
}

fn hash_kv(out: &mut String, answer: &pb::HashKvResponse) {
    object(out, |o| {
        header_set(o, &answer.header);
        o.plain_set("hash", answer.hash);
        o.plain_set("compact_revision", answer.compact_revision);
        o.plain_set("hash_revision", answer.hash_revision);
    });
}

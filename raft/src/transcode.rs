//! raft-rs's types and ours, into each other, by hand.
//!
//! The two agree in most fields and differ in some: raft-rs's Message has a snapshot request, priorities and a commit
//! term (13 to 16) where etcd has a vote and responses, and puts a commit index into messages where etcd puts none;
//! its conf change types are numbered otherwise. None of that may reach a peer or the log, and raft-rs's codec never
//! parses bytes from outside: it would read the data of a conf change entry, and refuse etcd's number for adding
//! a learner. So inside raft such an entry has no data, and carries its bytes in the context that etcd's entries
//! do not have ([`payload`]).

use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb;
use trilith_proto::raftpb;
use trilith_wal::EntryRef;

/// The kinds of message that members exchange, in both tongues.
const KINDS: [(raftpb::MessageType, eraftpb::MessageType); 14] = [
    (raftpb::MessageType::MsgProp, eraftpb::MessageType::MsgPropose),
    (raftpb::MessageType::MsgApp, eraftpb::MessageType::MsgAppend),
    (raftpb::MessageType::MsgAppResp, eraftpb::MessageType::MsgAppendResponse),
    (raftpb::MessageType::MsgVote, eraftpb::MessageType::MsgRequestVote),
    (raftpb::MessageType::MsgVoteResp, eraftpb::MessageType::MsgRequestVoteResponse),
    (raftpb::MessageType::MsgSnap, eraftpb::MessageType::MsgSnapshot),
    (raftpb::MessageType::MsgHeartbeat, eraftpb::MessageType::MsgHeartbeat),
    (raftpb::MessageType::MsgHeartbeatResp, eraftpb::MessageType::MsgHeartbeatResponse),
    (raftpb::MessageType::MsgTransferLeader, eraftpb::MessageType::MsgTransferLeader),
    (raftpb::MessageType::MsgTimeoutNow, eraftpb::MessageType::MsgTimeoutNow),
    (raftpb::MessageType::MsgReadIndex, eraftpb::MessageType::MsgReadIndex),
    (raftpb::MessageType::MsgReadIndexResp, eraftpb::MessageType::MsgReadIndexResp),
    (raftpb::MessageType::MsgPreVote, eraftpb::MessageType::MsgRequestPreVote),
    (raftpb::MessageType::MsgPreVoteResp, eraftpb::MessageType::MsgRequestPreVoteResponse),
];

/// A message from a peer. The error says what is wrong with it.
pub(crate) fn message_in(message: raftpb::Message) -> Result<eraftpb::Message, String> {
    let kind = message.r#type.unwrap_or_default();
    let Some((_, kind)) = KINDS.iter().find(|(ours, _)| *ours as i32 == kind) else {
        return Err("members do not exchange this type".to_owned());
    };
    let mut entries = Vec::with_capacity(message.entries.len());
    for entry in message.entries {
        entries.push(entry_in(entry)?);
    }
    let mut into = eraftpb::Message {
        msg_type: *kind,
        to: message.to.unwrap_or_default(),
        from: message.from.unwrap_or_default(),
        term: message.term.unwrap_or_default(),
        log_term: message.log_term.unwrap_or_default(),
        index: message.index.unwrap_or_default(),
        entries: entries.into(),
        commit: message.commit.unwrap_or_default(),
        reject: message.reject.unwrap_or_default(),
        reject_hint: message.reject_hint.unwrap_or_default(),
        context: message.context.unwrap_or_default(),
        ..eraftpb::Message::default()
    };
    // Older members attach an empty snapshot to any message.
    if let Some(snapshot) = message.snapshot.filter(|snapshot| index_of(snapshot) > 0) {
        into.set_snapshot(snapshot_in(snapshot));
    }
    Ok(into)
}

/// A message for a peer.
pub(crate) fn message_out(mut message: eraftpb::Message) -> raftpb::Message {
    let kind = KINDS.iter().find(|(_, theirs)| *theirs == message.msg_type);
    let (kind, _) = kind.expect("raft sends peers no message of a local type");
    let carries_commit = matches!(
        kind,
        raftpb::MessageType::MsgApp | raftpb::MessageType::MsgHeartbeat | raftpb::MessageType::MsgSnap
    );
    raftpb::Message {
        r#type: Some(*kind as i32),
        to: Some(message.to),
        from: Some(message.from),
        term: Some(message.term),
        log_term: Some(message.log_term),
        index: Some(message.index),
        entries: message.take_entries().into_iter().map(entry_out).collect(),
        commit: Some(if carries_commit { message.commit } else { 0 }),
        snapshot: message.snapshot.take().map(snapshot_out),
        reject: Some(message.reject),
        reject_hint: Some(message.reject_hint),
        context: some_bytes(message.context),
        vote: None,
        responses: Vec::new(),
    }
}

/// An entry from a peer or from the log. The error says what is wrong with it.
pub(crate) fn entry_in(entry: raftpb::Entry) -> Result<eraftpb::Entry, String> {
    let index = entry.index.unwrap_or_default();
    let data = entry.data.unwrap_or_default();
    let kind = entry.r#type.unwrap_or_default();
    let said = match raftpb::EntryType::try_from(kind) {
        Ok(raftpb::EntryType::EntryNormal) => eraftpb::Entry { data, ..eraftpb::Entry::default() },
        Ok(raftpb::EntryType::EntryConfChange) => {
            conf_change(&data).map_err(|e| format!("entry {index} is no conf change: {e}"))?;
            conf_change_entry(data)
        }
        _ => return Err(format!("entry {index} has type {kind}, which is not in use")),
    };
    Ok(eraftpb::Entry { term: entry.term.unwrap_or_default(), index, ..said })
}

/// An entry with the bytes of a conf change, without index and term.
pub(crate) fn conf_change_entry(change: Bytes) -> eraftpb::Entry {
    eraftpb::Entry {
        entry_type: eraftpb::EntryType::EntryConfChange,
        context: change,
        ..eraftpb::Entry::default()
    }
}

/// What an entry says, as it stands in the log and on the wire.
pub(crate) fn payload(entry: &eraftpb::Entry) -> &Bytes {
    match entry.entry_type {
        eraftpb::EntryType::EntryNormal => &entry.data,
        _ => &entry.context,
    }
}

fn entry_out(entry: eraftpb::Entry) -> raftpb::Entry {
    raftpb::Entry {
        r#type: Some(entry_kind(&entry) as i32),
        term: Some(entry.term),
        index: Some(entry.index),
        data: some_bytes(payload(&entry).clone()),
    }
}

/// An entry for the log, borrowed.
pub(crate) fn entry_ref(entry: &eraftpb::Entry) -> EntryRef<'_> {
    EntryRef { kind: entry_kind(entry), term: entry.term, index: entry.index, data: payload(entry) }
}

fn entry_kind(entry: &eraftpb::Entry) -> raftpb::EntryType {
    match entry.entry_type {
        eraftpb::EntryType::EntryNormal => raftpb::EntryType::EntryNormal,
        eraftpb::EntryType::EntryConfChange => raftpb::EntryType::EntryConfChange,
        eraftpb::EntryType::EntryConfChangeV2 => raftpb::EntryType::EntryConfChangeV2,
    }
}

/// The conf change in an entry's data; its type is one of raftpb's.
pub(crate) fn conf_change(data: &Bytes) -> Result<raftpb::ConfChange, String> {
    let change = raftpb::ConfChange::decode(data.clone()).map_err(|e| e.to_string())?;
    let kind = change.r#type.unwrap_or_default();
    raftpb::ConfChangeType::try_from(kind).map_err(|_| format!("unknown conf change type {kind}"))?;
    Ok(change)
}

/// What raft has to do for a conf change; None when it does not concern raft.
pub(crate) fn conf_change_in(change: &raftpb::ConfChange) -> Option<eraftpb::ConfChange> {
    let change_type = match change.r#type() {
        raftpb::ConfChangeType::ConfChangeAddNode => eraftpb::ConfChangeType::AddNode,
        raftpb::ConfChangeType::ConfChangeRemoveNode => eraftpb::ConfChangeType::RemoveNode,
        raftpb::ConfChangeType::ConfChangeAddLearnerNode => eraftpb::ConfChangeType::AddLearnerNode,
        raftpb::ConfChangeType::ConfChangeUpdateNode => return None,
    };
    let node_id = change.node_id.filter(|id| *id != 0)?;
    Some(eraftpb::ConfChange { change_type, node_id, ..eraftpb::ConfChange::default() })
}

pub(crate) fn conf_state_in(state: raftpb::ConfState) -> eraftpb::ConfState {
    eraftpb::ConfState {
        voters: state.voters,
        learners: state.learners,
        voters_outgoing: state.voters_outgoing,
        learners_next: state.learners_next,
        auto_leave: state.auto_leave.unwrap_or_default(),
        ..eraftpb::ConfState::default()
    }
}

/// Ids come out ascending, so that equal configurations give equal bytes.
pub(crate) fn conf_state_out(state: eraftpb::ConfState) -> raftpb::ConfState {
    let sorted = |mut ids: Vec<u64>| {
        ids.sort_unstable();
        ids
    };
    raftpb::ConfState {
        voters: sorted(state.voters),
        learners: sorted(state.learners),
        voters_outgoing: sorted(state.voters_outgoing),
        learners_next: sorted(state.learners_next),
        auto_leave: Some(state.auto_leave),
    }
}

pub(crate) fn hard_state_in(state: &raftpb::HardState) -> eraftpb::HardState {
    eraftpb::HardState {
        term: state.term.unwrap_or_default(),
        vote: state.vote.unwrap_or_default(),
        commit: state.commit.unwrap_or_default(),
        ..eraftpb::HardState::default()
    }
}

pub(crate) fn hard_state_out(state: &eraftpb::HardState) -> raftpb::HardState {
    raftpb::HardState { term: Some(state.term), vote: Some(state.vote), commit: Some(state.commit) }
}

fn index_of(snapshot: &raftpb::Snapshot) -> u64 {
    snapshot.metadata.as_ref().and_then(|metadata| metadata.index).unwrap_or_default()
}

fn snapshot_in(snapshot: raftpb::Snapshot) -> eraftpb::Snapshot {
    let mut into =
        eraftpb::Snapshot { data: snapshot.data.unwrap_or_default(), ..eraftpb::Snapshot::default() };
    if let Some(metadata) = snapshot.metadata {
        let meta = into.mut_metadata();
        meta.index = metadata.index.unwrap_or_default();
        meta.term = metadata.term.unwrap_or_default();
        meta.set_conf_state(conf_state_in(metadata.conf_state.unwrap_or_default()));
    }
    into
}

fn snapshot_out(mut snapshot: eraftpb::Snapshot) -> raftpb::Snapshot {
    let metadata = Some(metadata_out(snapshot.take_metadata()));
    raftpb::Snapshot { data: some_bytes(snapshot.data), metadata }
}

pub(crate) fn metadata_out(mut metadata: eraftpb::SnapshotMetadata) -> raftpb::SnapshotMetadata {
    raftpb::SnapshotMetadata {
        conf_state: Some(conf_state_out(metadata.take_conf_state())),
        index: Some(metadata.index),
        term: Some(metadata.term),
    }
}

/// Empty bytes are left out, as etcd does: a peer echoes a context that is there, be it empty.
fn some_bytes(bytes: Bytes) -> Option<Bytes> {
    (!bytes.is_empty()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % limit
        }
        fn number(&mut self) -> Option<u64> {
            let bits = self.below(64);
            Some(self.below(1 << 31) << bits >> 1)
        }
        fn bytes(&mut self) -> Option<Bytes> {
            let len = self.below(5) as usize;
            some_bytes((0..len).map(|_| self.below(256) as u8).collect::<Vec<u8>>().into())
        }
        fn entry(&mut self) -> raftpb::Entry {
            let mut entry = raftpb::Entry {
                r#type: Some(0),
                term: self.number(),
                index: self.number(),
                data: self.bytes(),
            };
            if self.below(4) == 0 {
                let change = raftpb::ConfChange {
                    id: self.number(),
                    r#type: Some(self.below(4) as i32),
                    node_id: self.number(),
                    context: self.bytes(),
                };
                entry.r#type = Some(1);
                entry.data = Some(change.encode_to_vec().into());
            }
            entry
        }
        fn snapshot(&mut self) -> raftpb::Snapshot {
            let voters = (0..self.below(4)).collect();
            let conf_state = raftpb::ConfState {
                voters,
                learners: vec![9],
                auto_leave: Some(false),
                ..Default::default()
            };
            raftpb::Snapshot {
                data: self.bytes(),
                metadata: Some(raftpb::SnapshotMetadata {
                    conf_state: Some(conf_state),
                    index: Some(self.below(9) + 1),
                    term: self.number(),
                }),
            }
        }
        fn message(&mut self) -> raftpb::Message {
            let (kind, _) = KINDS[self.below(KINDS.len() as u64) as usize];
            let carries_commit = matches!(kind as i32, 3 | 7 | 8);
            raftpb::Message {
                r#type: Some(kind as i32),
                to: self.number(),
                from: self.number(),
                term: self.number(),
                log_term: self.number(),
                index: self.number(),
                entries: (0..self.below(4)).map(|_| self.entry()).collect(),
                commit: if carries_commit { self.number() } else { Some(0) },
                snapshot: (self.below(3) == 0).then(|| self.snapshot()),
                reject: Some(self.below(2) == 0),
                reject_hint: self.number(),
                context: self.bytes(),
                vote: None,
                responses: Vec::new(),
            }
        }
    }

    #[test]
    fn messages_survive_the_way_in_and_out() {
        let mut random = Random(7);
        for round in 0..2000 {
            let message = random.message();
            let wire = raftpb::Message::decode(message.encode_to_vec().as_slice()).unwrap();
            let back = message_out(message_in(wire).unwrap());
            assert_eq!(back, message, "round {round} of seed 7");
        }
    }

    #[test]
    fn what_etcd_does_not_know_stays_inside() {
        let message = eraftpb::Message {
            msg_type: eraftpb::MessageType::MsgRequestVote,
            commit: 5,
            commit_term: 2,
            request_snapshot: 3,
            priority: 1,
            deprecated_priority: 1,
            ..Default::default()
        };
        let out = message_out(message);
        assert_eq!((out.commit, out.vote, out.responses.len()), (Some(0), None, 0));
    }

    #[test]
    fn what_raft_does_not_know_stays_outside() {
        let of = |kind: i32| raftpb::Message { r#type: Some(kind), ..Default::default() };
        for kind in [0, 1, 10, 11, 12, 19, 20, 21, 22, 23, 24, -1] {
            assert!(message_in(of(kind)).is_err(), "type {kind}");
        }
        let vote = raftpb::Message { vote: Some(4), responses: vec![of(3)], ..of(3) };
        let expected = eraftpb::Message { msg_type: eraftpb::MessageType::MsgAppend, ..Default::default() };
        assert_eq!(message_in(vote).unwrap(), expected);
        let empty = raftpb::Snapshot { data: None, metadata: Some(raftpb::SnapshotMetadata::default()) };
        assert!(!message_in(raftpb::Message { snapshot: Some(empty), ..of(3) }).unwrap().has_snapshot());
    }

    #[test]
    fn entries_that_nobody_applies_are_refused() {
        let entry = |kind: i32, data: &'static [u8]| {
            entry_in(raftpb::Entry {
                r#type: Some(kind),
                term: Some(1),
                index: Some(3),
                data: Some(Bytes::from_static(data)),
            })
        };
        assert_eq!(entry(2, b"").unwrap_err(), "entry 3 has type 2, which is not in use");
        assert_eq!(entry(7, b"").unwrap_err(), "entry 3 has type 7, which is not in use");
        assert_eq!(
            entry(1, b"\x10\x09").unwrap_err(),
            "entry 3 is no conf change: unknown conf change type 9"
        );
        assert!(entry(1, b"\xff").unwrap_err().starts_with("entry 3 is no conf change: "));
        assert!(entry(1, b"\x10\x03\x18\x05").is_ok());
    }

    #[test]
    fn conf_change_types_are_numbered_differently() {
        let of = |kind: i32| {
            let change = raftpb::ConfChange { r#type: Some(kind), node_id: Some(4), ..Default::default() };
            conf_change_in(&change).map(|change| change.change_type)
        };
        assert_eq!(of(0), Some(eraftpb::ConfChangeType::AddNode));
        assert_eq!(of(1), Some(eraftpb::ConfChangeType::RemoveNode));
        assert_eq!(of(2), None);
        assert_eq!(of(3), Some(eraftpb::ConfChangeType::AddLearnerNode));
    }
}

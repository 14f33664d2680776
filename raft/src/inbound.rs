//! What a peer may say. Raft stops the process on many messages that no correct peer sends; here they become
//! errors that name the sender, before raft sees them.

use raft::eraftpb::{Message, MessageType};
use raft::{Raft, StateRole};
use trilith_proto::raftpb;

use crate::storage::LogStorage;
use crate::{RaftError, start, transcode};

/// Terms and indexes from here on are nonsense: sums with them must not overflow.
const LIMIT: u64 = 1 << 62;

/// Takes a peer's message. None when it is to be dropped quietly, as a message that came too late is.
pub(crate) fn admit(raft: &Raft<LogStorage>, message: raftpb::Message) -> Result<Option<Message>, RaftError> {
    let from = message.from.unwrap_or_default();
    let kind = message.r#type.unwrap_or_default();
    let checked = transcode::message_in(message).and_then(|message| {
        check(raft, &message)?;
        Ok(message)
    });
    match checked {
        Ok(message) => Ok(settle(raft, message)),
        Err(reason) => Err(RaftError::Message { from, kind, reason }),
    }
}

/// Takes a snapshot that its owner can do something with.
pub(crate) fn admit_snapshot(
    raft: &Raft<LogStorage>,
    message: raftpb::Message,
) -> Result<Message, RaftError> {
    let from = message.from.unwrap_or_default();
    let kind = message.r#type.unwrap_or_default();
    let checked = transcode::message_in(message).and_then(|message| {
        check_head(raft, &message)?;
        check_snapshot(raft, &message)?;
        Ok(message)
    });
    checked.map_err(|reason| RaftError::Message { from, kind, reason })
}

fn check_snapshot(raft: &Raft<LogStorage>, message: &Message) -> Result<(), String> {
    if message.msg_type != MessageType::MsgSnapshot {
        return Err("it is no snapshot".to_owned());
    }
    let metadata = message.get_snapshot().get_metadata();
    if metadata.index == 0 || metadata.index >= LIMIT || metadata.term == 0 || metadata.term > message.term {
        return Err(format!("its snapshot is of entry {} of term {}", metadata.index, metadata.term));
    }
    let group = transcode::conf_state_out(metadata.get_conf_state().clone());
    start::check_conf_state(&group).map_err(|error| error.to_string())?;
    if !group.voters.iter().chain(&group.learners).any(|id| *id == raft.id) {
        return Err("its snapshot is of a group without this member".to_owned());
    }
    if raft.state == StateRole::Leader && message.term == raft.term {
        return Err(format!("it claims to lead term {}, which this member leads", raft.term));
    }
    Ok(())
}

fn check(raft: &Raft<LogStorage>, message: &Message) -> Result<(), String> {
    check_head(raft, message)?;
    check_body(raft, message)
}

fn check_head(raft: &Raft<LogStorage>, message: &Message) -> Result<(), String> {
    if message.to != raft.id {
        return Err(format!("it is meant for member {:x}", message.to));
    }
    if message.from == 0 || message.from == raft.id {
        return Err("it has no sender".to_owned());
    }
    let numbers = [message.term, message.log_term, message.index, message.commit, message.reject_hint]
        .into_iter()
        .max();
    if numbers >= Some(LIMIT) {
        return Err("a term or index is beyond reason".to_owned());
    }
    Ok(())
}

fn check_body(raft: &Raft<LogStorage>, message: &Message) -> Result<(), String> {
    match message.msg_type {
        MessageType::MsgPropose if message.entries.is_empty() => Err("it proposes nothing".to_owned()),
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp if message.entries.len() != 1 => {
            Err(format!("{} entries instead of one", message.entries.len()))
        }
        MessageType::MsgSnapshot => Err("a snapshot came without its state".to_owned()),
        MessageType::MsgPropose | MessageType::MsgReadIndex => Ok(()),
        // All others answer for a term; one that is over is answered or dropped without a further look.
        _ if message.term == 0 => Err("it has no term".to_owned()),
        _ if message.term < raft.term => Ok(()),
        MessageType::MsgAppend => check_append(raft, message),
        MessageType::MsgHeartbeat if message.commit > raft.raft_log.last_index() => Err(format!(
            "it commits entry {}, but the log ends with entry {} that was acknowledged: a member that has lost its data has \
             to be removed from the cluster and added again",
            message.commit,
            raft.raft_log.last_index()
        )),
        MessageType::MsgAppendResponse
            if raft.state == StateRole::Leader
                && message.term == raft.term
                && !message.reject
                && message.index > raft.raft_log.last_index() =>
        {
            Err(format!("it acknowledges entry {}, which was never sent", message.index))
        }
        _ => Ok(()),
    }
}

fn check_append(raft: &Raft<LogStorage>, message: &Message) -> Result<(), String> {
    if raft.state == StateRole::Leader && message.term == raft.term {
        return Err(format!("it claims to lead term {}, which this member leads", raft.term));
    }
    // Raft takes term 0 for an index beyond its log, and would believe that both match.
    if (message.log_term == 0) != (message.index == 0) {
        return Err(format!("entry {} has no term {}", message.index, message.log_term));
    }
    // Raft would look for a place where both agree, below what no leader can have otherwise.
    let committed = raft.raft_log.committed;
    if message.index >= committed && raft.raft_log.term(committed).is_ok_and(|term| message.log_term < term) {
        return Err(format!(
            "entry {} of term {} contradicts entry {committed}, which is committed",
            message.index, message.log_term
        ));
    }
    let mut term = message.log_term.max(1);
    for (index, entry) in (message.index + 1..).zip(message.entries.iter()) {
        if entry.index != index {
            return Err(format!("entry {} where {index} is due", entry.index));
        }
        if entry.term < term || entry.term > message.term {
            return Err(format!("entry {index} of term {} after term {term}", entry.term));
        }
        term = entry.term;
    }
    Ok(())
}

/// What raft cannot be given as it is, though the sender meant well.
fn settle(raft: &Raft<LogStorage>, mut message: Message) -> Option<Message> {
    match message.msg_type {
        // These travel without a term; raft would stop on one when it forwards them.
        MessageType::MsgPropose | MessageType::MsgReadIndex => message.term = 0,
        // Forwarded to a leader that leads no more: whoever asked asks again.
        MessageType::MsgTransferLeader if raft.state != StateRole::Leader => return None,
        // An election is won by answers to questions that left only when all of the log was durable, or by an
        // only voter, which the node holds back as long. Raft insists on that.
        MessageType::MsgRequestVoteResponse
        | MessageType::MsgRequestPreVoteResponse
        | MessageType::MsgTimeoutNow
            if raft.raft_log.persisted < raft.raft_log.last_index() =>
        {
            return None;
        }
        _ => {}
    }
    Some(message)
}

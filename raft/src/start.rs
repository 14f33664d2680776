//! What a node starts from: the first log of a new member, or what log and store hold after a stop.
//!
//! Promises that raft starts only on a log and a store that fit together; whatever is missing in between is named.

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message as _;
use raft::RaftState;
use raft::eraftpb::Entry;
use trilith_proto::raftpb;
use trilith_wal::Replay;

use crate::storage::LogStorage;
use crate::{RaftError, transcode};

/// The first log of a member, equal on all members: entry i adds the i-th peer by id, term 1, all committed.
/// Gives the storage with the peers as voters, and the hard state that belongs to it.
pub(crate) fn bootstrap(
    peers: &[(u64, Bytes)],
) -> Result<(LogStorage, Vec<Entry>, raftpb::HardState), RaftError> {
    let mut peers: Vec<&(u64, Bytes)> = peers.iter().collect();
    peers.sort_unstable_by_key(|(id, _)| *id);
    let conf_state = raftpb::ConfState {
        voters: peers.iter().map(|(id, _)| *id).collect(),
        ..raftpb::ConfState::default()
    };
    check_conf_state(&conf_state)?;
    if peers.is_empty() {
        return Err(RaftError::Config("a new cluster needs at least one member".to_owned()));
    }
    let mut entries = Vec::with_capacity(peers.len());
    for (index, (id, context)) in (1..).zip(peers) {
        let change = raftpb::ConfChange {
            id: None,
            r#type: Some(raftpb::ConfChangeType::ConfChangeAddNode as i32),
            node_id: Some(*id),
            context: Some(context.clone()),
        };
        let entry = raftpb::Entry {
            r#type: Some(raftpb::EntryType::EntryConfChange as i32),
            term: Some(1),
            index: Some(index),
            data: Some(change.encode_to_vec().into()),
        };
        entries.push(transcode::entry_in(entry).map_err(|reason| RaftError::Entry { index, reason })?);
    }
    let hard_state = raftpb::HardState { term: Some(1), vote: Some(0), commit: Some(entries.len() as u64) };
    let mut storage = LogStorage::new(start(&hard_state, conf_state), (0, 0));
    storage.append(entries.clone());
    Ok((storage, entries, hard_state))
}

/// The log after a stop: `applied`, `applied_term` and `conf_state` are the store's.
pub(crate) fn restart(
    replay: Replay,
    applied: u64,
    applied_term: u64,
    conf_state: raftpb::ConfState,
) -> Result<LogStorage, RaftError> {
    check_conf_state(&conf_state)?;
    let earlier = replay.earlier;
    let mut entries = Vec::with_capacity(replay.entries.len());
    for entry in replay.entries {
        let index = entry.index.unwrap_or_default();
        entries.push(transcode::entry_in(entry).map_err(|reason| RaftError::Entry { index, reason })?);
    }
    let mut hard_state = replay.hard_state;
    let commit = hard_state.commit.unwrap_or_default();
    let Some(first) = entries.first().map(|entry| entry.index) else {
        // Nothing comes after what the store has; the log must reach as far, or it is not the store's.
        if replay.last_index < applied {
            return Err(RaftError::Missing { applied, last: replay.last_index });
        }
        let marked = replay.snapshots.iter().filter_map(|mark| mark.index).max().unwrap_or_default();
        if marked > applied {
            return Err(RaftError::Gap { applied, first: marked + 1 });
        }
        if commit > applied {
            return Err(RaftError::Commit { commit, last: applied });
        }
        raise(&mut hard_state, applied, applied_term);
        let mut storage = LogStorage::new(start(&hard_state, conf_state), (applied, applied_term));
        if replay.after == applied {
            storage.set_history(&earlier);
        }
        return Ok(storage);
    };
    check_entries(&entries, first, if first == applied + 1 { applied_term } else { 0 })?;
    let last = entries[entries.len() - 1].index;
    if first > applied + 1 {
        return Err(RaftError::Gap { applied, first });
    }
    if last < applied {
        return Err(RaftError::Missing { applied, last });
    }
    if commit > last {
        return Err(RaftError::Commit { commit, last });
    }
    if applied >= first {
        let log = entries[(applied - first) as usize].term;
        if log != applied_term {
            return Err(RaftError::Term { index: applied, log, store: applied_term });
        }
    }
    // The entry before the tail's first must have a known term: the store's last, none at all, or else the first
    // entry that is there gives its own.
    let compacted = if first == applied + 1 {
        (applied, applied_term)
    } else if first == 1 {
        (0, 0)
    } else {
        let entry = entries.remove(0);
        (entry.index, entry.term)
    };
    let last_term = entries.last().map_or(compacted.1, |entry| entry.term);
    raise(&mut hard_state, applied, last_term);
    let mut storage = LogStorage::new(start(&hard_state, conf_state), compacted);
    if compacted.0 == replay.after || compacted.0 == replay.after + 1 {
        storage.set_history(&earlier);
    }
    storage.append(entries);
    Ok(storage)
}

/// A commit index is not always written before a stop, but what was applied was committed; and a torn batch may have
/// lost the term that its entries carry. Both may be raised safely.
fn raise(hard_state: &mut raftpb::HardState, applied: u64, term: u64) {
    hard_state.commit = hard_state.commit.max(Some(applied));
    if hard_state.term.unwrap_or_default() < term {
        hard_state.term = Some(term);
        hard_state.vote = Some(0);
    }
}

fn start(hard_state: &raftpb::HardState, conf_state: raftpb::ConfState) -> RaftState {
    RaftState::new(transcode::hard_state_in(hard_state), transcode::conf_state_in(conf_state))
}

/// Indexes from `first` on without gaps, terms that never fall, beginning with the term before them.
fn check_entries(entries: &[Entry], first: u64, mut term: u64) -> Result<(), RaftError> {
    for (index, entry) in (first.max(1)..).zip(entries) {
        if entry.index != index {
            return Err(RaftError::Entry {
                index,
                reason: format!("the log has entry {} there", entry.index),
            });
        }
        if entry.term < term || entry.term == 0 {
            return Err(RaftError::Entry { index, reason: format!("term {} after term {term}", entry.term) });
        }
        term = entry.term;
    }
    Ok(())
}

/// Raft stops the process on a configuration that contradicts itself, so it is looked at first.
pub(crate) fn check_conf_state(state: &raftpb::ConfState) -> Result<(), RaftError> {
    if !state.voters_outgoing.is_empty() || !state.learners_next.is_empty() || state.auto_leave == Some(true)
    {
        return Err(RaftError::Config("joint configurations are not in use".to_owned()));
    }
    let mut seen = BTreeSet::from([0]);
    for id in state.voters.iter().chain(&state.learners) {
        if !seen.insert(*id) {
            return Err(RaftError::Config(format!("member {id:x} stands twice in it, or is none")));
        }
    }
    if state.voters.is_empty() && !state.learners.is_empty() {
        return Err(RaftError::Config("it has learners, but no voter".to_owned()));
    }
    Ok(())
}

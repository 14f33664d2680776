//! `--force-new-cluster`: of a member that has lost the others for good, a cluster of its own.
//!
//! All entries that the log has count as committed, and changes that make this member a voter and remove all others follow
//! them as if they had been agreed on. They are durable before the member starts, so that a stop at any point leaves either the
//! old cluster's log or the new one's. etcd drops entries that it does not know to be committed; here that is not always
//! written before a stop, so an acknowledged write could be among them, and one that was not may be done as well as not.
//!
//! Must never run beside another member of the old cluster that lives: both would go on from the same state.

use std::collections::BTreeSet;

use prost::Message;
use trilith_engine::View;
use trilith_proto::raftpb::{ConfChange, ConfChangeType, Entry, EntryType, HardState};
use trilith_wal::{EntryRef, Replay, Wal};

use super::{Config, Fatal};
use crate::apply::conf_change::promotion;
use crate::apply::members::{self, Member};

/// Makes log and replay those of a cluster of this member alone. `applied` is the store's.
pub(super) fn leave_the_others(
    config: &Config,
    wal: &mut Wal,
    replay: &mut Replay,
    view: View<'_>,
    applied: u64,
) -> Result<(), Fatal> {
    let own = replay.metadata.node_id;
    let last = replay.entries.last().map_or(applied, Entry::index).max(applied);
    let changes = changes(config, view, &replay.entries, own)?;
    log::warn!(member:% = format!("{own:x}"); "a new cluster is made of this member alone");
    let last_term = replay.entries.last().map_or(0, Entry::term);
    // No leader of the old cluster has made entries of this term.
    let term = replay.hard_state.term().max(last_term) + 1;
    let entry = |(index, change): (u64, &ConfChange)| Entry {
        r#type: Some(EntryType::EntryConfChange.into()),
        term: Some(term),
        index: Some(index),
        data: Some(change.encode_to_vec().into()),
    };
    let entries: Vec<Entry> = (last + 1..).zip(&changes).map(entry).collect();
    let last = last + entries.len() as u64;
    let hard_state = HardState { term: Some(term), vote: Some(0), commit: Some(last) };
    let borrowed = entries.iter().map(|entry| EntryRef {
        kind: EntryType::EntryConfChange,
        term,
        index: entry.index(),
        data: entry.data(),
    });
    wal.append(borrowed, Some(&hard_state), true);
    wal.flush()?;
    replay.entries.extend(entries);
    (replay.hard_state, replay.last_index) = (hard_state, last);
    Ok(())
}

/// This member votes, then all others go: the last voter would stay. Which of the entries that are not applied yet will be
/// rejected nobody knows, so a change is made for everything that may be; one too many is rejected in turn.
fn changes(config: &Config, view: View<'_>, entries: &[Entry], own: u64) -> Result<Vec<ConfChange>, Fatal> {
    let change = |kind: ConfChangeType, id: u64, context: Vec<u8>| ConfChange {
        id: None,
        r#type: Some(kind.into()),
        node_id: Some(id),
        context: (!context.is_empty()).then(|| context.into()),
    };
    let state = members::conf_state(view)?;
    let is_change = |entry: &&Entry| entry.r#type() == EntryType::EntryConfChange;
    // One that cannot be read ends the member when it is applied, with its name.
    let pending = entries.iter().filter(is_change).filter_map(|entry| ConfChange::decode(entry.data()).ok());
    let mut others: BTreeSet<u64> = pending.map(|change| change.node_id()).collect();
    let may_lack_a_vote = !state.voters.contains(&own) || others.contains(&own);
    others.extend(state.voters.into_iter().chain(state.learners));
    others.remove(&own);
    let mut changes = Vec::new();
    if may_lack_a_vote {
        for context in [members::encode(&own_member(config, view, own)?), promotion(own)] {
            changes.push(change(ConfChangeType::ConfChangeAddNode, own, context));
        }
    }
    changes.extend(others.into_iter().map(|id| change(ConfChangeType::ConfChangeRemoveNode, id, Vec::new())));
    Ok(changes)
}

fn own_member(config: &Config, view: View<'_>, own: u64) -> Result<Member, Fatal> {
    let known = members::get(view, own)?;
    let told = config.initial_cluster.iter().find(|peer| peer.name == config.name);
    let peer_urls = told.map(|peer| peer.peer_urls.clone()).unwrap_or_default();
    Ok(known.unwrap_or(Member { id: own, peer_urls, ..Member::default() }))
}

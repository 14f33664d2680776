//! One member's raft, driven over its log without ever waiting for the disk.
//!
//! What raft wants written goes to the log in batches; raft goes on while a batch is being written, and several may
//! be on their way. Whatever depends on a batch leaves only when the log says that it is durable: votes and
//! acknowledgements to peers, and through raft's own count the commit of this member's entries. A leader's
//! messages leave at once, and so do those of a follower that promise nothing about its log.
//!
//! Committed entries come out once each, in order, none of them before it is durable here. The same calls with
//! the same seed and the same log give the same results: no clock and no randomness but the seed's.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::BorrowedFd;

use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb::{Entry, EntryType, Message, MessageType, SnapshotMetadata};
use raft::{RawNode, ReadOnlyOption, SnapshotStatus, StateRole};
use trilith_proto::{raftpb, walpb};
use trilith_wal::{Replay, Ticket, Wal};

use crate::storage::{self, LogStorage};
use crate::{Body, Committed, Config, Log, Output, RaftError, Status, inbound, logger, start, transcode};

/// etcd's limit of entries in one append message, in bytes.
const MAX_MESSAGE_BYTES: u64 = 1024 * 1024;
/// etcd's limit of append messages on their way to one peer.
const MAX_INFLIGHT_MESSAGES: usize = 512;
/// Reads that wait for the first commit of a term; more are dropped, their askers ask again.
const MAX_HELD_READS: usize = 1024;

/// One member's raft and its log. See the module's promises.
///
/// Its owner calls `poll` after it has put something in and when the log's descriptor is readable, applies what
/// came out, and tells `applied`.
pub struct Node<L: Log = Wal> {
    pub(crate) raw: RawNode<LogStorage>,
    pub(crate) log: L,
    jitter: Jitter,
    tail_bytes: usize,
    /// Proposals since raft was last touched: raft gets them as one message.
    proposals: Vec<Entry>,
    proposal_bytes: usize,
    /// Asked of this leader before the first commit of its term.
    held_reads: Vec<Message>,
    in_flight: VecDeque<InFlight>,
    /// The newest batch that has to be durable before what raft does next may count as persisted.
    barrier: Ticket,
    durable: Ticket,
    campaign_due: bool,
    /// The oldest batch that is not durable, and for how many ticks it has been that.
    waiting: (Ticket, usize),
    /// Ticks since a full log was asked to try again.
    full_ticks: usize,
    /// An error of a call that could not return it; `poll` does.
    failed: Option<RaftError>,
}

/// A ready that the disk has not confirmed.
struct InFlight {
    number: u64,
    ticket: Ticket,
    messages: Vec<Message>,
}

impl<L: Log> Node<L> {
    /// First start: the log gets a ConfChangeAddNode for each peer (id, member JSON) at term 1, as etcd does, and is
    /// durable on return. The peers are the voters; their entries come out of `poll` as committed.
    ///
    /// # Errors
    /// `Config` for a configuration that makes no sense, `Wal` when the log fails.
    pub fn bootstrap(config: Config, mut log: L, peers: &[(u64, Bytes)]) -> Result<Node<L>, RaftError> {
        let (storage, entries, hard_state) = start::bootstrap(peers)?;
        log.append(entries.iter().map(transcode::entry_ref), Some(&hard_state), true);
        log.flush()?;
        Node::start(&config, log, storage, 0)
    }

    /// Restart: `applied`, `applied_term` and `conf_state` are the store's; the log holds what comes after (and
    /// perhaps before). Entries up to `applied` do not come out again. Open the log at `applied` or below: opened
    /// there, it is the log that refuses when it ends before.
    ///
    /// # Errors
    /// `Missing`, `Gap`, `Term`, `Commit` and `Entry` when log and store do not fit together, `Config` for a
    /// configuration that makes no sense.
    pub fn restart(
        config: Config,
        log: L,
        replay: Replay,
        applied: u64,
        applied_term: u64,
        conf_state: raftpb::ConfState,
    ) -> Result<Node<L>, RaftError> {
        let mut storage = start::restart(replay, applied, applied_term, conf_state)?;
        storage.note_applied(applied);
        storage.trim(applied, config.tail_bytes);
        Node::start(&config, log, storage, applied)
    }

    fn start(config: &Config, log: L, storage: LogStorage, applied: u64) -> Result<Node<L>, RaftError> {
        let raft_config = raft::Config {
            id: config.id,
            election_tick: config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            applied,
            max_size_per_msg: MAX_MESSAGE_BYTES,
            max_inflight_msgs: MAX_INFLIGHT_MESSAGES,
            check_quorum: true,
            pre_vote: config.pre_vote,
            min_election_tick: config.election_ticks,
            // Raft draws its timeout from the thread's randomness. In this range it practically never hits one
            // that counts, so each draw of its own shows, and is replaced by one of ours.
            max_election_tick: usize::MAX,
            read_only_option: ReadOnlyOption::Safe,
            ..raft::Config::default()
        };
        let raw = RawNode::new(&raft_config, storage, &logger::logger())
            .map_err(|error| RaftError::Config(error.to_string()))?;
        let mut node = Node {
            raw,
            log,
            jitter: Jitter { state: config.seed, ticks: config.election_ticks },
            tail_bytes: config.tail_bytes,
            proposals: Vec::new(),
            proposal_bytes: 0,
            held_reads: Vec::new(),
            in_flight: VecDeque::new(),
            barrier: Ticket::default(),
            durable: Ticket::default(),
            campaign_due: false,
            waiting: (Ticket::default(), 0),
            full_ticks: 0,
            failed: None,
        };
        node.redraw();
        Ok(node)
    }

    /// Proposes a normal entry. It reaches the log with the next `poll`; there it may still get lost if leadership
    /// does, so the proposer waits for it with a time limit.
    ///
    /// # Errors
    /// `Dropped` when no leader is known.
    pub fn propose(&mut self, data: Bytes) -> Result<(), RaftError> {
        self.gather(Entry { data, ..Entry::default() })
    }

    /// Proposes a change of the group. While another one is in the log and not applied, raft writes an empty entry
    /// in its place: the proposer then waits in vain, as with etcd.
    ///
    /// # Errors
    /// `Dropped` when no leader is known.
    pub fn propose_conf_change(&mut self, change: raftpb::ConfChange) -> Result<(), RaftError> {
        self.gather(transcode::conf_change_entry(change.encode_to_vec().into()))
    }

    fn gather(&mut self, entry: Entry) -> Result<(), RaftError> {
        let raft = &self.raw.raft;
        // Exactly when raft itself would refuse; nothing can change in between, since whatever touches raft
        // hands the gathered proposals over first.
        let refused = match raft.state {
            StateRole::Leader => raft.lead_transferee.is_some() || raft.prs().get(raft.id).is_none(),
            StateRole::Follower => raft.leader_id == 0,
            StateRole::Candidate | StateRole::PreCandidate => true,
        };
        if refused {
            return Err(RaftError::Dropped);
        }
        self.proposal_bytes += storage::cost(&entry);
        self.proposals.push(entry);
        if self.proposal_bytes as u64 >= MAX_MESSAGE_BYTES {
            self.hand_over_proposals();
        }
        Ok(())
    }

    /// Gives raft the gathered proposals as one message: one round of append messages for all of them.
    pub(crate) fn hand_over_proposals(&mut self) {
        if self.proposals.is_empty() {
            return;
        }
        self.proposal_bytes = 0;
        let message = Message {
            msg_type: MessageType::MsgPropose,
            from: self.raw.raft.id,
            entries: std::mem::take(&mut self.proposals).into(),
            ..Message::default()
        };
        let result = self.raw.raft.step(message);
        debug_assert!(result.is_ok(), "raft refused proposals after it was asked: {result:?}");
    }

    /// Asks for a read point; the context comes back in `Output::reads`. On a leader without a commit in its term
    /// it waits for that. It may get lost, as when no leader is known: ask again, with a context never used before
    /// by any member.
    pub fn read_index(&mut self, context: u64) {
        self.hand_over_proposals();
        let entry = Entry { data: Bytes::copy_from_slice(&context.to_be_bytes()), ..Entry::default() };
        let message = Message {
            msg_type: MessageType::MsgReadIndex,
            entries: vec![entry].into(),
            ..Message::default()
        };
        self.ask_read_index(message);
    }

    fn ask_read_index(&mut self, message: Message) {
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Leader && !raft.commit_to_current_term() {
            if self.held_reads.len() < MAX_HELD_READS {
                self.held_reads.push(message);
            }
            return;
        }
        // Raft has no error for it: without a leader it drops the question.
        let _ = raft.step(message);
    }

    fn release_held_reads(&mut self) {
        if self.held_reads.is_empty() {
            return;
        }
        if self.raw.raft.state != StateRole::Leader {
            self.held_reads.clear();
        } else if self.raw.raft.commit_to_current_term() {
            for message in std::mem::take(&mut self.held_reads) {
                self.ask_read_index(message);
            }
        }
    }

    /// One tick of the raft clock.
    pub fn tick(&mut self) {
        self.hand_over_proposals();
        self.watch_disk();
        // An only voter wins its election without a message that waits for the disk, and raft then insists that
        // all of its log is durable: until that is so, its clock stands. So it does while the disk hangs.
        if !self.alone_and_behind() && !self.disk_hangs() {
            self.raw.tick();
            self.redraw();
        }
        self.look_for_space();
    }

    /// A leader whose disk has not finished a batch for an election timeout steps down: it cannot apply what the others
    /// commit, and one of them can.
    fn watch_disk(&mut self) {
        let oldest = self.in_flight.front().map_or(self.durable, |batch| batch.ticket);
        if oldest <= self.durable {
            self.waiting = (oldest, 0);
        } else if oldest == self.waiting.0 {
            self.waiting.1 += 1;
        } else {
            self.waiting = (oldest, 1);
        }
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Leader && !raft.prs().is_singleton() && self.waiting.1 > self.jitter.ticks
        {
            log::warn!(
                "the disk has not finished a write of the log for an election timeout: another member is to lead"
            );
            let term = raft.term;
            raft.become_follower(term, 0);
            self.redraw();
        }
    }

    /// Whether a write of the log has been under way for longer than an election timeout.
    fn disk_hangs(&self) -> bool {
        self.waiting.1 > self.jitter.ticks && !self.raw.raft.prs().is_singleton()
    }

    /// Asks a full log once per election timeout to try again.
    fn look_for_space(&mut self) {
        if !self.log.is_full() {
            self.full_ticks = 0;
            return;
        }
        self.full_ticks += 1;
        if self.full_ticks >= self.jitter.ticks {
            self.full_ticks = 0;
            if let Err(error) = self.log.retry() {
                self.failed = Some(error.into());
            }
        }
    }

    /// Whether the log has no disk space to go on for long. Nothing is lost and nothing fails: what is proposed all
    /// the same waits, in memory, once the rest of the segment is used. It is over by itself when ticks find space.
    pub fn log_full(&self) -> bool {
        self.log.is_full()
    }

    /// Starts an election at once: a single voter need not wait for its timeout. Waits until everything that is
    /// committed has been applied, since among it may be a change of the group.
    ///
    /// # Errors
    /// None at present; a failed election is no error.
    pub fn campaign(&mut self) -> Result<(), RaftError> {
        self.hand_over_proposals();
        self.campaign_due = true;
        self.try_campaign();
        Ok(())
    }

    fn try_campaign(&mut self) {
        if !self.campaign_due {
            return;
        }
        let raft = &self.raw.raft;
        if raft.leader_id != 0 {
            self.campaign_due = false;
        } else if raft.promotable()
            && raft.raft_log.applied >= raft.raft_log.committed
            && !self.alone_and_behind()
        {
            self.campaign_due = false;
            let result = self.raw.campaign();
            debug_assert!(result.is_ok(), "raft refused to campaign: {result:?}");
            self.redraw();
        }
    }

    fn alone_and_behind(&self) -> bool {
        let raft = &self.raw.raft;
        raft.state != StateRole::Leader
            && raft.prs().is_singleton()
            && raft.raft_log.persisted < raft.raft_log.last_index()
    }

    /// Takes a peer's message.
    ///
    /// # Errors
    /// `Message` when no correct peer sends it, `Dropped` when it carries proposals and no leader is known. In
    /// both cases nothing happened.
    pub fn step(&mut self, message: raftpb::Message) -> Result<(), RaftError> {
        self.hand_over_proposals();
        let Some(message) = inbound::admit(&self.raw.raft, message)? else { return Ok(()) };
        if message.msg_type == MessageType::MsgReadIndex {
            self.ask_read_index(message);
            return Ok(());
        }
        let (from, kind) = (message.from, message.msg_type as i32);
        let result = self.raw.step(message);
        self.redraw();
        match result {
            // An answer of a member that is gone.
            Ok(()) | Err(raft::Error::StepPeerNotFound) => Ok(()),
            Err(raft::Error::ProposalDropped) => Err(RaftError::Dropped),
            Err(error) => Err(RaftError::Message { from, kind, reason: error.to_string() }),
        }
    }

    /// Something sent to that peer was dropped on the way: raft asks what it has before it goes on sending.
    pub fn report_unreachable(&mut self, id: u64) {
        self.hand_over_proposals();
        self.raw.report_unreachable(id);
    }

    /// A snapshot for that peer arrived, or did not.
    pub fn report_snapshot(&mut self, id: u64, delivered: bool) {
        self.hand_over_proposals();
        let status = if delivered { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raw.report_snapshot(id, status);
    }

    /// Hands the leadership of this member to another voter. Proposals are `Dropped` until that one leads, or an
    /// election timeout has passed. Nothing happens on a member that does not lead.
    pub fn transfer_leader(&mut self, to: u64) {
        self.hand_over_proposals();
        if self.raw.raft.state == StateRole::Leader {
            self.raw.transfer_leader(to);
        }
    }

    /// Index of the last entry that each member is known to have, by id; empty unless this member leads.
    pub fn progress(&self) -> Vec<(u64, u64)> {
        let raft = &self.raw.raft;
        if raft.state != StateRole::Leader {
            return Vec::new();
        }
        let mut progress: Vec<_> = raft.prs().iter().map(|(id, progress)| (*id, progress.matched)).collect();
        progress.sort_unstable();
        progress
    }

    /// Runs the ready loop as far as it goes without waiting for the disk. Whether anything came out. It ends early with
    /// a snapshot, which has to be dealt with before anything else: see `Output::snapshot`.
    ///
    /// # Errors
    /// Any error ends the member: the log failed, or the group agreed on something that cannot be applied.
    pub fn poll(&mut self, out: &mut Output) -> Result<bool, RaftError> {
        let before = out.count();
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        loop {
            self.hand_over_proposals();
            self.try_campaign();
            self.release_held_reads();
            while self.raw.has_ready() {
                self.handle_ready(out)?;
                if out.snapshot.is_some() {
                    return Ok(true);
                }
            }
            self.durable = self.log.poll()?;
            if !self.confirm_durable(out) {
                break;
            }
        }
        Ok(out.count() > before)
    }

    fn handle_ready(&mut self, out: &mut Output) -> Result<(), RaftError> {
        let mut ready = self.raw.ready();
        if !ready.snapshot().is_empty() {
            self.take_snapshot(ready.snapshot().get_metadata(), out);
        }
        let hard_state = ready.hs().map(transcode::hard_state_out);
        if hard_state.is_some() || !ready.entries().is_empty() {
            let entries = ready.entries().iter().map(transcode::entry_ref);
            trilith_failpoint::hit("raftBeforeSave");
            let ticket = self.log.append(entries, hard_state.as_ref(), ready.must_sync());
            if ready.must_sync() {
                self.barrier = ticket;
            }
        }
        // Raft reads them from here on; it knows by itself that they are not persisted yet.
        let entries = ready.take_entries();
        self.raw.mut_store().append(entries);
        out.messages.extend(ready.take_messages().into_iter().map(transcode::message_out));
        let mut messages = ready.take_persisted_messages();
        messages.retain_mut(|message| {
            let waits = promises(message.msg_type);
            if !waits {
                out.messages.push(transcode::message_out(std::mem::take(message)));
            }
            waits
        });
        for read in ready.take_read_states() {
            match <[u8; 8]>::try_from(read.request_ctx.as_slice()) {
                Ok(context) => out.reads.push((u64::from_be_bytes(context), read.index)),
                Err(_) => log::warn!("a read point came back with a context that was never given"),
            }
        }
        out.committed.reserve(ready.committed_entries().len());
        for entry in ready.take_committed_entries() {
            out.committed.push(committed(entry)?);
        }
        self.in_flight.push_back(InFlight { number: ready.number(), ticket: self.barrier, messages });
        trilith_failpoint::hit("raftBeforeAdvance");
        self.raw.advance_append_async(ready);
        self.confirm_durable(out);
        Ok(())
    }

    /// Raft has taken a snapshot: the log goes on behind it.
    fn take_snapshot(&mut self, metadata: &SnapshotMetadata, out: &mut Output) {
        let said = transcode::metadata_out(metadata.clone());
        let mark =
            walpb::Snapshot { index: said.index, term: said.term, conf_state: said.conf_state.clone() };
        self.barrier = self.log.append_snapshot(&mark);
        let storage = self.raw.mut_store();
        storage.reset(metadata.index, metadata.term);
        storage.conf_state = metadata.get_conf_state().clone();
        out.snapshot = Some(said);
    }

    /// Tells raft which readies are durable and lets go what waited for them. Whether there were any.
    fn confirm_durable(&mut self, out: &mut Output) -> bool {
        let count = self.in_flight.iter().take_while(|ready| ready.ticket <= self.durable).count();
        let mut newest = None;
        for ready in self.in_flight.drain(..count) {
            newest = Some(ready.number);
            out.messages.extend(ready.messages.into_iter().map(transcode::message_out));
        }
        let Some(number) = newest else { return false };
        trilith_failpoint::hit("raftAfterSave");
        self.raw.on_persist_ready(number);
        true
    }

    /// Committed entries up to here have been applied.
    pub fn applied(&mut self, index: u64) {
        let log = &self.raw.raft.raft_log;
        assert!(
            log.applied <= index && index <= log.committed.min(log.persisted),
            "applied {index} is not in {}..={}, what was handed out",
            log.applied,
            log.committed.min(log.persisted)
        );
        self.raw.advance_apply_to(index);
        let leads = self.raw.raft.state == StateRole::Leader;
        let storage = self.raw.mut_store();
        storage.note_applied(index);
        storage.trim(index, self.tail_bytes);
        if !leads {
            storage.forget_fetched();
        }
    }

    /// Applies a committed conf change (or, `None`, a rejected one) to the group, and gives the configuration that
    /// follows. A change that raft cannot apply, such as the removal of the last voter, ends the member at the next
    /// `poll`.
    pub fn apply_conf_change(&mut self, change: Option<&raftpb::ConfChange>) -> raftpb::ConfState {
        self.hand_over_proposals();
        if let Some(change) = change.and_then(transcode::conf_change_in) {
            if let Err(error) = self.raw.apply_conf_change(&change) {
                self.failed = Some(RaftError::Config(error.to_string()));
            }
            let raft = &mut self.raw.raft;
            if raft.state == StateRole::Leader && raft.prs().get(raft.id).is_none() {
                // Raft would go on as a leader outside of its own group, and stop the process at the next sync.
                let term = raft.term;
                raft.become_follower(term, 0);
            }
            self.redraw();
        }
        let conf_state = self.raw.raft.prs().conf().to_conf_state();
        self.raw.mut_store().conf_state = conf_state.clone();
        transcode::conf_state_out(conf_state)
    }

    /// The store holds everything up to `index` durably (and the checkpoint before it everything up to
    /// `previous`): marks the snapshot in the log, releases segments up to `previous`, trims the tail in memory.
    ///
    /// # Errors
    /// `Wal` when a segment cannot be released.
    pub fn checkpointed(
        &mut self,
        index: u64,
        term: u64,
        conf_state: raftpb::ConfState,
        previous: u64,
    ) -> Result<(), RaftError> {
        let applied = self.raw.raft.raft_log.applied;
        assert!(
            previous <= index && index <= applied,
            "checkpoint {previous}..={index} with {applied} applied"
        );
        let mark = walpb::Snapshot { index: Some(index), term: Some(term), conf_state: Some(conf_state) };
        self.log.append_snapshot(&mark);
        self.log.release_to(previous)?;
        self.raw.mut_store().trim(index, self.tail_bytes);
        Ok(())
    }

    /// Where raft stands.
    pub fn status(&self) -> Status {
        let raft = &self.raw.raft;
        Status {
            term: raft.term,
            leader: raft.leader_id,
            is_leader: raft.state == StateRole::Leader,
            commit: raft.raft_log.committed,
            applied: raft.raft_log.applied,
            last: raft.raft_log.last_index(),
        }
    }

    /// Readable when `poll` should be called because of the disk. None when `poll` itself brings completions.
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.log.event_fd()
    }

    /// Blocks until all that was appended is durable. What that sets free comes with the next `poll`.
    ///
    /// # Errors
    /// `Wal` when the log fails.
    pub fn flush(&mut self) -> Result<(), RaftError> {
        self.log.flush()?;
        Ok(())
    }

    /// Replaces an election timeout that raft drew itself.
    pub(crate) fn redraw(&mut self) {
        let raft = &mut self.raw.raft;
        if raft.randomized_election_timeout() >= 2 * self.jitter.ticks {
            raft.set_randomized_election_timeout(self.jitter.draw());
        }
    }
}

impl<L: Log> fmt::Debug for Node<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("id", &self.raw.raft.id)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

/// Whether a follower's or candidate's message of this type says something about its log or vote that must survive
/// a crash. The others only answer a question of the moment or pass one on.
fn promises(kind: MessageType) -> bool {
    !matches!(
        kind,
        MessageType::MsgHeartbeatResponse
            | MessageType::MsgPropose
            | MessageType::MsgReadIndex
            | MessageType::MsgTransferLeader
    )
}

fn committed(entry: Entry) -> Result<Committed, RaftError> {
    let (index, term) = (entry.index, entry.term);
    let body = match entry.entry_type {
        EntryType::EntryNormal => Body::Normal(entry.data),
        EntryType::EntryConfChange => Body::ConfChange(
            transcode::conf_change(transcode::payload(&entry))
                .map_err(|reason| RaftError::Entry { index, reason })?,
        ),
        EntryType::EntryConfChangeV2 => {
            return Err(RaftError::Entry { index, reason: "its type is not in use".to_owned() });
        }
    };
    Ok(Committed { index, term, body })
}

/// Election timeouts of [ticks, 2 * ticks), from a seed.
struct Jitter {
    state: u64,
    ticks: usize,
}

impl Jitter {
    /// SplitMix64.
    fn draw(&mut self) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.state;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        self.ticks + (x % self.ticks as u64) as usize
    }
}

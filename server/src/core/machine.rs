//! The steppable core.
//!
//! `step(now)` takes in what came, drives raft as far as it goes without waiting for the disk, applies what was
//! committed as one batch, publishes the root (once for each 4 MiB of it), hands the changes to the hub and only then
//! answers. It never blocks, never reads a clock and never draws a random number.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use trilith_engine::{Change, CheckpointDone, CheckpointJob, Store, StoreError};
use trilith_proto::{etcdserverpb as pb, membershippb, raftpb};
use trilith_raft::{Body, Committed, Node, Output, RaftError};
use trilith_wal::WalError;

use super::alarm::Raising;
use super::auto_compaction::AutoCompaction;
use super::compaction::Compaction;
use super::install::Installing;
use super::log_cut::LogCut;
use super::peers::{Outgoing, Transfers};
use super::pressure::Pressure;
use super::reads::Reads;
use super::scrub::Scrubbing;
use super::shared::{Facts, Inbox, Shared};
use super::shrink::Shrinking;
use super::version::ClusterVersion;
use super::waiters::{Waiter, Waiters};
use super::{Config, Fatal, LeaseAsked};
use crate::apply::alarm::Alarms;
use crate::apply::command::{self, Command};
use crate::apply::conf_change::conf_change;
use crate::apply::{self, Answer, Applied, ApplyError, Context, members, quota};
use crate::lease;
use crate::reply::Reply;
use crate::status::{self, Status};

/// How often time-outs are looked for and the shared time moves on, at least.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_millis(100);
/// So many bytes of entries are applied and then published: what was held for them is let go before more is taken.
const PART_BYTES: usize = 4 << 20;
/// L4: revocations of expired leases under way at a time.
const REVOKES_MAX: usize = 16;

/// G5: election timeouts without a leader after which streams that insist on one end.
const LOST_AFTER: u32 = 3;

/// Something that every member does once, through the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Announcement {
    Needed,
    UnderWay,
    Done,
}

/// What waits to be proposed.
#[derive(Debug)]
enum Proposed {
    Request(Bytes),
    ConfChange(raftpb::ConfChange),
}

/// What the core knows of who leads.
#[derive(Debug)]
struct Leadership {
    /// 0 for nobody.
    leader: u64,
    /// When the last leader was first seen; None before the first.
    elected: Option<Duration>,
    /// Since when none is known; None when one is.
    lost: Option<Duration>,
    /// The term in which this member, leading, applied its first entry; 0 when it does not lead.
    primary_term: u64,
    campaigned: bool,
}

/// The state of the running checkpoint, and of what the next one will hold.
#[derive(Debug)]
pub(super) struct Checkpoints {
    /// The conf state as of the running one.
    running: Option<raftpb::ConfState>,
    pub(super) began: Duration,
    /// Bytes of entries applied since the last one began, and how many.
    log_bytes: u64,
    log_entries: u64,
    changed: bool,
}

impl Checkpoints {
    /// Another store has taken the place of the one that was written, and is durable.
    pub(super) fn restart(&mut self) {
        (self.running, self.log_bytes, self.log_entries, self.changed) = (None, 0, 0, false);
    }

    /// Whether as much was applied since as a start may have to replay.
    fn log_is_long(&self, config: &Config) -> bool {
        let (bytes, enough) = (self.log_bytes, config.checkpoint_log_bytes);
        bytes >= 2 * enough || bytes >= enough && self.log_entries >= config.checkpoint_log_entries
    }
}

/// The core. Owned by one task.
#[derive(Debug)]
pub struct Core {
    pub(super) node: Node,
    pub(super) store: Store,
    pub(super) shared: Arc<Shared>,
    pub(super) config: Config,
    pub(super) member_id: u64,
    pub(super) conf_state: raftpb::ConfState,
    waiters: Waiters,
    reads: Reads,
    /// Proposals that raft has not taken yet, since nobody leads.
    backlog: VecDeque<(u64, Proposed)>,
    leadership: Leadership,
    publication: Announcement,
    pub(super) version: ClusterVersion,
    revokes_under_way: usize,
    pub(super) alarms: Alarms,
    pub(super) raising: Raising,
    pub(super) checkpoints: Checkpoints,
    pub(super) pressure: Pressure,
    pub(super) scrubbing: Scrubbing,
    pub(super) shrinking: Shrinking,
    pub(super) compaction: Compaction,
    pub(super) auto_compaction: AutoCompaction,
    pub(super) transfers: Transfers,
    pub(super) outgoing: Outgoing,
    /// Calls for the leader.
    pub(super) lease_calls: Vec<LeaseAsked>,
    pub(super) installing: Installing,
    pub(super) cut: LogCut,
    /// When to end, since this member was removed.
    pub(super) ends_at: Option<Duration>,
    /// When the next message of a peer that makes no sense is worth a warning.
    pub(super) complains_at: Duration,
    pub(super) now: Duration,
    tick_at: Duration,
    housekeeping_at: Duration,
    lease_scan_at: Duration,
    // Buffers that keep their memory from step to step.
    pub(super) out: Output,
    inbox: Inbox,
    changes: Vec<Change>,
    pub(super) answers: Vec<(oneshot::Sender<Answer>, Answer)>,
}

impl Core {
    pub(super) fn new(
        node: Node,
        store: Store,
        shared: Arc<Shared>,
        config: Config,
        member_id: u64,
    ) -> Result<Core, Fatal> {
        let conf_state = members::conf_state(store.view())?;
        let version = ClusterVersion::new(store.view())?;
        let alarms = Alarms::restore(store.view())?;
        let auto_compaction = AutoCompaction::new(config.retention);
        let mut core = Core {
            node,
            store,
            shared,
            config,
            member_id,
            conf_state,
            waiters: Waiters::default(),
            reads: Reads::default(),
            backlog: VecDeque::new(),
            leadership: Leadership {
                leader: 0,
                elected: None,
                lost: None,
                primary_term: 0,
                campaigned: false,
            },
            publication: Announcement::Needed,
            version,
            revokes_under_way: 0,
            alarms,
            raising: Raising::default(),
            checkpoints: Checkpoints {
                running: None,
                began: Duration::ZERO,
                log_bytes: 0,
                log_entries: 0,
                changed: false,
            },
            pressure: Pressure::default(),
            scrubbing: Scrubbing::default(),
            shrinking: Shrinking::default(),
            compaction: Compaction::new(),
            auto_compaction,
            transfers: Transfers::default(),
            outgoing: Outgoing::default(),
            lease_calls: Vec::new(),
            installing: Installing::default(),
            cut: LogCut::default(),
            ends_at: None,
            complains_at: Duration::ZERO,
            now: Duration::ZERO,
            tick_at: Duration::ZERO,
            housekeeping_at: Duration::ZERO,
            lease_scan_at: Duration::ZERO,
            out: Output::default(),
            inbox: Inbox::default(),
            changes: Vec::new(),
            answers: Vec::new(),
        };
        core.members_changed()?;
        core.publish_facts();
        Ok(core)
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Readable when `step` should be called because of the log; None when steps themselves do the writing.
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.node.event_fd()
    }

    /// When `step` should be called at the latest.
    pub fn deadline(&self) -> Duration {
        let due = self.tick_at.min(self.housekeeping_at);
        let due = self.shrink_deadline().map_or(due, |step| due.min(step));
        self.compaction.deadline().map_or(due, |removal| due.min(removal))
    }

    /// Does what can be done without waiting. `now` never goes back.
    pub fn step(&mut self, now: Duration) -> Result<(), Fatal> {
        self.now = now;
        self.shared.set_now(now);
        self.take_inbox()?;
        self.keep_time();
        self.hand_out_lease_calls();
        self.watch_space();
        self.watch_damage();
        loop {
            self.ask_for_reads();
            self.propose_backlog()?;
            let mut progressed = self.node.poll(&mut self.out)?;
            self.pair_snapshots()?;
            self.apply_committed()?;
            self.follow_leadership()?;
            self.follow_transfers();
            self.let_readers_through();
            progressed |= self.campaign_alone()? | self.announce()? | self.revoke_expired();
            progressed |= self.propose_alarms();
            progressed |= self.offer_made()?;
            if !self.out.messages.is_empty() {
                let leads = self.node.status().is_leader;
                trilith_failpoint::hit(if leads { "raftBeforeLeaderSend" } else { "raftBeforeFollowerSend" });
            }
            self.outgoing.messages.append(&mut self.out.messages);
            if !progressed {
                break;
            }
        }
        self.shrink()?;
        self.publish_facts();
        Ok(())
    }

    fn take_inbox(&mut self) -> Result<(), Fatal> {
        let mut inbox = std::mem::take(&mut self.inbox);
        self.shared.take(&mut inbox);
        self.take_defragments(&mut inbox.defragments);
        for event in inbox.peers.drain(..) {
            self.take_peer_event(event)?;
        }
        for proposal in inbox.proposals.drain(..) {
            self.waiters.add(proposal.id, proposal.started, Waiter::Call(proposal.answer));
            self.backlog.push_back((proposal.id, Proposed::Request(proposal.data)));
        }
        for proposal in inbox.conf_changes.drain(..) {
            self.waiters.add(proposal.id, proposal.started, Waiter::Call(proposal.answer));
            self.backlog.push_back((proposal.id, Proposed::ConfChange(proposal.change)));
        }
        for transfer in inbox.transfers.drain(..) {
            self.begin_transfer(transfer);
        }
        self.lease_calls.append(&mut inbox.leases);
        self.reads.gather(&mut inbox.reads);
        self.inbox = inbox;
        Ok(())
    }

    fn keep_time(&mut self) {
        if self.now >= self.tick_at {
            self.node.tick();
            self.tick_at = self.now + self.config.heartbeat;
        }
        if self.now >= self.housekeeping_at {
            self.return_lease_calls();
            self.watch_leader();
            self.housekeeping_at = self.now + HOUSEKEEPING_INTERVAL;
            let node = &mut self.node;
            self.reads.retry(self.now, |context| node.read_index(context));
            if let Some(until) = self.now.checked_sub(self.config.request_timeout()) {
                self.expire_waiters(until);
                self.reads.expire(until);
            }
            self.compact_by_itself();
        }
        if self.leadership.primary_term != 0 && self.now >= self.lease_scan_at {
            self.lease_scan_at = self.now + lease::SCAN_INTERVAL;
            self.shared.lessor().scan(self.now);
            self.checkpoint_leases();
        }
    }

    /// G5.
    fn watch_leader(&mut self) {
        let lost = *self.leadership.lost.get_or_insert(self.now);
        if self.has_leader() {
            self.leadership.lost = None;
        }
        self.shared
            .set_leaderless(!self.has_leader() && self.now >= lost + LOST_AFTER * self.config.election);
    }

    fn expire_waiters(&mut self, until: Duration) {
        for (started, waiter) in self.waiters.take_older(until) {
            let status = self.timeout_status(started);
            self.settle(waiter, Err(status));
        }
    }

    /// Z4.
    fn timeout_status(&self, started: Duration) -> Status {
        let elected = self.leadership.elected.unwrap_or_default();
        let lost = elected.saturating_sub(2 * self.config.election);
        if started > lost && started < elected { status::TIMEOUT_LEADER_FAIL } else { status::TIMEOUT }
    }

    /// What a waiter's answer means: to itself, or to the core that waited.
    pub(super) fn settle(&mut self, waiter: Waiter, answer: Answer) {
        let next = if answer.is_ok() { Announcement::Done } else { Announcement::Needed };
        match waiter {
            Waiter::Call(sender) => self.answers.push((sender, answer)),
            Waiter::Alarm(alarm) => self.alarm_proposed(alarm, next),
            Waiter::AutoCompaction(revision) => self.compacted_by_itself(revision, &answer),
            Waiter::Publish => self.publication = next,
            Waiter::ClusterVersion => self.version.settled(),
            Waiter::Revoke(lease) => {
                self.revokes_under_way -= 1;
                if answer.is_err() {
                    self.shared.lessor().revoke_failed(lease);
                }
            }
            // The next one comes anyway.
            Waiter::LeaseCheckpoint => {}
        }
    }

    pub(super) fn send_answers(&mut self) {
        for (sender, answer) in self.answers.drain(..) {
            // Whoever has gone away meanwhile does not mind.
            let _ = sender.send(answer);
        }
    }

    /// Proposes something of the core's own.
    pub(super) fn propose_own(&mut self, waiter: Waiter, command: &Command) {
        let id = self.shared.next_request_id();
        self.waiters.add(id, self.now, waiter);
        self.backlog.push_back((id, Proposed::Request(command::encode(id, command))));
    }

    /// Whether this member leads, and has applied the first entry of its term.
    pub(super) fn is_primary(&self) -> bool {
        self.leadership.primary_term != 0
    }

    pub(super) fn has_leader(&self) -> bool {
        self.node.status().leader != 0
    }

    /// Z5: without a leader proposals wait here until their time is up.
    fn propose_backlog(&mut self) -> Result<(), Fatal> {
        if self.backlog.is_empty() || self.node.status().leader == 0 || self.holds_back() {
            return Ok(());
        }
        for (id, proposed) in std::mem::take(&mut self.backlog) {
            if !self.waiters.contains(id) {
                continue;
            }
            let taken = match proposed {
                Proposed::Request(data) => self.node.propose(data),
                Proposed::ConfChange(change) => self.node.propose_conf_change(change),
            };
            match taken {
                Ok(()) => {}
                Err(RaftError::Dropped) => {
                    if let Some(waiter) = self.waiters.take(id) {
                        self.settle(waiter, Err(status::PROPOSAL_DROPPED));
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.send_answers();
        Ok(())
    }

    fn ask_for_reads(&mut self) {
        if self.node.status().leader == 0 {
            return;
        }
        let shared = &self.shared;
        if let Some(context) = self.reads.begin(self.now, || shared.next_request_id()) {
            self.node.read_index(context);
        }
    }

    fn let_readers_through(&mut self) {
        for (context, index) in self.out.reads.drain(..) {
            self.reads.confirm(context, index);
        }
        self.reads.release(self.store.applied().0);
    }

    /// Applies what was committed, publishes it, in parts if it is much (as after a start), and then answers.
    fn apply_committed(&mut self) -> Result<(), Fatal> {
        let (mut last, mut bytes) = (None, 0);
        let mut committed = std::mem::take(&mut self.out.committed);
        for entry in committed.drain(..) {
            let (applied, _) = self.store.applied();
            let (index, term) = (entry.index, entry.term);
            if index <= applied {
                continue;
            }
            if let Body::Normal(data) = &entry.body {
                bytes += data.len();
            }
            self.apply_entry(entry, applied).map_err(|error| Fatal::Entry { index, term, error })?;
            self.store.set_applied(index, term);
            last = Some(index);
            if bytes >= PART_BYTES {
                (last, bytes) = (None, 0);
                self.publish_applied(index);
            }
        }
        self.out.committed = committed;
        if let Some(index) = last {
            self.publish_applied(index);
        }
        self.send_answers();
        Ok(())
    }

    /// Everything up to an entry is applied: readers may see it, and what was held for it may go.
    fn publish_applied(&mut self, index: u64) {
        self.node.applied(index);
        self.cut_log(index);
        self.checkpoints.changed = true;
        trilith_failpoint::hit("beforeWritebackBuf");
        self.store.publish();
        trilith_failpoint::hit("afterWritebackBuf");
        self.publish_facts();
        if !self.changes.is_empty() {
            self.shared.hub().publish(std::mem::take(&mut self.changes));
        }
        trilith_failpoint::hit("trilithBeforeAnswers");
    }

    fn apply_entry(&mut self, entry: Committed, applied: u64) -> Result<(), ApplyError> {
        if entry.index != applied + 1 {
            return Err(ApplyError::Broken(format!("the entry before it that was applied is {applied}")));
        }
        match entry.body {
            // A leader's first entry.
            Body::Normal(data) if data.is_empty() => Ok(()),
            Body::Normal(data) => {
                trilith_failpoint::hit("beforeApplyOneEntryNormal");
                self.apply_request(data, entry.term)
            }
            Body::ConfChange(change) => {
                trilith_failpoint::hit("beforeApplyOneConfChange");
                self.apply_conf_change(&change)
            }
        }
    }

    fn apply_request(&mut self, data: Bytes, term: u64) -> Result<(), ApplyError> {
        self.checkpoints.log_bytes += data.len() as u64;
        self.checkpoints.log_entries += 1;
        let request = command::decode(data)?;
        let Some(command) = request.command else { return Ok(()) };
        let waiter = self.waiters.take(request.id);
        let mut context = Context {
            header: self.shared.header(0, term),
            now: self.now,
            wanted: waiter.as_ref().is_some_and(Waiter::is_wanted),
            lessor: self.shared.lessor_cell(),
            alarms: &mut self.alarms,
            quota: self.config.quota,
            keeps_checkpoints: self.config.lease_checkpoint_persist,
            changes: &mut self.changes,
        };
        let compacts = matches!(command, Command::Compaction(_));
        let sets_version = matches!(command, Command::ClusterVersionSet(_) | Command::DowngradeInfoSet(_));
        if compacts {
            trilith_failpoint::hit("compactBeforeCommitScheduledCompact");
        }
        let applied = apply::apply(&mut self.store, command, &mut context)?;
        if compacts {
            trilith_failpoint::hit("compactAfterCommitScheduledCompact");
            self.compaction.want();
        }
        if sets_version {
            self.version_changed()?;
        }
        match (applied, waiter) {
            (Applied::AfterCompaction(answer), Some(Waiter::Call(sender))) => {
                let revision = self.store.view().compact_revision();
                self.compaction.answer_after(revision, sender, answer);
            }
            (Applied::OverQuota, waiter) => self.over_quota(waiter),
            (Applied::Done(answer) | Applied::AfterCompaction(answer), Some(waiter)) => {
                self.settle(waiter, answer);
            }
            (_, None) => {}
        }
        Ok(())
    }

    /// M11: a rejected change still goes to raft, as none.
    fn apply_conf_change(&mut self, change: &raftpb::ConfChange) -> Result<(), ApplyError> {
        let outcome = conf_change(&mut self.store, change, self.config.max_learners)?;
        self.conf_state = self.node.apply_conf_change(outcome.is_ok().then_some(change));
        members::put_conf_state(&mut self.store, &self.conf_state)?;
        if outcome.is_ok() {
            self.members_changed()?;
        }
        if let Some(waiter) = change.id.and_then(|id| self.waiters.take(id)) {
            self.settle(waiter, outcome.map(|()| Reply::of(&pb::EmptyResponse {})));
        }
        Ok(())
    }

    fn follow_leadership(&mut self) -> Result<(), Fatal> {
        let status = self.node.status();
        if status.leader != self.leadership.leader {
            self.leadership.leader = status.leader;
            if status.leader != 0 {
                if self.leadership.elected.replace(self.now).is_some() {
                    self.reads.leader_changed();
                }
                log::info!(leader:% = format!("{:x}", status.leader), term = status.term; "a leader is known");
            }
        }
        let (_, applied_term) = self.store.applied();
        let primary = status.is_leader && applied_term == status.term;
        if primary && self.leadership.primary_term != status.term {
            self.leadership.primary_term = status.term;
            self.look_for_version();
            self.shared.lessor().promote(self.now, self.config.election);
        } else if !status.is_leader && self.leadership.primary_term != 0 {
            self.leadership.primary_term = 0;
            self.shared.lessor().demote();
        }
        Ok(())
    }

    pub(super) fn is_lone_voter(&self) -> bool {
        self.conf_state.voters == [self.member_id] && self.conf_state.voters_outgoing.is_empty()
    }

    /// A lone voter need not wait for its election timeout. Whether it began an election.
    fn campaign_alone(&mut self) -> Result<bool, Fatal> {
        let status = self.node.status();
        let ready = status.leader == 0 && status.commit == self.store.applied().0;
        if self.leadership.campaigned || !ready || !self.is_lone_voter() {
            return Ok(false);
        }
        self.leadership.campaigned = true;
        self.node.campaign()?;
        Ok(true)
    }

    /// Publishes the member's name and URLs; as leader, looks after the cluster's version. Whether it proposed.
    fn announce(&mut self) -> Result<bool, Fatal> {
        let mut proposed = false;
        if self.publication == Announcement::Needed && self.leadership.leader != 0 {
            trilith_failpoint::hit("beforePublishing");
            self.publication = Announcement::UnderWay;
            let attributes = membershippb::Attributes {
                name: self.config.name.clone(),
                client_urls: self.config.client_urls.clone(),
            };
            let request = membershippb::ClusterMemberAttrSetRequest {
                member_id: self.member_id,
                member_attributes: Some(attributes),
            };
            self.propose_own(Waiter::Publish, &Command::ClusterMemberAttrSet(request));
            proposed = true;
        }
        proposed |= self.keep_version();
        if self.publication == Announcement::Done && self.version.is_known() {
            self.shared.set_ready();
        }
        Ok(proposed)
    }

    /// Whether it proposed.
    fn revoke_expired(&mut self) -> bool {
        let mut proposed = false;
        while self.revokes_under_way < REVOKES_MAX
            && self.leadership.primary_term != 0
            && !self.node.log_full()
        {
            let Some(id) = self.shared.lessor().next_due() else { break };
            self.revokes_under_way += 1;
            self.propose_own(Waiter::Revoke(id), &Command::LeaseRevoke(pb::LeaseRevokeRequest { id }));
            proposed = true;
        }
        proposed
    }

    /// Something changed in the store that is in no checkpoint yet.
    pub(super) fn note_store_changed(&mut self) {
        self.checkpoints.changed = true;
    }

    /// Whether a job is under way that works on the store's file.
    pub(super) fn works_on_store(&self) -> bool {
        self.checkpoints.running.is_some() || self.shrinking.scanning || self.compaction.is_searching()
    }

    pub(super) fn publish_facts(&self) {
        let status = self.node.status();
        let (applied, applied_term) = self.store.applied();
        let facts = Facts {
            leader: status.leader,
            term: status.term,
            commit: status.commit,
            applied,
            applied_term,
            db_size: quota::db_size(&self.store),
            db_size_in_use: quota::db_size_in_use(&self.store),
            no_space: self.alarms.is_raised_by(self.member_id, pb::AlarmType::Nospace),
            is_learner: self.conf_state.learners.contains(&self.member_id),
            ..Facts::default()
        };
        let alone = self.is_lone_voter();
        let reads_are_local = status.is_leader && applied_term == status.term && alone;
        if !alone || !self.conf_state.learners.is_empty() {
            self.shared.set_progress(self.node.progress());
        }
        self.shared.publish_facts(&facts, reads_are_local);
    }

    /// A checkpoint to run on a thread that may block, if one is due and none is running. Its outcome comes back
    /// by `checkpoint_finished`.
    pub fn begin_checkpoint(&mut self) -> Option<CheckpointJob> {
        let state = &self.checkpoints;
        let aged = self.now >= state.began + self.config.checkpoint_interval;
        let due = state.log_is_long(&self.config) || (aged && state.changed);
        let due = due || self.shrink_wants_checkpoint(state.began);
        let due =
            self.retries_checkpoint().unwrap_or(due || self.store.checkpoint_due() || self.log_needs_room());
        if state.running.is_some() || !due || self.awaits_install() {
            return None;
        }
        self.begin_checkpoint_now()
    }

    /// A checkpoint of whatever is not in one yet.
    pub fn begin_last_checkpoint(&mut self) -> Option<CheckpointJob> {
        if self.checkpoints.changed { self.begin_checkpoint_now() } else { None }
    }

    fn begin_checkpoint_now(&mut self) -> Option<CheckpointJob> {
        let job = self.store.begin_checkpoint()?;
        self.checkpoints = Checkpoints {
            running: Some(self.conf_state.clone()),
            began: self.now,
            log_bytes: 0,
            log_entries: 0,
            changed: false,
        };
        Some(job)
    }

    /// Takes note of a durable checkpoint, or of one that found no room. The log keeps what the checkpoint before it needs, and the entry before
    /// that: a start looks for the last applied entry.
    pub fn checkpoint_finished(&mut self, outcome: Result<CheckpointDone, StoreError>) -> Result<(), Fatal> {
        let running = self.checkpoints.running.take();
        let info = match self.store.finish_checkpoint(outcome?) {
            Err(error) if error.is_no_space() => {
                self.checkpoints.changed = true;
                self.store_is_full(&error);
                return Ok(());
            }
            outcome => outcome?,
        };
        self.store_has_room();
        if let Some(conf_state) = running
            && info.applied_index > 0
        {
            let release = self.log_needed(info.previous_applied_index.saturating_sub(1));
            self.node.checkpointed(info.applied_index, info.applied_term, conf_state, release)?;
        }
        Ok(())
    }

    /// Takes nothing in any more; what was taken in becomes durable and is answered. Where the log finds no room, the
    /// rest is not, and whoever waits for it hears nothing: it was never acknowledged.
    pub fn close(&mut self, now: Duration) -> Result<(), Fatal> {
        self.shared.close();
        self.step(now)?;
        self.flush()?;
        self.step(now)
    }

    /// Waits until the log is durable, as far as there is room for it: an end on a full disk is an end in order.
    pub fn flush(&mut self) -> Result<(), Fatal> {
        match self.node.flush() {
            Err(RaftError::Wal(error @ WalError::Full { .. })) => {
                log::warn!(error:% = error; "the end of the log is not written");
                Ok(())
            }
            flushed => Ok(flushed?),
        }
    }
}

impl Drop for Core {
    /// Whoever waits hears that nobody will answer, and nobody comes in after that.
    fn drop(&mut self) {
        self.shared.close();
        self.shared.take(&mut self.inbox);
    }
}

#[cfg(test)]
mod tests {
    use trilith_disk::sim::SimDisk;

    use super::*;

    #[test]
    fn i3_an_entry_that_is_not_understood_ends_the_member_by_name() {
        for (data, named) in [(&[0xe2, 0xea, 0x04, 0x00][..], "[9900]"), (&[0x22, 0x7f], "does not decode")] {
            let disk = SimDisk::new();
            let config = Config { map: false, ..Config::new("data".into(), Arc::new(disk)) };
            let (mut core, handle) = Core::open(config).unwrap();
            core.step(Duration::ZERO).unwrap();
            let applied = handle.facts().applied;
            core.waiters.add(1, Duration::ZERO, Waiter::Publish);
            core.backlog.push_back((1, Proposed::Request(Bytes::copy_from_slice(data))));
            let error = core.step(Duration::ZERO).unwrap_err().to_string();
            assert!(
                error.contains(&format!("log entry {}", applied + 1)) && error.contains(named),
                "{error}"
            );
            assert_eq!(handle.root().applied().0, applied, "nothing of it is published");
        }
    }
}

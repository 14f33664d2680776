//! What the core shares with every other task: the inbox, the published facts, the lessor, the hub.
//!
//! Nothing here waits for the core: the inbox and the lessor stand behind locks that are held for a few
//! instructions. Waking the core costs one flag when it is awake already.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, oneshot, watch};
use trilith_engine::{Reader, Root};
use trilith_proto::etcdserverpb::ResponseHeader;
use trilith_proto::raftpb;

use super::Config;
use super::lease_call::LeaseAsked;
use super::pressure::takes_space;
use crate::apply::Answer;
use crate::apply::command::{self, Command};
use crate::apply::quota::Quota;
use crate::lease::{Lessor, Renewal};
use crate::reply::Reply;
use crate::status::{self, Status};
use crate::watch::Hub;

/// Z2: committed entries that may wait to be applied.
const APPLY_GAP_MAX: u64 = 5000;

/// The published facts of the member, readable at any time without a lock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Facts {
    /// Id of the cluster.
    pub cluster_id: u64,
    /// Id of this member.
    pub member_id: u64,
    /// Id of the leader; 0 when none is known.
    pub leader: u64,
    /// Live raft term.
    pub term: u64,
    /// Index of the last committed entry.
    pub commit: u64,
    /// Index of the last applied entry.
    pub applied: u64,
    /// Term of the last applied entry: what response headers carry.
    pub applied_term: u64,
    /// Length of the store's file up to its last page, with what the next checkpoint will add, in bytes.
    pub db_size: u64,
    /// The same without free pages.
    pub db_size_in_use: u64,
    /// This member has raised NOSPACE.
    pub no_space: bool,
    /// This member has no vote.
    pub is_learner: bool,
}

#[derive(Debug, Default)]
struct FactCells {
    leader: AtomicU64,
    term: AtomicU64,
    commit: AtomicU64,
    applied: AtomicU64,
    applied_term: AtomicU64,
    db_size: AtomicU64,
    db_size_in_use: AtomicU64,
    no_space: AtomicBool,
    is_learner: AtomicBool,
}

/// A proposal on its way to the core.
#[derive(Debug)]
pub(super) struct Proposal {
    pub(super) id: u64,
    pub(super) data: Bytes,
    pub(super) started: Duration,
    pub(super) answer: oneshot::Sender<Answer>,
}

/// Somebody who waits for a read point.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) started: Duration,
    pub(super) answer: oneshot::Sender<Result<(), Status>>,
}

/// A change of the group on its way to the core, which gives it its id.
#[derive(Debug)]
pub(super) struct ConfProposal {
    pub(super) id: u64,
    pub(super) change: raftpb::ConfChange,
    pub(super) started: Duration,
    pub(super) answer: oneshot::Sender<Answer>,
}

/// Somebody wants another member to lead.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) to: u64,
    pub(super) started: Duration,
    pub(super) answer: oneshot::Sender<Result<(), Status>>,
}

/// What came in since the core last looked.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    pub(super) proposals: Vec<Proposal>,
    pub(super) conf_changes: Vec<ConfProposal>,
    pub(super) reads: Vec<Reading>,
    /// Those who want the store's file made shorter.
    pub(super) defragments: Vec<oneshot::Sender<()>>,
    pub(super) transfers: Vec<Transfer>,
    pub(super) peers: Vec<PeerEvent>,
    /// For the leader.
    pub(super) leases: Vec<LeaseAsked>,
    /// How many of `peers` carry proposals: they have a limit of their own.
    peer_proposals: usize,
    /// The core was woken for what is here.
    woken: bool,
    closed: bool,
}

/// What the transport tells the core.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "nearly all are messages")]
pub enum PeerEvent {
    /// A peer's message. A MsgSnap comes when its database is stored beside the store.
    Message(raftpb::Message),
    /// Something for this member was dropped on the way.
    Unreachable(u64),
    /// A snapshot was sent, or could not be.
    SnapshotSent {
        /// The member that it was for.
        to: u64,
        /// Whether that member has it.
        delivered: bool,
    },
    /// The lowest server version of all members, `X.Y.Z`; None when one of them could not be asked.
    Versions {
        /// Of this one, too.
        lowest: Option<String>,
    },
    /// A peer says that this member was removed.
    ToldRemoved,
}

/// The queue of what peers say is full: this was dropped, and its sender says it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the queue of peers' messages is full")]
pub struct Overflow;

/// S6: how many of peers' messages with proposals, and how many others, wait at most.
const PEER_EVENTS_MAX: usize = 4096;

#[derive(Debug)]
pub(super) struct Shared {
    cluster_id: u64,
    member_id: u64,
    max_request_bytes: usize,
    max_txn_ops: usize,
    strict_reconfig_check: bool,
    /// When the core began, in milliseconds since 1970.
    unix_ms: u64,
    quota: Quota,
    request_timeout: Duration,
    inbox: Mutex<Inbox>,
    wake: Notify,
    facts: FactCells,
    /// How far the members are, as this one knows when it leads.
    progress: Mutex<Vec<(u64, u64)>>,
    /// This member is the only voter, leads, and has applied the first entry of its term.
    reads_are_local: AtomicBool,
    /// The disk has no room for more.
    disk_full: AtomicBool,
    now_nanos: AtomicU64,
    last_request_id: AtomicU64,
    reader: Reader,
    lessor: Mutex<Lessor>,
    hub: Arc<Hub>,
    ready: watch::Sender<bool>,
    /// No leader has been known for a while.
    leaderless: watch::Sender<bool>,
}

impl Shared {
    pub(super) fn new(
        config: &Config,
        member_id: u64,
        cluster_id: u64,
        reader: Reader,
        lessor: Lessor,
    ) -> Shared {
        Shared {
            cluster_id,
            member_id,
            max_request_bytes: config.max_request_bytes,
            max_txn_ops: config.max_txn_ops,
            strict_reconfig_check: config.strict_reconfig_check,
            unix_ms: config.unix_ms,
            quota: config.quota,
            request_timeout: config.request_timeout(),
            inbox: Mutex::default(),
            wake: Notify::new(),
            facts: FactCells::default(),
            progress: Mutex::default(),
            reads_are_local: AtomicBool::new(false),
            disk_full: AtomicBool::new(false),
            now_nanos: AtomicU64::new(0),
            last_request_id: AtomicU64::new(first_request_id(member_id, config.unix_ms)),
            hub: Hub::new(reader.clone()),
            reader,
            lessor: Mutex::new(lessor),
            ready: watch::Sender::new(false),
            leaderless: watch::Sender::new(false),
        }
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().expect("no holder of this lock panics")
    }

    /// Puts something in and wakes the core if the inbox was empty.
    fn put(&self, put: impl FnOnce(&mut Inbox)) -> Result<(), Status> {
        let mut inbox = self.inbox();
        if inbox.closed {
            return Err(status::STOPPED);
        }
        put(&mut inbox);
        let woken = std::mem::replace(&mut inbox.woken, true);
        drop(inbox);
        if !woken {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Swaps the inbox for the one given, whose queues are empty.
    pub(super) fn take(&self, empty: &mut Inbox) {
        let mut inbox = self.inbox();
        (empty.woken, empty.closed, empty.peer_proposals) = (false, inbox.closed, 0);
        std::mem::swap(&mut *inbox, empty);
    }

    /// From now on nothing comes in.
    pub(super) fn close(&self) {
        self.inbox().closed = true;
        self.reads_are_local.store(false, Ordering::Release);
    }

    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    pub(super) fn set_now(&self, now: Duration) {
        self.now_nanos.store(now.as_nanos() as u64, Ordering::Relaxed);
    }

    /// The core's time as of its last step.
    pub(super) fn now(&self) -> Duration {
        Duration::from_nanos(self.now_nanos.load(Ordering::Relaxed))
    }

    /// I2.
    pub(super) fn next_request_id(&self) -> u64 {
        self.last_request_id.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    pub(super) fn lessor(&self) -> MutexGuard<'_, Lessor> {
        self.lessor.lock().expect("no holder of this lock panics")
    }

    pub(super) fn lessor_cell(&self) -> &Mutex<Lessor> {
        &self.lessor
    }

    pub(super) fn hub(&self) -> &Hub {
        &self.hub
    }

    pub(super) fn header(&self, revision: i64, raft_term: u64) -> ResponseHeader {
        ResponseHeader { cluster_id: self.cluster_id, member_id: self.member_id, revision, raft_term }
    }

    pub(super) fn publish_facts(&self, facts: &Facts, reads_are_local: bool) {
        let cells = &self.facts;
        for (cell, value) in [
            (&cells.leader, facts.leader),
            (&cells.term, facts.term),
            (&cells.commit, facts.commit),
            (&cells.applied, facts.applied),
            (&cells.applied_term, facts.applied_term),
            (&cells.db_size, facts.db_size),
            (&cells.db_size_in_use, facts.db_size_in_use),
        ] {
            cell.store(value, Ordering::Relaxed);
        }
        cells.no_space.store(facts.no_space, Ordering::Relaxed);
        cells.is_learner.store(facts.is_learner, Ordering::Relaxed);
        self.reads_are_local.store(reads_are_local, Ordering::Release);
    }

    pub(super) fn set_disk_full(&self, full: bool) {
        self.disk_full.store(full, Ordering::Release);
    }

    pub(super) fn set_progress(&self, progress: Vec<(u64, u64)>) {
        *self.progress.lock().expect("no holder of this lock panics") = progress;
    }

    pub(super) fn set_leaderless(&self, leaderless: bool) {
        self.leaderless.send_if_modified(|before| std::mem::replace(before, leaderless) != leaderless);
    }

    pub(super) fn set_ready(&self) {
        self.ready.send_replace(true);
    }

    fn is_learner(&self) -> bool {
        self.facts.is_learner.load(Ordering::Relaxed)
    }

    fn facts(&self) -> Facts {
        let cells = &self.facts;
        let get = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        Facts {
            cluster_id: self.cluster_id,
            member_id: self.member_id,
            leader: get(&cells.leader),
            term: get(&cells.term),
            commit: get(&cells.commit),
            applied: get(&cells.applied),
            applied_term: get(&cells.applied_term),
            db_size: get(&cells.db_size),
            db_size_in_use: get(&cells.db_size_in_use),
            no_space: cells.no_space.load(Ordering::Relaxed),
            is_learner: self.is_learner(),
        }
    }
}

/// I2: 16 bits of the member, 40 bits of unix milliseconds, 8 bits to count on.
fn first_request_id(member_id: u64, unix_ms: u64) -> u64 {
    const MS_BITS: u32 = 40;
    const COUNT_BITS: u32 = 8;
    (member_id << (MS_BITS + COUNT_BITS)) | ((unix_ms & ((1 << MS_BITS) - 1)) << COUNT_BITS)
}

/// What the services need of the core. Clones share it; Send + Sync.
#[derive(Debug, Clone)]
pub struct Handle(Arc<Shared>);

impl Handle {
    pub(super) fn new(shared: Arc<Shared>) -> Handle {
        Handle(shared)
    }

    /// Proposes a request and waits until it has been applied here. The answer is the encoded response of the
    /// request's kind (PutResponse for put, ...), header included.
    ///
    /// Dropping the future gives up waiting; the request may be applied all the same.
    pub fn propose(&self, command: &Command) -> impl Future<Output = Answer> + Send + use<> {
        let submitted = self.submit(command);
        async move {
            // The core answers or drops everybody who waits; it drops them when it ends.
            submitted?.await.unwrap_or(Err(status::STOPPED))
        }
    }

    fn submit(&self, command: &Command) -> Result<oneshot::Receiver<Answer>, Status> {
        let facts = &self.0.facts;
        let (commit, applied) = (facts.commit.load(Ordering::Relaxed), facts.applied.load(Ordering::Relaxed));
        if commit > applied.saturating_add(APPLY_GAP_MAX) {
            return Err(status::TOO_MANY_REQUESTS);
        }
        if self.is_disk_full() && takes_space(command) {
            return Err(status::NO_SPACE);
        }
        let id = self.0.next_request_id();
        let data = command::encode(id, command);
        if data.len() > self.0.max_request_bytes {
            return Err(status::REQUEST_TOO_LARGE);
        }
        let (answer, answered) = oneshot::channel();
        let started = self.0.now();
        self.0.put(|inbox| inbox.proposals.push(Proposal { id, data, started, answer }))?;
        Ok(answered)
    }

    /// Waits for a linearizable read point; a root taken afterwards is fresh enough.
    ///
    /// A leader without other voters need not ask: no write can have been acknowledged anywhere that is not in
    /// its published root, since it acknowledges after publishing, and nobody can be elected without its vote.
    pub async fn read_point(&self) -> Result<(), Status> {
        if self.0.reads_are_local.load(Ordering::Acquire) {
            return Ok(());
        }
        let (answer, answered) = oneshot::channel();
        let started = self.0.now();
        self.0.put(|inbox| inbox.reads.push(Reading { started, answer }))?;
        answered.await.unwrap_or(Err(status::STOPPED))
    }

    /// Proposes a change of the group, which gets its id here, and waits until it has been applied: the answer is an
    /// error when the change was not carried out.
    pub async fn propose_conf_change(&self, mut change: raftpb::ConfChange) -> Answer {
        let id = self.0.next_request_id();
        change.id = Some(id);
        let (answer, answered) = oneshot::channel();
        let started = self.0.now();
        self.0.put(|inbox| inbox.conf_changes.push(ConfProposal { id, change, started, answer }))?;
        answered.await.unwrap_or(Err(status::STOPPED))
    }

    /// Whether changes of the members are refused that put the quorum at risk.
    pub fn strict_reconfig_check(&self) -> bool {
        self.0.strict_reconfig_check
    }

    /// Whether this member has no vote.
    pub fn is_learner(&self) -> bool {
        self.0.is_learner()
    }

    /// Seconds since 1970, by the core's clock.
    pub fn unix_seconds(&self) -> u64 {
        (self.0.unix_ms + self.0.now().as_millis() as u64) / 1000
    }

    /// Makes another member lead, and waits until it does (X12).
    pub async fn transfer_leader(&self, to: u64) -> Result<(), Status> {
        let (answer, answered) = oneshot::channel();
        let started = self.0.now();
        self.0.put(|inbox| inbox.transfers.push(Transfer { to, started, answer }))?;
        answered.await.unwrap_or(Err(status::STOPPED))
    }

    /// Index of the last entry that each member of the group is known to have, by id: empty unless this member leads.
    pub fn progress(&self) -> Vec<(u64, u64)> {
        self.0.progress.lock().expect("no holder of this lock panics").clone()
    }

    /// Hands the core what the transport has. What comes after the core's end is forgotten.
    ///
    /// # Errors
    /// `Overflow` when too much of the kind waits already.
    pub fn peer_event(&self, event: PeerEvent) -> Result<(), Overflow> {
        let is_proposal = |event: &PeerEvent| match event {
            PeerEvent::Message(message) => message.r#type() == raftpb::MessageType::MsgProp,
            _ => false,
        };
        let proposes = is_proposal(&event);
        let mut overflow = false;
        // The only error is that of a core that has ended.
        let _ = self.0.put(|inbox| {
            let waiting =
                if proposes { inbox.peer_proposals } else { inbox.peers.len() - inbox.peer_proposals };
            overflow = waiting >= PEER_EVENTS_MAX;
            if !overflow {
                inbox.peer_proposals += usize::from(proposes);
                inbox.peers.push(event);
            }
        });
        if overflow { Err(Overflow) } else { Ok(()) }
    }

    pub(super) fn ask_to_defragment(&self, answer: oneshot::Sender<()>) -> Result<(), Status> {
        self.0.put(|inbox| inbox.defragments.push(answer))
    }

    /// Waits until the member has published itself to the cluster: requests may be served from then on.
    /// False when the core ended before that.
    pub async fn ready(&self) -> bool {
        self.0.ready.subscribe().wait_for(|ready| *ready).await.is_ok_and(|ready| *ready)
    }

    /// Waits until no leader has been known for three election timeouts, or the core has ended (G5).
    pub async fn leader_lost(&self) {
        // An error would mean that the core's part is gone, which this handle keeps.
        let _ = self.0.leaderless.subscribe().wait_for(|leaderless| *leaderless).await;
    }

    /// The newest published root.
    pub fn root(&self) -> Root {
        self.0.reader.root()
    }

    /// Where roots come from.
    pub fn reader(&self) -> Reader {
        self.0.reader.clone()
    }

    /// Where watchers are.
    pub fn hub(&self) -> Arc<Hub> {
        Arc::clone(&self.0.hub)
    }

    /// Whether the disk has no room for more: what would take space is refused.
    pub fn is_disk_full(&self) -> bool {
        self.0.disk_full.load(Ordering::Acquire)
    }

    /// See [`Facts`].
    pub fn facts(&self) -> Facts {
        self.0.facts()
    }

    /// A response header: H1, H2.
    pub fn header(&self, revision: i64, raft_term: u64) -> ResponseHeader {
        self.0.header(revision, raft_term)
    }

    /// --quota-backend-bytes.
    pub fn quota(&self) -> Quota {
        self.0.quota
    }

    /// Whether the quota has room for something of that cost (X4).
    pub fn has_room(&self, cost: u64) -> bool {
        self.0.quota.has_room(self.0.facts.db_size.load(Ordering::Relaxed), cost)
    }

    /// --max-txn-ops.
    pub fn max_txn_ops(&self) -> usize {
        self.0.max_txn_ops
    }

    /// --max-request-bytes.
    pub fn max_request_bytes(&self) -> usize {
        self.0.max_request_bytes
    }

    /// L3: an id for a lease whose client leaves the choice to us: positive, from the request ids.
    pub fn new_lease_id(&self) -> i64 {
        loop {
            let id = (self.0.next_request_id() & (u64::MAX >> 1)) as i64;
            if id != 0 {
                return id;
            }
        }
    }

    pub(super) fn renew(&self, lease: i64) -> Result<Renewal, Status> {
        self.0.lessor().renew(lease, self.0.now())
    }

    pub(super) fn is_checkpointed(&self, lease: i64) -> bool {
        self.0.lessor().is_checkpointed(lease, self.0.now())
    }

    /// Whether this member leads and has its lessor running.
    pub(super) fn is_primary(&self) -> bool {
        self.0.lessor().is_primary()
    }

    /// The core's time as of its last step.
    pub(super) fn now(&self) -> Duration {
        self.0.now()
    }

    /// Z3.
    pub fn request_timeout(&self) -> Duration {
        self.0.request_timeout
    }

    pub(super) fn ask_leader(&self, asked: LeaseAsked) -> Result<(), Status> {
        self.0.put(|inbox| inbox.leases.push(asked))
    }

    /// (granted TTL, remaining TTL) of a lease, in seconds.
    pub fn lease_ttl(&self, lease: i64) -> Option<(i64, i64)> {
        self.0.lessor().ttl(lease, self.0.now())
    }

    /// All lease ids, by remaining time ascending.
    pub fn leases(&self) -> Vec<i64> {
        self.0.lessor().ids()
    }

    /// Encodes a message as an answer.
    pub fn reply<M: prost::Message>(&self, message: &M) -> Answer {
        Ok(Reply::of(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i2_request_ids() {
        assert_eq!(first_request_id(0x8e9e_05c5_2164_694d, 0x01_0203_0405), 0x694d_0102_0304_0500);
        assert_eq!(first_request_id(1, u64::MAX), 0x0001_ffff_ffff_ff00);
    }
}

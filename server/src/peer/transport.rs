//! The transport: who the other members are, and the tasks that keep in touch with them.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinSet};
use trilith_engine::Root;
use trilith_proto::leasepb::LeaseInternalResponse;
use trilith_proto::raftpb::{Message, MessageType};

use super::codec::Kind;
use super::link::{Link, Peer};
use super::{
    Listener, Options, PeerError, Remote, Sink, Versions, dial, fetch, pipeline, port, receive, snapshot,
};
use crate::apply::members::Member;
use crate::config::url::Url;

/// H3: how many senders that are no members are answered.
const SENDERS_MAX: usize = 64;

/// A peer and its tasks, which end when this is dropped.
struct Running {
    peer: Arc<Peer>,
    _tasks: JoinSet<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.peer.close();
    }
}

#[derive(Default)]
struct Members {
    /// With streams.
    peers: HashMap<u64, Running>,
    /// Without.
    remotes: HashMap<u64, Running>,
    snapshots: JoinSet<()>,
    port: Option<AbortHandle>,
    stopped: bool,
}

/// What the port and the callers share.
pub(super) struct Shared {
    pub(super) link: Arc<Link>,
    runtime: Handle,
    members: Mutex<Members>,
}

impl Shared {
    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().expect("no holder of this lock panics")
    }

    fn run(&self, remote: Remote, with_streams: bool) -> Running {
        let peer = Arc::new(Peer::new(remote.id, remote.urls));
        let mut tasks = JoinSet::new();
        for take in pipeline::POSTERS {
            tasks.spawn_on(pipeline::post(self.link.clone(), peer.clone(), take), &self.runtime);
        }
        for kind in Kind::ALL.into_iter().filter(|_| with_streams) {
            tasks.spawn_on(dial::keep(self.link.clone(), peer.clone(), kind), &self.runtime);
        }
        Running { peer, _tasks: tasks }
    }

    /// A member that has streams.
    pub(super) fn peer(&self, id: u64) -> Option<Arc<Peer>> {
        self.members().peers.get(&id).map(|running| running.peer.clone())
    }

    fn anybody(&self, id: u64) -> Option<Arc<Peer>> {
        let members = self.members();
        let running = members.peers.get(&id).or_else(|| members.remotes.get(&id));
        running.map(|running| running.peer.clone())
    }

    fn add_remote(&self, members: &mut Members, remote: Remote) {
        let known = members.peers.contains_key(&remote.id) || members.remotes.contains_key(&remote.id);
        if !known && !members.stopped && remote.id != self.link.options.member_id {
            let running = self.run(remote, false);
            members.remotes.insert(running.peer.id, running);
        }
    }

    /// H3: somebody who is no member here, or not yet, has told where it can be answered.
    pub(super) fn add_sender(&self, remote: Remote) {
        let mut members = self.members();
        let readable = remote.urls.iter().all(|url| Url::parse(url).is_ok());
        if readable && !self.link.is_removed(remote.id) && members.remotes.len() < SENDERS_MAX {
            self.add_remote(&mut members, remote);
        }
    }
}

/// The way to all other members, and theirs to this one. Cheap to clone; every call returns at once, from any thread.
#[derive(Clone)]
pub struct Transport(Arc<Shared>);

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members = self.0.members();
        let mut peers: Vec<_> = members.peers.keys().map(|id| format!("{id:x}")).collect();
        peers.sort();
        f.debug_struct("Transport").field("peers", &peers).finish_non_exhaustive()
    }
}

impl Transport {
    /// Serves the port, too, until [`Transport::stop`]. Runs inside a runtime, whose tasks its own become.
    /// What earlier processes did not receive to the end is removed from the folder of snapshots.
    pub fn start(options: Options, listener: Listener, sink: impl Sink) -> Transport {
        if let Err(error) = receive::clean(options.disk.as_ref(), &options.snap_dir) {
            log::warn!(error:% = error; "failed to clean the folder of snapshots");
        }
        let link = Arc::new(Link::new(options, Arc::new(sink)));
        let shared = Arc::new(Shared { link, runtime: Handle::current(), members: Mutex::default() });
        let port = tokio::spawn(port::serve(listener, shared.clone()));
        shared.members().port = Some(port.abort_handle());
        Transport(shared)
    }

    /// From now on exactly these are members, without this one, which is left out if it is among them. Those who were
    /// removed are refused. Whoever stays keeps its streams; one whose URLs are others is dialed there from now on.
    pub fn set_members(&self, members: Vec<Remote>, removed: impl IntoIterator<Item = u64>) {
        let shared = &self.0;
        shared.link.set_removed(removed.into_iter().collect());
        let mut known = shared.members();
        if known.stopped {
            return;
        }
        let ids: HashSet<u64> = members.iter().map(|member| member.id).collect();
        known.peers.retain(|id, _| ids.contains(id));
        known.remotes.retain(|id, _| !ids.contains(id) && !shared.link.is_removed(*id));
        for member in members.into_iter().filter(|member| member.id != shared.link.options.member_id) {
            match known.peers.get(&member.id) {
                Some(running) => running.peer.set_urls(member.urls),
                None => {
                    let running = shared.run(member, true);
                    known.peers.insert(running.peer.id, running);
                }
            }
        }
    }

    /// J6, H3: those who are not members yet as far as this one knows, but can be written to.
    pub fn add_remotes(&self, remotes: Vec<Remote>) {
        let mut members = self.0.members();
        for remote in remotes {
            self.0.add_remote(&mut members, remote);
        }
    }

    /// Sends messages, each to the member in its `to`. What cannot be taken is dropped, and its receiver reported as
    /// unreachable. A MsgSnap goes through [`Transport::send_snapshot`]; here it is reported as not delivered.
    pub fn send(&self, messages: Vec<Message>) {
        let mut full = HashSet::new();
        for message in messages {
            let to = message.to();
            if message.r#type() == MessageType::MsgSnap {
                self.undelivered(to);
                continue;
            }
            let Some(peer) = self.0.anybody(to) else {
                log::debug!(to = format!("{to:x}").as_str(); "a message for nobody known is dropped");
                continue;
            };
            if !peer.send(message) {
                full.insert(to);
            }
        }
        for id in full {
            self.0.link.unreachable(id);
        }
    }

    /// Sends a MsgSnap with the database of the root, and tells the core what came of it (`PeerEvent::SnapshotSent`).
    pub fn send_snapshot(&self, message: Message, root: Root) {
        let to = message.to();
        let (peer, permit) = (self.0.anybody(to), self.0.link.sending.clone().try_acquire_owned());
        let (Some(peer), Ok(permit)) = (peer, permit) else { return self.undelivered(to) };
        let link = self.0.link.clone();
        let sending = async move {
            snapshot::send(link, peer, message, root).await;
            drop(permit);
        };
        self.keep(sending);
    }

    fn undelivered(&self, to: u64) {
        let link = self.0.link.clone();
        self.keep(async move { snapshot::report(&link, to, false).await });
    }

    /// Runs something until its end or the transport's.
    fn keep(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut members = self.0.members();
        if !members.stopped {
            while members.snapshots.try_join_next().is_some() {}
            members.snapshots.spawn_on(task, &self.0.runtime);
        }
    }

    /// How long something has come through to a member without a failure; None when the last thing did not.
    pub fn active_since(&self, id: u64) -> Option<Duration> {
        Some(self.0.peer(id)?.active_since()?.elapsed())
    }

    /// Whether a member reads both of its streams from this one: what is sent to it is not posted.
    pub fn is_read_by(&self, id: u64) -> bool {
        self.0.peer(id).is_some_and(|peer| peer.has_streams())
    }

    /// Ends everything: no message comes in or goes out afterwards.
    pub async fn stop(&self) {
        let ended = {
            let mut members = self.0.members();
            members.stopped = true;
            (
                std::mem::take(&mut members.peers),
                std::mem::take(&mut members.remotes),
                members.port.take(),
                std::mem::take(&mut members.snapshots),
            )
        };
        let (peers, remotes, port, mut snapshots) = ended;
        drop((peers, remotes));
        snapshots.shutdown().await;
        if let Some(port) = port {
            port.abort();
            while !port.is_finished() {
                tokio::task::yield_now().await;
            }
        }
    }

    /// J4: what runs at a URL.
    pub async fn fetch_version(&self, url: &str, limit: Duration) -> Result<Versions, PeerError> {
        fetch::fetch_version(&self.0.link.options.dialer, url, limit).await
    }

    /// L7: has the leader renew a lease; its TTL in seconds. `Refused` with 404: there is no such lease.
    pub async fn lease_keep_alive(
        &self,
        leader_urls: &[String],
        id: i64,
        timeout: Duration,
    ) -> Result<i64, PeerError> {
        fetch::lease_keep_alive(&self.0.link, leader_urls, id, timeout).await
    }

    /// L8: asks the leader how long a lease has left. `Refused` with 404: there is no such lease.
    pub async fn lease_time_to_live(
        &self,
        leader_urls: &[String],
        id: i64,
        keys: bool,
        timeout: Duration,
    ) -> Result<LeaseInternalResponse, PeerError> {
        fetch::lease_time_to_live(&self.0.link, leader_urls, id, keys, timeout).await
    }

    /// M9: has the leader promote a learner; the members afterwards. `token` is that of the caller.
    pub async fn promote(
        &self,
        leader_urls: &[String],
        id: u64,
        token: Option<&str>,
        timeout: Duration,
    ) -> Result<Vec<Member>, PeerError> {
        fetch::promote(&self.0.link, leader_urls, id, token, timeout).await
    }
}

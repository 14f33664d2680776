//! What all tasks of a transport share, the headers that requests between members carry, and one peer's state.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use trilith_proto::raftpb::{Message, MessageType};

use super::client::Calls;
use super::codec::Kind;
use super::queue::{Queue, Refused};
use super::{CLUSTER_ID, Options, PeerError, Sink};
use crate::core::{PeerEvent, SERVER_VERSION};

pub(super) const SERVER_FROM: &str = "x-server-from";
pub(super) const SERVER_VERSION_HEADER: &str = "x-server-version";
pub(super) const MIN_CLUSTER_VERSION_HEADER: &str = "x-min-cluster-version";
pub(super) const RAFT_TO: &str = "x-raft-to";
pub(super) const PEER_URLS: &str = "x-peerurls";
/// The oldest cluster that this member understands.
pub(super) const MIN_CLUSTER_VERSION: &str = "3.0.0";

/// Messages that may wait for a stream, in each of its lanes.
pub(super) const STREAM_QUEUE: usize = 4096;
/// Messages that may wait to be posted.
const PIPELINE_QUEUE: usize = 64;
/// N5.
const SENDING_MAX: usize = 16;
/// Two of the largest messages.
const ROOM: usize = 1 << 30;
/// Each holds a thread that may block.
const RECEIVING_MAX: usize = 4;

/// What every task needs.
pub(super) struct Link {
    pub(super) options: Options,
    pub(super) sink: Arc<dyn Sink>,
    headers: HeaderMap,
    removed: Mutex<HashSet<u64>>,
    /// How many snapshots are on their way to others.
    pub(super) sending: Arc<Semaphore>,
    /// How many snapshots come in.
    pub(super) receiving: Semaphore,
    /// What the leader is asked for.
    pub(super) calls: Calls,
    /// Bytes of requests that may be held before they are read.
    pub(super) room: Semaphore,
}

/// P3: why a message is not for this member's raft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Foreign {
    #[error("cannot process message from removed member")]
    Removed,
    #[error("cannot process message to mismatch member")]
    Mismatch,
}

impl Link {
    /// Advertised URLs that fit no header are left out: the receiver then hears of this member from the cluster.
    pub(super) fn new(options: Options, sink: Arc<dyn Sink>) -> Link {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            (SERVER_FROM, format!("{:x}", options.member_id)),
            (SERVER_VERSION_HEADER, SERVER_VERSION.to_owned()),
            (MIN_CLUSTER_VERSION_HEADER, MIN_CLUSTER_VERSION.to_owned()),
            (CLUSTER_ID, format!("{:x}", options.cluster_id)),
            (PEER_URLS, options.advertise_urls.join(",")),
        ] {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        }
        let (sending, receiving) = (Arc::new(Semaphore::new(SENDING_MAX)), Semaphore::new(RECEIVING_MAX));
        let room = Semaphore::new(ROOM);
        Link {
            options,
            sink,
            headers,
            removed: Mutex::default(),
            sending,
            receiving,
            room,
            calls: Calls::new(),
        }
    }

    /// These were removed from the cluster.
    pub(super) fn set_removed(&self, removed: HashSet<u64>) {
        *locked(&self.removed) = removed;
    }

    pub(super) fn is_removed(&self, id: u64) -> bool {
        locked(&self.removed).contains(&id)
    }

    /// P3.
    pub(super) fn check(&self, message: &Message) -> Result<(), Foreign> {
        if self.is_removed(message.from()) {
            Err(Foreign::Removed)
        } else if message.to() != self.options.member_id {
            Err(Foreign::Mismatch)
        } else {
            Ok(())
        }
    }

    /// Takes a message from a stream. One that is not for this member, or a snapshot without its database, is dropped.
    pub(super) fn take(&self, message: Message) {
        let why = match self.check(&message) {
            Ok(()) if message.r#type() != MessageType::MsgSnap => {
                return self.tell(PeerEvent::Message(message));
            }
            Ok(()) => "a snapshot without its database".to_owned(),
            Err(error) => error.to_string(),
        };
        let from = format!("{:x}", message.from());
        log::warn!(from = from.as_str(), error = why.as_str(); "a message from a stream is dropped");
    }

    /// A request of raft's.
    pub(super) fn request(&self, method: http::Method, path: &str) -> http::request::Builder {
        let mut builder = Request::builder().method(method).uri(path);
        if let Some(headers) = builder.headers_mut() {
            *headers = self.headers.clone();
        }
        builder
    }

    /// T4.
    pub(super) fn connect_max(&self) -> Duration {
        Duration::from_secs(1) + self.options.election
    }

    /// Tells the core. What it has no room for is forgotten, as raft sends again.
    pub(super) fn tell(&self, event: PeerEvent) {
        if self.sink.event(event).is_err() {
            log::debug!("the core takes no more of what peers say: it is dropped");
        }
    }

    pub(super) fn unreachable(&self, id: u64) {
        self.tell(PeerEvent::Unreachable(id));
    }

    /// What an error of a post or a stream says about this member.
    pub(super) fn note(&self, error: &PeerError, removed_code: u16) {
        if matches!(error, PeerError::Refused { code, .. } if *code == removed_code) {
            self.tell(PeerEvent::ToldRemoved);
        }
    }
}

/// Which URL of a member is tried.
#[derive(Debug)]
struct Urls {
    all: Vec<String>,
    picked: usize,
}

/// Another member: where it is, whether it is there, and what waits for it.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: u64,
    urls: Mutex<Urls>,
    active_since: Mutex<Option<Instant>>,
    /// For each kind of stream what the peer reads from, if it does.
    streams: Mutex<[Option<Arc<Queue>>; 2]>,
    pub(super) pipeline: Queue,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock panics")
}

impl Peer {
    pub(super) fn new(id: u64, urls: Vec<String>) -> Peer {
        Peer {
            id,
            urls: Mutex::new(Urls { all: urls, picked: 0 }),
            active_since: Mutex::default(),
            streams: Mutex::default(),
            pipeline: Queue::new(PIPELINE_QUEUE),
        }
    }

    /// The URL to try; empty when the member has none, and no URL for a connection.
    pub(super) fn url(&self) -> String {
        let urls = locked(&self.urls);
        urls.all.get(urls.picked).cloned().unwrap_or_default()
    }

    /// That URL does not work: the next one is tried.
    pub(super) fn failed(&self, url: &str) {
        let mut urls = locked(&self.urls);
        if urls.all.get(urls.picked).is_some_and(|picked| picked == url) {
            urls.picked = (urls.picked + 1) % urls.all.len();
        }
    }

    /// The member moved.
    pub(super) fn set_urls(&self, all: Vec<String>) {
        let mut urls = locked(&self.urls);
        if urls.all != all {
            *urls = Urls { all, picked: 0 };
        }
    }

    pub(super) fn active_since(&self) -> Option<Instant> {
        *locked(&self.active_since)
    }

    /// Something came through.
    pub(super) fn activate(&self) {
        let mut since = locked(&self.active_since);
        if since.is_none() {
            *since = Some(Instant::now());
            log::info!("remote-peer-id" = format!("{:x}", self.id).as_str(); "peer became active");
        }
    }

    /// Something did not.
    pub(super) fn deactivate(&self, doing: &str, error: &dyn std::fmt::Display) {
        let (id, text) = (format!("{:x}", self.id), error.to_string());
        if locked(&self.active_since).take().is_some() {
            log::warn!("remote-peer-id" = id.as_str(), doing, error = text.as_str(); "peer became inactive");
        } else {
            log::debug!("remote-peer-id" = id.as_str(), doing, error = text.as_str(); "peer is inactive");
        }
    }

    /// S2: from now on the peer reads from this queue; whoever did so before is done. Whether something was lost by that.
    pub(super) fn attach(&self, kind: Kind, queue: Arc<Queue>) -> bool {
        let former = locked(&self.streams)[kind as usize].replace(queue);
        former.is_some_and(|former| former.close())
    }

    /// Nobody reads from the queue any more.
    pub(super) fn detach(&self, kind: Kind, queue: &Arc<Queue>) {
        let mut streams = locked(&self.streams);
        let slot = &mut streams[kind as usize];
        if slot.as_ref().is_some_and(|current| Arc::ptr_eq(current, queue)) {
            *slot = None;
        }
    }

    /// Whether the peer reads from both.
    pub(super) fn has_streams(&self) -> bool {
        locked(&self.streams).iter().all(Option::is_some)
    }

    /// Ends all ways to the peer.
    pub(super) fn close(&self) {
        for queue in locked(&self.streams).iter_mut().filter_map(Option::take) {
            queue.close();
        }
        self.pipeline.close();
    }

    /// S4: puts a message where it goes soonest. False when there is no room.
    pub(super) fn send(&self, message: Message) -> bool {
        let appends = message.r#type() == MessageType::MsgApp;
        let mut message = Box::new(message);
        for kind in Kind::ALL {
            if kind == Kind::MsgApp && !appends {
                continue;
            }
            let Some(queue) = locked(&self.streams)[kind as usize].clone() else { continue };
            match queue.push(*message) {
                Ok(()) => return true,
                Err(Refused::Full) => return false,
                Err(Refused::Closed(back)) => message = back,
            }
        }
        self.pipeline.push(*message).is_ok()
    }
}

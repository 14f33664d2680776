//! What the core wants of other members, carried out by the transport.
//!
//! Must never hold up the core: what takes longer than handing something to a queue is a task of its own.

use std::time::Duration;

use tokio::task::spawn_local;
use tokio::time::{Instant, sleep_until};

use crate::apply::members::{self, Member};
use crate::core::{Handle, LeaseAsked, Left, Outgoing, PeerEvent, SERVER_VERSION};
use crate::peer::{PeerError, Remote, Transport};
use crate::service::cluster::{Peers, Promoting};
use crate::status;

/// How long a member may take to say which version it has.
const VERSION_PATIENCE: Duration = Duration::from_secs(1);
/// How long the leader may take to answer for a lease.
const LEASE_PATIENCE: Duration = Duration::from_secs(1);
/// From one question about a promotion to the next.
const PROMOTE_PAUSE: Duration = Duration::from_millis(50);
/// How long the leader may take to promote a member.
const PROMOTE_PATIENCE: Duration = Duration::from_secs(5);
/// From one question to the next when the leader did not answer.
const LEASE_PAUSE: Duration = Duration::from_millis(50);

/// Carries out what came of a step.
pub(crate) fn carry_out(transport: &Transport, handle: &Handle, outgoing: Outgoing) {
    if let Some(membership) = outgoing.membership {
        let remotes = membership.members.into_iter().map(remote).collect();
        transport.set_members(remotes, membership.removed);
    }
    if !outgoing.messages.is_empty() {
        transport.send(outgoing.messages);
    }
    for (message, root) in outgoing.snapshots {
        transport.send_snapshot(message, root);
    }
    for asked in outgoing.leases {
        spawn_local(ask_leader(transport.clone(), handle.clone(), asked));
    }
    if outgoing.asks_versions {
        spawn_local(ask_versions(transport.clone(), handle.clone()));
    }
}

/// A member as the transport needs it.
fn remote(member: Member) -> Remote {
    Remote { id: member.id, urls: member.peer_urls }
}

/// L7, L9. Whoever asked asks again when there is no answer.
async fn ask_leader(transport: Transport, handle: Handle, asked: LeaseAsked) {
    let leader = members::get(handle.root().view(), handle.facts().leader);
    let urls = leader.ok().flatten().map(|leader| leader.peer_urls).unwrap_or_default();
    match asked {
        LeaseAsked::Renew { id, answer } => {
            let renewed = transport.lease_keep_alive(&urls, id, LEASE_PATIENCE).await;
            match renewed {
                Ok(ttl) => drop(answer.send(Ok(ttl))),
                Err(PeerError::Refused { code: 404, .. }) => drop(answer.send(Ok(0))),
                Err(error) => wait(error, answer).await,
            }
        }
        LeaseAsked::Left { id, keys, answer } => {
            let left = transport.lease_time_to_live(&urls, id, keys, LEASE_PATIENCE).await;
            match left {
                Ok(left) => {
                    let left = left.lease_time_to_live_response.map(|left| Left { header: None, ..left });
                    drop(answer.send(Ok(left)));
                }
                Err(PeerError::Refused { code: 404, .. }) => drop(answer.send(Ok(None))),
                Err(error) => wait(error, answer).await,
            }
        }
    }
}

/// The answer is dropped a little later, so that nobody asks without a pause.
async fn wait<T>(error: PeerError, unanswered: T) {
    log::debug!(error:% = error; "the leader does not answer for a lease");
    sleep_until(Instant::now() + LEASE_PAUSE).await;
    drop(unanswered);
}

impl Peers for Transport {
    fn active_since(&self, id: u64) -> Option<Duration> {
        Transport::active_since(self, id)
    }

    fn promote(&self, leader_urls: Vec<String>, id: u64) -> Promoting {
        let transport = self.clone();
        Box::pin(async move {
            match transport.promote(&leader_urls, id, None, PROMOTE_PATIENCE).await {
                Ok(members) => Some(Ok(members)),
                Err(PeerError::Refused { code: 404, .. }) => Some(Err(status::MEMBER_NOT_FOUND)),
                Err(PeerError::Refused { code: 412, text, .. }) if text.contains("in sync with leader") => {
                    Some(Err(status::LEARNER_NOT_READY))
                }
                Err(PeerError::Refused { code: 412, .. }) => Some(Err(status::MEMBER_NOT_LEARNER)),
                Err(error) => {
                    log::warn!(error:% = error; "the leader does not say whether it has promoted a member");
                    sleep_until(Instant::now() + PROMOTE_PAUSE).await;
                    None
                }
            }
        })
    }
}

/// O3: the lowest version among the members, this one included.
async fn ask_versions(transport: Transport, handle: Handle) {
    let members = members::list(handle.root().view()).unwrap_or_default();
    let own = handle.facts().member_id;
    let mut lowest = Some(SERVER_VERSION.to_owned());
    for member in members.iter().filter(|member| member.id != own) {
        let mut said = None;
        for url in &member.peer_urls {
            match transport.fetch_version(url, VERSION_PATIENCE).await {
                Ok(versions) => {
                    said = Some(versions.etcdserver);
                    break;
                }
                Err(error) => log::debug!(error:% = error; "a member does not say its version"),
            }
        }
        lowest = match (lowest, said) {
            (Some(lowest), Some(said)) => lower(lowest, said),
            _ => None,
        };
    }
    // The core asks again soon.
    let _ = handle.peer_event(PeerEvent::Versions { lowest });
}

/// None when one of them is no version.
fn lower(one: String, other: String) -> Option<String> {
    let (a, b) = (members::parse_version(&one)?, members::parse_version(&other)?);
    Some(if a <= b { one } else { other })
}

//! Cluster: the list of members, and changes of it.
//!
//! A change is checked here, by the member that is asked, before it is proposed: whether it is well formed, and, with
//! --strict-reconfig-check, whether the cluster would still have a quorum of members that run. Whether it is carried out
//! is decided when it is applied, by `apply::conf_change`.

use std::fmt::Debug;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::timeout;
use trilith_proto::etcdserverpb as pb;
use trilith_proto::ids;
use trilith_proto::raftpb::{ConfChange, ConfChangeType};

use crate::apply::conf_change::promotion;
use crate::apply::members::{self, Member};
use crate::config::url::Url;
use crate::core::Handle;
use crate::reply::Reply;
use crate::status::{self, Status};

/// How long a connection must have been up to be counted on (M5).
const HEALTHY_AFTER: Duration = Duration::from_secs(5);

/// What is known of the way to the other members.
pub trait Peers: Send + Sync + Debug {
    /// How long the member of that id has been connected without a failure; None when it is not.
    fn active_since(&self, id: u64) -> Option<Duration>;

    /// M9: has the leader, at these peer URLs, promote a learner; the members afterwards. None, after a pause,
    /// when there was no answer that is worth telling.
    fn promote(&self, leader_urls: Vec<String>, id: u64) -> Promoting;
}

/// A promotion that another member is asked for.
pub type Promoting = Pin<Box<dyn Future<Output = Option<Result<Vec<Member>, Status>>> + Send>>;

/// M13; H4: the header has no revision.
pub async fn member_list(handle: &Handle, request: pb::MemberListRequest) -> Result<Reply, Status> {
    if request.linearizable {
        handle.read_point().await?;
    }
    let members = listed(handle)?;
    Ok(Reply::of(&pb::MemberListResponse { header: header(handle), members }))
}

/// M4, M5, M14.
pub async fn member_add(
    handle: &Handle,
    peers: &dyn Peers,
    request: pb::MemberAddRequest,
) -> Result<Reply, Status> {
    let peer_urls = checked_urls(&request.peer_ur_ls)?;
    let id = ids::member_id(&peer_urls, "", Some(handle.unix_seconds()));
    let member = Member { id, peer_urls, is_learner: request.is_learner, ..Member::default() };
    if handle.strict_reconfig_check() {
        Group::of(handle, peers)?.may_add(member.is_learner)?;
    }
    let kind = match member.is_learner {
        true => ConfChangeType::ConfChangeAddLearnerNode,
        false => ConfChangeType::ConfChangeAddNode,
    };
    propose(handle, kind, id, members::encode(&member)).await?;
    let member = Some(on_the_wire(member));
    Ok(Reply::of(&pb::MemberAddResponse { header: header(handle), member, members: listed(handle)? }))
}

/// M6.
pub async fn member_remove(
    handle: &Handle,
    peers: &dyn Peers,
    request: pb::MemberRemoveRequest,
) -> Result<Reply, Status> {
    if handle.strict_reconfig_check() {
        Group::of(handle, peers)?.may_remove(request.id)?;
    }
    propose(handle, ConfChangeType::ConfChangeRemoveNode, request.id, Vec::new()).await?;
    Ok(Reply::of(&pb::MemberRemoveResponse { header: header(handle), members: listed(handle)? }))
}

/// A learner stays one, and URLs that make no sense are refused, since the other members could not dial them: etcd gives a
/// learner a vote in the list that it does not have in raft, and ends every member over such a URL.
pub async fn member_update(handle: &Handle, request: pb::MemberUpdateRequest) -> Result<Reply, Status> {
    let peer_urls = parsed_urls(&request.peer_ur_ls)?;
    let member = Member { id: request.id, peer_urls, ..Member::default() };
    propose(handle, ConfChangeType::ConfChangeUpdateNode, request.id, members::encode(&member)).await?;
    Ok(Reply::of(&pb::MemberUpdateResponse { header: header(handle), members: listed(handle)? }))
}

/// M9: the leader decides; another member asks it to, and again where it did not answer.
pub async fn member_promote(
    handle: &Handle,
    peers: &dyn Peers,
    request: pb::MemberPromoteRequest,
) -> Result<Reply, Status> {
    let promoted = timeout(handle.request_timeout(), promote(handle, peers, request.id)).await;
    let members = promoted.unwrap_or(Err(status::TIMEOUT)).map_err(|error| match handle.facts().leader {
        0 if error == status::TIMEOUT => status::NO_LEADER,
        _ => error,
    })?;
    let members = members.into_iter().map(on_the_wire).collect();
    Ok(Reply::of(&pb::MemberPromoteResponse { header: header(handle), members }))
}

async fn promote(handle: &Handle, peers: &dyn Peers, id: u64) -> Result<Vec<Member>, Status> {
    loop {
        match promote_here(handle, id).await {
            Err(refused) if refused == status::NOT_LEADER => {}
            outcome => return outcome,
        }
        // Comes back when a leader has answered.
        match handle.read_point().await {
            Err(error) if error != status::LEADER_CHANGED => return Err(error),
            _ => {}
        }
        let leader = members::get(handle.root().view(), handle.facts().leader)?;
        if let Some(leader) = leader
            && let Some(outcome) = peers.promote(leader.peer_urls, id).await
        {
            return outcome;
        }
    }
}

/// M9 on the leader; the members afterwards.
///
/// # Errors
/// `NOT_LEADER` anywhere else.
pub async fn promote_here(handle: &Handle, id: u64) -> Result<Vec<Member>, Status> {
    let facts = handle.facts();
    if facts.leader != facts.member_id {
        return Err(status::NOT_LEADER);
    }
    may_promote(&handle.progress(), facts.member_id, id)?;
    let present = members::list(handle.root().view())?;
    if handle.strict_reconfig_check() && !has_started_quorum_with(&present) {
        return Err(status::MEMBER_NOT_ENOUGH_STARTED);
    }
    propose(handle, ConfChangeType::ConfChangeAddNode, id, promotion(id)).await?;
    Ok(members::list(handle.root().view())?)
}

async fn propose(handle: &Handle, kind: ConfChangeType, id: u64, context: Vec<u8>) -> Result<(), Status> {
    let context = (!context.is_empty()).then(|| context.into());
    let change = ConfChange { id: None, r#type: Some(kind.into()), node_id: Some(id), context };
    handle.propose_conf_change(change).await.map(drop)
}

fn header(handle: &Handle) -> Option<pb::ResponseHeader> {
    Some(handle.header(0, handle.root().applied().1))
}

fn listed(handle: &Handle) -> Result<Vec<pb::Member>, Status> {
    Ok(members::list(handle.root().view())?.into_iter().map(on_the_wire).collect())
}

fn on_the_wire(member: Member) -> pb::Member {
    pb::Member {
        id: member.id,
        name: member.name,
        peer_ur_ls: member.peer_urls,
        client_ur_ls: member.client_urls,
        is_learner: member.is_learner,
    }
}

/// M4: sorted, as ids are made of them.
fn checked_urls(urls: &[String]) -> Result<Vec<String>, Status> {
    let mut urls = parsed_urls(urls)?;
    urls.sort();
    Ok(urls)
}

fn parsed_urls(urls: &[String]) -> Result<Vec<String>, Status> {
    if urls.is_empty() {
        return Err(status::MEMBER_BAD_URLS);
    }
    let parse = |url: &String| Url::parse(url).map_err(|_| status::MEMBER_BAD_URLS);
    urls.iter().map(|url| parse(url).map(|url| url.to_string())).collect()
}

/// A leader that knows how far each member is (`progress`) lets those become voters that are nearly as far as itself.
fn may_promote(progress: &[(u64, u64)], leader: u64, id: u64) -> Result<(), Status> {
    let matched = |id| progress.iter().find(|(known, _)| *known == id).map(|(_, matched)| *matched);
    let Some(learner) = matched(id) else {
        // Without other members nobody counts how far they are.
        return if id == leader { Err(status::MEMBER_NOT_LEARNER) } else { Err(status::MEMBER_NOT_FOUND) };
    };
    let leader = u128::from(matched(leader).unwrap_or(u64::MAX));
    if u128::from(learner) * 10 >= leader * 9 { Ok(()) } else { Err(status::LEARNER_NOT_READY) }
}

fn is_started(member: &Member) -> bool {
    !member.name.is_empty()
}

fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

/// Whether the voters that have started, and one more that has, are a quorum of them all.
fn has_started_quorum_with(present: &[Member]) -> bool {
    let voters = present.iter().filter(|member| !member.is_learner);
    let (mut all, mut started) = (1, 1);
    for voter in voters {
        all += 1;
        started += usize::from(is_started(voter));
    }
    started >= quorum(all)
}

/// What the strict checks look at.
struct Group<F> {
    members: Vec<Member>,
    own: u64,
    active_since: F,
}

impl<'a> Group<Box<dyn Fn(u64) -> Option<Duration> + Send + 'a>> {
    fn of(handle: &Handle, peers: &'a dyn Peers) -> Result<Self, Status> {
        let members = members::list(handle.root().view())?;
        let own = handle.facts().member_id;
        Ok(Group { members, own, active_since: Box::new(|id| peers.active_since(id)) })
    }
}

impl<F: Fn(u64) -> Option<Duration>> Group<F> {
    fn voters(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| !member.is_learner)
    }

    /// Voters that this member can count on, itself among them if it is one.
    fn connected(&self) -> usize {
        let counts = |voter: &&Member| {
            voter.id == self.own || (self.active_since)(voter.id).is_some_and(|since| since >= HEALTHY_AFTER)
        };
        self.voters().filter(counts).count()
    }

    /// M5.
    fn may_add(&self, learner: bool) -> Result<(), Status> {
        let voters = self.voters().count();
        if !learner {
            let started = self.voters().filter(|voter| is_started(voter)).count();
            let first_pair = started == 1 && voters == 1;
            if !first_pair && started < quorum(voters + 1) {
                return Err(status::MEMBER_NOT_ENOUGH_STARTED);
            }
        }
        if voters > 1 && self.connected() < quorum(voters + 1) {
            return Err(status::UNHEALTHY);
        }
        Ok(())
    }

    /// M6.
    fn may_remove(&self, id: u64) -> Result<(), Status> {
        if self.members.iter().any(|member| member.id == id && member.is_learner) {
            return Ok(());
        }
        let (mut others, mut started) = (0, 0);
        for voter in self.voters().filter(|voter| voter.id != id) {
            others += 1;
            started += usize::from(is_started(voter));
        }
        if self.members.len() == 1 || others == 0 || started < quorum(others) {
            return Err(status::MEMBER_NOT_ENOUGH_STARTED);
        }
        // One that is away is no part of the quorum that there is.
        if id != self.own && (self.active_since)(id).is_none() {
            return Ok(());
        }
        let left = self.connected().saturating_sub(1);
        if left < 1 + self.voters().count().saturating_sub(1) / 2 {
            return Err(status::UNHEALTHY);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Voters by id, started or not; who is connected, for how many seconds. This is member 1.
    fn group(voters: &[(u64, bool)], active: &[(u64, u64)]) -> Group<impl Fn(u64) -> Option<Duration>> {
        let member = |(id, started): &(u64, bool)| Member {
            id: *id,
            name: if *started { format!("m{id}") } else { String::new() },
            ..Member::default()
        };
        let active = active.to_vec();
        Group {
            members: voters.iter().map(member).collect(),
            own: 1,
            active_since: move |id| {
                let found = active.iter().find(|(known, _)| *known == id);
                found.map(|(_, seconds)| Duration::from_secs(*seconds))
            },
        }
    }

    const YES: bool = true;
    const NO: bool = false;

    #[test]
    fn m5_a_voter_needs_a_started_and_connected_quorum_of_the_grown_cluster() {
        let few = Err(status::MEMBER_NOT_ENOUGH_STARTED);
        let unhealthy = Err(status::UNHEALTHY);
        assert_eq!(group(&[(1, YES)], &[]).may_add(false), Ok(()), "one grows to two");
        assert_eq!(group(&[(1, NO)], &[]).may_add(false), few);
        assert_eq!(group(&[(1, YES), (2, NO)], &[]).may_add(false), few, "two of three must have started");
        let two = [(1, YES), (2, YES)];
        assert_eq!(group(&two, &[(2, 5)]).may_add(false), Ok(()));
        assert_eq!(group(&two, &[(2, 4)]).may_add(false), unhealthy, "less than 5 s");
        assert_eq!(group(&two, &[]).may_add(false), unhealthy);
        let three = [(1, YES), (2, YES), (3, YES)];
        assert_eq!(group(&three, &[(2, 9), (3, 9)]).may_add(false), Ok(()));
        assert_eq!(group(&three, &[(2, 9)]).may_add(false), unhealthy, "two of what would be four");
        assert_eq!(group(&[(1, YES), (2, YES), (3, NO)], &[(2, 9)]).may_add(false), few);
    }

    #[test]
    fn m5_learners_need_the_connections_only() {
        assert_eq!(group(&[(1, NO)], &[]).may_add(true), Ok(()));
        assert_eq!(group(&[(1, NO), (2, NO)], &[(2, 5)]).may_add(true), Ok(()));
        assert_eq!(group(&[(1, YES), (2, YES)], &[]).may_add(true), Err(status::UNHEALTHY));
    }

    #[test]
    fn m6_what_is_left_must_be_a_quorum() {
        let few = Err(status::MEMBER_NOT_ENOUGH_STARTED);
        let unhealthy = Err(status::UNHEALTHY);
        assert_eq!(group(&[(1, YES)], &[]).may_remove(1), few, "the last one");
        assert_eq!(group(&[(1, YES), (2, NO)], &[]).may_remove(1), few, "the other never started");
        assert_eq!(group(&[(1, YES), (2, NO)], &[]).may_remove(2), Ok(()));
        let three = [(1, YES), (2, YES), (3, YES)];
        assert_eq!(group(&three, &[(2, 9), (3, 9)]).may_remove(3), Ok(()));
        assert_eq!(group(&three, &[(2, 9)]).may_remove(3), Ok(()), "one that is away may go");
        assert_eq!(group(&three, &[(2, 9)]).may_remove(2), unhealthy);
        assert_eq!(group(&three, &[(2, 9)]).may_remove(1), unhealthy);
        assert_eq!(group(&three, &[(2, 9), (3, 1)]).may_remove(3), unhealthy, "it was away a second ago");
        assert_eq!(group(&[(1, YES), (2, YES)], &[(2, 9)]).may_remove(2), Ok(()));
    }

    #[test]
    fn m6_learners_may_go_at_any_time() {
        let mut group = group(&[(1, YES), (2, NO)], &[]);
        group.members[1].is_learner = true;
        assert_eq!(group.may_remove(2), Ok(()));
        assert_eq!(group.may_remove(1), Err(status::MEMBER_NOT_ENOUGH_STARTED));
    }

    #[test]
    fn m9_a_learner_is_promoted_when_it_has_nine_tenths() {
        let progress = [(1, 100), (2, 100), (3, 90), (4, 89)];
        assert_eq!(may_promote(&progress, 1, 3), Ok(()));
        assert_eq!(may_promote(&progress, 1, 4), Err(status::LEARNER_NOT_READY));
        assert_eq!(may_promote(&progress, 1, 5), Err(status::MEMBER_NOT_FOUND));
        assert_eq!(may_promote(&[], 1, 5), Err(status::MEMBER_NOT_FOUND));
        assert_eq!(may_promote(&[], 1, 1), Err(status::MEMBER_NOT_LEARNER), "a lone voter");
    }

    #[test]
    fn m9_the_promoted_counts_as_started() {
        let members = |voters: &[(u64, bool)]| group(voters, &[]).members;
        assert!(has_started_quorum_with(&members(&[(1, YES)])));
        assert!(has_started_quorum_with(&members(&[(1, YES), (2, NO)])));
        assert!(!has_started_quorum_with(&members(&[(1, NO), (2, NO)])));
    }

    #[test]
    fn m4_urls() {
        let check = |urls: &[&str]| checked_urls(&urls.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(check(&["http://b:1", " http://a:1"]).unwrap(), ["http://a:1", "http://b:1"]);
        for bad in [&[][..], &["a:1"], &["http://a"], &["http://a:1/p"], &["http://a:1", ""]] {
            assert_eq!(check(bad), Err(status::MEMBER_BAD_URLS), "{bad:?}");
        }
    }
}

//! Comparing members: whether all of them hold the same keys and values.
//!
//! Three checks, each of them with hashes over what members hold up to a revision (X8, X9), which they tell each other at
//! their peer ports: by a member that starts, before it serves; by the leader from time to time; by the leader at the
//! revisions of compactions, where hashes are kept. [`decide`] is what is made of the answers.
//!
//! Promises: a member that holds something else is named in the log, and for it CORRUPT is raised through the log of the
//! cluster; one that starts ends instead. A member that cannot be asked, or is too far ahead or behind to be compared,
//! is not suspected. Must never hash on the core's thread.

mod decide;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use trilith_engine::{KeyRange, Root};
use trilith_proto::etcdserverpb::alarm_request::AlarmAction;
use trilith_proto::etcdserverpb::{AlarmRequest, AlarmType};

use crate::apply::alarm::Alarms;
use crate::apply::command::Command;
use crate::apply::members;
use crate::blocking;
use crate::core::Handle;
use crate::peer::{PeerError, fetch_hash_kv};
use crate::status::Status;
use crate::tls::Connector;
use decide::{Answer, Hashed, Round, Sight};

/// Which checks a leader makes, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checks {
    /// --corrupt-check-time; zero for never.
    pub periodic: Duration,
    /// --compact-hash-check-time, where the gate CompactHashCheck is open; else zero.
    pub compactions: Duration,
}

/// What a member that starts compares itself with the others by, before it serves: an error when one of them holds
/// something else at this member's revision.
///
/// # Errors
/// The text of what ends the process.
pub async fn check_at_start(handle: &Handle, dialer: &Connector) -> Result<(), String> {
    let own_id = format!("{:x}", handle.facts().member_id);
    log::info!("local-member-id" = own_id.as_str(); "starting initial corruption check");
    let own = look(handle).await.map_err(|status| format!("{own_id} failed to fetch hash: {status}"))?;
    let answers = ask_others(handle, dialer, own.hashed.newest).await.map_err(|status| status.to_string())?;
    let others = decide::at_start(&own, &answers);
    for member in &others {
        log::error!("local-member-id" = own_id.as_str(), "remote-peer-id":% = format!("{member:x}"),
            revision = own.hashed.newest, "local-member-hash" = own.hashed.hash;
            "a member holds something else at this member's revision");
    }
    if !others.is_empty() {
        return Err(format!("{own_id} found data inconsistency with peers"));
    }
    log::info!("local-member-id" = own_id.as_str(), compared = answers.iter().filter(|answer| answer.hashed.is_some()).count();
        "initial corruption checking passed; no corruption");
    Ok(())
}

/// Makes a leader's checks for as long as it is not dropped.
pub async fn watch(handle: Handle, dialer: Connector, checks: Checks) {
    tokio::join!(
        watch_all(&handle, &dialer, checks.periodic),
        watch_compactions(&handle, &dialer, checks.compactions)
    );
}

async fn watch_all(handle: &Handle, dialer: &Connector, every: Duration) {
    let mut times = Times::every(every);
    while times.next().await {
        if !leads(handle) {
            continue;
        }
        match check_all(handle, dialer).await {
            Ok(compared) => {
                log::info!("number-of-peers-checked" = compared; "finished peer corruption check")
            }
            Err(status) => log::warn!(error:% = status; "failed to compare the members"),
        }
    }
}

async fn watch_compactions(handle: &Handle, dialer: &Connector, every: Duration) {
    let mut times = Times::every(every);
    let mut checked = 0;
    while times.next().await {
        if !leads(handle) {
            continue;
        }
        if let Err(status) = check_compactions(handle, dialer, &mut checked).await {
            log::warn!(error:% = status; "failed to compare the members at a compaction");
        }
    }
}

/// The times of a check.
struct Times(Option<tokio::time::Interval>);

impl Times {
    fn every(time: Duration) -> Times {
        Times((!time.is_zero()).then(|| {
            let mut times = interval(time);
            times.set_missed_tick_behavior(MissedTickBehavior::Delay);
            // The first tick is now.
            times.reset();
            times
        }))
    }

    /// Whether there is one.
    async fn next(&mut self) -> bool {
        match &mut self.0 {
            Some(times) => {
                times.tick().await;
                true
            }
            None => false,
        }
    }
}

fn leads(handle: &Handle) -> bool {
    let facts = handle.facts();
    facts.leader == facts.member_id
}

/// Compares all members at the leader's revision; how many could be compared.
async fn check_all(handle: &Handle, dialer: &Connector) -> Result<usize, Status> {
    let own = handle.facts().member_id;
    let before = look(handle).await?;
    let answers = ask_others(handle, dialer, before.hashed.newest).await?;
    // What others may have known by now this member knows after it.
    handle.read_point().await?;
    let after = look(handle).await?;
    let findings = decide::at_a_revision(&Round { own, before, after, answers: &answers });
    for (member, why) in &findings {
        log::error!(revision = before.hashed.newest, "leader-hash" = before.hashed.hash, "corrupt-member-id":% = format!("{member:x}");
            "the members do not hold the same: {why}");
        raise(handle, *member).await?;
    }
    Ok(answers.iter().filter(|answer| answer.hashed.is_some()).count())
}

/// Compares the members at the newest compaction that all of them can tell of.
async fn check_compactions(handle: &Handle, dialer: &Connector, checked: &mut i64) -> Result<(), Status> {
    let own = handle.facts().member_id;
    let root = handle.root();
    let newer: Vec<i64> = root.view().hashed_compactions().into_iter().filter(|at| at > checked).collect();
    for revision in newer {
        let hashed = hash_at(root.clone(), revision).await?;
        let answers = ask_others(handle, dialer, revision).await?;
        if answers.is_empty() {
            return Ok(());
        }
        let outcome = decide::at_a_compaction(own, &hashed, &answers);
        for member in &outcome.corrupt {
            log::error!(revision, "leader-id":% = format!("{own:x}"), "leader-hash" = hashed.hash,
                hashes:% = by_hash(own, &hashed, &answers), "corrupt-member-id":% = format!("{member:x}");
                "the members do not hold the same at a compaction");
            raise(handle, *member).await?;
        }
        if outcome.complete {
            if outcome.corrupt.is_empty() {
                *checked = revision;
                log::info!(revision; "successfully checked hash on whole cluster");
            }
            return Ok(());
        }
    }
    Ok(())
}

/// For the log: each hash with the members that told it.
fn by_hash(own: u64, hashed: &Hashed, answers: &[Answer]) -> String {
    let mut groups = BTreeMap::from([(hashed.hash, format!("{own:x}"))]);
    for answer in answers {
        let Some(said) = answer.hashed.filter(|said| said.compacted == hashed.compacted) else { continue };
        let group: &mut String = groups.entry(said.hash).or_default();
        *group += &format!("{}{:x}", if group.is_empty() { "" } else { " " }, answer.member);
    }
    groups.iter().map(|(hash, members)| format!("{hash}: {members}")).collect::<Vec<_>>().join(", ")
}

/// Raises CORRUPT for a member (0: nobody knows which), unless it stands.
async fn raise(handle: &Handle, member_id: u64) -> Result<(), Status> {
    let alarm = AlarmType::Corrupt;
    if Alarms::restore(handle.root().view())?.is_raised_by(member_id, alarm) {
        return Ok(());
    }
    let request = AlarmRequest { action: AlarmAction::Activate as i32, member_id, alarm: alarm as i32 };
    handle.propose(&Command::Alarm(request)).await.map(drop)
}

/// What this member holds at its newest revision.
async fn look(handle: &Handle) -> Result<Sight, Status> {
    let root = handle.root();
    let compacted = root.view().compact_revision();
    let all = KeyRange { start: b"", end: Some(b"") };
    let empty = root.view().keys(all, 0)?.next().transpose()?.is_none();
    let revision = root.view().revision();
    Ok(Sight { hashed: hash_at(root, revision).await?, compacted, empty })
}

async fn hash_at(root: Root, revision: i64) -> Result<Hashed, Status> {
    blocking::run(move || {
        let newest = root.view().revision();
        let (hash, compacted, _) = root.view().hash_kv(revision)?;
        Ok(Hashed { hash, compacted, newest })
    })
    .await
}

/// Asks all other members at a time.
async fn ask_others(handle: &Handle, dialer: &Connector, revision: i64) -> Result<Vec<Answer>, Status> {
    let (facts, limit) = (handle.facts(), handle.request_timeout());
    let mut asked = JoinSet::new();
    for member in members::list(handle.root().view())? {
        if member.id == facts.member_id || member.peer_urls.is_empty() {
            continue;
        }
        let (id, urls, dialer) = (member.id, member.peer_urls, dialer.clone());
        asked.spawn_local(async move {
            let said = fetch_hash_kv(&dialer, &urls, facts.cluster_id, revision, limit).await;
            if let Err(error) = &said {
                tell_why_not(id, revision, error);
            }
            let hashed = said.ok().map(|said| Hashed {
                hash: said.hash,
                compacted: said.compact_revision,
                newest: said.header.revision,
            });
            Answer { member: id, hashed }
        });
    }
    let mut answers = asked.join_all().await;
    answers.sort_unstable_by_key(|answer| answer.member);
    Ok(answers)
}

fn tell_why_not(id: u64, revision: i64, error: &PeerError) {
    let id = format!("{id:x}");
    let why = match error {
        PeerError::Refused { text, .. } if text.contains("is a future revision") => {
            "it is behind this member"
        }
        PeerError::Refused { text, .. } if text.contains("has been compacted") => "this member is behind it",
        _ => "it cannot be asked",
    };
    log::warn!("remote-peer-id" = id.as_str(), "requested-revision" = revision, error:% = error;
        "a member is not compared: {why}");
}

//! `endpoint status`, `endpoint health` and `endpoint hashkv`: the same question to each member.

use trilith_proto::etcdserverpb as pb;
use trilith_proto::etcdserverpb::AlarmType;

use super::Session;
use crate::client::{Client, Config};
use crate::exit::Failure;
use crate::gotext::duration;
use crate::print::{Answer, Format, Health};
use crate::terminal::note;

/// The server's refusal that still proves that the cluster agreed on the read.
const PERMISSION_DENIED: &str = "etcdserver: permission denied";

pub(super) async fn status(session: &Session) -> Result<(), Failure> {
    let mut answers = Vec::new();
    let mut failed = false;
    for endpoint in endpoints(session).await? {
        match member_status(&session.config.only(&endpoint)).await {
            Ok(answer) => answers.push((endpoint, answer)),
            Err(reason) => {
                failed = true;
                note(format_args!("Failed to get the status of endpoint {endpoint} ({reason})"));
            }
        }
    }
    session.print(&Answer::Status(&answers))?;
    if failed { Err(Failure::silent(1)) } else { Ok(()) }
}

pub(super) async fn hash_kv(session: &Session) -> Result<(), Failure> {
    let mut answers = Vec::new();
    let mut outcome = Ok(());
    for endpoint in endpoints(session).await? {
        match member_hash(&session.config.only(&endpoint), session.flags.int("rev")).await {
            Ok(answer) => answers.push((endpoint, answer)),
            Err(reason) => {
                note(format_args!("Failed to get the hash of endpoint {endpoint} ({reason})"));
                outcome = Err(Failure::error(reason));
            }
        }
    }
    session.print(&Answer::HashKv(&answers))?;
    outcome
}

pub(super) async fn health(session: &Session) -> Result<(), Failure> {
    let mut probes = tokio::task::JoinSet::new();
    for (at, endpoint) in endpoints(session).await?.into_iter().enumerate() {
        let config = session.config.only(&endpoint);
        config.check()?;
        probes.spawn(async move { (at, probe(&config, endpoint).await) });
    }
    // A probe cannot panic, and nobody cancels it.
    let mut found: Vec<_> = probes.join_all().await;
    found.sort_unstable_by_key(|(at, _)| *at);
    let found: Vec<Health> = found.into_iter().map(|(_, health)| health).collect();
    session.print(&Answer::Health(&found))?;
    let sick: Vec<_> = found.iter().filter(|health| !health.error.is_empty()).collect();
    if session.printer.format == Format::Simple {
        for health in &sick {
            note(format_args!(
                "{} is unhealthy: failed to commit proposal: {}",
                health.endpoint, health.error
            ));
        }
    }
    if sick.is_empty() { Ok(()) } else { Err(Failure::error("unhealthy cluster")) }
}

/// Any key will do: the read itself goes through the cluster's agreement.
async fn probe(config: &Config, endpoint: String) -> Health {
    let started = tokio::time::Instant::now();
    let deadline = config.deadline();
    let outcome = async {
        let client = config.connect(deadline).await.map_err(|failure| failure.text)?;
        let request = pb::RangeRequest { key: "health".into(), ..Default::default() };
        match client.call(client.kv().range(request)).await {
            Ok(_) => {}
            Err(text) if text == PERMISSION_DENIED => {}
            Err(text) => return Err(text),
        }
        let took = started.elapsed();
        alarms(&client).await.map(|()| took)
    };
    match outcome.await {
        Ok(took) => Health { endpoint, took: duration(took), error: String::new() },
        Err(error) => Health { endpoint, took: duration(started.elapsed()), error },
    }
}

async fn alarms(client: &Client) -> Result<(), String> {
    let answer = client.call(client.maintenance().alarm(pb::AlarmRequest::default())).await;
    let answer = answer.map_err(|_| "Unable to fetch the alarm list".to_owned())?;
    if answer.alarms.is_empty() {
        return Ok(());
    }
    let mut text = "Active Alarm(s): ".to_owned();
    for alarm in &answer.alarms {
        text += match AlarmType::try_from(alarm.alarm) {
            Ok(AlarmType::Nospace) => "NOSPACE ",
            Ok(AlarmType::Corrupt) => "CORRUPT ",
            _ => "UNKNOWN ",
        };
    }
    Err(text)
}

/// The endpoints of the command line, or with `--cluster` those of the member list.
pub(super) async fn endpoints(session: &Session) -> Result<Vec<String>, Failure> {
    if !session.flags.bool("cluster") {
        return Ok(session.config.endpoints.clone());
    }
    let fail = |text: String| {
        Failure::error(format_args!("failed to fetch endpoints from etcd cluster member list: {text}"))
    };
    let client = session.connect().await.map_err(|failure| fail(failure.text))?;
    let request = pb::MemberListRequest { linearizable: true };
    let answer = client.call(client.cluster().member_list(request)).await.map_err(fail)?;
    Ok(answer.members.into_iter().flat_map(|member| member.client_ur_ls).collect())
}

async fn member_status(config: &Config) -> Result<pb::StatusResponse, String> {
    let client = config.connect(config.deadline()).await.map_err(|failure| failure.text)?;
    client.call(client.maintenance().status(pb::StatusRequest {})).await
}

async fn member_hash(config: &Config, revision: i64) -> Result<pb::HashKvResponse, String> {
    let client = config.connect(config.deadline()).await.map_err(|failure| failure.text)?;
    client.call(client.maintenance().hash_kv(pb::HashKvRequest { revision })).await
}

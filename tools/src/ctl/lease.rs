//! `lease grant`, `revoke`, `timetolive`, `list` and `keep-alive`.

use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, Status};
use trilith_proto::etcdserverpb as pb;

use super::Session;
use crate::client::{Client, status_text};
use crate::exit::Failure;
use crate::gotext::parse_int;
use crate::print::{Answer, Format};
use crate::terminal::say;

/// How long the first answer to a keep-alive may take; later the lease's own time counts.
const FIRST_ANSWER: Duration = Duration::from_secs(5);
/// How long to wait before a broken stream is opened again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

pub(super) async fn grant(session: &Session) -> Result<(), Failure> {
    if session.args().len() != 1 {
        return Err(Failure::bad_args("lease grant command needs TTL argument"));
    }
    let bad_ttl = |reason| Failure::bad_args(format_args!("bad TTL ({reason})"));
    let ttl = parse_int(&session.text(0), 10).map_err(bad_ttl)?;
    let client = session.connect().await?;
    let answer = client.call(client.lease().lease_grant(pb::LeaseGrantRequest { ttl, id: 0 })).await;
    let answer = answer.map_err(|text| Failure::error(format_args!("failed to grant lease ({text})")))?;
    session.print(&Answer::Grant(&answer))
}

pub(super) async fn revoke(session: &Session) -> Result<(), Failure> {
    let id = lease_id(session, "lease revoke command needs 1 argument")?;
    let client = session.connect().await?;
    let answer = client.call(client.lease().lease_revoke(pb::LeaseRevokeRequest { id })).await;
    let answer = answer.map_err(|text| Failure::error(format_args!("failed to revoke lease ({text})")))?;
    session.print(&Answer::Revoke(id, &answer))
}

pub(super) async fn time_to_live(session: &Session) -> Result<(), Failure> {
    let id = lease_id(session, "lease timetolive command needs lease ID as argument")?;
    let keys = session.flags.bool("keys");
    let client = connect(session).await?;
    let answer =
        client.call(client.lease().lease_time_to_live(pb::LeaseTimeToLiveRequest { id, keys })).await;
    let answer = answer.map_err(Failure::bad_connection)?;
    session.print(&Answer::TimeToLive { answer: &answer, keys })
}

pub(super) async fn list(session: &Session) -> Result<(), Failure> {
    let client = connect(session).await?;
    let answer = client.call(client.lease().lease_leases(pb::LeaseLeasesRequest {})).await;
    session.print(&Answer::Leases(&answer.map_err(Failure::bad_connection)?))
}

/// Code 2 for every failure, as these commands have it.
async fn connect(session: &Session) -> Result<Client, Failure> {
    session.connect().await.map_err(|failure| match failure.code {
        1 => Failure::bad_connection(failure.text),
        _ => failure,
    })
}

pub(super) async fn keep_alive(session: &Session) -> Result<(), Failure> {
    let id = lease_id(session, "lease keep-alive command needs lease ID as argument")?;
    if session.flags.bool("once") {
        let client = connect(session).await?;
        let mut answers = client.call(client.lease().lease_keep_alive(tokio_stream::once(ask(id)))).await;
        let answers = answers.as_mut().map_err(|text| Failure::bad_connection(&*text))?;
        let answer = tokio::time::timeout_at(session.deadline(), answers.message()).await;
        let answer = answer.map_err(|_| Failure::bad_connection(crate::client::DEADLINE_EXCEEDED))?;
        return match answer.map_err(|status| Failure::bad_connection(status_text(&status)))? {
            Some(answer) if answer.ttl > 0 => session.print(&Answer::KeepAlive(&answer)),
            _ => Err(Failure::bad_connection("etcdserver: requested lease not found")),
        };
    }
    let mut until = Instant::now() + FIRST_ANSWER;
    while Instant::now() < until {
        match renew(session, id, &mut until).await {
            Ok(()) => break,
            Err(Broken::Output(failure)) => return Err(failure),
            Err(Broken::Stream(status))
                if !matches!(status.code(), Code::Unavailable | Code::Internal | Code::Unknown) =>
            {
                break;
            }
            Err(Broken::Stream(_)) => tokio::time::sleep(RETRY_PAUSE).await,
        }
    }
    if session.printer.format == Format::Simple {
        say(format!("lease {id:016x} expired or revoked.\n").as_bytes())?;
    }
    Ok(())
}

/// Why a keep-alive stream ended before its lease did.
enum Broken {
    Stream(Status),
    Output(Failure),
}

/// Renews the lease three times in its life on one stream, until the lease is gone. `until` is when the lease ends if
/// nothing more is heard of it.
async fn renew(session: &Session, id: i64, until: &mut Instant) -> Result<(), Broken> {
    let late = || Broken::Stream(Status::unavailable("no answer"));
    let client = session.config.connect(*until).await.map_err(|_| late())?;
    let (requests, queue) = tokio::sync::mpsc::channel(1);
    let queue = tokio_stream::wrappers::ReceiverStream::new(queue);
    let mut service = client.lease();
    // The server says nothing before it was asked, not even that it listens.
    requests.send(ask(id)).await.map_err(|_| late())?;
    let answers = tokio::time::timeout_at(*until, service.lease_keep_alive(queue)).await;
    let mut answers = answers.map_err(|_| late())?.map_err(Broken::Stream)?.into_inner();
    loop {
        let answer = tokio::time::timeout_at(*until, answers.message()).await.map_err(|_| late())?;
        let answer = answer.map_err(Broken::Stream)?.ok_or_else(late)?;
        let Some(ttl) = u64::try_from(answer.ttl).ok().filter(|ttl| *ttl > 0) else { return Ok(()) };
        session.print(&Answer::KeepAlive(&answer)).map_err(Broken::Output)?;
        *until = Instant::now() + Duration::from_secs(ttl);
        tokio::time::sleep(Duration::from_secs(ttl) / 3).await;
        requests.send(ask(id)).await.map_err(|_| late())?;
    }
}

fn ask(id: i64) -> pb::LeaseKeepAliveRequest {
    pb::LeaseKeepAliveRequest { id }
}

fn lease_id(session: &Session, usage: &str) -> Result<i64, Failure> {
    if session.args().len() != 1 {
        return Err(Failure::bad_args(usage));
    }
    let bad = |reason| Failure::bad_args(format_args!("bad lease ID arg ({reason}), expecting ID in Hex"));
    parse_int(&session.text(0), 16).map_err(bad)
}

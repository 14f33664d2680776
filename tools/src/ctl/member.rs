//! `member list`, `add`, `remove`, `update` and `promote`; `move-leader`.

use trilith_proto::etcdserverpb as pb;

use super::{Session, kv};
use crate::exit::Failure;
use crate::gotext::{parse_hex, quote};
use crate::print::{Answer, Format};
use crate::terminal::say;

pub(super) async fn list(session: &Session) -> Result<(), Failure> {
    let linearizable = kv::linearizable(&session.flags)?;
    let client = session.connect().await?;
    let request = pb::MemberListRequest { linearizable };
    let answer = client.call(client.cluster().member_list(request)).await.map_err(Failure::error)?;
    session.print(&Answer::MemberList(&answer))
}

/// The simple format goes on with the settings that the new member starts with.
pub(super) async fn add(session: &Session) -> Result<(), Failure> {
    match session.args() {
        [] => return Err(Failure::bad_args("member name not provided")),
        [_] => {}
        all => {
            let mut text = "too many arguments".to_owned();
            for arg in all.iter().map(|arg| String::from_utf8_lossy(arg)) {
                if arg.to_lowercase().starts_with("http") {
                    text += &format!(", did you mean --peer-urls={arg}");
                }
            }
            return Err(Failure::bad_args(text));
        }
    }
    let (name, urls) = (session.text(0), peer_urls(session)?);
    check_urls(&urls)?;
    let client = session.connect().await?;
    let request = pb::MemberAddRequest { peer_ur_ls: urls, is_learner: session.flags.bool("learner") };
    let answer = client.call(client.cluster().member_add(request)).await.map_err(Failure::error)?;
    session.print(&Answer::MemberAdd(&answer))?;
    if session.printer.format == Format::Simple {
        let cluster = initial_cluster(&answer, &name);
        let advertised = session.flags.text("peer-urls");
        let settings = [
            ("NAME", name.as_str()),
            ("INITIAL_CLUSTER", &cluster),
            ("INITIAL_ADVERTISE_PEER_URLS", advertised),
            ("INITIAL_CLUSTER_STATE", "existing"),
        ];
        let lines = settings.map(|(key, value)| format!("ETCD_{key}={}\n", quote(value.as_bytes())));
        say(format!("\n{}", lines.concat()).as_bytes())?;
    }
    Ok(())
}

/// All members as the flag of that name wants them; the new one has no name in the answer yet.
fn initial_cluster(answer: &pb::MemberAddResponse, name: &str) -> String {
    let new = answer.member.as_ref().map(|member| member.id);
    let mut parts = Vec::new();
    for member in &answer.members {
        let name = if Some(member.id) == new { name } else { &member.name };
        parts.extend(member.peer_ur_ls.iter().map(|url| format!("{name}={url}")));
    }
    parts.join(",")
}

pub(super) async fn remove(session: &Session) -> Result<(), Failure> {
    let id = member_id(session)?;
    let client = session.connect().await?;
    let request = pb::MemberRemoveRequest { id };
    let answer = client.call(client.cluster().member_remove(request)).await.map_err(Failure::error)?;
    session.print(&Answer::MemberRemove(id, &answer))
}

pub(super) async fn update(session: &Session) -> Result<(), Failure> {
    let (id, urls) = (member_id(session)?, peer_urls(session)?);
    check_urls(&urls)?;
    let client = session.connect().await?;
    let request = pb::MemberUpdateRequest { id, peer_ur_ls: urls };
    let answer = client.call(client.cluster().member_update(request)).await.map_err(Failure::error)?;
    session.print(&Answer::MemberUpdate(id, &answer))
}

pub(super) async fn promote(session: &Session) -> Result<(), Failure> {
    let id = member_id(session)?;
    let client = session.connect().await?;
    let request = pb::MemberPromoteRequest { id };
    let answer = client.call(client.cluster().member_promote(request)).await.map_err(Failure::error)?;
    session.print(&Answer::MemberPromote(id, &answer))
}

/// Asks each endpoint whether it leads: only the leader can hand over.
pub(super) async fn move_leader(session: &Session) -> Result<(), Failure> {
    if session.args().len() != 1 {
        return Err(Failure::bad_args("move-leader command needs 1 argument"));
    }
    let target = parse_hex(&session.text(0)).map_err(Failure::bad_args)?;
    let endpoints = &session.config.endpoints;
    for endpoint in endpoints {
        let client = session.config.only(endpoint).connect(session.deadline()).await?;
        let status = client.call(client.maintenance().status(pb::StatusRequest {})).await;
        let status = status.map_err(Failure::error)?;
        if status.header.is_some_and(|header| header.member_id == status.leader) {
            let request = pb::MoveLeaderRequest { target_id: target };
            let answer = client.call(client.maintenance().move_leader(request)).await;
            let answer = answer.map_err(Failure::error)?;
            return session.print(&Answer::MoveLeader(status.leader, target, &answer));
        }
    }
    Err(Failure::bad_args(format_args!("no leader endpoint given at [{}]", endpoints.join(" "))))
}

fn member_id(session: &Session) -> Result<u64, Failure> {
    if session.args().len() != 1 {
        return Err(Failure::bad_args("member ID is not provided"));
    }
    let bad = |reason| Failure::bad_args(format_args!("bad member ID arg ({reason}), expecting ID in Hex"));
    parse_hex(&session.text(0)).map_err(bad)
}

fn peer_urls(session: &Session) -> Result<Vec<String>, Failure> {
    match session.flags.text("peer-urls") {
        "" => Err(Failure::bad_args("member peer urls not provided")),
        urls => Ok(urls.split(',').map(str::to_owned).collect()),
    }
}

/// What the client of etcd says of URLs before it sends them.
fn check_urls(urls: &[String]) -> Result<(), Failure> {
    for url in urls.iter().map(|url| url.trim()) {
        check_url(url).map_err(Failure::error)?;
    }
    Ok(())
}

fn check_url(url: &str) -> Result<(), String> {
    let unread = |what: String| Err(format!("parse {}: {what}", quote(url.as_bytes())));
    let Some((scheme, rest)) = split_scheme(url) else {
        return match url.split('/').next() {
            Some(first) if first.starts_with(':') => unread("missing protocol scheme".to_owned()),
            Some(first) if first.contains(':') => {
                unread("first path segment in URL cannot contain colon".to_owned())
            }
            _ => Err(format!("URL scheme must be http, https, unix, or unixs: {url}")),
        };
    };
    match scheme.to_ascii_lowercase().as_str() {
        "unix" | "unixs" => return Ok(()),
        "http" | "https" => {}
        _ => return Err(format!("URL scheme must be http, https, unix, or unixs: {url}")),
    }
    let authority = rest.strip_prefix("//").unwrap_or_default();
    let end = authority.find(['/', '?', '#']).unwrap_or(authority.len());
    let (host, path) = authority.split_at(end);
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    if let Some(port) = port.filter(|port| !port.bytes().all(|digit| digit.is_ascii_digit())) {
        return unread(format!("invalid port {} after host", quote(format!(":{port}").as_bytes())));
    }
    if port.is_none() || name.contains(':') && !name.starts_with('[') {
        return Err(format!("URL address does not have the form \"host:port\": {url}"));
    }
    if path.starts_with('/') {
        return Err(format!("URL must not contain a path: {url}"));
    }
    Ok(())
}

/// What stands before the first colon, where that can be a scheme, and what follows.
fn split_scheme(url: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = url.split_once(':')?;
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    is_scheme.then_some((scheme, rest))
}

//! The table format, and the rows that it shares with the simple one.

use trilith_proto::etcdserverpb as pb;

use super::{Answer, Health};
use crate::gotext::human_bytes;

/// Column titles and rows.
type Table = (&'static [&'static str], Vec<Vec<String>>);

/// A table, of the answers that have one.
pub(super) fn render(answer: &Answer<'_>) -> Option<String> {
    let (titles, rows) = match answer {
        Answer::MemberList(answer) => member_list(answer),
        Answer::Health(endpoints) => health(endpoints),
        Answer::Status(endpoints) => status(endpoints),
        Answer::HashKv(endpoints) => hash_kv(endpoints),
        _ => return None,
    };
    Some(draw(titles, &rows))
}

pub(super) fn member_list(answer: &pb::MemberListResponse) -> Table {
    let row = |member: &pb::Member| {
        vec![
            format!("{:x}", member.id),
            if member.name.is_empty() { "unstarted" } else { "started" }.to_owned(),
            member.name.clone(),
            member.peer_ur_ls.join(","),
            member.client_ur_ls.join(","),
            member.is_learner.to_string(),
        ]
    };
    let titles = &["ID", "STATUS", "NAME", "PEER ADDRS", "CLIENT ADDRS", "IS LEARNER"];
    (titles, answer.members.iter().map(row).collect())
}

fn health(endpoints: &[Health]) -> Table {
    let row = |health: &Health| {
        vec![health.endpoint.clone(), health.healthy().to_string(), health.took.clone(), health.error.clone()]
    };
    (&["ENDPOINT", "HEALTH", "TOOK", "ERROR"], endpoints.iter().map(row).collect())
}

pub(super) fn status(endpoints: &[(String, pb::StatusResponse)]) -> Table {
    let bytes = |size: i64| human_bytes(u64::try_from(size).unwrap_or(0));
    let row = |(endpoint, answer): &(String, pb::StatusResponse)| {
        let member = answer.header.unwrap_or_default().member_id;
        let downgrade = answer.downgrade_info.clone().unwrap_or_default();
        vec![
            endpoint.clone(),
            format!("{member:x}"),
            answer.version.clone(),
            answer.storage_version.clone(),
            bytes(answer.db_size),
            bytes(answer.db_size_in_use),
            format!("{}%", 100 - answer.db_size_in_use.saturating_mul(100) / answer.db_size.max(1)),
            bytes(answer.db_size_quota),
            (answer.leader == member).to_string(),
            answer.is_learner.to_string(),
            answer.raft_term.to_string(),
            answer.raft_index.to_string(),
            answer.raft_applied_index.to_string(),
            answer.errors.join(", "),
            downgrade.target_version,
            downgrade.enabled.to_string(),
        ]
    };
    let titles = &[
        "ENDPOINT",
        "ID",
        "VERSION",
        "STORAGE VERSION",
        "DB SIZE",
        "IN USE",
        "PERCENTAGE NOT IN USE",
        "QUOTA",
        "IS LEADER",
        "IS LEARNER",
        "RAFT TERM",
        "RAFT INDEX",
        "RAFT APPLIED INDEX",
        "ERRORS",
        "DOWNGRADE TARGET VERSION",
        "DOWNGRADE ENABLED",
    ];
    (titles, endpoints.iter().map(row).collect())
}

pub(super) fn hash_kv(endpoints: &[(String, pb::HashKvResponse)]) -> Table {
    let row = |(endpoint, answer): &(String, pb::HashKvResponse)| {
        vec![endpoint.clone(), answer.hash.to_string(), answer.hash_revision.to_string()]
    };
    (&["ENDPOINT", "HASH", "HASH REVISION"], endpoints.iter().map(row).collect())
}

/// Titles in the middle of their columns, cells at the right.
pub(crate) fn draw(titles: &[&str], rows: &[Vec<String>]) -> String {
    let width = |text: &str| text.chars().count();
    let widest =
        |at: usize| rows.iter().map(|row| width(&row[at])).chain([width(titles[at])]).max().unwrap_or(0);
    let widths: Vec<_> = (0..titles.len()).map(widest).collect();
    let rule = |left: &str, middle: &str, right: &str| {
        let bars: Vec<_> = widths.iter().map(|width| "─".repeat(width + 2)).collect();
        format!("{left}{}{right}\n", bars.join(middle))
    };
    let line = |cells: Vec<String>| format!("│ {} │\n", cells.join(" │ "));
    let mut out = rule("┌", "┬", "┐");
    out += &line(titles.iter().zip(&widths).map(|(title, width)| format!("{title:^width$}")).collect());
    out += &rule("├", "┼", "┤");
    for row in rows {
        out += &line(row.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}")).collect());
    }
    out + &rule("└", "┴", "┘")
}

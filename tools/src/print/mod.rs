//! Answers of the server as text: etcd's five output formats, byte for byte.
//!
//! A [`Printer`] turns one [`Answer`] into bytes and writes them at once. Keys and values leave as the bytes they are.

mod fields;
mod json;
mod simple;
mod table;

pub(crate) use simple::event_type;
pub(crate) use table::draw;

use prost::Message;
use trilith_proto::etcdserverpb as pb;

use crate::exit::Failure;
use crate::terminal::say;

/// What `--write-out` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Simple,
    Json,
    Fields,
    Table,
    Protobuf,
}

/// Whether an endpoint takes part in the cluster's work.
#[derive(Debug)]
pub(crate) struct Health {
    pub(crate) endpoint: String,
    /// How long the probe took, in Go's text.
    pub(crate) took: String,
    /// Empty when the endpoint is healthy.
    pub(crate) error: String,
}

impl Health {
    fn healthy(&self) -> bool {
        self.error.is_empty()
    }
}

/// What there is to print.
#[derive(Debug)]
pub(crate) enum Answer<'a> {
    Get(&'a pb::RangeResponse),
    Put(&'a pb::PutResponse),
    Delete(&'a pb::DeleteRangeResponse),
    Txn(&'a pb::TxnResponse),
    Watch(&'a pb::WatchResponse),
    Grant(&'a pb::LeaseGrantResponse),
    /// The lease's id comes from the command line.
    Revoke(i64, &'a pb::LeaseRevokeResponse),
    KeepAlive(&'a pb::LeaseKeepAliveResponse),
    TimeToLive {
        answer: &'a pb::LeaseTimeToLiveResponse,
        /// Whether the keys were asked for.
        keys: bool,
    },
    Leases(&'a pb::LeaseLeasesResponse),
    Alarm(&'a pb::AlarmResponse),
    Downgrade {
        /// The command's last word.
        action: &'static str,
        answer: &'a pb::DowngradeResponse,
    },
    MemberList(&'a pb::MemberListResponse),
    MemberAdd(&'a pb::MemberAddResponse),
    /// The member's id comes from the command line; in the next two as well.
    MemberRemove(u64, &'a pb::MemberRemoveResponse),
    MemberUpdate(u64, &'a pb::MemberUpdateResponse),
    MemberPromote(u64, &'a pb::MemberPromoteResponse),
    /// From whom, to whom.
    MoveLeader(u64, u64, &'a pb::MoveLeaderResponse),
    Health(&'a [Health]),
    /// Each with the endpoint as it was given.
    Status(&'a [(String, pb::StatusResponse)]),
    /// Each with the endpoint as it was given.
    HashKv(&'a [(String, pb::HashKvResponse)]),
}

impl Answer<'_> {
    fn changes_members(&self) -> bool {
        matches!(
            self,
            Answer::MemberAdd(_)
                | Answer::MemberRemove(..)
                | Answer::MemberUpdate(..)
                | Answer::MemberPromote(..)
                | Answer::MoveLeader(..)
        )
    }
}

/// Writes answers in one format.
#[derive(Clone, Debug)]
pub(crate) struct Printer {
    pub(crate) format: Format,
    /// Keys, values and ids in hexadecimal.
    pub(crate) hex: bool,
    /// Values only, in the simple format.
    pub(crate) value_only: bool,
}

impl Printer {
    /// # Errors
    /// Code 4: no such format.
    pub(crate) fn new(format: &str, hex: bool) -> Result<Printer, Failure> {
        let format = match format {
            "simple" => Format::Simple,
            "json" => Format::Json,
            "fields" => Format::Fields,
            "table" => Format::Table,
            "protobuf" => Format::Protobuf,
            _ => return Err(Failure::bad_feature("unsupported output format")),
        };
        Ok(Printer { format, hex, value_only: false })
    }

    /// Writes `answer` to standard output.
    ///
    /// # Errors
    /// Code 4: the format cannot show this answer. Code 6: standard output is closed.
    pub(crate) fn print(&self, answer: &Answer<'_>) -> Result<(), Failure> {
        say(&self.render(answer)?)
    }

    fn render(&self, answer: &Answer<'_>) -> Result<Vec<u8>, Failure> {
        Ok(match self.format {
            Format::Fields if matches!(answer, Answer::Downgrade { .. }) => {
                return Err(Failure::bad_feature("fields not supported as output format"));
            }
            Format::Simple => simple::render(answer, self.hex, self.value_only),
            Format::Json => json::render(answer, self.hex).into_bytes(),
            Format::Fields if answer.changes_members() => {
                return Err(Failure::bad_feature("fields not supported as output format"));
            }
            Format::Fields => fields::render(answer, self.hex).into_bytes(),
            Format::Table => {
                let unsupported = || Failure::bad_feature("table not supported as output format");
                table::render(answer).ok_or_else(unsupported)?.into_bytes()
            }
            Format::Protobuf => {
                let unsupported = || Failure::bad_feature("protobuf not supported as output format");
                protobuf(answer).ok_or_else(unsupported)?
            }
        })
    }
}

/// The answer's own encoding; of a lease's answer only the header, of a watch's what etcd's client keeps.
fn protobuf(answer: &Answer<'_>) -> Option<Vec<u8>> {
    let header =
        |header: &Option<pb::ResponseHeader>| header.map(|header| header.encode_to_vec()).unwrap_or_default();
    Some(match answer {
        Answer::Get(answer) => answer.encode_to_vec(),
        Answer::Put(answer) => answer.encode_to_vec(),
        Answer::Delete(answer) => answer.encode_to_vec(),
        Answer::Txn(answer) => answer.encode_to_vec(),
        Answer::Watch(answer) => pb::WatchResponse {
            header: answer.header,
            events: answer.events.clone(),
            compact_revision: answer.compact_revision,
            canceled: answer.canceled,
            created: answer.created,
            ..Default::default()
        }
        .encode_to_vec(),
        Answer::Grant(answer) => header(&answer.header),
        Answer::KeepAlive(answer) => header(&answer.header),
        Answer::TimeToLive { answer, .. } => header(&answer.header),
        Answer::Leases(answer) => header(&answer.header),
        Answer::Alarm(answer) => answer.encode_to_vec(),
        Answer::Downgrade { answer, .. } => answer.encode_to_vec(),
        Answer::MemberList(answer) => answer.encode_to_vec(),
        Answer::MemberAdd(answer) => answer.encode_to_vec(),
        Answer::MemberRemove(_, answer) => answer.encode_to_vec(),
        Answer::MemberUpdate(_, answer) => answer.encode_to_vec(),
        Answer::MemberPromote(_, answer) => answer.encode_to_vec(),
        Answer::MoveLeader(_, _, answer) => answer.encode_to_vec(),
        Answer::Revoke(..) | Answer::Health(_) | Answer::Status(_) | Answer::HashKv(_) => return None,
    })
}

#[cfg(test)]
mod tests;

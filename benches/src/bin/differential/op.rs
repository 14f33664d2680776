//! An operation of a differential run, and the answer to it.

use prost::Message;
use trilith_benches::client::{Answer, Client, Stream, frame, path};
use trilith_benches::{Error, Result};
use trilith_proto::etcdserverpb::*;

/// A request, as it is sent to both servers. `Restart` goes to ours only: SIGKILL and a new start.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Range(RangeRequest),
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(CompactionRequest),
    Grant(LeaseGrantRequest),
    Revoke(LeaseRevokeRequest),
    KeepAlive(LeaseKeepAliveRequest),
    TimeToLive(LeaseTimeToLiveRequest),
    Leases,
    HashKv(HashKvRequest),
    Restart,
}

/// A decoded answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Response {
    Range(RangeResponse),
    Put(PutResponse),
    Delete(DeleteRangeResponse),
    Txn(TxnResponse),
    Compact(CompactionResponse),
    Grant(LeaseGrantResponse),
    Revoke(LeaseRevokeResponse),
    KeepAlive(LeaseKeepAliveResponse),
    TimeToLive(LeaseTimeToLiveResponse),
    Leases(LeaseLeasesResponse),
    HashKv(HashKvResponse),
    Restarted,
    Error { code: u32, message: String },
}

impl Op {
    /// Whether it changes nothing, so that its neighbours may overtake it.
    pub(crate) fn is_read(&self) -> bool {
        matches!(self, Op::Range(_) | Op::TimeToLive(_) | Op::Leases)
    }

    /// Sends it, and decodes the answer.
    pub(crate) async fn send(
        &self,
        client: &mut Client,
        keep_alive: &mut Option<Stream>,
    ) -> Result<Response> {
        match self {
            Op::KeepAlive(request) => {
                let stream = match keep_alive {
                    Some(stream) => stream,
                    None => keep_alive.insert(client.stream(path::LEASE_KEEP_ALIVE).await?),
                };
                stream.send(request)?;
                match stream.next().await? {
                    Ok(Some(response)) => Ok(Response::KeepAlive(response)),
                    Ok(None) => Err(Error::from("the keep-alive stream ended")),
                    Err(answer) => {
                        *keep_alive = None;
                        Ok(Response::Error { code: answer.code, message: answer.message })
                    }
                }
            }
            _ => self.send_unary(client).await,
        }
    }

    /// The same for the operations that are one unary call.
    pub(crate) async fn send_unary(&self, client: &mut Client) -> Result<Response> {
        match self {
            Op::Range(r) => call(client, path::RANGE, r, Response::Range).await,
            Op::Put(r) => call(client, path::PUT, r, Response::Put).await,
            Op::Delete(r) => call(client, path::DELETE_RANGE, r, Response::Delete).await,
            Op::Txn(r) => call(client, path::TXN, r, Response::Txn).await,
            Op::Compact(r) => call(client, path::COMPACT, r, Response::Compact).await,
            Op::Grant(r) => call(client, path::LEASE_GRANT, r, Response::Grant).await,
            Op::Revoke(r) => call(client, path::LEASE_REVOKE, r, Response::Revoke).await,
            Op::TimeToLive(r) => call(client, path::LEASE_TIME_TO_LIVE, r, Response::TimeToLive).await,
            Op::Leases => call(client, path::LEASE_LEASES, &LeaseLeasesRequest {}, Response::Leases).await,
            Op::HashKv(r) => call(client, path::HASH_KV, r, Response::HashKv).await,
            Op::KeepAlive(_) | Op::Restart => Err(Error::from("not a unary call")),
        }
    }
}

async fn call<Req: Message, Resp: Message + Default>(
    client: &mut Client,
    path: &str,
    request: &Req,
    wrap: impl FnOnce(Resp) -> Response,
) -> Result<Response> {
    let answer: Answer = client.unary_frame(path, frame(request)).await?;
    if answer.code != 0 {
        return Ok(Response::Error { code: answer.code, message: answer.message });
    }
    Ok(wrap(answer.decode()?))
}

impl Response {
    /// The name of its kind, for the count at the end of a run; a refusal's is its text.
    pub(crate) fn kind(&self) -> String {
        let name = match self {
            Response::Range(_) => "range",
            Response::Put(_) => "put",
            Response::Delete(_) => "delete",
            Response::Txn(_) => "txn",
            Response::Compact(_) => "compact",
            Response::Grant(_) => "grant",
            Response::Revoke(_) => "revoke",
            Response::KeepAlive(_) => "keep alive",
            Response::TimeToLive(_) => "time to live",
            Response::Leases(_) => "leases",
            Response::HashKv(_) => "hash",
            Response::Restarted => "restart",
            Response::Error { code, message } => return format!("{code} {message}"),
        };
        name.to_owned()
    }

    /// Store revision in the header, where there is one.
    pub(crate) fn revision(&self) -> i64 {
        let header = match self {
            Response::Range(r) => &r.header,
            Response::Put(r) => &r.header,
            Response::Delete(r) => &r.header,
            Response::Txn(r) => &r.header,
            Response::Compact(r) => &r.header,
            Response::Grant(r) => &r.header,
            Response::Revoke(r) => &r.header,
            Response::KeepAlive(r) => &r.header,
            Response::TimeToLive(r) => &r.header,
            Response::Leases(r) => &r.header,
            Response::HashKv(r) => &r.header,
            Response::Restarted | Response::Error { .. } => &None,
        };
        header.as_ref().map_or(0, |header| header.revision)
    }
}

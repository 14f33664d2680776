//! What a normal log entry says: etcdserverpb.InternalRaftRequest, read and written without its forty empty fields.
//!
//! Exactly one request stands in an entry (reference I3); an entry with none, or with one that is not known here,
//! must not be passed over, since the other members act on it.

use bytes::{Bytes, BytesMut};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, encode_key, encode_varint, encoded_len_varint};
use trilith_proto::{etcdserverpb as pb, membershippb};

use super::v2;

const FIELD_ID: u32 = 1;
/// A request of the second API.
const FIELD_V2: u32 = 2;
const FIELD_HEADER: u32 = 100;

/// The request of an entry, by its field number in InternalRaftRequest; each is named as its field is.
#[allow(missing_docs)]
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Command {
    #[prost(message, tag = "3")]
    Range(pb::RangeRequest),
    #[prost(message, tag = "4")]
    Put(pb::PutRequest),
    #[prost(message, tag = "5")]
    DeleteRange(pb::DeleteRangeRequest),
    #[prost(message, tag = "6")]
    Txn(pb::TxnRequest),
    #[prost(message, tag = "7")]
    Compaction(pb::CompactionRequest),
    #[prost(message, tag = "8")]
    LeaseGrant(pb::LeaseGrantRequest),
    #[prost(message, tag = "9")]
    LeaseRevoke(pb::LeaseRevokeRequest),
    #[prost(message, tag = "10")]
    Alarm(pb::AlarmRequest),
    #[prost(message, tag = "11")]
    LeaseCheckpoint(pb::LeaseCheckpointRequest),
    #[prost(message, tag = "1000")]
    AuthEnable(pb::AuthEnableRequest),
    #[prost(message, tag = "1011")]
    AuthDisable(pb::AuthDisableRequest),
    #[prost(message, tag = "1012")]
    Authenticate(pb::InternalAuthenticateRequest),
    #[prost(message, tag = "1013")]
    AuthStatus(pb::AuthStatusRequest),
    #[prost(message, tag = "1100")]
    AuthUserAdd(pb::AuthUserAddRequest),
    #[prost(message, tag = "1101")]
    AuthUserDelete(pb::AuthUserDeleteRequest),
    #[prost(message, tag = "1102")]
    AuthUserGet(pb::AuthUserGetRequest),
    #[prost(message, tag = "1103")]
    AuthUserChangePassword(pb::AuthUserChangePasswordRequest),
    #[prost(message, tag = "1104")]
    AuthUserGrantRole(pb::AuthUserGrantRoleRequest),
    #[prost(message, tag = "1105")]
    AuthUserRevokeRole(pb::AuthUserRevokeRoleRequest),
    #[prost(message, tag = "1106")]
    AuthUserList(pb::AuthUserListRequest),
    #[prost(message, tag = "1107")]
    AuthRoleList(pb::AuthRoleListRequest),
    #[prost(message, tag = "1200")]
    AuthRoleAdd(pb::AuthRoleAddRequest),
    #[prost(message, tag = "1201")]
    AuthRoleDelete(pb::AuthRoleDeleteRequest),
    #[prost(message, tag = "1202")]
    AuthRoleGet(pb::AuthRoleGetRequest),
    #[prost(message, tag = "1203")]
    AuthRoleGrantPermission(pb::AuthRoleGrantPermissionRequest),
    #[prost(message, tag = "1204")]
    AuthRoleRevokePermission(pb::AuthRoleRevokePermissionRequest),
    #[prost(message, tag = "1300")]
    ClusterVersionSet(membershippb::ClusterVersionSetRequest),
    #[prost(message, tag = "1301")]
    ClusterMemberAttrSet(membershippb::ClusterMemberAttrSetRequest),
    #[prost(message, tag = "1302")]
    DowngradeInfoSet(membershippb::DowngradeInfoSetRequest),
}

/// Field numbers of [`Command`].
fn is_command(field: u32) -> bool {
    matches!(field, 3..=11 | 1000 | 1011..=1013 | 1100..=1107 | 1200..=1204 | 1300..=1302)
}

/// A decoded entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Names the waiter, on the member that has one; 0 for none.
    pub id: u64,
    /// What to do; None for what only the second API knew.
    pub command: Option<Command>,
}

/// Why an entry cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// Not protobuf.
    #[error("it does not decode: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// Neither of the known requests is set; the fields that were found.
    #[error("it holds no request that this version knows, but fields {0:?}")]
    Unknown(Vec<u32>),
}

/// Encodes an entry with fields in ascending order, as etcd does.
pub fn encode(id: u64, command: &Command) -> Bytes {
    let header = pb::RequestHeader { id, ..Default::default() };
    let header_len = header.encoded_len();
    let mut buf = BytesMut::with_capacity(
        command.encoded_len() + encoded_len_varint(header_len as u64) + header_len + 2,
    );
    let low = matches!(
        command,
        Command::Range(_)
            | Command::Put(_)
            | Command::DeleteRange(_)
            | Command::Txn(_)
            | Command::Compaction(_)
            | Command::LeaseGrant(_)
            | Command::LeaseRevoke(_)
            | Command::Alarm(_)
            | Command::LeaseCheckpoint(_)
    );
    if low {
        command.encode(&mut buf);
    }
    encode_key(FIELD_HEADER, WireType::LengthDelimited, &mut buf);
    encode_varint(header_len as u64, &mut buf);
    header.encode_raw(&mut buf);
    if !low {
        command.encode(&mut buf);
    }
    buf.freeze()
}

/// Decodes an entry; keys and values share its bytes. Logs of etcd's before 3.5 also have bare requests of the second API.
pub fn decode(data: Bytes) -> Result<Request, BadRequest> {
    match decode_internal(data.clone()) {
        Err(BadRequest::Malformed(error)) => v2::decode(&data).ok_or(BadRequest::Malformed(error)),
        decoded => decoded,
    }
}

fn decode_internal(mut data: Bytes) -> Result<Request, BadRequest> {
    let mut own_id = 0;
    let mut header = pb::RequestHeader::default();
    let mut command = None;
    let mut wrapped = None;
    let mut unknown = Vec::new();
    while !data.is_empty() {
        let (field, wire_type) = decode_key(&mut data)?;
        let context = DecodeContext::default();
        match field {
            FIELD_ID => prost::encoding::uint64::merge(wire_type, &mut own_id, &mut data, context)?,
            FIELD_V2 if wire_type == WireType::LengthDelimited => {
                let mut bytes = Bytes::new();
                prost::encoding::bytes::merge(wire_type, &mut bytes, &mut data, context)?;
                wrapped = Some(bytes);
            }
            FIELD_HEADER => prost::encoding::message::merge(wire_type, &mut header, &mut data, context)?,
            field if is_command(field) => Command::merge(&mut command, field, wire_type, &mut data, context)?,
            field => {
                prost::encoding::skip_field(wire_type, field, &mut data, context)?;
                unknown.push(field);
            }
        }
    }
    let id = if own_id != 0 { own_id } else { header.id };
    match command {
        Some(_) => Ok(Request { id, command }),
        None => match wrapped.and_then(|bytes| v2::decode(&bytes)) {
            Some(request) => Ok(request),
            None => Err(BadRequest::Unknown(unknown)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_an_internal_raft_request() {
        let put = pb::PutRequest { key: "k".into(), value: "v".into(), lease: 7, ..Default::default() };
        let bytes = encode(9, &Command::Put(put.clone()));
        let whole = pb::InternalRaftRequest {
            put: Some(put.clone()),
            header: Some(pb::RequestHeader { id: 9, ..Default::default() }),
            ..Default::default()
        };
        assert_eq!(bytes, whole.encode_to_vec());
        assert_eq!(decode(bytes), Ok(Request { id: 9, command: Some(Command::Put(put)) }));
        let version = membershippb::ClusterVersionSetRequest { ver: "3.7.0".into() };
        let whole = pb::InternalRaftRequest {
            cluster_version_set: Some(version.clone()),
            header: Some(pb::RequestHeader { id: 9, ..Default::default() }),
            ..Default::default()
        };
        assert_eq!(encode(9, &Command::ClusterVersionSet(version)), whole.encode_to_vec());
    }

    #[test]
    fn the_id_field_is_preferred_to_the_header() {
        let both = pb::InternalRaftRequest {
            id: 4,
            header: Some(pb::RequestHeader { id: 9, ..Default::default() }),
            auth_status: Some(pb::AuthStatusRequest {}),
            ..Default::default()
        };
        assert_eq!(decode(both.encode_to_vec().into()).unwrap().id, 4);
    }

    #[test]
    fn unknown_content_is_named() {
        let unknown = pb::InternalRaftRequest {
            downgrade_version_test: Some(Default::default()),
            ..Default::default()
        };
        assert_eq!(decode(unknown.encode_to_vec().into()), Err(BadRequest::Unknown(vec![9900])));
        assert!(matches!(decode(Bytes::from_static(&[0x22, 0x7f])), Err(BadRequest::Malformed(_))));
        assert_eq!(decode(Bytes::from_static(&[0x08, 0x01])), Err(BadRequest::Unknown(vec![])));
    }
}

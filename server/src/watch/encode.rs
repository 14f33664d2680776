//! Encodes deliveries as WatchResponse frames, from the stored bytes of the pairs.
//!
//! A stored pair is passed on as it is, never decoded and encoded again. A delete's pair gets its revision added,
//! since a tombstone stores only the key.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};
use trilith_engine::{Change, KeyRange, Root, StoreError};
use trilith_proto::etcdserverpb::{ResponseHeader, WatchResponse};
use trilith_proto::mvccpb::KeyValue;

use super::state::{Created, Delivery, Refused, What};
use crate::reply::Reply;

/// The id in answers that name no watcher.
const NO_WATCHER: i64 = -1;

/// Field keys (number and wire type) of the messages below.
const RESPONSE_EVENTS: u8 = 11 << 3 | 2;
const EVENT_TYPE: u8 = 1 << 3;
const EVENT_KV: u8 = 2 << 3 | 2;
const EVENT_PREV_KV: u8 = 3 << 3 | 2;
const KV_MOD_REVISION: u8 = 3 << 3;

/// Makes the answers of a watch stream. `header` carries ids and term; the revision is set for each answer.
#[derive(Debug, Clone)]
pub struct Encoder {
    /// Cluster, member and term.
    pub header: ResponseHeader,
    /// A response of at least this many bytes is sent in parts to a client that takes parts.
    pub fragment_bytes: usize,
}

/// A change with the pair before it, where the client wants it and it is still there.
struct Event<'c> {
    change: &'c Change,
    prev_kv: Option<Bytes>,
}

impl Encoder {
    /// The answer to a create request.
    pub fn created(&self, outcome: Result<Created, Refused>) -> Reply {
        let response = match outcome {
            Ok(Created { watch_id, revision }) => {
                WatchResponse { created: true, ..self.response(watch_id, revision) }
            }
            Err(Refused { reason, revision }) => WatchResponse {
                created: true,
                canceled: true,
                cancel_reason: reason.into(),
                ..self.response(NO_WATCHER, revision)
            },
        };
        Reply::of(&response)
    }

    /// The answer to a cancel request.
    pub fn canceled(&self, watch_id: i64, revision: i64) -> Reply {
        Reply::of(&WatchResponse { canceled: true, ..self.response(watch_id, revision) })
    }

    /// A delivery: one answer, or several parts of one.
    pub fn delivery(&self, delivery: &Delivery, root: &Root) -> Result<Vec<Reply>, StoreError> {
        let id = delivery.watch_id;
        let response = match &delivery.what {
            What::Progress { revision } => self.response(id, *revision),
            What::Compacted { compact_revision } => {
                WatchResponse { canceled: true, compact_revision: *compact_revision, ..self.response(id, 0) }
            }
            What::Changes { revision, changes } => {
                let mut events = Vec::with_capacity(changes.len());
                for change in changes {
                    let prev_kv = if delivery.prev_kv { previous(root, change)? } else { None };
                    events.push(Event { change, prev_kv });
                }
                let head = self.response(id, *revision);
                return Ok(if delivery.fragment {
                    self.in_parts(head, &events)
                } else {
                    vec![whole(&head, &events)]
                });
            }
        };
        Ok(vec![Reply::of(&response)])
    }

    fn response(&self, watch_id: i64, revision: i64) -> WatchResponse {
        WatchResponse {
            header: Some(ResponseHeader { revision, ..self.header }),
            watch_id,
            ..WatchResponse::default()
        }
    }

    /// Parts below the limit where they hold more than one event; all but the last say so.
    fn in_parts(&self, mut head: WatchResponse, events: &[Event<'_>]) -> Vec<Reply> {
        let head_bytes = head.encoded_len();
        let total: usize = head_bytes + events.iter().map(Event::field_len).sum::<usize>();
        if total < self.fragment_bytes || events.len() < 2 {
            return vec![whole(&head, events)];
        }
        head.fragment = true;
        let head_bytes = head.encoded_len();
        let mut parts = Vec::new();
        let mut rest = events;
        while !rest.is_empty() {
            let mut bytes = head_bytes;
            let mut count = 0;
            while count < rest.len() && (count == 0 || bytes + rest[count].field_len() < self.fragment_bytes)
            {
                bytes += rest[count].field_len();
                count += 1;
            }
            let (part, after) = rest.split_at(count);
            head.fragment = !after.is_empty();
            parts.push(whole(&head, part));
            rest = after;
        }
        parts
    }
}

fn whole(head: &WatchResponse, events: &[Event<'_>]) -> Reply {
    let bytes = head.encoded_len() + events.iter().map(Event::field_len).sum::<usize>();
    Reply::build(bytes, |buf| {
        head.encode_raw(buf);
        for event in events {
            event.encode(buf);
        }
    })
}

impl Event<'_> {
    fn kv_len(&self) -> usize {
        self.change.kv.len()
            + if self.change.deleted { 1 + encoded_len_varint(self.change.revision.main as u64) } else { 0 }
    }

    fn body_len(&self) -> usize {
        let kind = if self.change.deleted { 2 } else { 0 };
        kind + bytes_field_len(self.kv_len())
            + self.prev_kv.as_ref().map_or(0, |prev| bytes_field_len(prev.len()))
    }

    /// Length as a field of the response.
    fn field_len(&self) -> usize {
        bytes_field_len(self.body_len())
    }

    fn encode(&self, buf: &mut BytesMut) {
        buf.put_u8(RESPONSE_EVENTS);
        encode_varint(self.body_len() as u64, buf);
        if self.change.deleted {
            buf.put_slice(&[EVENT_TYPE, 1]);
        }
        buf.put_u8(EVENT_KV);
        encode_varint(self.kv_len() as u64, buf);
        buf.put_slice(&self.change.kv);
        if self.change.deleted {
            buf.put_u8(KV_MOD_REVISION);
            encode_varint(self.change.revision.main as u64, buf);
        }
        if let Some(prev) = &self.prev_kv {
            buf.put_u8(EVENT_PREV_KV);
            encode_varint(prev.len() as u64, buf);
            buf.put_slice(prev);
        }
    }
}

/// One key byte, the length, the bytes.
fn bytes_field_len(len: usize) -> usize {
    1 + encoded_len_varint(len as u64) + len
}

/// The stored pair before a change that was no creation; None when that revision is compacted.
fn previous(root: &Root, change: &Change) -> Result<Option<Bytes>, StoreError> {
    if !change.deleted {
        let created = KeyValue::decode(&change.kv[..]).is_ok_and(|kv| kv.create_revision == kv.mod_revision);
        if created {
            return Ok(None);
        }
    }
    let view = root.view();
    let range = KeyRange { start: &change.key, end: None };
    let before = match view.keys(range, change.revision.main - 1) {
        Ok(mut keys) => keys.next().transpose()?,
        Err(StoreError::Compacted | StoreError::Future) => None,
        Err(error) => return Err(error),
    };
    match before {
        Some(meta) => Ok(Some(Bytes::copy_from_slice(&view.kv(meta.modified)?))),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trilith_engine::Revision;
    use trilith_proto::mvccpb::{Event as PbEvent, event::EventType};

    fn change(main: i64, deleted: bool, value_bytes: usize) -> Change {
        let key = Bytes::from_static(b"key");
        let kv = KeyValue { key: key.clone(), ..KeyValue::default() };
        let kv = if deleted {
            kv
        } else {
            KeyValue { mod_revision: main, create_revision: 2, value: vec![7; value_bytes].into(), ..kv }
        };
        Change { revision: Revision { main, sub: 0 }, deleted, key, kv: kv.encode_to_vec().into() }
    }

    fn encoder(fragment_bytes: usize) -> Encoder {
        let header = ResponseHeader { cluster_id: 1, member_id: 2, revision: 0, raft_term: 3 };
        Encoder { header, fragment_bytes }
    }

    fn decode(reply: &Reply) -> WatchResponse {
        WatchResponse::decode(&reply.0[5..]).unwrap()
    }

    #[test]
    fn encodes_what_prost_would() {
        let (put, delete) = (change(300, false, 200), change(301, true, 0));
        let prev_kv = KeyValue { key: put.key.clone(), mod_revision: 299, ..KeyValue::default() };
        let events = [
            Event { change: &put, prev_kv: None },
            Event { change: &delete, prev_kv: Some(prev_kv.encode_to_vec().into()) },
        ];
        let head = encoder(0).response(-1, 301);
        let expected = WatchResponse {
            events: vec![
                PbEvent {
                    r#type: EventType::Put as i32,
                    kv: Some(KeyValue::decode(&put.kv[..]).unwrap()),
                    prev_kv: None,
                },
                PbEvent {
                    r#type: EventType::Delete as i32,
                    kv: Some(KeyValue { key: put.key.clone(), mod_revision: 301, ..KeyValue::default() }),
                    prev_kv: Some(prev_kv),
                },
            ],
            ..head.clone()
        };
        let reply = whole(&head, &events);
        assert_eq!(decode(&reply), expected);
        assert_eq!(&reply.0[5..], expected.encode_to_vec());
    }

    #[test]
    fn parts_stay_below_the_limit_and_make_up_the_whole() {
        let changes: Vec<Change> =
            (0..20).map(|n| change(10 + n, false, 100 + (n as usize * 37) % 300)).collect();
        let events: Vec<_> = changes.iter().map(|change| Event { change, prev_kv: None }).collect();
        let encoder = encoder(700);
        let parts = encoder.in_parts(encoder.response(4, 30), &events);
        assert!(parts.len() > 3);
        let decoded: Vec<_> = parts.iter().map(decode).collect();
        for (n, part) in decoded.iter().enumerate() {
            assert_eq!(part.fragment, n + 1 < decoded.len());
            assert!(part.encoded_len() < 700 || part.events.len() == 1);
            assert_eq!((part.watch_id, part.header.as_ref().unwrap().revision), (4, 30));
        }
        let kvs: Vec<_> =
            decoded.into_iter().flat_map(|part| part.events).map(|event| event.kv.unwrap()).collect();
        let expected: Vec<_> =
            changes.iter().map(|change| KeyValue::decode(&change.kv[..]).unwrap()).collect();
        assert_eq!(kvs, expected);
        // A single event is never cut, however large.
        assert_eq!(encoder.in_parts(encoder.response(4, 30), &events[..1]).len(), 1);
        // Below the limit there is one part, unmarked.
        let whole = encoder.in_parts(encoder.response(4, 30), &events[..2]);
        assert!(whole.len() == 1 && !decode(&whole[0]).fragment);
    }
}

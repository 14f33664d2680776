//! The bytes of the two kinds of streams between members, as pure functions.
//!
//! A message stream is a row of frames: 8 bytes of length, big endian, and a raft message. A msgapp stream carries
//! appends and nothing else, in etcd's second version: where an append only continues the last one, its entries are
//! enough. Both ends keep the term and the index that the next one would continue.
//!
//! Promises of the decoder: no input makes it panic; what it holds is bounded by what came in, and by the limit of a
//! message; a stream that breaks the format ends with an error, and what came before is not taken back.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message as _;
use prost::encoding::{DecodeContext, decode_key, skip_field};
use trilith_proto::raftpb::{Entry, Message, MessageType};

/// etcd's limit of a message, in bytes (E1).
pub const MESSAGE_MAX: u64 = 512 << 20;
/// What an entry costs beside its bytes: many empty ones are many all the same.
const ENTRY_COST: u64 = 96;

const LINK_HEARTBEAT: u8 = 0;
const APP_ENTRIES: u8 = 1;
const MSG_APP: u8 = 2;

/// The kinds of streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Appends.
    MsgApp,
    /// Everything, and appends only while there is no other stream for them.
    Message,
}

impl Kind {
    /// Both, in the order of their numbers.
    pub const ALL: [Kind; 2] = [Kind::MsgApp, Kind::Message];

    /// Its name in paths.
    pub fn name(self) -> &'static str {
        match self {
            Kind::MsgApp => "msgapp",
            Kind::Message => "message",
        }
    }
}

/// Why a stream cannot be read on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// A length beyond the limit.
    #[error("a message of {0} bytes is longer than {MESSAGE_MAX}")]
    TooLong(u64),
    /// A msgapp frame that begins with another byte.
    #[error("a frame of kind {0} in a stream of appends")]
    Kind(u8),
    /// The protobuf is broken.
    #[error("broken message: {0}")]
    Message(#[from] prost::DecodeError),
}

/// Writes the frames of one stream.
#[derive(Debug)]
pub struct Encoder {
    kind: Kind,
    /// What the last append leads up to (E2).
    at: (u64, u64),
}

impl Encoder {
    /// The beginning of a stream.
    pub fn new(kind: Kind) -> Encoder {
        Encoder { kind, at: (0, 0) }
    }

    /// Appends the frame of a message. On a msgapp stream it is a MsgApp.
    pub fn encode(&mut self, message: &Message, out: &mut BytesMut) {
        match self.kind {
            Kind::Message => put_message(message, out),
            Kind::MsgApp => self.encode_append(message, out),
        }
    }

    /// S5: appends what keeps an idle stream alive.
    pub fn heartbeat(&self, out: &mut BytesMut) {
        match self.kind {
            Kind::MsgApp => out.put_u8(LINK_HEARTBEAT),
            Kind::Message => put_message(
                &Message { r#type: Some(MessageType::MsgHeartbeat.into()), ..Message::default() },
                out,
            ),
        }
    }

    /// E3.
    fn encode_append(&mut self, message: &Message, out: &mut BytesMut) {
        let (term, index) = (message.term(), message.index());
        if (message.log_term(), index) == self.at && message.log_term() == term {
            out.put_u8(APP_ENTRIES);
            out.put_u64(message.entries.len() as u64);
            for entry in &message.entries {
                out.put_u64(entry.encoded_len() as u64);
                put(entry, out);
            }
            out.put_u64(message.commit());
            self.at.1 = index.wrapping_add(message.entries.len() as u64);
        } else {
            out.put_u8(MSG_APP);
            put_message(message, out);
            self.at = continued(message);
        }
    }
}

fn put(message: &impl prost::Message, out: &mut BytesMut) {
    message.encode(out).expect("a growing buffer has room");
}

fn put_message(message: &Message, out: &mut BytesMut) {
    let len = message.encoded_len();
    out.reserve(8 + len);
    out.put_u64(len as u64);
    put(message, out);
}

/// E2: term and index after a complete append.
fn continued(message: &Message) -> (u64, u64) {
    (message.term(), message.entries.last().map_or(message.index(), Entry::index))
}

/// What a frame says.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "nearly all are messages")]
pub enum Frame {
    /// The other end is there.
    Heartbeat,
    /// For raft.
    Message(Message),
}

/// Where the decoder of appends stands within a frame.
#[derive(Debug, Default)]
enum Part {
    #[default]
    Kind,
    Count,
    /// So many are to come; those that came, and what they cost.
    Entries(u64, Vec<Entry>, u64),
    Commit(Vec<Entry>),
    Whole,
}

/// Reads the frames of one stream from pieces of any size.
#[derive(Debug)]
pub struct Decoder {
    kind: Kind,
    buffer: BytesMut,
    part: Part,
    at: (u64, u64),
    /// The dialer and the dialed, which an append that continues does not name.
    to: u64,
    from: u64,
}

impl Decoder {
    /// The beginning of a stream that member `to` reads from member `from`.
    pub fn new(kind: Kind, to: u64, from: u64) -> Decoder {
        Decoder { kind, buffer: BytesMut::new(), part: Part::Kind, at: (0, 0), to, from }
    }

    /// Takes the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame; None when more bytes are needed. After an error the stream is of no use.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, CodecError> {
        match self.kind {
            Kind::Message => {
                let Some(bytes) = self.framed(0)? else { return Ok(None) };
                let message = decode_message(bytes)?;
                Ok(Some(if is_link_heartbeat(&message) { Frame::Heartbeat } else { Frame::Message(message) }))
            }
            Kind::MsgApp => self.next_append(),
        }
    }

    fn next_append(&mut self) -> Result<Option<Frame>, CodecError> {
        loop {
            match std::mem::take(&mut self.part) {
                Part::Kind => {
                    if !self.buffer.has_remaining() {
                        return Ok(None);
                    }
                    match self.buffer.get_u8() {
                        LINK_HEARTBEAT => return Ok(Some(Frame::Heartbeat)),
                        APP_ENTRIES => self.part = Part::Count,
                        MSG_APP => self.part = Part::Whole,
                        other => return Err(CodecError::Kind(other)),
                    }
                }
                Part::Count => {
                    let Some(count) = self.number() else { return self.wait(Part::Count) };
                    self.part = Part::Entries(count, Vec::new(), 0);
                }
                Part::Entries(0, entries, _) => self.part = Part::Commit(entries),
                Part::Entries(left, mut entries, cost) => {
                    let Some(bytes) = self.framed(cost)? else {
                        return self.wait(Part::Entries(left, entries, cost));
                    };
                    let cost = cost + ENTRY_COST + bytes.len() as u64;
                    entries.push(Entry::decode(bytes)?);
                    self.part = Part::Entries(left - 1, entries, cost);
                }
                Part::Commit(entries) => {
                    let Some(commit) = self.number() else { return self.wait(Part::Commit(entries)) };
                    return Ok(Some(Frame::Message(self.continuing(entries, commit))));
                }
                Part::Whole => {
                    let Some(bytes) = self.framed(0)? else { return self.wait(Part::Whole) };
                    let message = decode_message(bytes)?;
                    self.at = continued(&message);
                    return Ok(Some(Frame::Message(message)));
                }
            }
        }
    }

    /// E4.
    fn continuing(&mut self, entries: Vec<Entry>, commit: u64) -> Message {
        let (term, index) = self.at;
        self.at.1 = index.wrapping_add(entries.len() as u64);
        Message {
            r#type: Some(MessageType::MsgApp.into()),
            to: Some(self.to),
            from: Some(self.from),
            term: Some(term),
            log_term: Some(term),
            index: Some(index),
            entries,
            commit: Some(commit),
            ..Message::default()
        }
    }

    fn wait(&mut self, part: Part) -> Result<Option<Frame>, CodecError> {
        self.part = part;
        Ok(None)
    }

    fn number(&mut self) -> Option<u64> {
        (self.buffer.len() >= 8).then(|| self.buffer.get_u64())
    }

    /// Bytes with their length before them, once all are there. `held` counts towards the limit.
    fn framed(&mut self, held: u64) -> Result<Option<Bytes>, CodecError> {
        let Some(head) = self.buffer.first_chunk::<8>() else { return Ok(None) };
        let len = u64::from_be_bytes(*head);
        if len > MESSAGE_MAX || len + held > MESSAGE_MAX {
            return Err(CodecError::TooLong(len.saturating_add(held)));
        }
        if ((self.buffer.len() - 8) as u64) < len {
            return Ok(None);
        }
        self.buffer.advance(8);
        Ok(Some(self.buffer.split_to(len as usize).freeze()))
    }
}

/// Reads a message whose parts, once they are read, take no more than the limit of a message: two bytes make an entry.
pub fn decode_message(bytes: Bytes) -> Result<Message, CodecError> {
    const ENTRIES: u32 = 7;
    const RESPONSES: u32 = 14;
    let mut cost = bytes.len() as u64;
    let mut rest = bytes.clone();
    while rest.has_remaining() {
        let (tag, wire) = decode_key(&mut rest)?;
        skip_field(wire, tag, &mut rest, DecodeContext::default())?;
        cost += match tag {
            ENTRIES => ENTRY_COST,
            RESPONSES => size_of::<Message>() as u64,
            _ => 0,
        };
    }
    if cost > MESSAGE_MAX {
        return Err(CodecError::TooLong(cost));
    }
    Ok(Message::decode(bytes)?)
}

/// S5: a heartbeat of raft's own has a sender and a receiver.
fn is_link_heartbeat(message: &Message) -> bool {
    message.r#type() == MessageType::MsgHeartbeat && message.from() == 0 && message.to() == 0
}

#[cfg(test)]
mod tests;

//! Both encodings: byte by byte, against themselves in pieces of any size, and against noise.

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use trilith_fuzz::{Rng, mutate, run};
use trilith_proto::raftpb::{Entry, Message, MessageType};

use super::{CodecError, Decoder, ENTRY_COST, Encoder, Frame, Kind, MESSAGE_MAX, decode_message};

fn entry(term: u64, index: u64, data: &'static [u8]) -> Entry {
    Entry { term: Some(term), index: Some(index), data: Some(Bytes::from_static(data)), r#type: None }
}

fn append(term: u64, log_term: u64, index: u64, entries: Vec<Entry>, commit: u64) -> Message {
    Message {
        r#type: Some(MessageType::MsgApp.into()),
        to: Some(2),
        from: Some(1),
        term: Some(term),
        log_term: Some(log_term),
        index: Some(index),
        entries,
        commit: Some(commit),
        ..Message::default()
    }
}

fn encoded(kind: Kind, messages: &[Message]) -> Vec<u8> {
    let (mut encoder, mut out) = (Encoder::new(kind), BytesMut::new());
    messages.iter().for_each(|message| encoder.encode(message, &mut out));
    out.to_vec()
}

/// All frames of a stream that came in these pieces, or what was wrong with it.
fn decoded<'p>(
    kind: Kind,
    pieces: impl IntoIterator<Item = &'p [u8]>,
) -> Result<Vec<Frame>, (Vec<Frame>, CodecError)> {
    let mut decoder = Decoder::new(kind, 2, 1);
    let mut frames = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return Err((frames, error)),
            }
        }
    }
    Ok(frames)
}

#[test]
fn e1_message_frames() {
    let vote = Message { r#type: Some(5), to: Some(2), from: Some(1), ..Message::default() };
    let bytes = encoded(Kind::Message, std::slice::from_ref(&vote));
    assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 6, 0x08, 5, 0x10, 2, 0x18, 1]);
    assert_eq!(decoded(Kind::Message, [&bytes[..]]).unwrap(), [Frame::Message(vote)]);
}

#[test]
fn s5_link_heartbeats() {
    let mut out = BytesMut::new();
    Encoder::new(Kind::Message).heartbeat(&mut out);
    assert_eq!(out[..], [0, 0, 0, 0, 0, 0, 0, 2, 8, 8]);
    assert_eq!(decoded(Kind::Message, [&out[..]]).unwrap(), [Frame::Heartbeat]);
    // Members before 3.7 write the zeros too.
    let zeros = Message {
        r#type: Some(8),
        to: Some(0),
        from: Some(0),
        term: Some(0),
        commit: Some(0),
        reject: Some(false),
        ..Message::default()
    };
    let bytes = encoded(Kind::Message, &[zeros]);
    assert_eq!(decoded(Kind::Message, [&bytes[..]]).unwrap(), [Frame::Heartbeat]);
    // One of raft's has a sender.
    let real = Message { r#type: Some(8), to: Some(2), from: Some(1), ..Message::default() };
    let bytes = encoded(Kind::Message, std::slice::from_ref(&real));
    assert_eq!(decoded(Kind::Message, [&bytes[..]]).unwrap(), [Frame::Message(real)]);

    let mut out = BytesMut::new();
    Encoder::new(Kind::MsgApp).heartbeat(&mut out);
    assert_eq!(out[..], [0]);
    assert_eq!(decoded(Kind::MsgApp, [&[0, 0][..]]).unwrap(), [Frame::Heartbeat, Frame::Heartbeat]);
}

#[test]
fn e2_e3_e4_appends_that_continue_are_short() {
    let first = append(5, 4, 9, vec![entry(5, 10, b"a")], 9);
    let second = append(5, 5, 10, vec![entry(5, 11, b"b"), entry(5, 12, b"")], 10);
    let empty = append(5, 5, 12, vec![], 12);
    let bytes = encoded(Kind::MsgApp, &[first.clone(), second.clone(), empty.clone()]);
    let whole = first.encode_to_vec();
    let mut expected = vec![2];
    expected.extend((whole.len() as u64).to_be_bytes());
    expected.extend(&whole);
    expected.extend([1, 0, 0, 0, 0, 0, 0, 0, 2]);
    for entry in &second.entries {
        let bytes = entry.encode_to_vec();
        expected.extend((bytes.len() as u64).to_be_bytes());
        expected.extend(bytes);
    }
    expected.extend([0, 0, 0, 0, 0, 0, 0, 10]);
    expected.extend([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12]);
    assert_eq!(bytes, expected);
    let frames = [first, second, empty].map(Frame::Message);
    assert_eq!(decoded(Kind::MsgApp, [&bytes[..]]).unwrap(), frames);
}

#[test]
fn e3_whatever_does_not_continue_is_whole() {
    let first = append(5, 5, 9, vec![entry(5, 10, b"a")], 9);
    for other in [
        // A gap, a step back, another term of the log, another term of the leader.
        append(5, 5, 11, vec![], 9),
        append(5, 5, 9, vec![], 9),
        append(5, 4, 10, vec![], 9),
        append(6, 5, 10, vec![], 9),
    ] {
        let begin = encoded(Kind::MsgApp, std::slice::from_ref(&first)).len();
        let bytes = encoded(Kind::MsgApp, &[first.clone(), other.clone()]);
        assert_eq!(bytes[begin], 2, "{other:?}");
        assert_eq!(decoded(Kind::MsgApp, [&bytes[..]]).unwrap(), [first.clone(), other].map(Frame::Message));
    }
    // Without entries the index that the message names is the one that the next continues.
    let empty = append(7, 7, 20, vec![], 9);
    let begin = encoded(Kind::MsgApp, std::slice::from_ref(&empty)).len();
    let bytes = encoded(Kind::MsgApp, &[empty, append(7, 7, 20, vec![entry(7, 21, b"")], 9)]);
    assert_eq!(bytes[begin], 1);
}

#[test]
fn what_breaks_the_format() {
    let too_long = (MESSAGE_MAX + 1).to_be_bytes();
    assert_eq!(decoded(Kind::Message, [&too_long[..]]), Err((vec![], CodecError::TooLong(MESSAGE_MAX + 1))));
    assert_eq!(decoded(Kind::Message, [&MESSAGE_MAX.to_be_bytes()[..]]), Ok(vec![]));
    assert_eq!(decoded(Kind::Message, [&[0xff; 8][..]]), Err((vec![], CodecError::TooLong(u64::MAX))));
    assert_eq!(decoded(Kind::MsgApp, [&[0, 3][..]]), Err((vec![Frame::Heartbeat], CodecError::Kind(3))));
    let mut whole = vec![2];
    whole.extend(too_long);
    assert_eq!(decoded(Kind::MsgApp, [&whole[..]]), Err((vec![], CodecError::TooLong(MESSAGE_MAX + 1))));
    let broken = [0, 0, 0, 0, 0, 0, 0, 1, 0xff];
    assert!(matches!(decoded(Kind::Message, [&broken[..]]), Err((_, CodecError::Message(_)))));
    // So many entries that they are too much without any bytes.
    let mut many = vec![1];
    many.extend(u64::MAX.to_be_bytes());
    many.extend(vec![0; 8 * 100]);
    assert_eq!(decoded(Kind::MsgApp, [&many[..]]), Ok(vec![]));
    let piece = vec![0; 8 << 20];
    let error = decoded(Kind::MsgApp, std::iter::once(&many[..]).chain(std::iter::repeat_n(&piece[..], 8)));
    assert!(matches!(error, Err((_, CodecError::TooLong(_)))), "{:?}", error.map(|frames| frames.len()));
}

fn random_append(rng: &mut Rng, at: &mut (u64, u64)) -> Message {
    let term = at.0.max(1) + u64::from(rng.one_in(4));
    let (log_term, index) = if rng.one_in(4) { (rng.number(), rng.number() >> 2) } else { (at.0, at.1) };
    let entries: Vec<Entry> = (0..rng.below(5) as u64)
        .map(|i| Entry {
            term: Some(term),
            index: Some(index + 1 + i),
            data: (!rng.one_in(3)).then(|| rng.bytes(40).into()),
            r#type: rng.one_in(9).then_some(1),
        })
        .collect();
    *at = (term, index + entries.len() as u64);
    append(term, log_term, index, entries, rng.number())
}

fn random_message(rng: &mut Rng) -> Message {
    let kinds = [2, 4, 5, 6, 8, 9, 13, 14, 15, 16, 17, 18];
    Message {
        r#type: Some(rng.pick(&kinds)),
        from: Some(1 + rng.next() / 2),
        context: rng.one_in(2).then(|| rng.bytes(8).into()),
        reject: rng.one_in(3).then_some(true),
        ..append(rng.number(), rng.number(), rng.number(), vec![], rng.number())
    }
}

fn random_stream(rng: &mut Rng) -> (Kind, Vec<Message>) {
    let (count, mut at) = (1 + rng.below(12), (0, 0));
    if rng.one_in(2) {
        (Kind::MsgApp, (0..count).map(|_| random_append(rng, &mut at)).collect())
    } else {
        (Kind::Message, (0..count).map(|_| random_message(rng)).collect())
    }
}

/// Cuts bytes into pieces.
fn pieces<'b>(bytes: &'b [u8], rng: &mut Rng) -> Vec<&'b [u8]> {
    let (mut rest, mut pieces) = (bytes, Vec::new());
    while !rest.is_empty() {
        let (piece, tail) = rest.split_at((1 + rng.below(60)).min(rest.len()));
        pieces.push(piece);
        rest = tail;
    }
    pieces
}

#[test]
fn streams_survive_in_pieces_of_any_size() {
    run("streams", 1, u64::MAX, |rng| {
        let (kind, messages) = random_stream(rng);
        let bytes = encoded(kind, &messages);
        let frames: Vec<Frame> = messages.into_iter().map(Frame::Message).collect();
        assert_eq!(decoded(kind, pieces(&bytes, rng)).unwrap(), frames);
    });
}

#[test]
fn noise_is_an_error_or_messages_and_costs_no_more_than_it_is_long() {
    run("noise in streams", 2, 1 << 30, |rng| {
        let (kind, messages) = random_stream(rng);
        let mut bytes = encoded(kind, &messages);
        mutate(&mut bytes, 64, rng);
        let at_once = decoded(kind, [&bytes[..]]);
        assert_eq!(at_once, decoded(kind, pieces(&bytes, rng)), "how it is cut does not matter");
        let frames = at_once.unwrap_or_else(|(frames, _)| frames);
        assert!(frames.len() <= bytes.len());
    });
}

#[test]
fn two_bytes_for_an_entry_do_not_make_more_than_a_message_may_be() {
    let entries = |count: usize| Bytes::from([0x3a, 0].repeat(count));
    assert_eq!(decode_message(entries(1000)).unwrap().entries.len(), 1000);
    let most = (MESSAGE_MAX / (2 + ENTRY_COST)) as usize;
    assert!(matches!(decode_message(entries(most + 1)), Err(CodecError::TooLong(_))));
    let messages = Bytes::from([0x72, 0].repeat((MESSAGE_MAX / size_of::<Message>() as u64) as usize));
    assert!(matches!(decode_message(messages), Err(CodecError::TooLong(_))));
    assert!(matches!(decode_message(Bytes::from_static(&[0x3a, 9])), Err(CodecError::Message(_))));
}

//! Requests of clients that name the server with its scheme: `:authority: http://127.0.0.1:2379`.
//!
//! etcd's own client 3.4 does so where it dials an endpoint that was given with a scheme, and etcd's server takes it; h2
//! resets such a request as malformed, and has no say in it for its user. So the scheme is taken out of the bytes
//! before h2 sees them.
//!
//! The first request of a connection decides: where it names the server rightly, as nearly all do, everything behind it
//! passes as it is. Otherwise the header blocks are walked through for literals of `:authority`. What else a block says
//! is left alone, and later references to the literal find what h2 was given. (Its table of headers then holds a little
//! more than the client's, never less.)
//!
//! Promises: bytes are changed in that one place only, and what it does not understand it leaves to h2.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes with which a client begins.
const PREFACE: usize = 24;
const FRAME_HEAD: usize = 9;
/// Frames are no longer, unless we said so.
const FRAME_MAX: usize = 16 << 10;
const READ_BYTES: usize = 16 << 10;

const HEADERS: u8 = 1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const PRIORITY_BYTES: usize = 5;
/// The place of `:authority` in HPACK's static table.
const AUTHORITY: usize = 1;
const HUFFMAN: u8 = 0x80;

/// The schemes: as text, and as HPACK's Huffman code, its bits on the right.
const SCHEMES: [(&[u8], u64, usize); 2] =
    [(b"http://", 0x13a_535d_c618, 41), (b"https://", 0x274a_6b45_c618, 46)];

#[derive(Debug)]
enum State {
    /// No request has come.
    First,
    /// Everything passes.
    Pass,
    /// Requests are mended.
    Mend,
}

/// A connection whose requests name the server as h2 wants it.
#[derive(Debug)]
pub(super) struct Mended<S> {
    socket: S,
    state: State,
    /// Bytes of the preface or of a frame that pass as they are.
    passing: usize,
    /// Read, and not looked at.
    raw: Vec<u8>,
    /// To be handed on.
    ready: Vec<u8>,
    handed: usize,
}

impl<S> Mended<S> {
    pub(super) fn new(socket: S) -> Mended<S> {
        let (raw, ready) = (Vec::new(), Vec::new());
        Mended { socket, state: State::First, passing: PREFACE, raw, ready, handed: 0 }
    }

    /// Moves what can be handed on.
    fn look(&mut self) {
        loop {
            let pass = match self.state {
                State::Pass => self.raw.len(),
                _ => self.passing.min(self.raw.len()),
            };
            self.ready.extend(self.raw.drain(..pass));
            self.passing = self.passing.saturating_sub(pass);
            if self.raw.len() < FRAME_HEAD || self.passing > 0 {
                return;
            }
            let len =
                usize::from(self.raw[0]) << 16 | usize::from(self.raw[1]) << 8 | usize::from(self.raw[2]);
            let (kind, flags) = (self.raw[3], self.raw[4]);
            if kind != HEADERS || len > FRAME_MAX {
                self.passing = FRAME_HEAD + len;
                continue;
            }
            if self.raw.len() < FRAME_HEAD + len {
                return;
            }
            let mended = mend(&self.raw[FRAME_HEAD..FRAME_HEAD + len], flags);
            match (mended, &self.state) {
                (Some(payload), _) => {
                    self.state = State::Mend;
                    self.ready.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
                    self.ready.extend_from_slice(&self.raw[3..FRAME_HEAD]);
                    self.ready.extend_from_slice(&payload);
                    self.raw.drain(..FRAME_HEAD + len);
                }
                (None, State::Mend) => self.passing = FRAME_HEAD + len,
                (None, _) => self.state = State::Pass,
            }
        }
    }
}

/// The payload of a frame of headers, if it names the server with a scheme, without that.
fn mend(payload: &[u8], flags: u8) -> Option<Vec<u8>> {
    if flags & END_HEADERS == 0 || flags & PADDED != 0 {
        return None;
    }
    let mut at = if flags & PRIORITY != 0 { PRIORITY_BYTES } else { 0 };
    while at < payload.len() {
        let first = payload[at];
        let prefix = match first {
            0x80.. => 7,
            0x40.. => 6,
            0x20.. => 5,
            _ => 4,
        };
        let name = number(payload, &mut at, prefix)?;
        if prefix == 7 || prefix == 5 {
            continue;
        }
        if name == 0 {
            let len = number(payload, &mut at, 7)?;
            at = at.checked_add(len)?;
        }
        let begin = at;
        let huffman = payload.get(at)? & HUFFMAN != 0;
        let len = number(payload, &mut at, 7)?;
        let value = payload.get(at..at.checked_add(len)?)?;
        at += len;
        if name != AUTHORITY {
            continue;
        }
        let value = without_scheme(value, huffman)?;
        let mut mended = payload[..begin].to_vec();
        put_length(&mut mended, value.len(), huffman);
        mended.extend_from_slice(&value);
        mended.extend_from_slice(&payload[at..]);
        return Some(mended);
    }
    None
}

/// An HPACK number whose first byte has `prefix` bits of it.
fn number(bytes: &[u8], at: &mut usize, prefix: u32) -> Option<usize> {
    let mask = (1usize << prefix) - 1;
    let mut value = usize::from(*bytes.get(*at)?) & mask;
    *at += 1;
    if value < mask {
        return Some(value);
    }
    for shift in [0, 7, 14] {
        let byte = usize::from(*bytes.get(*at)?);
        *at += 1;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn put_length(out: &mut Vec<u8>, len: usize, huffman: bool) {
    let huffman = if huffman { HUFFMAN } else { 0 };
    if len < 0x7f {
        return out.push(huffman | len as u8);
    }
    out.push(huffman | 0x7f);
    let mut rest = len - 0x7f;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// What follows a scheme, in the code that the value has.
fn without_scheme(value: &[u8], huffman: bool) -> Option<Vec<u8>> {
    SCHEMES.iter().find_map(|(text, code, bits)| match huffman {
        false => value.strip_prefix(*text).map(<[u8]>::to_vec),
        true => without_code(value, *code, *bits),
    })
}

/// The bits behind a code at the beginning, moved to the front and filled up with ones.
fn without_code(value: &[u8], code: u64, bits: usize) -> Option<Vec<u8>> {
    let total = value.len() * 8;
    // Behind the end there are ones.
    let bit = |at: usize| if at < total { usize::from(value[at / 8] >> (7 - at % 8) & 1) } else { 1 };
    let peek = |at: usize, count: usize| (at..at + count).fold(0, |code, at| code << 1 | bit(at));
    if total < bits || peek(0, bits) as u64 != code {
        return None;
    }
    let mut end = bits;
    while let Some(length) = code_length(|count| peek(end, count)).filter(|length| end + length <= total) {
        end += length;
    }
    if total - end >= 8 || peek(end, 8) != 0xff {
        return None;
    }
    let mut rest = vec![0xff; (end - bits).div_ceil(8)];
    for (to, from) in (bits..end).enumerate() {
        rest[to / 8] &= !(((1 - bit(from)) as u8) << (7 - to % 8));
    }
    Some(rest)
}

/// Bits of the code of the next character: of those that names of servers are made of, and a few more.
fn code_length(peek: impl Fn(usize) -> usize) -> Option<usize> {
    match (peek(5), peek(6), peek(7), peek(8), peek(10), peek(13)) {
        (0..=0x9, ..) => Some(5),
        (_, 0x14..=0x2d, ..) => Some(6),
        (_, _, 0x5c..=0x7b, ..) => Some(7),
        (_, _, _, 0xf8..=0xfd, ..) => Some(8),
        (_, _, _, _, 0x3f8..=0x3fc, _) => Some(10),
        (.., 0x1ff8..=0x1ffd) => Some(13),
        _ => None,
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Mended<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.handed == this.ready.len() {
            this.ready.clear();
            this.handed = 0;
            if let State::Pass = this.state {
                return Pin::new(&mut this.socket).poll_read(context, buffer);
            }
            let mut bytes = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.socket).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                // The client is gone in the middle of a frame: h2 shall see that.
                this.state = State::Pass;
                if this.raw.is_empty() {
                    return Poll::Ready(Ok(()));
                }
            }
            this.raw.extend_from_slice(read.filled());
            this.look();
        }
        let part = &this.ready[this.handed..];
        let part = &part[..part.len().min(buffer.remaining())];
        buffer.put_slice(part);
        this.handed += part.len();
        if let State::Pass = this.state
            && this.handed == this.ready.len()
        {
            // They are not needed any more.
            (this.ready, this.raw, this.handed) = (Vec::new(), Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Mended<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// "http://127.0.0.1:29379" as etcdctl 3.4.23 writes it.
    const NAMED: [u8; 16] =
        [0x9d, 0x29, 0xae, 0xe3, 0x0c, 0x04, 0x4e, 0xae, 0x05, 0xc0, 0xb8, 0x6e, 0x09, 0xf6, 0x5d, 0x7f];

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend_from_slice(&[kind, flags, 0, 0, 0, stream]);
        frame.extend_from_slice(payload);
        frame
    }

    /// POST http /a, an authority with a place in the table of headers, and one header more.
    fn block(authority: &[u8], huffman: u8) -> Vec<u8> {
        let mut block = vec![0x83, 0x86, 0x04, 2, b'/', b'a', 0x41, huffman | authority.len() as u8];
        block.extend_from_slice(authority);
        block.extend_from_slice(&[0x40, 1, b'x', 1, b'y']);
        block
    }

    fn client(requests: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(4, 0, 0, &[]));
        for (number, request) in requests.iter().enumerate() {
            let stream = number as u8 * 2 + 1;
            bytes.extend(frame(HEADERS, END_HEADERS, stream, request));
            bytes.extend(frame(0, 1, stream, b"body"));
        }
        bytes
    }

    /// The authorities that h2 finds, with so many bytes coming at a time.
    async fn found(bytes: Vec<u8>, at_a_time: usize) -> Vec<String> {
        let (mut ours, theirs) = tokio::io::duplex(1 << 16);
        let sending = async move {
            for part in bytes.chunks(at_a_time) {
                ours.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
            }
            ours.shutdown().await.unwrap();
            let mut answers = Vec::new();
            ours.read_to_end(&mut answers).await.unwrap();
        };
        let serving = async {
            let mut connection = h2::server::handshake(Mended::new(theirs)).await.unwrap();
            let mut found = Vec::new();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                found.push(request.uri().authority().unwrap().to_string());
                respond.send_response(http::Response::new(()), true).unwrap();
            }
            found
        };
        tokio::join!(sending, serving).1
    }

    #[tokio::test]
    async fn a_scheme_is_taken_out_wherever_the_bytes_are_cut() {
        // The second refers to what the first brought, the third brings it again.
        let again = vec![0x83, 0x86, 0x04, 2, b'/', b'a', 0xbf, 0xbe];
        let requests = [block(&NAMED, HUFFMAN), again, block(b"https://localhost:2379", 0)];
        for at_a_time in [1, 2, 7, 40, 1000] {
            let found = found(client(&requests), at_a_time).await;
            assert_eq!(
                found,
                ["127.0.0.1:29379", "127.0.0.1:29379", "localhost:2379"],
                "{at_a_time} at a time"
            );
        }
    }

    #[tokio::test]
    async fn what_is_right_passes_as_it_is() {
        let requests = [block(b"localhost:2379", 0), block(b"http://localhost", 0)];
        let bytes = client(&requests);
        let mut mended = Mended::new(&bytes[..]);
        let mut passed = Vec::new();
        mended.read_to_end(&mut passed).await.unwrap();
        assert_eq!(passed, bytes);
        assert!(matches!(mended.state, State::Pass));
    }

    #[tokio::test]
    async fn what_is_cut_off_or_no_block_passes_as_it_is() {
        let whole = client(&[block(&NAMED, HUFFMAN)]);
        for len in 0..whole.len() - 20 {
            let mut passed = Vec::new();
            Mended::new(&whole[..len]).read_to_end(&mut passed).await.unwrap();
            assert!(passed.len() <= len);
        }
        for payload in [&[0x41][..], &[0x41, 0xff, 0xff, 0xff, 0xff, 0xff], &[0x00, 0x7f], &[0x41, 5, b'h']] {
            assert_eq!(mend(payload, END_HEADERS), None);
        }
        assert_eq!(mend(&block(&NAMED, HUFFMAN), 0), None);
        assert_eq!(mend(&block(&NAMED, HUFFMAN), END_HEADERS | PADDED), None);
    }

    /// Ends of every length: each of these texts, with and without the scheme, in the code of HPACK.
    #[test]
    fn codes_are_moved_to_the_front_whatever_their_end() {
        let codes = |text: &str| {
            let code = |c: u8| match c {
                b'0'..=b'2' => (usize::from(c - b'0'), 5),
                b'3'..=b'9' => (0x19 + usize::from(c - b'3'), 6),
                b'a' => (0x3, 5),
                b'h' => (0x27, 6),
                b't' => (0x9, 5),
                b'p' => (0x2b, 6),
                b's' => (0x8, 5),
                b':' => (0x5c, 7),
                b'/' => (0x18, 6),
                b'.' => (0x17, 6),
                b'[' => (0x1ffb, 13),
                b']' => (0x1ffc, 13),
                _ => panic!("{c}"),
            };
            let mut bits: Vec<bool> = Vec::new();
            for (code, len) in text.bytes().map(code) {
                bits.extend((0..len).rev().map(|at| code >> at & 1 == 1));
            }
            bits.resize(bits.len().next_multiple_of(8), true);
            bits.chunks(8)
                .map(|byte| byte.iter().fold(0, |all, bit| all << 1 | u8::from(*bit)))
                .collect::<Vec<u8>>()
        };
        assert_eq!(codes("http://127.0.0.1:29379"), NAMED);
        for text in
            ["", "a", "9", "99", "999", "127.0.0.1:2379", "127.0.0.1:23799", "[::1]:2379", "a.9:7", "[::9]"]
        {
            for scheme in ["http://", "https://"] {
                let (with, without) = (codes(&format!("{scheme}{text}")), codes(text));
                assert_eq!(without_scheme(&with, true), Some(without), "{scheme}{text}");
            }
            assert_eq!(without_scheme(&codes(text), true), None);
        }
        // Characters of no server's name are left to h2.
        assert_eq!(without_scheme(&[&NAMED[..15], &[0xff, 0xfb]].concat(), true), None);
    }
}

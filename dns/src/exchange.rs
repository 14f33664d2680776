//! One question to one server: over UDP, then over TCP when the answer does not fit.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE};

/// Answers without our number or question that are passed over before a server counts as silent.
const STRAYS_MAX: usize = 16;
/// No server sends more over UDP to one that does not ask for it.
const UDP_BYTES_MAX: usize = 4096;

/// A question in the form of the wire. None: the text is no name.
pub(crate) fn question(id: u16, name: &str, kind: TYPE) -> Option<Vec<u8>> {
    let name = Name::new(name).ok().filter(|name| !name.get_labels().is_empty())?;
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    packet.questions.push(Question::new(name, QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false));
    packet.build_bytes_vec().ok()
}

/// What `take` finds in a server's answer; an empty list where the server says that there is nothing; None where it
/// fails.
///
/// # Errors
/// The server cannot be reached, or is silent.
pub(crate) fn ask<T>(
    question: &[u8],
    server: SocketAddr,
    timeout: Duration,
    take: impl Fn(&RData<'_>) -> Option<T>,
) -> io::Result<Option<Vec<T>>> {
    let bytes = over_udp(question, server, Instant::now() + timeout)?;
    let bytes = match bytes {
        Some(bytes) => bytes,
        None => over_tcp(question, server, Instant::now() + timeout)?,
    };
    // Who answered is known to be the server, and to have meant this question.
    let Ok(answer) = Packet::parse(&bytes) else { return Ok(None) };
    Ok(match answer.rcode() {
        RCODE::NoError => Some(answer.answers.iter().filter_map(|record| take(&record.rdata)).collect()),
        RCODE::NameError => Some(Vec::new()),
        _ => None,
    })
}

/// The time until then, of which there is some.
fn left(until: Instant) -> io::Result<Duration> {
    match until.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

/// The answer, or None when it was cut off.
fn over_udp(question: &[u8], server: SocketAddr, until: Instant) -> io::Result<Option<Vec<u8>>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    // The kernel passes on nothing from anybody else.
    socket.connect(server)?;
    socket.send(question)?;
    let mut buffer = [0; UDP_BYTES_MAX];
    for _ in 0..STRAYS_MAX {
        socket.set_read_timeout(Some(left(until)?))?;
        let len = socket.recv(&mut buffer)?;
        let Some(bytes) = buffer.get(..len).filter(|bytes| answers(question, bytes)) else { continue };
        let cut = bytes[2] & 0x02 != 0;
        return Ok((!cut).then(|| bytes.to_vec()));
    }
    Err(io::ErrorKind::TimedOut.into())
}

fn over_tcp(question: &[u8], server: SocketAddr, until: Instant) -> io::Result<Vec<u8>> {
    let mut socket = TcpStream::connect_timeout(&server, left(until)?)?;
    socket.set_write_timeout(Some(left(until)?))?;
    let mut framed = (question.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(question);
    socket.write_all(&framed)?;
    let mut len = [0; 2];
    read(&mut socket, &mut len, until)?;
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(len))];
    read(&mut socket, &mut bytes, until)?;
    if !answers(question, &bytes) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is to another question"));
    }
    Ok(bytes)
}

/// Fills the buffer, however slowly it comes, until the time is up.
fn read(socket: &mut TcpStream, mut buffer: &mut [u8], until: Instant) -> io::Result<()> {
    while !buffer.is_empty() {
        socket.set_read_timeout(Some(left(until)?))?;
        match socket.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => buffer = &mut buffer[len..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether bytes are an answer with the question's number and text. Servers repeat the question as it was; its letters
/// may change their case.
fn answers(question: &[u8], bytes: &[u8]) -> bool {
    const HEADER: usize = 12;
    bytes.len() >= HEADER
        && bytes[..2] == question[..2]
        && bytes[2] & 0x80 != 0
        // A server that cannot read a question does not repeat it.
        && (bytes[4..6] == [0, 0]
            || bytes
                .get(HEADER..question.len())
                .is_some_and(|repeated| repeated.eq_ignore_ascii_case(&question[HEADER..])))
}

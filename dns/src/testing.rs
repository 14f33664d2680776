//! A name server for tests: answers from a list, on a free port of the loopback, over UDP and TCP.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use simple_dns::rdata::{A, AAAA, RData, SRV};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE};

/// A record, by the lower-case name that it stands under.
#[derive(Debug, Clone)]
pub enum Record {
    /// Priority, weight, port, target.
    Srv(u16, u16, u16, String),
    /// A or AAAA.
    Address(IpAddr),
    /// The server fails when it is asked for this name.
    Fail,
}

/// An answer over UDP has room for so many bytes.
const UDP_BYTES: usize = 512;

/// Starts a server whose threads end with the process; its address.
///
/// # Panics
/// There is no free port.
#[allow(clippy::unwrap_used, reason = "only tests call it")]
pub fn serve(zone: Vec<(String, Record)>) -> SocketAddr {
    // The same number has to be free for both.
    let (udp, tcp) = std::iter::repeat_with(|| {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let tcp = TcpListener::bind(udp.local_addr().unwrap());
        tcp.ok().map(|tcp| (udp, tcp))
    })
    .flatten()
    .next()
    .unwrap();
    let address = udp.local_addr().unwrap();
    let zone_of_tcp = zone.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((len, from)) = udp.recv_from(&mut buffer) {
            let mut bytes = answer(&zone, &buffer[..len]);
            if bytes.len() > UDP_BYTES {
                // Cut off: the header with the bit TC, and the question.
                bytes = buffer[..len].to_vec();
                bytes[2] |= 0x82;
            }
            udp.send_to(&bytes, from).unwrap();
        }
    });
    std::thread::spawn(move || {
        for socket in tcp.incoming() {
            let mut socket = socket.unwrap();
            let mut len = [0; 2];
            socket.read_exact(&mut len).unwrap();
            let mut question = vec![0; usize::from(u16::from_be_bytes(len))];
            socket.read_exact(&mut question).unwrap();
            let bytes = answer(&zone_of_tcp, &question);
            socket.write_all(&(bytes.len() as u16).to_be_bytes()).unwrap();
            socket.write_all(&bytes).unwrap();
        }
    });
    address
}

#[allow(clippy::unwrap_used, reason = "only tests call it")]
fn answer(zone: &[(String, Record)], question: &[u8]) -> Vec<u8> {
    let question = Packet::parse(question).unwrap();
    let mut reply = Packet::new_reply(question.id());
    reply.set_flags(PacketFlag::RECURSION_AVAILABLE);
    reply.questions.clone_from(&question.questions);
    let asked = &question.questions[0];
    let name = asked.qname.to_string().to_ascii_lowercase();
    let mut known = false;
    for (_, record) in zone.iter().filter(|(owner, _)| *owner == name) {
        known = true;
        let (kind, data) = match record {
            Record::Fail => {
                *reply.rcode_mut() = RCODE::ServerFailure;
                return reply.build_bytes_vec().unwrap();
            }
            Record::Srv(priority, weight, port, target) => {
                let target = Name::new(target).unwrap();
                let srv = SRV { priority: *priority, weight: *weight, port: *port, target };
                (TYPE::SRV, RData::SRV(srv))
            }
            Record::Address(IpAddr::V4(ip)) => (TYPE::A, RData::A(A::from(*ip))),
            Record::Address(IpAddr::V6(ip)) => (TYPE::AAAA, RData::AAAA(AAAA::from(*ip))),
        };
        if asked.qtype == QTYPE::TYPE(kind) {
            reply.answers.push(ResourceRecord::new(asked.qname.clone(), CLASS::IN, 60, data));
        }
    }
    if !known {
        *reply.rcode_mut() = RCODE::NameError;
    }
    reply.build_bytes_vec().unwrap()
}

//! The resolver against the tests' name server, and against one that sends nonsense.

use std::collections::BTreeMap;
use std::net::UdpSocket;

use super::*;
use crate::testing::{Record, serve};

fn srv(name: &str, priority: u16, weight: u16, port: u16, target: &str) -> (String, Record) {
    (name.to_owned(), Record::Srv(priority, weight, port, target.to_owned()))
}

fn address(name: &str, ip: &str) -> (String, Record) {
    (name.to_owned(), Record::Address(ip.parse().unwrap()))
}

#[test]
fn finds_instances_and_addresses() {
    let server = serve(vec![
        srv("_etcd-server._tcp.example.com", 2, 0, 2380, "c.example.com."),
        srv("_etcd-server._tcp.example.com", 1, 9, 2381, "b.example.com"),
        address("b.example.com", "10.0.0.2"),
        address("b.example.com", "::2"),
        address("six.example.com", "::6"),
        ("broken.example.com".to_owned(), Record::Fail),
    ]);
    let resolver = Resolver::of_servers(vec![server]);
    let found = resolver.srv("etcd-server", "example.com").unwrap();
    let found: Vec<_> = found.iter().map(|srv| (srv.port, srv.target.as_str())).collect();
    assert_eq!(found, [(2381, "b.example.com"), (2380, "c.example.com")]);
    let of =
        |host: &str| resolver.addresses(host).map(|found| format!("{found:?}")).map_err(|e| e.to_string());
    assert_eq!(of("B.example.com").unwrap(), "[10.0.0.2, ::2]");
    assert_eq!(of("six.example.com").unwrap(), "[::6]");
    assert_eq!(of("127.0.0.9").unwrap(), "[127.0.0.9]");
    assert_eq!(of("localhost").unwrap(), "[127.0.0.1]");
    assert_eq!(
        of("none.example.com").unwrap_err(),
        format!("lookup none.example.com on {server}: no such host")
    );
    assert_eq!(
        of("broken.example.com").unwrap_err(),
        format!("lookup broken.example.com on {server}: server misbehaving")
    );
    for bad in ["", ".", &"x".repeat(64), &"x.".repeat(200)] {
        assert_eq!(of(bad).unwrap_err(), format!("lookup {bad}: no such host"));
    }
}

#[test]
fn an_answer_that_was_cut_off_is_asked_for_over_tcp() {
    let target = |n| format!("member-{n}.a-rather-long-name.example.com");
    let zone = (0..100).map(|n| srv("_x._tcp.example.com", 0, 0, n, &target(n))).collect();
    let found = Resolver::of_servers(vec![serve(zone)]).srv("x", "example.com").unwrap();
    let ports: std::collections::BTreeSet<u16> = found.iter().map(|srv| srv.port).collect();
    assert_eq!(ports, (0..100).collect());
    assert!(found.iter().all(|srv| srv.target == target(srv.port)));
}

#[test]
fn the_next_server_is_asked_when_one_is_silent() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let silent_address = silent.local_addr().unwrap();
    let server = serve(vec![address("a.example.com", "10.0.0.1")]);
    let short = Duration::from_millis(50);
    let resolver = Resolver::of_servers(vec![silent_address, server]).with_timeout(short);
    assert_eq!(resolver.addresses("a.example.com").unwrap(), ["10.0.0.1".parse::<IpAddr>().unwrap()]);
    let resolver = Resolver::of_servers(vec![silent_address]).with_timeout(short);
    let error = resolver.addresses("a.example.com").unwrap_err().to_string();
    assert_eq!(error, format!("lookup a.example.com on {silent_address}: i/o timeout"));
}

/// Answers whose numbers or questions are others', that are cut at any place, or that have any byte changed, give an
/// answer or an error, and the right address or none where the header is another's.
#[test]
fn nonsense_is_no_answer() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let server = socket.local_addr().unwrap();
    let mut round = 0;
    let rounds = std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            if &buffer[..len] == b"end" {
                break;
            }
            // One record A, pointing back to the name of the question.
            let mut good = buffer[..len].to_vec();
            good[2] |= 0x80;
            good[7] = 1;
            good.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 0, 0, 1]);
            let mut bad = good.clone();
            match round % 3 {
                0 => bad.truncate(round % good.len()),
                1 => bad[round % good.len()] ^= 0xff,
                _ => bad.splice(len.., [0xc0, len as u8].repeat(round % 100)).for_each(drop),
            }
            round += 1;
            socket.send_to(&bad, from).unwrap();
            socket.send_to(&good, from).unwrap();
        }
        round
    });
    let resolver = Resolver { attempts: 1, ..Resolver::of_servers(vec![server]) }
        .with_timeout(Duration::from_millis(200));
    let mut right = 0;
    for _ in 0..300 {
        let take = |data: &RData<'_>| match data {
            RData::A(a) => Some(IpAddr::from(a.address.to_be_bytes())),
            _ => None,
        };
        match resolver.ask("a.example.com", TYPE::A, take) {
            Ok(found) => right += usize::from(found == ["10.0.0.1".parse::<IpAddr>().unwrap()]),
            Err(error) => assert!(error.to_string().starts_with("lookup a.example.com on "), "{error}"),
        }
    }
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"end", server).unwrap();
    assert_eq!(rounds.join().unwrap(), 300);
    assert!(right > 100, "{right}");
}

#[test]
fn weights_decide_who_comes_first() {
    let one = |port, priority, weight| Srv { priority, weight, port, target: "t".to_owned() };
    let all = vec![one(1, 0, 30), one(2, 0, 10), one(3, 0, 0), one(4, 9, 99)];
    let mut first: BTreeMap<u16, u32> = BTreeMap::new();
    for draw in 0..41 {
        let mut draws = [draw, 0, 0, 0].into_iter();
        let ordered = order::by_priority_and_weight(all.clone(), |bound| draws.next().unwrap() % bound);
        let mut ports: Vec<u16> = ordered.iter().map(|srv| srv.port).collect();
        *first.entry(ports[0]).or_default() += 1;
        assert_eq!(ports[3], 4, "the higher number comes last");
        ports.sort_unstable();
        assert_eq!(ports, [1, 2, 3, 4]);
    }
    assert_eq!(first, BTreeMap::from([(1, 30), (2, 10), (3, 1)]));
}

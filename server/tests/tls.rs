//! TLS at the client port, from outside, and the acceptor and the connector of peers.
#![allow(clippy::unwrap_used)]

#[path = "../../tls/tests/authority/mod.rs"]
mod authority;
mod support;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use authority::{Authority, Files, Pair, as_usual, expired};
use support::{Client, Folder, Member, block_on, start};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ProtocolVersion;
use trilith_proto::mvccpb::KeyValue;
use trilith_server::config::url::Url;
use trilith_server::reply::Reply;
use trilith_server::rpc::{Call, Options, Routes, Server, Stop};
use trilith_server::tls::{Acceptor, Connector, HANDSHAKES_MAX, Handshakes};
use trilith_tls::{Limits, Settings, Source};

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// An authority, the files of a server, and those of its clients.
struct Bed {
    files: Files,
    authority: Authority,
    data: Folder,
}

impl Bed {
    fn new(name: &str) -> Bed {
        let bed = Bed {
            files: Files::new(name),
            authority: Authority::new("the authority"),
            data: Folder::new(&format!("data-of-tls-{name}")),
        };
        bed.files.put("ca.pem", bed.authority.pem());
        bed.files.pair("server", &bed.authority.pair("server", &["127.0.0.1"], 10, as_usual));
        bed
    }

    /// Starts a member with one port of TLS.
    fn start(&self, flags: &[&str]) -> (Member, SocketAddr) {
        let address = free();
        let file = |name: &str| self.files.path(name).display().to_string();
        let mut all = vec![
            format!("--listen-client-urls=https://{address}"),
            format!("--advertise-client-urls=https://{address}"),
            format!("--cert-file={}", file("server.crt")),
            format!("--key-file={}", file("server.key")),
        ];
        all.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        (start(&self.data, &all), address)
    }

    fn flag(&self, flag: &str, file: &str) -> String {
        format!("{flag}={}", self.files.path(file).display())
    }

    fn stranger(&self) -> Settings {
        let trusted_ca_file = self.files.path("ca.pem");
        Settings { trusted_ca_file, alpn: vec![b"h2".to_vec()], ..Settings::default() }
    }

    fn client(&self, name: &str, pair: &Pair) -> Settings {
        let (cert_file, key_file) = self.files.pair(name, pair);
        Settings { cert_file, key_file, ..self.stranger() }
    }
}

async fn dial(address: SocketAddr, settings: &Settings) -> std::io::Result<TlsStream<TcpStream>> {
    let source = Source::open(settings.clone()).unwrap();
    let connector = TlsConnector::from(source.current(std::time::Instant::now()).client);
    let name = address.ip().to_string().try_into().unwrap();
    connector.connect(name, TcpStream::connect(address).await?).await
}

/// A put over a new connection.
async fn put(address: SocketAddr, settings: &Settings) -> Result<Client, String> {
    let tls = dial(address, settings).await.map_err(|error| error.to_string())?;
    let client = Client::over(tls).await.map_err(|error| error.to_string())?;
    // A refusal of the client's certificate comes after its handshake.
    client.try_put("key").await.map_err(|error| error.to_string())?;
    Ok(client)
}

#[test]
fn clients_without_a_good_certificate_are_refused() {
    let bed = Bed::new("refused");
    bed.files.put("crl.der", bed.authority.revoke(&[12]).1);
    let flags = [
        "--client-cert-auth".to_owned(),
        bed.flag("--trusted-ca-file", "ca.pem"),
        bed.flag("--client-crl-file", "crl.der"),
        "--client-cert-allowed-hostname=127.0.0.1,other.example".to_owned(),
        "--trilith-io-threads=2".to_owned(),
    ];
    let (member, address) = bed.start(&flags.each_ref().map(String::as_str));
    let pair = |names: &[&str], serial, change| bed.authority.pair("alice", names, serial, change);
    let good = bed.client("alice", &pair(&["127.0.0.1"], 11, as_usual));
    let other = Authority::new("another authority");
    let own = |name: &str, pair: &Pair| bed.client(name, pair);
    block_on(async {
        // Dealt out over both threads.
        for _ in 0..4 {
            put(address, &good).await.unwrap();
        }
        for (client, error) in [
            (bed.stranger(), "tls: client didn't provide a certificate"),
            (own("other", &other.pair("alice", &["127.0.0.1"], 11, as_usual)), "signed by unknown authority"),
            (own("late", &pair(&["127.0.0.1"], 11, expired)), "certificate has expired or is not yet valid"),
            (own("revoked", &pair(&["127.0.0.1"], 12, as_usual)), "transport: certificate revoked"),
            (own("name", &pair(&["10.1.1.1"], 13, as_usual)), "client certificate authentication failed"),
            (
                own("origin", &pair(&["other.example"], 14, as_usual)),
                "does not match any of DNSNames [\\\"other.example\\\"]",
            ),
        ] {
            put(address, &client).await.map(drop).unwrap_err();
            let lines = member.wait_for("rejected connection on client endpoint");
            assert!(lines.last().unwrap().contains(error), "{error}: {lines:?}");
        }
        put(address, &good).await.unwrap();
    });
    member.stop();
}

#[test]
fn an_authority_alone_asks_for_certificates_too() {
    let bed = Bed::new("alone");
    let (member, address) = bed.start(&[&bed.flag("--trusted-ca-file", "ca.pem")]);
    let alice = bed.client("alice", &bed.authority.pair("alice", &[], 11, as_usual));
    block_on(async {
        put(address, &alice).await.unwrap();
        put(address, &bed.stranger()).await.map(drop).unwrap_err();
    });
    member.stop();
}

/// Dials until the outcome is as wanted: files are looked at once a second.
async fn until(address: SocketAddr, settings: &Settings, wanted: bool) {
    while put(address, settings).await.is_ok() != wanted {}
}

#[test]
fn files_change_under_a_connection_that_lives_on() {
    let bed = Bed::new("rotation");
    bed.files.put("crl.pem", bed.authority.revoke(&[]).0);
    let flags = [
        "--client-cert-auth".to_owned(),
        bed.flag("--trusted-ca-file", "ca.pem"),
        bed.flag("--client-crl-file", "crl.pem"),
    ];
    let (member, address) = bed.start(&flags.each_ref().map(String::as_str));
    let alice = bed.client("alice", &bed.authority.pair("alice", &[], 11, as_usual));
    let bob = bed.client("bob", &bed.authority.pair("bob", &[], 12, as_usual));
    block_on(async {
        let living = put(address, &alice).await.unwrap();
        bed.files.put("crl.pem", bed.authority.revoke(&[11]).0);
        until(address, &alice, false).await;
        put(address, &bob).await.unwrap();
        living.try_put("after the list of revocations").await.unwrap();

        bed.files.put("crl.pem", "damaged");
        let damaged =
            || member.wait_for("TLS files have changed and cannot be used; those before stay in use");
        let dials = async {
            // Nothing changes, however often it is looked at.
            for _ in 0..300 {
                put(address, &bob).await.unwrap();
                put(address, &alice).await.map(drop).unwrap_err();
            }
        };
        dials.await;
        let lines = damaged();
        assert!(lines.last().unwrap().contains("crl.pem: "), "{lines:?}");

        // Certificate and authority: those of before are not known any more.
        let next = Authority::new("next authority");
        bed.files.put("crl.pem", next.revoke(&[]).0);
        bed.files.pair("server", &next.pair("server", &["127.0.0.1"], 30, as_usual));
        bed.files.put("ca.pem", next.pem());
        let carol = bed.client("carol", &next.pair("carol", &[], 13, as_usual));
        until(address, &carol, true).await;
        put(address, &Settings { insecure_skip_verify: true, ..bob.clone() }).await.map(drop).unwrap_err();
        living.try_put("after everything").await.unwrap();
    });
    member.stop();
}

#[test]
fn versions_and_suites() {
    let bed = Bed::new("versions");
    let suite = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384";
    let (member, address) = bed.start(&["--tls-max-version=TLS1.2", &format!("--cipher-suites={suite}")]);
    let with = |min: &str, max: &str, suites: &[String]| Settings {
        limits: Limits::parse(min, max, suites).unwrap(),
        ..bed.stranger()
    };
    block_on(async {
        let tls = dial(address, &bed.stranger()).await.unwrap();
        let agreed = tls.get_ref().1;
        assert_eq!(agreed.protocol_version(), Some(ProtocolVersion::TLSv1_2));
        assert_eq!(format!("{:?}", agreed.negotiated_cipher_suite().unwrap().suite()), suite);
        assert_eq!(agreed.alpn_protocol(), Some(&b"h2"[..]));
        dial(address, &with("TLS1.3", "", &[])).await.map(drop).unwrap_err();
        let other = ["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256".to_owned()];
        dial(address, &with("", "TLS1.2", &other)).await.map(drop).unwrap_err();
    });
    member.stop();
    let (member, address) = bed.start(&["--tls-min-version=TLS1.3"]);
    block_on(async {
        put(address, &bed.stranger()).await.unwrap();
        dial(address, &with("", "TLS1.2", &[])).await.map(drop).unwrap_err();
    });
    member.stop();
}

#[test]
fn a_certificate_of_its_own() {
    use std::os::unix::fs::PermissionsExt;
    let (data, address) = (Folder::new("data-of-tls-auto"), free());
    let urls = [format!("--listen-client-urls=https://{address}"), "--auto-tls".to_owned()];
    let advertise = format!("--advertise-client-urls=https://{address}");
    let flags = [&*urls[0], &*urls[1], &*advertise, "--self-signed-cert-validity=3"];
    let folder = data.0.join("fixtures/client");
    let cert = || std::fs::read(folder.join("cert.pem")).unwrap();
    let member = start(&data, &flags);
    let key_mode = std::fs::metadata(folder.join("key.pem")).unwrap().permissions().mode();
    assert_eq!(key_mode & 0o777, 0o600);
    let first = cert();
    let alpn = vec![b"h2".to_vec()];
    // It is its own authority, as with etcd's.
    let trusting = Settings { trusted_ca_file: folder.join("cert.pem"), alpn, ..Settings::default() };
    block_on(async {
        put(address, &trusting).await.unwrap();
        let wary = Settings { trusted_ca_file: "".into(), ..trusting.clone() };
        put(address, &wary).await.map(drop).unwrap_err();
    });
    member.stop();
    let member = start(&data, &flags);
    block_on(async { put(address, &trusting).await.unwrap() });
    member.stop();
    assert_eq!(first, cert(), "a later start takes the same");
}

#[test]
fn slow_clients_cost_nobody_else_anything() {
    let bed = Bed::new("slow");
    let (member, address) = bed.start(&[]);
    block_on(async {
        let mut silent = Vec::new();
        for at in 0..HANDSHAKES_MAX + 50 {
            let mut socket = TcpStream::connect(address).await.unwrap();
            if at % 2 == 0 {
                // The begin of a record that does not go on.
                socket.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
            }
            silent.push(socket);
        }
        let begin = std::time::Instant::now();
        put(address, &bed.stranger()).await.unwrap();
        assert!(begin.elapsed() < trilith_server::tls::HANDSHAKE_TIMEOUT / 4, "{:?}", begin.elapsed());
        // The oldest had to go, and the others go when their time is over.
        let mut rest = Vec::new();
        for mut socket in silent {
            let ended = socket.read_to_end(&mut rest).await;
            assert!(ended.is_ok_and(|_| true) || rest.is_empty());
        }
        let lines = member.wait_for("too many handshakes are under way");
        assert!(lines.last().unwrap().contains("rejected connection on client endpoint"));
    });
    member.stop();
}

#[test]
fn plain_and_secure_side_by_side() {
    let bed = Bed::new("both");
    let (plain, secure) = (free(), free());
    let urls = format!("http://{plain},https://{secure}");
    let (listen, advertise) =
        (format!("--listen-client-urls={urls}"), format!("--advertise-client-urls={urls}"));
    let (member, _) = bed.start(&[&listen, &advertise]);
    block_on(async {
        let first = Client::connect(plain).await;
        assert_eq!(first.put("a", "1").await, 2);
        put(secure, &bed.stranger()).await.unwrap();
        assert_eq!(first.put("a", "2").await, 4);
        // HTTP/1.1 comes through TLS as it comes without.
        let http = Settings { alpn: vec![b"http/1.1".to_vec()], ..bed.stranger() };
        for settings in [http, Settings { alpn: Vec::new(), ..bed.stranger() }] {
            let mut tls = dial(secure, &settings).await.unwrap();
            tls.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            tls.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
        }
        // Plain text at the secure port.
        let mut socket = TcpStream::connect(secure).await.unwrap();
        socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let _ = socket.read_to_end(&mut Vec::new()).await;
        let lines = member.wait_for("rejected connection on client endpoint");
        let said = "first record does not look like a TLS handshake";
        assert!(lines.last().unwrap().contains(said), "{lines:?}");
    });
    member.stop();
}

#[test]
fn large_values_go_both_ways() {
    let bed = Bed::new("large");
    let (member, address) = bed.start(&["--max-request-bytes=4000000"]);
    block_on(async {
        let client = put(address, &bed.stranger()).await.unwrap();
        let value: Vec<u8> =
            (0..3_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        client.put("large", value.clone()).await;
        let request = trilith_proto::etcdserverpb::RangeRequest { key: "large".into(), ..Default::default() };
        let found: trilith_proto::etcdserverpb::RangeResponse =
            client.call("/etcdserverpb.KV/Range", &request).await;
        assert!(found.kvs[0].value == value);
    });
    member.stop();
}

/// Ends with 1 and this text.
fn refused(flags: &[&str], text: &str) {
    let data = Folder::new(&format!("data-of-tls-flags-{}", flags.len()));
    let output = Command::new(env!("CARGO_BIN_EXE_etcd"))
        .env_clear()
        .arg(format!("--data-dir={}", data.0.display()))
        .args(["--advertise-client-urls=https://127.0.0.1:1"])
        .args(flags)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{flags:?}: {said}");
    let last = said.lines().last().unwrap();
    assert!(last.contains(text), "{flags:?}: {said}");
}

#[test]
fn wrong_flags_are_told_in_etcds_words() {
    let bed = Bed::new("flags");
    let (cert, key) = (bed.flag("--cert-file", "server.crt"), bed.flag("--key-file", "server.key"));
    let listen = "--listen-client-urls=https://127.0.0.1:1";
    refused(
        &[listen],
        "TLS key/cert (--cert-file, --key-file) must be provided for client url https://127.0.0.1:1 with HTTPS scheme",
    );
    refused(&[listen, &cert], "KeyFile and CertFile must both be present[key: , cert: ");
    refused(&[listen, &cert, &bed.flag("--key-file", "nothing")], "/nothing: ");
    refused(&[listen, &cert, &key, "--client-cert-file=x"], "ClientKeyFile and ClientCertFile must both be");
    refused(
        &["--listen-peer-urls=https://127.0.0.1:1"],
        "cannot listen on TLS for https://127.0.0.1:1: KeyFile and CertFile are not presented",
    );
    refused(&["--tls-min-version=TLS1.0"], "unexpected TLS version \\\"TLS1.0\\\"");
    refused(
        &["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"],
        "min version (TLS1.3) is greater than max version (TLS1.2)",
    );
    refused(&["--cipher-suites=TLS_NOPE"], "unexpected TLS cipher suite \\\"TLS_NOPE\\\"");
    refused(&["--cipher-suites=TLS_RSA_WITH_AES_128_CBC_SHA"], "TLS_RSA_WITH_AES_128_CBC_SHA");
    let none = "--self-signed-cert-validity=0";
    refused(&[listen, "--auto-tls", none], "selfSignedCertValidity is invalid,it should be greater than 0");
}

/// Answers with the common name that the client came with.
#[derive(Debug, Clone)]
struct Who;

impl Routes for Who {
    fn route(&self, _: &str, call: Call) {
        let name = call.common_name().unwrap_or("nobody").to_owned();
        call.unary(async move |_: KeyValue| {
            Ok(Reply::of(&KeyValue { value: name.into(), ..KeyValue::default() }))
        });
    }
}

#[test]
fn the_common_name_stays_with_the_connection() {
    let bed = Bed::new("common-name");
    let listening = |client_cert_auth| Settings {
        cert_file: bed.files.path("server.crt"),
        key_file: bed.files.path("server.key"),
        client_cert_auth,
        ..bed.stranger()
    };
    let handshakes = Handshakes::default();
    let alice = bed.client("alice", &bed.authority.pair("alice", &[], 11, as_usual));
    block_on(async {
        for (client_cert_auth, name) in [(true, "alice"), (false, "nobody")] {
            let source = Arc::new(Source::open(listening(client_cert_auth)).unwrap());
            let acceptor = Acceptor::for_clients(source, handshakes.clone());
            let server =
                Server::bind(vec![(Url::parse("https://127.0.0.1:0").unwrap(), Some(acceptor))]).unwrap();
            let address = server.local_addrs().unwrap()[0];
            let options = Options {
                receive_limit: 10_000,
                max_concurrent_streams: u32::MAX,
                keepalive_interval: support::PATIENCE,
                keepalive_timeout: support::PATIENCE,
                io_threads: 1,
            };
            let (stop, stopped) = Stop::new();
            let running = tokio::task::spawn_local(server.run(Who, options, stopped));
            let client = Client::over(dial(address, &alice).await.unwrap()).await.unwrap();
            let answer: KeyValue = client.call("/t.T/Who", &KeyValue::default()).await;
            assert_eq!(answer.value, name);
            drop(client);
            stop.send_replace(true);
            running.await.unwrap().unwrap();
        }
    });
}

#[test]
fn peers_check_each_other() {
    let bed = Bed::new("peers");
    let handshakes = Handshakes::default();
    let settings = |name: &str, pair: &Pair| Settings { alpn: Vec::new(), ..bed.client(name, pair) };
    let one = settings("one", &bed.authority.pair("peer", &["127.0.0.1"], 21, as_usual));
    let elsewhere = settings("elsewhere", &bed.authority.pair("peer", &["10.9.9.9"], 22, as_usual));
    let other_name = settings("name", &bed.authority.pair("mallory", &["127.0.0.1"], 23, as_usual));
    let source = |settings: &Settings| Arc::new(Source::open(settings.clone()).unwrap());
    let allowed = |settings: &Settings| Settings { allowed_cns: vec!["peer".to_owned()], ..settings.clone() };
    let acceptor = |settings: &Settings| Acceptor::for_peers(source(settings), handshakes.clone());
    let connector = |settings: &Settings| Connector::new(settings.clone(), handshakes.clone());
    // Both sides: whether the dialed one came to a stream, and whether a byte came through to the dialer.
    let meet = async |listening: &Settings, dialing: &Settings, host: &str| {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (acceptor, connector) = (acceptor(listening), connector(dialing));
        let accepting = async {
            let (socket, _) = listener.accept().await.unwrap();
            let stream = acceptor.accept(socket).await;
            if let Some(mut stream) = stream {
                assert!(stream.is_tls() && stream.common_name().is_none());
                stream.write_all(b"x").await.unwrap();
                stream.flush().await.unwrap();
                return true;
            }
            false
        };
        let connecting = async {
            let socket = TcpStream::connect(address).await.unwrap();
            let mut stream = connector.connect(host, socket).await.map_err(|error| error.to_string())?;
            stream.read_u8().await.map_err(|error| error.to_string())
        };
        tokio::join!(accepting, connecting)
    };
    block_on(async {
        assert_eq!(meet(&allowed(&one), &allowed(&one), "127.0.0.1").await, (true, Ok(b'x')));
        let (came, said) = meet(&allowed(&one), &other_name, "127.0.0.1").await;
        assert!(!came && said.is_err());
        // S2: a certificate that does not fit the address, dialing and dialed.
        let (came, said) = meet(&one, &elsewhere, "127.0.0.1").await;
        assert!(!came && said.is_err());
        let (came, said) = meet(&elsewhere, &one, "127.0.0.1").await;
        assert!(!came && said.unwrap_err().contains("not valid for name"));
        let (came, said) = meet(&other_name, &allowed(&one), "127.0.0.1").await;
        assert_eq!((came, said), (false, Err("client certificate authentication failed".to_owned())));
        let stranger = Settings { alpn: Vec::new(), ..bed.stranger() };
        let (came, said) = meet(&one, &stranger, "127.0.0.1").await;
        assert!(!came && said.is_err());
        // Certificates that sign themselves know nobody, and check nobody.
        let urls = trilith_server::config::url::parse_list("https://127.0.0.1:1").unwrap();
        let folder = bed.files.path("fixtures/peer");
        let own = trilith_server::tls::self_signed(Settings::default(), &folder, &urls, 1).unwrap();
        assert_eq!(meet(&own, &own, "somewhere.example").await, (true, Ok(b'x')));
        assert!(Path::new(&own.key_file).ends_with("fixtures/peer/key.pem"));
    });
}

//! Clusters whose members speak TLS with each other, or meet at unix sockets, as processes.
#![allow(clippy::unwrap_used)]

#[path = "../../tls/tests/authority/mod.rs"]
mod authority;
#[allow(dead_code, reason = "the clusters without TLS use all of it")]
#[path = "group/places.rs"]
mod places;
mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use authority::{Authority, Files, Pair, as_usual};
use places::{Place, get, put, until};
use support::{Client, Folder, Member, block_on, spawn};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use trilith_tls::{Settings, Source};

/// Three members to be, and how they find each other.
struct Bed {
    places: Vec<Place>,
    urls: Vec<String>,
    cluster: String,
}

impl Bed {
    fn new(name: &str, url: impl Fn(&Place) -> String) -> Bed {
        let places: Vec<_> = (0..3).map(|at| Place::new(name, &format!("infra{at}"))).collect();
        let urls: Vec<_> = places.iter().map(url).collect();
        let named = places.iter().zip(&urls).map(|(place, url)| format!("{}={url}", place.name));
        let cluster = named.collect::<Vec<_>>().join(",");
        Bed { places, urls, cluster }
    }

    fn spawn(&self, at: usize, flags: &[String]) -> Member {
        let own = ["--listen-peer-urls", "--initial-advertise-peer-urls"];
        let mut all: Vec<_> = own.iter().map(|flag| format!("{flag}={}", self.urls[at])).collect();
        all.extend_from_slice(flags);
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        self.places[at].spawn(&self.cluster, &all)
    }

    fn start(&self, flags: impl Fn(usize) -> Vec<String>) -> Vec<Member> {
        let members: Vec<_> = (0..3).map(|at| self.spawn(at, &flags(at))).collect();
        for member in &members {
            member.wait_for("ready to serve client requests");
        }
        members
    }

    /// What one writes all read.
    async fn works(&self) {
        let key = "key";
        for writer in 0..3 {
            let value = writer.to_string();
            put(self.places[writer].client, key, &value).await.unwrap();
            for reader in &self.places {
                assert_eq!(get(reader.client, key).await.unwrap().as_ref(), Some(&value));
            }
        }
    }
}

/// The certificates of three members: good, and that of the third also under a wrong name.
struct Files3 {
    files: Files,
    authority: Authority,
}

impl Files3 {
    fn new(name: &str) -> Files3 {
        let own = Files3 { files: Files::new(name), authority: Authority::new("the authority") };
        own.files.put("ca.pem", own.authority.pem());
        own.files.put("crl.pem", own.authority.revoke(&[]).0);
        for at in 0..3 {
            own.files.pair(&format!("infra{at}"), &own.pair("peer", 10 + at));
        }
        own
    }

    fn pair(&self, common_name: &str, serial: u64) -> Pair {
        self.authority.pair(common_name, &["127.0.0.1"], serial, as_usual)
    }

    /// What a member dials with.
    fn dialing(&self, at: usize) -> Settings {
        let path = |file: String| self.files.path(&file);
        Settings {
            trusted_ca_file: self.files.path("ca.pem"),
            cert_file: path(format!("infra{at}.crt")),
            key_file: path(format!("infra{at}.key")),
            ..Settings::default()
        }
    }

    fn flags(&self, at: usize) -> Vec<String> {
        let flag = |flag: &str, file: &str| format!("{flag}={}", self.files.path(file).display());
        vec![
            flag("--peer-cert-file", &format!("infra{at}.crt")),
            flag("--peer-key-file", &format!("infra{at}.key")),
            flag("--peer-trusted-ca-file", "ca.pem"),
            flag("--peer-crl-file", "crl.pem"),
            "--peer-client-cert-auth".to_owned(),
            "--peer-cert-allowed-cn=peer".to_owned(),
        ]
    }
}

#[test]
fn members_check_each_other_and_read_their_files_again() {
    let bed = Bed::new("peer-tls", |place| format!("https://{}", place.peer));
    let files = Files3::new("peer-tls");
    let mut members = bed.start(|at| files.flags(at));
    block_on(bed.works());

    // Under another name one is refused, by those whom it dials and by those who dial it.
    drop(members.pop());
    files.files.pair("infra2", &files.pair("mallory", 20));
    let mallory = bed.spawn(2, &files.flags(2));
    for member in &members {
        let lines = member.wait_for("rejected connection on peer endpoint");
        assert!(lines.last().unwrap().contains("client certificate authentication failed"), "{lines:#?}");
    }
    block_on(async {
        until(async || put(bed.places[0].client, "without", "1").await.ok()).await;
    });
    // With the right one it comes back, without a restart of anybody.
    files.files.pair("infra2", &files.pair("peer", 21));
    mallory.wait_for("ready to serve client requests");
    block_on(bed.works());

    // A revoked one is refused at its next connection.
    drop(mallory);
    files.files.put("crl.pem", files.authority.revoke(&[21]).0);
    block_on(async {
        // Files are looked at once a second.
        for place in &bed.places[..2] {
            while members_at(place.peer, &files.dialing(2)).await.is_ok() {}
        }
    });
    for member in &members {
        member.wait_for("transport: certificate revoked");
    }
    let revoked = bed.spawn(2, &files.flags(2));
    for member in &members {
        member.wait_for("transport: certificate revoked");
    }
    files.files.put("crl.pem", files.authority.revoke(&[]).0);
    revoked.wait_for("ready to serve client requests");
    block_on(bed.works());
}

/// Asks a peer port who the members are.
async fn members_at(peer: SocketAddr, settings: &Settings) -> std::io::Result<Vec<u8>> {
    let source = Source::open(settings.clone()).unwrap();
    let connector = TlsConnector::from(source.current(Instant::now()).client);
    let name = peer.ip().to_string().try_into().unwrap();
    let mut tls = connector.connect(name, TcpStream::connect(peer).await?).await?;
    tls.write_all(b"GET /members HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    tls.read_to_end(&mut answer).await?;
    Ok(answer)
}

#[test]
fn somebody_without_a_certificate_learns_nothing() {
    let bed = Bed::new("peer-tls-stranger", |place| format!("https://{}", place.peer));
    let files = Files3::new("peer-tls-stranger");
    let members = bed.start(|at| files.flags(at));
    let stranger = Settings { trusted_ca_file: files.files.path("ca.pem"), ..Settings::default() };
    block_on(async {
        members_at(bed.places[0].peer, &stranger).await.unwrap_err();
        let answer = members_at(bed.places[0].peer, &files.dialing(0)).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200 OK"), "{:?}", String::from_utf8_lossy(&answer));
    });
    let lines = members[0].wait_for("rejected connection on peer endpoint");
    assert!(lines.last().unwrap().contains("tls: client didn't provide a certificate"), "{lines:#?}");
}

#[test]
fn certificates_that_sign_themselves() {
    let bed = Bed::new("peer-auto-tls", |place| format!("https://{}", place.peer));
    let _members = bed.start(|_| vec!["--peer-auto-tls".to_owned()]);
    block_on(bed.works());
    for place in &bed.places {
        assert!(place.folder.0.join("fixtures/peer/cert.pem").exists());
    }
}

#[test]
fn an_https_port_of_peers_needs_a_certificate() {
    let bed = Bed::new("peer-tls-none", |place| format!("https://{}", place.peer));
    let (code, lines) = bed.spawn(0, &[]).wait();
    assert_eq!(code, Some(1));
    let expected = "KeyFile and CertFile are not presented";
    assert!(lines.iter().any(|line| line.contains(expected)), "{lines:#?}");
}

#[test]
fn members_meet_at_unix_sockets() {
    let sockets = Files::new("peer-unix");
    for scheme in ["unix", "unixs"] {
        let url = |place: &Place| format!("{scheme}://{}", sockets.path(&place.name).display());
        let bed = Bed::new(&format!("peer-{scheme}"), url);
        let members = bed.start(|_| match scheme {
            "unixs" => vec!["--peer-auto-tls".to_owned()],
            _ => Vec::new(),
        });
        block_on(bed.works());
        let path = sockets.path(&bed.places[0].name);
        assert!(path.exists());
        for member in members {
            member.stop();
        }
        assert!(!path.exists(), "the socket goes with the member");
    }
}

async fn put_at(path: &Path, tls: Option<Arc<Source>>) {
    let socket = UnixStream::connect(path).await.unwrap();
    let client = match tls {
        None => Client::over(socket).await,
        Some(source) => {
            let connector = TlsConnector::from(source.current(Instant::now()).client);
            let name = "localhost".try_into().unwrap();
            Client::over(connector.connect(name, socket).await.unwrap()).await
        }
    };
    client.unwrap().try_put("key").await.unwrap();
}

#[test]
fn clients_come_through_unix_sockets() {
    let (files, data) = (Files::new("client-unix"), Folder::new("client-unix-data"));
    let (plain, secure) = (files.path("plain.sock"), files.path("secure.sock"));
    // What an earlier process left is no obstacle.
    drop(std::os::unix::net::UnixListener::bind(&plain).unwrap());
    let urls = format!("unix://{},unixs://{}", plain.display(), secure.display());
    let both = ["--listen-client-urls", "--advertise-client-urls"].map(|flag| format!("{flag}={urls}"));
    let member = spawn(&data, &[&both[0], &both[1], "--auto-tls", "--trilith-io-threads=2"]);
    member.wait_for("ready to serve client requests");
    let source = Source::open(Settings {
        insecure_skip_verify: true,
        alpn: vec![b"h2".to_vec()],
        ..Settings::default()
    });
    let source = Arc::new(source.unwrap());
    block_on(async {
        for _ in 0..3 {
            put_at(&plain, None).await;
            put_at(&secure, Some(source.clone())).await;
        }
    });
    member.stop();
    assert!(!plain.exists() && !secure.exists());
    let taken = files.put("taken", "x");
    let urls = format!("unix://{}", taken.display());
    let both = ["--listen-client-urls", "--advertise-client-urls"].map(|flag| format!("{flag}={urls}"));
    let (code, lines) = spawn(&data, &[&both[0], &both[1]]).wait();
    assert_eq!(code, Some(1));
    let expected = format!("listen unix {}: bind: ", taken.display());
    assert!(lines.iter().any(|line| line.contains(&expected)), "{lines:#?}");
    assert_eq!(std::fs::read(&taken).unwrap(), b"x");
}

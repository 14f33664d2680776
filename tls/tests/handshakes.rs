//! Whole handshakes in memory, between configurations that files and flags gave.
#![allow(clippy::unwrap_used)]

mod authority;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use authority::{
    Authority, Files, Pair, as_usual, ca, expired, no_ca, self_signed, server_only, signs_no_certificates,
};
use rustls::{ClientConnection, ProtocolVersion, ServerConnection};
use trilith_tls::{Configs, Limits, Settings, Source, words};

/// A handshake to its end: what was agreed on, or what one side says, server first.
fn shake(server: &Configs, client: &Configs, host: &str) -> Result<(ProtocolVersion, String), String> {
    let mut server = ServerConnection::new(server.server.clone().unwrap()).unwrap();
    let name = host.to_owned().try_into().unwrap();
    let mut client = ClientConnection::new(client.client.clone(), name).unwrap();
    let mut failed: [Option<String>; 2] = [None, None];
    let told = |error: rustls::Error| words(&io::Error::other(error));
    loop {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut bytes = wire.as_slice();
        while !bytes.is_empty() && failed[0].is_none() {
            server.read_tls(&mut bytes).unwrap();
            failed[0] = server.process_new_packets().err().map(told);
        }
        let mut back = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut back).unwrap();
        }
        let mut bytes = back.as_slice();
        while !bytes.is_empty() && failed[1].is_none() {
            client.read_tls(&mut bytes).unwrap();
            failed[1] = client.process_new_packets().err().map(told);
        }
        if wire.is_empty() && back.is_empty() {
            break;
        }
    }
    if let Some(error) = failed.into_iter().flatten().next() {
        return Err(error);
    }
    assert!(!server.is_handshaking() && !client.is_handshaking());
    let suite = format!("{:?}", server.negotiated_cipher_suite().unwrap().suite());
    Ok((server.protocol_version().unwrap(), suite))
}

fn open(settings: Settings) -> Source {
    Source::open(settings).unwrap()
}

fn configs(settings: Settings) -> Configs {
    open(settings).current(Instant::now())
}

struct Bed {
    files: Files,
    authority: Authority,
}

impl Bed {
    fn new(name: &str) -> Bed {
        let bed = Bed { files: Files::new(name), authority: Authority::new("the authority") };
        bed.files.put("ca.pem", bed.authority.pem());
        bed
    }

    fn listener(&self) -> Settings {
        let pair = self.authority.pair("server", &["127.0.0.1", "localhost"], 10, as_usual);
        let (cert_file, key_file) = self.files.pair("server", &pair);
        Settings { cert_file, key_file, trusted_ca_file: self.files.path("ca.pem"), ..Settings::default() }
    }

    fn client(&self, pair: &Pair) -> Configs {
        let (cert_file, key_file) = self.files.pair("client", pair);
        let trusted_ca_file = self.files.path("ca.pem");
        configs(Settings { cert_file, key_file, trusted_ca_file, ..Settings::default() })
    }

    fn stranger(&self) -> Configs {
        configs(Settings { trusted_ca_file: self.files.path("ca.pem"), ..Settings::default() })
    }
}

#[test]
fn whoever_is_trusted_vouches_for_others_only_as_an_authority_whose_time_is_not_over() {
    let unknown = "tls: failed to verify certificate: x509: certificate signed by unknown authority";
    for (number, change) in [no_ca, signs_no_certificates, expired].into_iter().enumerate() {
        let bed = Bed::new(&format!("vouches{number}"));
        let pinned = Authority::changed("pinned", change);
        // A file with a good authority as well: the server's own certificate is of that one.
        bed.files.put("both.pem", format!("{}{}", bed.authority.pem(), pinned.pem()));
        let both = bed.files.path("both.pem");
        let server = configs(Settings { trusted_ca_file: both.clone(), ..bed.listener() });
        let good = bed.authority.pair("alice", &[], 11, as_usual);
        shake(&server, &bed.client(&good), "localhost").unwrap();
        let signed = pinned.pair("alice", &[], 11, as_usual);
        assert_eq!(shake(&server, &bed.client(&signed), "localhost").unwrap_err(), unknown, "{number}");
        // The same of servers.
        let pair = pinned.pair("server", &["localhost"], 12, as_usual);
        let (cert_file, key_file) = bed.files.pair("other", &pair);
        let server = configs(Settings { cert_file, key_file, ..bed.listener() });
        let client = configs(Settings { trusted_ca_file: both, ..Settings::default() });
        let refused = shake(&server, &client, "localhost").unwrap_err();
        assert!(refused.contains("unknown certificate authority"), "{number}: {refused}");
    }
    // One that is trusted itself is good for itself.
    let bed = Bed::new("itself");
    let alone = self_signed("alice", &[], no_ca);
    bed.files.put("alice.pem", &alone.cert);
    let server = configs(Settings { trusted_ca_file: bed.files.path("alice.pem"), ..bed.listener() });
    shake(&server, &bed.client(&alone), "localhost").unwrap();
}

#[test]
fn clients_without_a_good_certificate_are_refused() {
    let bed = Bed::new("clients");
    let server = configs(bed.listener());
    assert!(server.server.as_ref().unwrap().send_tls13_tickets == 0, "no session is resumed");
    let own = |change| bed.authority.pair("alice", &[], 11, change);
    shake(&server, &bed.client(&own(as_usual)), "localhost").unwrap();
    shake(&server, &bed.client(&own(as_usual)), "127.0.0.1").unwrap();
    let other = Authority::new("another authority");
    for (client, error) in [
        (bed.stranger(), "tls: client didn't provide a certificate"),
        (
            bed.client(&other.pair("alice", &[], 11, as_usual)),
            "tls: failed to verify certificate: x509: certificate signed by unknown authority",
        ),
        (
            bed.client(&Authority::new("the authority").pair("alice", &[], 11, as_usual)),
            "tls: failed to verify certificate:",
        ),
        (bed.client(&own(expired)), "tls: failed to verify certificate: x509: certificate has expired or"),
        (bed.client(&own(server_only)), "tls: failed to verify certificate:"),
        (
            bed.client(&self_signed("alice", &[], as_usual)),
            "tls: failed to verify certificate: x509: certificate signed by unknown authority",
        ),
    ] {
        let refused = shake(&server, &client, "localhost").unwrap_err();
        assert!(refused.starts_with(error), "{refused}");
    }
    let open_door =
        configs(Settings { trusted_ca_file: PathBuf::new(), client_cert_auth: false, ..bed.listener() });
    shake(&open_door, &bed.stranger(), "localhost").unwrap();
}

#[test]
fn servers_are_checked_for_their_name_and_authority() {
    let bed = Bed::new("servers");
    let server = configs(Settings { trusted_ca_file: PathBuf::new(), ..bed.listener() });
    shake(&server, &bed.stranger(), "localhost").unwrap();
    // The server hears of it as etcd's would.
    let told = shake(&server, &bed.stranger(), "example.com").unwrap_err();
    assert_eq!(told, "remote error: tls: bad certificate");
    let nobody = configs(Settings::default());
    assert_eq!(
        shake(&server, &nobody, "localhost").unwrap_err(),
        "remote error: tls: unknown certificate authority"
    );
    let any = configs(Settings { insecure_skip_verify: true, ..Settings::default() });
    shake(&server, &any, "example.com").unwrap();
}

#[test]
fn names_of_clients_and_their_revocation() {
    let bed = Bed::new("names");
    let alice = bed.authority.pair("alice", &["alice.example", "10.1.2.3"], 11, as_usual);
    let bob = bed.authority.pair("bob", &["bob.example"], 300, as_usual);
    let texts = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let by_cn = configs(Settings { allowed_cns: texts(&["carol", "alice"]), ..bed.listener() });
    let by_name = configs(Settings { allowed_hostnames: texts(&["x", "10.1.2.3"]), ..bed.listener() });
    for server in [&by_cn, &by_name] {
        shake(server, &bed.client(&alice), "localhost").unwrap();
        let refused = shake(server, &bed.client(&bob), "localhost").unwrap_err();
        assert_eq!(refused, "client certificate authentication failed");
    }
    // The same rules hold for whom one dials.
    let dialer = Settings {
        trusted_ca_file: bed.files.path("ca.pem"),
        allowed_cns: texts(&["somebody"]),
        ..Settings::default()
    };
    let server = configs(Settings { trusted_ca_file: PathBuf::new(), ..bed.listener() });
    shake(&server, &configs(dialer.clone()), "localhost").unwrap_err();
    shake(&server, &configs(Settings { allowed_cns: texts(&["server"]), ..dialer }), "localhost").unwrap();

    let (pem, der) = bed.authority.revoke(&[300, 5]);
    for (name, list) in [("list.pem", pem.into_bytes()), ("list.der", der)] {
        let crl_file = bed.files.put(name, list);
        let server = configs(Settings { crl_file, ..bed.listener() });
        shake(&server, &bed.client(&alice), "localhost").unwrap();
        let refused = shake(&server, &bed.client(&bob), "localhost").unwrap_err();
        assert_eq!(refused, "transport: certificate revoked");
    }
    // An authority in between that is revoked.
    let below = bed.authority.below("below");
    let mut carol = below.pair("carol", &[], 12, as_usual);
    carol.cert += &below.pem();
    shake(&configs(bed.listener()), &bed.client(&carol), "localhost").unwrap();
    let crl_file = bed.files.put("list.pem", bed.authority.revoke(&[2]).0);
    let server = configs(Settings { crl_file, ..bed.listener() });
    assert_eq!(
        shake(&server, &bed.client(&carol), "localhost").unwrap_err(),
        "transport: certificate revoked"
    );
}

#[test]
fn an_authority_may_serve_as_a_certificate_of_its_own() {
    let bed = Bed::new("own-authority");
    let own = self_signed("me", &["localhost"], ca);
    let (cert_file, key_file) = bed.files.pair("own", &own);
    let both = Settings { trusted_ca_file: cert_file.clone(), cert_file, key_file, ..Settings::default() };
    let both = configs(both);
    shake(&both, &both, "localhost").unwrap();
    assert_eq!(shake(&both, &both, "other").unwrap_err(), "remote error: tls: bad certificate");

    let server = configs(bed.listener());
    shake(&server, &bed.client(&bed.authority.pair("sub", &[], 20, ca)), "localhost").unwrap();
    for wrong in [
        bed.authority.pair("sub", &[], 20, |params| {
            ca(params);
            expired(params);
        }),
        bed.authority.pair("sub", &[], 20, |params| {
            ca(params);
            server_only(params);
        }),
        Authority::new("the authority").pair("sub", &[], 20, ca),
        self_signed("the authority", &[], ca),
    ] {
        let refused = shake(&server, &bed.client(&wrong), "localhost").unwrap_err();
        assert!(refused.starts_with("tls: failed to verify certificate"), "{refused}");
    }
    // Over another authority in between such a one is not taken.
    let below = bed.authority.below("below");
    let mut far = below.pair("far", &[], 21, ca);
    far.cert += &below.pem();
    shake(&server, &bed.client(&far), "localhost").unwrap_err();
}

/// What `openssl x509 -req` makes without extensions.
#[test]
fn certificates_of_version_1() {
    let bed = Bed::new("version-1");
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/version1/");
    let text = |name: &str| std::fs::read_to_string(format!("{folder}{name}")).unwrap();
    let trusted_ca_file = bed.files.put("old-ca.pem", text("ca.crt"));
    let old = Pair { cert: text("client.crt"), key: text("client.key") };
    for versions in ["TLS1.2", "TLS1.3"] {
        let limits = Limits::parse(versions, versions, &[]).unwrap();
        let server = Settings { limits, trusted_ca_file: trusted_ca_file.clone(), ..bed.listener() };
        shake(&configs(server.clone()), &bed.client(&old), "localhost").unwrap();
        let server = configs(Settings { trusted_ca_file: bed.files.path("ca.pem"), ..server });
        shake(&server, &bed.client(&old), "localhost").unwrap_err();
    }
}

#[test]
fn versions_and_suites() {
    let bed = Bed::new("versions");
    let limits = |min: &str, max: &str, suites: &[&str]| {
        Limits::parse(min, max, &suites.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    };
    let with = |min: &str, max: &str, suites: &[&str]| Settings {
        limits: limits(min, max, suites).unwrap(),
        trusted_ca_file: bed.files.path("ca.pem"),
        ..Settings::default()
    };
    let server = |min: &str, max: &str, suites: &[&str]| {
        let limits = with(min, max, suites).limits;
        configs(Settings { limits, trusted_ca_file: PathBuf::new(), ..bed.listener() })
    };
    let agreed = |server: &Configs, client: Settings| shake(server, &configs(client), "localhost");
    let (v12, v13) = (ProtocolVersion::TLSv1_2, ProtocolVersion::TLSv1_3);
    let version = |result: Result<(ProtocolVersion, String), String>| result.map(|(version, _)| version).ok();
    assert_eq!(version(agreed(&server("TLS1.2", "", &[]), with("", "", &[]))), Some(v13));
    assert_eq!(version(agreed(&server("TLS1.2", "TLS1.2", &[]), with("", "", &[]))), Some(v12));
    assert_eq!(version(agreed(&server("TLS1.3", "", &[]), with("", "TLS1.2", &[]))), None);
    assert_eq!(version(agreed(&server("TLS1.2", "TLS1.2", &[]), with("TLS1.3", "", &[]))), None);

    let chosen = server("", "", &["TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305", "TLS_AES_128_GCM_SHA256"]);
    let suite = "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256".to_owned();
    assert_eq!(agreed(&chosen, with("", "TLS1.2", &[])), Ok((v12, suite)));
    // Those of TLS 1.3 are not up for choice, as in Go.
    assert_eq!(version(agreed(&chosen, with("", "", &[]))), Some(v13));
    let other = with("", "TLS1.2", &["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"]);
    assert_eq!(version(agreed(&chosen, other)), None);

    for (min, max, suites, error) in [
        ("TLS1.1", "", &[][..], "unexpected TLS version \"TLS1.1\" (must be one of: TLS1.2, TLS1.3)"),
        ("TLS1.3", "TLS1.2", &[], "min version (TLS1.3) is greater than max version (TLS1.2)"),
        (
            "TLS1.3",
            "",
            &["TLS_AES_128_GCM_SHA256"],
            "cipher suites cannot be configured when only TLS1.3 is enabled",
        ),
        ("", "", &["TLS_NOPE"], "unexpected TLS cipher suite \"TLS_NOPE\""),
        (
            "",
            "",
            &["TLS_RSA_WITH_AES_128_CBC_SHA"],
            "TLS cipher suite \"TLS_RSA_WITH_AES_128_CBC_SHA\" is not supported by Trilith",
        ),
    ] {
        assert_eq!(limits(min, max, suites).unwrap_err(), error);
    }
}

#[test]
fn files_that_change_are_read_again_and_bad_ones_change_nothing() {
    let bed = Bed::new("rotation");
    let crl_file = bed.files.put("list.pem", bed.authority.revoke(&[1000]).0);
    let source = open(Settings { crl_file, ..bed.listener() });
    let (alice, bob) =
        (bed.authority.pair("alice", &[], 11, as_usual), bed.authority.pair("bob", &[], 12, as_usual));
    let (alice, bob) = (bed.client(&alice), bed.client(&bob));
    let begin = Instant::now();
    let at = |seconds: u64| source.current(begin + Duration::from_secs(seconds));
    shake(&at(0), &alice, "localhost").unwrap();
    shake(&at(0), &bob, "localhost").unwrap();

    bed.files.put("list.pem", bed.authority.revoke(&[12]).0);
    shake(&source.current(begin + Duration::from_millis(900)), &bob, "localhost").unwrap();
    shake(&at(1), &alice, "localhost").unwrap();
    shake(&at(1), &bob, "localhost").unwrap_err();

    bed.files.put("list.pem", "nothing of the kind");
    shake(&at(2), &alice, "localhost").unwrap();
    shake(&at(2), &bob, "localhost").unwrap_err();
    std::fs::remove_file(bed.files.path("list.pem")).unwrap();
    shake(&at(3), &bob, "localhost").unwrap_err();
    bed.files.put("list.pem", bed.authority.revoke(&[]).0);
    shake(&at(4), &bob, "localhost").unwrap();

    // Another authority, and of the server's own pair one file first.
    let other = Authority::new("other");
    let carol = bed.client(&other.pair("carol", &[], 13, as_usual));
    shake(&at(5), &carol, "localhost").unwrap_err();
    let pair = bed.authority.pair("server", &["moved"], 14, as_usual);
    bed.files.put("server.crt", &pair.cert);
    bed.files.put("ca.pem", format!("{}{}", bed.authority.pem(), other.pem()));
    shake(&at(6), &carol, "localhost").unwrap_err();
    bed.files.put("server.key", &pair.key);
    shake(&at(7), &carol, "moved").unwrap();
    shake(&at(7), &alice, "moved").unwrap();
    shake(&at(7), &alice, "localhost").unwrap_err();
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let bed = Bed::new("wrong");
    let listener = bed.listener();
    let error = |settings: Settings| Source::open(settings).unwrap_err().to_string();
    let folder = bed.files.folder().display().to_string();
    assert_eq!(
        error(Settings { key_file: PathBuf::new(), ..listener.clone() }),
        format!("KeyFile and CertFile must both be present[key: , cert: {folder}/server.crt]")
    );
    let half = Settings { client_key_file: bed.files.path("server.key"), ..listener.clone() };
    assert!(error(half).starts_with("ClientKeyFile and ClientCertFile must both be present or both absent"));
    let two =
        Settings { allowed_cns: vec!["a".into()], allowed_hostnames: vec!["b".into()], ..listener.clone() };
    assert_eq!(
        error(two),
        "AllowedCNs and AllowedHostnames are mutually exclusive (cns=[\"a\"], hostnames=[\"b\"])"
    );
    let nothing = bed.files.path("nothing");
    for settings in [
        Settings { cert_file: nothing.clone(), ..listener.clone() },
        Settings { key_file: nothing.clone(), ..listener.clone() },
        Settings { trusted_ca_file: nothing.clone(), ..listener.clone() },
        Settings { crl_file: nothing.clone(), ..listener.clone() },
    ] {
        assert!(error(settings).starts_with(&format!("open {folder}/nothing: ")));
    }
    let empty = bed.files.put("empty", "");
    let stray = bed.files.pair("stray", &bed.authority.pair("stray", &[], 15, as_usual)).1;
    for (settings, file) in [
        (Settings { cert_file: empty.clone(), ..listener.clone() }, "empty"),
        (Settings { key_file: empty.clone(), ..listener.clone() }, "empty"),
        (Settings { key_file: stray, ..listener.clone() }, "stray.key"),
        (Settings { trusted_ca_file: empty.clone(), ..listener.clone() }, "empty"),
        (Settings { crl_file: empty, ..listener }, "empty"),
    ] {
        let error = error(settings);
        assert!(error.starts_with(&format!("{folder}/{file}: ")), "{error}");
    }
}

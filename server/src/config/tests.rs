//! Walks the table of flags row by row, then the rules between flags.

use std::ffi::OsString;

use super::table::{Kind, ROWS, Row, Support};
use super::*;

fn read(args: &[&str], env: &[(&str, &str)]) -> Result<Config, Refusal> {
    let env = env.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    Config::read(args.iter().map(OsString::from), env)
}

fn config_error(args: &[&str]) -> String {
    match read(args, &[]) {
        Err(Refusal::Config(error)) => error,
        other => panic!("{args:?}: {other:?}"),
    }
}

/// A valid value that is not the default.
fn other_value(row: &Row) -> String {
    match row.type_name {
        "bool" => (row.default != "true").to_string(),
        "uint" | "uint32" | "uint64" | "int" | "int64" => "7".to_owned(),
        "duration" => "7m".to_owned(),
        "size" => "700MiB".to_owned(),
        "url-list" => "http://127.0.0.1:7777".to_owned(),
        list if list.starts_with("enum(") => {
            let mut choices = list["enum(".len()..list.len() - 1].split('|');
            choices.rfind(|choice| *choice != row.default).unwrap().to_owned()
        }
        _ => "something".to_owned(),
    }
}

#[test]
fn every_row_is_accepted_or_refused_as_it_says() {
    let mut seen = [0; 5];
    for row in ROWS.iter().filter(|row| row.kind == Kind::Flag && row.name != "version") {
        let default = format!("--{}={}", row.name, row.default);
        let other = format!("-{}={}", row.name, other_value(row));
        match row.support {
            Support::Removed => {
                seen[0] += 1;
                let expected = format!("flag provided but not defined: -{}", row.name);
                for arg in [&default, &other] {
                    match read(&[arg], &[]) {
                        Err(Refusal::Usage(error)) => assert!(error.starts_with(&expected), "{error}"),
                        got => panic!("{arg}: {got:?}"),
                    }
                }
                let config = read(&[], &[(row.env, "x")]).unwrap();
                let expected = Note::UnknownVariable { name: row.env.to_owned(), value: "x".to_owned() };
                assert!(config.notes.contains(&expected), "{}", row.env);
            }
            Support::Ignored => {
                seen[1] += 1;
                let config = read(&[&other], &[]).unwrap();
                assert!(config.notes.contains(&Note::Ignored { name: row.name }));
            }
            Support::DefaultOnly => {
                seen[2] += 1;
                read(&[&default], &[]).unwrap_or_else(|error| panic!("{default}: {error:?}"));
                let error = config_error(&[&other]);
                assert!(error.starts_with(&format!("--{}=", row.name)), "{error}");
                assert!(error.contains("not supported yet"), "{error}");
            }
            Support::NoEffect => {
                seen[3] += 1;
                let config = read(&[&other], &[]).unwrap();
                assert!(config.notes.contains(&Note::NoEffect { name: row.name }), "{other}");
                assert!(read(&[&default], &[]).unwrap().notes.is_empty(), "{default}");
            }
            Support::Works => {
                seen[4] += 1;
                let needs_more = ["listen-client-urls", "feature-gates"].contains(&row.name);
                if !needs_more {
                    read(&[&default], &[]).unwrap_or_else(|error| panic!("{default}: {error:?}"));
                }
            }
        }
    }
    assert!(seen.iter().all(|&count| count > 5), "{seen:?}");
}

#[test]
fn every_variable_sets_its_flag_and_shadowing_is_fatal() {
    for row in ROWS.iter().filter(|row| row.kind == Kind::Flag && row.name != "version") {
        if matches!(row.support, Support::Removed) {
            continue;
        }
        let value = if row.default.is_empty() { other_value(row) } else { row.default.to_owned() };
        let result = read(&[&format!("--{}={value}", row.name)], &[(row.env, &value)]);
        let Err(Refusal::Config(error)) = result else { panic!("{}: {result:?}", row.env) };
        let expected = format!("conflicting environment variable {:?} is shadowed", row.env);
        assert!(error.starts_with(&expected), "{error}");
        if row.support == Support::Works && !row.default.is_empty() && row.name != "listen-client-urls" {
            let config = read(&[], &[(row.env, row.default)]).unwrap();
            let used = Note::UsedVariable { name: row.env.to_owned(), value: row.default.to_owned() };
            assert_eq!(config.notes, [used]);
        }
    }
}

#[test]
fn every_feature_gate_is_taken_at_its_default_and_some_at_the_other_value() {
    let gates: Vec<_> = ROWS.iter().filter(|row| row.kind == Kind::FeatureGate).collect();
    assert_eq!(gates.len(), 11);
    for gate in gates {
        read(&["--feature-gates", &format!("{}={}", gate.name, gate.default)], &[]).unwrap();
        let other = gate.default != "true";
        if gate.support == Support::Works {
            let needed = if gate.name == "LeaseCheckpointPersist" { ",LeaseCheckpoint=true" } else { "" };
            read(&["--feature-gates", &format!("{}={other}{needed}", gate.name)], &[]).unwrap();
            continue;
        }
        let error = config_error(&["--feature-gates", &format!("{}={other}", gate.name)]);
        assert!(error.contains(gate.name) && error.contains("not supported yet"), "{error}");
    }
    assert!(config_error(&["--feature-gates=Nope=true"]).contains("unrecognized feature gate: Nope"));
}

#[test]
fn l12_the_gates_of_lease_checkpoints() {
    let gates = |text: &str| {
        let config = read(&["--feature-gates", text], &[]).unwrap();
        (config.lease_checkpoints, config.lease_checkpoint_persist)
    };
    assert_eq!(gates(""), (false, false));
    assert_eq!(gates("LeaseCheckpoint=true"), (true, false));
    assert_eq!(gates("LeaseCheckpointPersist=true,LeaseCheckpoint=true"), (true, true));
    let error = config_error(&["--feature-gates=LeaseCheckpointPersist=true"]);
    assert!(error.ends_with("requires enabling feature gate LeaseCheckpoint"), "{error}");
}

#[test]
fn the_checks_between_members() {
    let none = Checks { periodic: Duration::ZERO, compactions: Duration::ZERO };
    let checks = |args: &[&str]| {
        let config = read(args, &[]).unwrap();
        (config.checks, config.initial_corrupt_check)
    };
    assert_eq!(checks(&[]), (none, false));
    assert_eq!(checks(&["--compact-hash-check-time=3s"]), (none, false), "the gate is closed");
    let open = "--feature-gates= InitialCorruptCheck=true, CompactHashCheck=true";
    let (minute, second) = (Duration::from_secs(60), Duration::from_secs(1));
    let both = Checks { periodic: second, compactions: minute };
    assert_eq!(checks(&[open, "--corrupt-check-time=1s"]), (both, true));
    let closed = "--feature-gates=CompactHashCheck=true,CompactHashCheck=false";
    assert_eq!(checks(&[closed]), (none, false));
    let error = config_error(&["--compact-hash-check-time=0s"]);
    assert_eq!(error, "--compact-hash-check-time must be >0 (set to 0s)");
}

#[test]
fn help_lists_every_flag_that_is_there() {
    let Err(Refusal::Print(help)) = read(&["--help"], &[]) else { panic!() };
    for row in ROWS.iter().filter(|row| row.kind == Kind::Flag) {
        let there = !matches!(row.support, Support::Removed | Support::Ignored);
        assert_eq!(help.contains(&format!("\n  --{} '", row.name)), there, "{}", row.name);
    }
}

#[test]
fn go_syntax() {
    let config = read(&["-name", "a", "--name=b", "--pre-vote=false", "-max-txn-ops", "0x10"], &[]).unwrap();
    assert_eq!((&*config.name, config.pre_vote, config.max_txn_ops), ("b", false, 16));
    assert_eq!(config.data_dir, PathBuf::from("b.etcd"));
    assert!(!read(&["--unsafe-no-fsync"], &[]).unwrap().fsync);
    assert!(read(&["--unsafe-no-fsync=f"], &[]).unwrap().fsync);
    for (args, error) in [
        (&["--name"][..], "flag needs an argument: -name"),
        (&["--nope"], "flag provided but not defined: -nope"),
        (&["---name=x"], "bad flag syntax: ---name=x"),
        (&["--=x"], "bad flag syntax: --=x"),
        (&["--max-wals=many"], "invalid value \"many\" for flag -max-wals: parse error"),
        (&["--pre-vote=maybe"], "invalid boolean value \"maybe\" for flag -pre-vote: parse error"),
        (
            &["--initial-cluster-state=old"],
            "invalid value \"old\" for flag -initial-cluster-state: invalid value",
        ),
        (
            &["--listen-peer-urls=nope"],
            "invalid value \"nope\" for flag -listen-peer-urls: URL scheme must be http, https, unix, or unixs: nope",
        ),
    ] {
        let Err(Refusal::Usage(got)) = read(args, &[]) else { panic!("{args:?}") };
        assert_eq!(got.lines().next(), Some(error));
    }
    assert_eq!(config_error(&["start"]), "\"start\" is not a valid flag");
    assert_eq!(config_error(&["--", "x"]), "\"x\" is not a valid flag");
    let Err(Refusal::Print(version)) = read(&["--version"], &[]) else { panic!() };
    assert!(
        version.starts_with("etcd Version: 3.7.1\nGit SHA: ")
            && version.contains("\nTrilith Version: 0.1.0\n")
    );
}

#[test]
fn paths_need_not_be_utf8_but_other_values_must() {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let arg = |text: &[u8]| OsString::from_vec(text.to_vec());
    let config = Config::read([arg(b"--data-dir=/tmp/\xff")], []).unwrap();
    assert_eq!(config.data_dir.as_os_str().as_bytes(), b"/tmp/\xff");
    assert!(matches!(Config::read([arg(b"--name=\xff")], []), Err(Refusal::Usage(_))));
    assert!(matches!(Config::read([arg(b"--\xff")], []), Err(Refusal::Usage(_))));
}

#[test]
fn variables() {
    let config =
        read(&[], &[("ETCD_NAME", "x"), ("ETCD_DATA_DIR", ""), ("ETCD_NOPE", "1"), ("HOME", "/")]).unwrap();
    assert_eq!((&*config.name, config.data_dir), ("x", PathBuf::from("x.etcd")));
    let expected = [
        Note::UsedVariable { name: "ETCD_NAME".to_owned(), value: "x".to_owned() },
        Note::UnknownVariable { name: "ETCD_NOPE".to_owned(), value: "1".to_owned() },
    ];
    assert_eq!(config.notes, expected);
    assert!(read(&[], &[("ETCD_VERIFY", "all"), ("ETCD_UNSUPPORTED_ARCH", "arm")]).unwrap().notes.is_empty());
    match read(&[], &[("ETCD_MAX_WALS", "x")]) {
        Err(Refusal::Config(error)) => {
            assert_eq!(error, "invalid value \"x\" for ETCD_MAX_WALS: parse error")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn rules_between_flags() {
    for (args, error) in [
        (
            &["--listen-client-urls=http://127.0.0.1:1"][..],
            "--advertise-client-urls is required when --listen-client-urls is set explicitly",
        ),
        (
            &["--listen-client-urls=http://example.com:1", "--advertise-client-urls=http://a:1"],
            "expected IP in URL for binding (http://example.com:1)",
        ),
        (
            &["--advertise-client-urls=http://:1"],
            "--advertise-client-urls \"http://:1\" must be \"host:port\" (unexpected empty host (http://:1))",
        ),
        (
            &["--heartbeat-interval=250"],
            "--election-timeout[1000ms] should be at least as 5 times as --heartbeat-interval[250ms]",
        ),
        (
            &["--election-timeout=50001"],
            "--election-timeout[50001ms] is too long, and should be set less than 50000ms",
        ),
        (&["--heartbeat-interval=0"], "--heartbeat-interval must be >0 (set to 0ms)"),
        (&["--election-timeout=0"], "--election-timeout must be >0 (set to 0ms)"),
        (&["--log-level=loud"], "unrecognized level: \"loud\""),
    ] {
        assert_eq!(config_error(args), error);
    }
    let config = read(&["--watch-progress-notify-interval=1ms"], &[]).unwrap();
    assert_eq!(config.watch_progress_interval, Duration::from_millis(100));
    assert_eq!(read(&[], &[]).unwrap().watch_progress_interval, Duration::from_secs(600));
}

#[test]
fn a_first_start_wants_this_member_alone_in_the_cluster() {
    let verify = |args: &[&str]| read(args, &[]).unwrap().verify_bootstrap();
    assert_eq!(verify(&[]), Ok(()));
    assert_eq!(verify(&["--name=a", "--initial-advertise-peer-urls=http://10.0.0.1:1"]), Ok(()));
    assert_eq!(
        verify(&["--name=a", "--initial-cluster=b=http://localhost:2380"]).unwrap_err(),
        "couldn't find local name \"a\" in the initial cluster configuration"
    );
    let error = verify(&["--name=a", "--initial-cluster=a=http://10.0.0.1:1"]).unwrap_err();
    assert!(
        error.starts_with(
            "--initial-cluster has a=http://10.0.0.1:1 but missing from \
             --initial-advertise-peer-urls=http://localhost:2380 ("
        ),
        "{error}"
    );
    let both = "--initial-advertise-peer-urls=http://localhost:2380,http://localhost:2381";
    assert_eq!(
        verify(&["--name=a", "--initial-cluster=a=http://localhost:2380", both]).unwrap_err(),
        "--initial-advertise-peer-urls has http://localhost:2381 but missing from \
         --initial-cluster=a=http://localhost:2380,a=http://localhost:2381"
    );
    let three =
        "--initial-cluster=default=http://localhost:2380,b=http://10.0.0.2:2380,c=http://10.0.0.3:2380";
    assert_eq!(verify(&[three]), Ok(()));
    assert_eq!(
        verify(&["--initial-cluster=default=http://localhost:2380,b=http://localhost:2380"]).unwrap_err(),
        "initial cluster b=http://localhost:2380,default=http://localhost:2380 has duplicate url"
    );
    let existing = "--initial-cluster-state=existing";
    assert_eq!(verify(&[existing, three, "--initial-advertise-peer-urls=http://10.0.0.1:1"]), Ok(()));
    assert!(verify(&[existing, three, "--name=d"]).unwrap_err().contains("local name \"d\""));
}

#[test]
fn retention_is_read_as_etcd_does() {
    let hours = |hours: u64| Retention::Period(Duration::from_secs(3600 * hours));
    for (mode, text, expected) in [
        ("periodic", "0", Retention::All),
        ("periodic", "2", hours(2)),
        ("periodic", "90m", Retention::Period(Duration::from_secs(5400))),
        ("periodic", "0s", Retention::All),
        ("revision", "1000", Retention::Revisions(1000)),
        ("revision", "0", Retention::All),
        ("revision", "1us", Retention::Revisions(1000)),
    ] {
        let args = [format!("--auto-compaction-mode={mode}"), format!("--auto-compaction-retention={text}")];
        let config = read(&[&args[0], &args[1]], &[]).unwrap();
        assert_eq!(config.retention, expected, "{mode} {text}");
    }
    assert_eq!(read(&["--auto-compaction-retention=1"], &[]).unwrap().retention, hours(1));
    for bad in ["x", "-1", "-1h", "5x", "99999999999999999999"] {
        let error = config_error(&[&format!("--auto-compaction-retention={bad}")]);
        assert_eq!(error, format!("error parsing CompactionRetention: time: invalid duration {bad:?}"));
    }
}

//! The process seen from outside: exit codes, texts, log lines.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn etcd(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_etcd"));
    // Nothing of the environment may be needed.
    command.env_clear().args(args);
    command
}

fn run(args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = etcd(args).output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn version_and_help() {
    let (code, out, err) = run(&["--version"]);
    let names: Vec<_> = out.lines().map(|line| line.split_once(": ").unwrap().0).collect();
    assert_eq!((code, &*err), (0, ""));
    assert_eq!(names, ["etcd Version", "Git SHA", "Go Version", "Go OS/Arch", "Trilith Version"]);
    assert!(out.starts_with("etcd Version: 3.7.1\n"));
    let (code, out, err) = run(&["-h"]);
    assert_eq!((code, &*err), (0, ""));
    assert!(out.contains("\nMember:\n") && out.contains("\n  --trilith-wal-io 'auto'\n"));
}

#[test]
fn command_lines_that_cannot_be_read_exit_with_2() {
    for args in [&["--nope"][..], &["--enable-v2"], &["--experimental-corrupt-check-time=1h"], &["--name"]] {
        let (code, out, err) = run(args);
        assert_eq!((code, &*out), (2, ""), "{args:?}");
        assert!(err.starts_with("flag "), "{err}");
    }
}

#[test]
fn wrong_configurations_exit_with_1_and_one_line() {
    for (args, error) in [
        (&["--auth-token=jwt"][..], "--auth-token=jwt is not supported yet"),
        (&["--heartbeat-interval=250"], "--election-timeout[1000ms] should be at least as 5 times as"),
    ] {
        let (code, out, err) = run(args);
        assert_eq!((code, &*out), (1, ""), "{args:?}: {err}");
        let errors: Vec<_> = err.lines().filter(|line| line.starts_with("{\"level\":\"error\"")).collect();
        assert!(errors.len() == 1 && errors[0].contains(error), "{err}");
    }
    let output = etcd(&["--name=a"]).env("ETCD_NAME", "b").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("\\\"ETCD_NAME\\\" is shadowed"));
}

#[test]
fn the_proxies_say_that_they_are_not_there() {
    for command in ["gateway", "grpc-proxy"] {
        let (code, out, err) = run(&[command, "start"]);
        assert_eq!((code, &*out), (1, ""));
        assert_eq!(err, format!("etcd {command}: not there yet in this version of Trilith\n"));
    }
}

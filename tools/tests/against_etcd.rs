//! Our `etcdctl` and Debian's give the same standard output, exit code and error text for the same command, against one
//! real etcd.
//!
//! Debian ships release 3.4, ours speaks as 3.7 does; what changed between them is undone by [`as_of_3_7`] and nothing
//! else is. Built only with the feature `real-etcd`; then a missing etcd is a failure.

#[path = "../../tls/tests/authority/mod.rs"]
mod authority;

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use authority::{Authority, Files, as_usual};

const ETCD: &str = "/usr/bin/etcd";
const DEBIANS: &str = "/usr/bin/etcdctl";
const OURS: &str = env!("CARGO_BIN_EXE_etcdctl");

/// A member in a temporary folder; both go when it is dropped.
struct Etcd {
    child: Child,
    folder: PathBuf,
    endpoint: String,
    peer: String,
    /// What the tools are given beside the endpoint.
    with: Vec<String>,
}

/// With a certificate among the flags, clients are served over TLS.
fn spawn(folder: &Path, client: &str, peer: &str, flags: &[&str]) -> Child {
    let scheme = if flags.iter().any(|flag| flag.starts_with("--cert-file=")) { "https" } else { "http" };
    let urls = [format!("{scheme}://{client}"), format!("http://{peer}")];
    Command::new(ETCD)
        .arg("--data-dir")
        .arg(folder)
        .args(["--listen-client-urls", &urls[0], "--advertise-client-urls", &urls[0]])
        .args(["--listen-peer-urls", &urls[1], "--initial-advertise-peer-urls", &urls[1]])
        .args(["--initial-cluster", &format!("default={}", urls[1])])
        .args(flags)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("this test needs {ETCD}: {error}"))
}

impl Etcd {
    fn start(name: &str) -> Etcd {
        Etcd::start_with(name, &[], Vec::new())
    }

    fn start_with(name: &str, flags: &[&str], with: Vec<String>) -> Etcd {
        // Both stay bound until both numbers are known, so they differ.
        let ports = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
        let [client, peer] = ports.map(|port| port.local_addr().expect("a bound port").to_string());
        let folder = std::env::temp_dir().join(format!("trilith-{name}-{}", std::process::id()));
        let child = spawn(&folder, &client, &peer, flags);
        let etcd = Etcd { child, folder, endpoint: client, peer, with };
        etcd.wait_until_healthy();
        etcd
    }

    /// Ends the member by SIGKILL and starts it again on the same folder and ports.
    fn restart(&mut self) {
        self.restart_with(&[]);
        self.wait_until_healthy();
    }

    /// The same with further flags; waits until it answers, healthy or not.
    fn restart_with(&mut self, flags: &[&str]) {
        self.child.kill().expect("a running process");
        self.child.wait().expect("the process can be waited for");
        self.child = spawn(&self.folder, &self.endpoint, &self.peer, flags);
        let begun = Instant::now();
        while !self.run(DEBIANS, &["endpoint", "status"], b"").status.success() {
            assert!(begun.elapsed() < Duration::from_secs(30), "etcd does not answer");
        }
    }

    fn wait_until_healthy(&self) {
        let begun = Instant::now();
        while !self.run(DEBIANS, &["endpoint", "health"], b"").status.success() {
            assert!(begun.elapsed() < Duration::from_secs(30), "etcd does not become healthy");
        }
    }

    fn run(&self, program: &str, args: &[&str], input: &[u8]) -> Output {
        let mut command = Command::new(program);
        command.args(["--endpoints", &self.endpoint]).args(&self.with).args(args).env_clear();
        if program == DEBIANS {
            command.env("ETCDCTL_API", "3");
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        // A command that does not read its input closes it.
        let _ = child.stdin.take().expect("a pipe").write_all(input);
        child.wait_with_output().expect("the process can be waited for")
    }

    /// Runs a command with Debian's tool, which must succeed.
    fn prepare(&self, args: &[&str]) -> String {
        let output = self.run(DEBIANS, args, b"");
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs a command that changes nothing with both tools, and compares all that they say.
    fn same(&self, args: &[&str]) {
        self.same_with(args, b"");
    }

    fn same_with(&self, args: &[&str], input: &[u8]) {
        let theirs = self.run(DEBIANS, args, input);
        let ours = self.run(OURS, args, input);
        compare(args, &theirs, &ours);
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn compare(args: &[&str], theirs: &Output, ours: &Output) {
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let wanted = as_of_3_7(&theirs.stdout);
    assert_eq!(shown(&ours.stdout), shown(&wanted), "standard output of {args:?}");
    assert_eq!(ours.stdout, wanted, "bytes of {args:?}");
    assert_eq!(ours.status.code(), theirs.status.code(), "exit code of {args:?}: {}", shown(&ours.stderr));
    // 3.4 logs its retries there too, as JSON.
    let errors = |text: &[u8]| {
        let text = shown(text);
        text.lines().filter(|line| !line.starts_with('{')).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(errors(&ours.stderr), errors(&theirs.stderr), "standard error of {args:?}");
}

/// What 3.4 printed, as 3.7 prints it: a revision that is not known has no line in the fields format, the answers
/// within a transaction have their names in lower case, and tables are drawn with lines.
fn as_of_3_7(text: &[u8]) -> Vec<u8> {
    if text.starts_with(b"+--") {
        return with_lines(&String::from_utf8_lossy(text)).into_bytes();
    }
    let mut out = text.to_vec();
    for (old, new) in [
        (&b"\"Revision\" : 0\n"[..], &b""[..]),
        (b"\"ResponsePut\":", b"\"response_put\":"),
        (b"\"ResponseRange\":", b"\"response_range\":"),
        (b"\"ResponseDeleteRange\":", b"\"response_delete_range\":"),
    ] {
        let mut from = 0;
        while let Some(at) =
            out[from..].windows(old.len()).position(|window| window == old).map(|at| at + from)
        {
            out.splice(at..at + old.len(), new.iter().copied());
            from = at + new.len();
        }
    }
    out
}

/// The same table with lines in place of `+`, `-` and `|`.
fn with_lines(table: &str) -> String {
    let count = table.lines().count();
    let rule = |line: &str, [left, middle, right]: [&str; 3]| {
        let bars: Vec<_> = line.trim_matches('+').split('+').map(|bar| "─".repeat(bar.len())).collect();
        format!("{left}{}{right}\n", bars.join(middle))
    };
    let line = |(at, line): (usize, &str)| match at {
        0 => rule(line, ["┌", "┬", "┐"]),
        2 => rule(line, ["├", "┼", "┤"]),
        at if at + 1 == count => rule(line, ["└", "┴", "┘"]),
        _ => line.replace('|', "│") + "\n",
    };
    table.lines().enumerate().map(line).collect()
}

/// Reads change nothing, so both tools list the alarm; each disarms it once. 3.4 gives alarms no header, and its fields
/// format fails on that.
#[test]
fn alarms_look_the_same() {
    let mut etcd = Etcd::start("alarms");
    etcd.restart_with(&["--quota-backend-bytes=1"]);
    let full = etcd.run(DEBIANS, &["put", "a", "b"], b"");
    assert!(!full.status.success(), "{full:?}");
    etcd.restart_with(&[]);
    for args in [&["alarm", "list"][..], &["alarm", "list", "x"], &["alarm", "disarm", "x"]] {
        etcd.same(args);
    }
    for format in ["json", "protobuf", "table"] {
        etcd.same(&["alarm", "list", "-w", format]);
    }
    let ours = etcd.run(OURS, &["alarm", "disarm"], b"");
    etcd.restart_with(&["--quota-backend-bytes=1"]);
    etcd.run(DEBIANS, &["put", "a", "b"], b"");
    etcd.restart_with(&[]);
    compare(&["alarm", "disarm"], &etcd.run(DEBIANS, &["alarm", "disarm"], b""), &ours);
    etcd.same(&["alarm", "list"]);
    etcd.same(&["alarm", "disarm", "-w", "json"]);
}

const FORMATS: [&str; 5] = ["simple", "json", "fields", "protobuf", "table"];

#[test]
fn reads_look_the_same() {
    let etcd = Etcd::start("reads");
    for [key, value] in [
        ["foo", "bar"],
        ["foo1", "<a>&\"b\"\\\u{1}\u{7f}ä€😀\u{a0}\u{2028}"],
        ["foo", "bar2"],
        ["foo2", ""],
        ["z", "1"],
    ] {
        etcd.prepare(&["put", "--", key, value]);
    }
    let output = etcd.run(DEBIANS, &["put", "raw"], b"\xff\xfe\0\n");
    assert!(output.status.success(), "{output:?}");
    for format in FORMATS {
        for args in [
            &["get", "foo"][..],
            &["get", "nothing"],
            &["get", "", "--prefix"],
            &["get", "", "--from-key", "--limit=2"],
            &["get", "foo", "foo2"],
            &["get", "foo", "--rev=2"],
            &["get", "--prefix", "foo", "--keys-only", "--consistency=s"],
            &["member", "list"],
            &["lease", "list"],
            &["lease", "timetolive", "1234"],
            &["lease", "timetolive", "1234", "--keys"],
        ] {
            etcd.same(&[args, &["-w", format]].concat());
        }
    }
    for args in [
        &["get", "--hex", "--prefix", ""][..],
        &["get", "--print-value-only", "--prefix", "foo"],
        &["get", "--order=DESCEND", "--sort-by=modify", "--prefix", "foo"],
        &["get", "--order", "ascend", "--sort-by", "Create", "--prefix=true", "foo"],
        &["get", "foo", "--prefix=false"],
        &["--write-out=json", "get", "foo"],
        &["endpoint", "hashkv", "-w", "json"],
    ] {
        etcd.same(args);
    }
}

#[test]
fn mistakes_are_named_the_same() {
    let etcd = Etcd::start("mistakes");
    for _ in 0..4 {
        etcd.prepare(&["put", "foo", "bar"]);
    }
    etcd.prepare(&["compaction", "4"]);
    for args in [
        &["get"][..],
        &["get", "foo", "--rev=2"],
        &["get", "foo", "--rev=999"],
        &["get", "a", "--order=up"],
        &["get", "a", "--sort-by=size"],
        &["get", "a", "--consistency=x"],
        &["get", "a", "b", "--prefix"],
        &["get", "a", "--prefix", "--from-key"],
        &["get", "a", "--print-value-only", "-w", "json"],
        &["get", "a", "-w", "xml"],
        &["put"],
        &["put", "a"],
        &["put", "a", "b", "--lease=zz"],
        &["put", "a", "b", "--lease=1234"],
        &["put", "a", "b", "--ignore-value"],
        &["put", "a", "--ignore-value"],
        &["put", "", "b"],
        &["del"],
        &["compaction"],
        &["compaction", "x"],
        &["compaction", "3"],
        &["compaction", "999"],
        &["lease", "grant", "x"],
        &["lease", "revoke"],
        &["lease", "revoke", "zz"],
        &["lease", "revoke", "1234"],
        &["lease", "timetolive"],
        &["lease", "keep-alive"],
        &["lease", "keep-alive", "1234"],
        &["lease", "keep-alive", "--once", "1234"],
        &["txn", "a"],
        &["watch"],
        &["watch", "foo", "--"],
        &["watch", "foo", "--rev=2"],
    ] {
        etcd.same(args);
    }
    for input in ["bla\n", "\nfoo a\n", "foo(\"a\") > \"1\"\n\n\n\n", ""] {
        etcd.same_with(&["txn"], input.as_bytes());
    }
}

/// Writes cannot be repeated: each tool gets an etcd of its own, and only what is random differs.
#[test]
fn a_session_of_writes_looks_the_same() {
    let (for_theirs, for_ours) = (Etcd::start("writes-theirs"), Etcd::start("writes-ours"));
    let both = |args: &[&str], input: &str| {
        let theirs = for_theirs.run(DEBIANS, args, input.as_bytes());
        let mut ours = for_ours.run(OURS, args, input.as_bytes());
        // Ports decide on the ids of members and clusters, and so on the header.
        let ids = |etcd: &Etcd| {
            let text = etcd.prepare(&["get", "x", "-w", "json"]);
            let id = |name: &str| {
                text.split(&format!("\"{name}\":"))
                    .nth(1)
                    .and_then(|t| t.split(',').next().map(str::to_owned))
            };
            [id("cluster_id").expect("a cluster id"), id("member_id").expect("a member id")]
        };
        let mut text = String::from_utf8(std::mem::take(&mut ours.stdout)).expect("text");
        for (ours, theirs) in ids(&for_ours).iter().zip(&ids(&for_theirs)) {
            text = text.replace(ours, theirs);
        }
        ours.stdout = text.into_bytes();
        compare(args, &theirs, &ours);
    };
    for format in ["simple", "json", "fields"] {
        for args in [
            &["put", "foo", "bar"][..],
            &["put", "foo", "bar<2>", "--prev-kv"],
            &["put", "foo", "--ignore-value", "--prev-kv"],
            &["put", "foo1", "", "--prev-kv"],
            &["put", "--", "-dash", "--value"],
            &["del", "foo", "--prev-kv"],
            &["del", "foo"],
            &["del", "--prefix", "foo", "--prev-kv"],
            &["del", "--from-key", ""],
        ] {
            both(&[args, &["-w", format]].concat(), "");
        }
        both(&["put", "stdin", "-w", format], "from\nstandard input\n");
        let txn = "mod(\"k\") > \"0\"\n\nput k \"over wrote\"\nget k\n\nput k new\nput l \"\\x01é\"\ndel stdin\nget k\n\n";
        for _ in 0..2 {
            both(&["txn", "-w", format], txn);
        }
        both(
            &["txn", "-w", format],
            "\nput a b --prev-kv\nget --prefix k --limit 1\ndel stdin --prev-kv\n\n\n",
        );
        both(&["get", "--prefix", "", "-w", format], "");
    }
    both(
        &["txn", "-i"],
        "value(\"k\") = \"over wrote\"\nver(\"k\") != \"9\"\ncreate(\"none\") < \"1\"\n\n\n\n",
    );
    both(&["compaction", "5"], "");
    both(&["compaction", "7", "--physical"], "");
    let input = "watch k --rev 8\n";
    let end = "Error: Error reading watch request line: EOF";
    let theirs = for_theirs.run(DEBIANS, &["watch", "-i"], input.as_bytes());
    let ours = for_ours.run(OURS, &["watch", "-i"], input.as_bytes());
    assert_eq!(theirs.status.code(), ours.status.code());
    let [theirs, ours] = [theirs, ours].map(|output| String::from_utf8(output.stderr).expect("text"));
    assert_eq!((theirs.trim(), ours.trim().to_lowercase()), (end, end.to_lowercase()));
}

/// A watch shows the past; it is ended once it has shown as much as the other one.
#[test]
fn watches_look_the_same() {
    let etcd = Etcd::start("watches");
    for [verb, key, value] in
        [["put", "foo", "1"], ["put", "foo", "<2>"], ["del", "foo", ""], ["put", "fop", "3"]]
    {
        let args = [verb, key, value];
        etcd.prepare(if verb == "del" { &args[..2] } else { &args });
    }
    for format in ["simple", "json", "fields", "protobuf"] {
        for args in [
            &["watch", "foo", "--rev=2"][..],
            &["watch", "foo", "--rev=3", "--prev-kv"],
            &["watch", "--prefix", "fo", "--rev=2", "--prev-kv"],
            &["watch", "foo", "fop", "--rev", "2"],
            &[
                "watch",
                "foo",
                "--rev=2",
                "--",
                "sh",
                "-c",
                "echo $ETCD_WATCH_REVISION $ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE",
            ],
        ] {
            // The format must stand before the command that is run.
            let args = [&["-w", format], args].concat();
            let theirs = shown_within(&etcd, DEBIANS, &args, None);
            let ours = shown_within(&etcd, OURS, &args, Some(theirs.len()));
            assert_eq!(String::from_utf8_lossy(&ours), String::from_utf8_lossy(&theirs), "{args:?}");
        }
    }
}

/// What a watch prints: `wanted` bytes, or all until nothing more comes for a while.
fn shown_within(etcd: &Etcd, program: &str, args: &[&str], wanted: Option<usize>) -> Vec<u8> {
    use std::io::Read;
    let mut command = Command::new(program);
    command.args(["--endpoints", &etcd.endpoint]).args(args).env_clear().env("PATH", "/usr/bin:/bin");
    if program == DEBIANS {
        command.env("ETCDCTL_API", "3");
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the program starts");
    let mut pipe = child.stdout.take().expect("a pipe");
    let (parts, queue) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 65536];
        while let Ok(length @ 1..) = pipe.read(&mut buffer) {
            if parts.send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut out = Vec::new();
    // The first bytes may take long on a busy machine; between later ones there is no reason to pause.
    let mut patience = Duration::from_secs(20);
    while wanted.is_none_or(|wanted| out.len() < wanted) {
        match queue.recv_timeout(patience) {
            Ok(part) => out.extend(part),
            Err(_) => break,
        }
        if wanted.is_none() {
            patience = Duration::from_secs(1);
        }
    }
    child.kill().expect("a running process");
    child.wait().expect("the process can be waited for");
    drop(queue);
    reader.join().expect("the reader does not panic");
    assert!(!out.is_empty(), "{program} {args:?} shows nothing");
    out
}

#[test]
fn tls_of_a_real_etcd() {
    let files = Files::new("against-etcd");
    let authority = Authority::new("the authority");
    let flag = |flag: &str, file: &str| format!("{flag}={}", files.path(file).display());
    files.put("ca.pem", authority.pem());
    files.pair("server", &authority.pair("server", &["127.0.0.1"], 10, as_usual));
    files.pair("alice", &authority.pair("alice", &[], 11, as_usual));
    files.pair("eve", &Authority::new("another").pair("eve", &[], 12, as_usual));
    let flags = [
        flag("--cert-file", "server.crt"),
        flag("--key-file", "server.key"),
        flag("--trusted-ca-file", "ca.pem"),
        "--client-cert-auth".to_owned(),
    ];
    let pair = |name: &str| [flag("--cert", &format!("{name}.crt")), flag("--key", &format!("{name}.key"))];
    let alice: Vec<String> = [flag("--cacert", "ca.pem")].into_iter().chain(pair("alice")).collect();
    let mut etcd = Etcd::start_with("tls", &flags.each_ref().map(String::as_str), alice.clone());
    etcd.prepare(&["put", "foo", "bar"]);
    for args in [&["get", "foo", "-w", "json"][..], &["get", "--prefix", ""], &["member", "list"]] {
        etcd.same(args);
    }
    assert_eq!(etcd.run(OURS, &["put", "foo", "over TLS"], b"").stdout, b"OK\n");
    assert_eq!(etcd.prepare(&["get", "foo", "--print-value-only"]), "over TLS\n");
    etcd.with = [vec!["--insecure-skip-tls-verify".to_owned()], pair("alice").to_vec()].concat();
    etcd.same(&["get", "foo"]);
    // Who shows no certificate, a wrong one, or trusts nobody who has signed the server's, is served by neither.
    let short = ["--dial-timeout=1s", "--command-timeout=1s"].map(str::to_owned);
    for (with, reason) in [
        (vec![alice[0].clone()], ""),
        ([vec![alice[0].clone()], pair("eve").to_vec()].concat(), ""),
        (pair("alice").to_vec(), "x509: certificate signed by unknown authority"),
        (vec!["--insecure-transport=true".to_owned()], ""),
    ] {
        etcd.with = [&with[..], &short].concat();
        for program in [DEBIANS, OURS] {
            let output = etcd.run(program, &["get", "foo"], b"");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && output.stdout.is_empty(), "{program} {with:?}: {output:?}");
            // 3.4 does not always say it.
            assert!(program == DEBIANS || said.contains(reason), "{with:?}: {said}");
        }
    }
}

#[test]
fn a_watch_outlives_its_server() {
    use std::io::{BufRead, BufReader};
    let mut etcd = Etcd::start("outlives");
    let mut command = Command::new(OURS);
    command.args(["--endpoints", &etcd.endpoint, "watch", "k", "--rev=2"]).env_clear();
    let mut watch = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("etcdctl starts");
    let mut lines = BufReader::new(watch.stdout.take().expect("a pipe")).lines();
    for value in ["1", "2", "3"] {
        etcd.prepare(&["put", "k", value]);
        let event: Vec<_> = lines.by_ref().take(3).map(|line| line.expect("text")).collect();
        assert_eq!(event, ["PUT", "k", value], "each event once, and none left out");
        etcd.restart();
    }
    watch.kill().expect("a running process");
    watch.wait().expect("the process can be waited for");
}

#[test]
fn the_benchmark_writes_and_reads_what_it_says() {
    let etcd = Etcd::start("benchmark");
    let benchmark = |args: &[&str]| {
        let output = etcd.run(env!("CARGO_BIN_EXE_benchmark"), args, b"");
        assert!(output.status.success() && output.stderr.is_empty(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let answered = |report: &str| -> u64 {
        let histogram = report.split("Response time histogram:").nth(1).expect("a histogram");
        let counts = histogram.lines().filter_map(|line| line.split(['[', ']']).nth(1));
        counts.map(|count| count.parse::<u64>().expect("a number")).sum()
    };
    let put = ["put", "--conns=2", "--clients=5", "--total=300", "--sequential-keys", "--key-space-size=70"];
    let report = benchmark(&[&put[..], &["--key-size=20", "--val-size=100", "--check-hashkv"]].concat());
    assert_eq!(answered(&report), 300);
    assert!(report.contains("\tHashKV: ") && !report.contains("Error distribution"), "{report}");
    let found = etcd.prepare(&["get", "", "--prefix", "-w", "json"]);
    assert!(found.contains("\"revision\":301") && found.contains("\"count\":70"), "{found}");
    let report = benchmark(&["txn-put", "--txn-ops=3", "--key-space-size=9", "--total=20", "--rate=1000"]);
    assert_eq!(answered(&report), 20);
    assert!(etcd.prepare(&["get", "x", "-w", "json"]).contains("\"revision\":321"));
    let report = benchmark(&["range", "a", "z", "--total=50", "--consistency=s", "--target-leader"]);
    assert!(report.starts_with("bench with serializable range\n") && answered(&report) == 50, "{report}");
}

/// Members stand in the order of their ids, which are random: here in that of their texts.
fn in_one_order(text: &str) -> String {
    let sorted = |parts: &str, by: &str| {
        let mut parts: Vec<&str> = parts.split(by).collect();
        parts.sort_unstable();
        parts.join(by)
    };
    let line = |line: &str| {
        if let Some((before, list)) = line.split_once("\"members\":[{") {
            let list = list.trim_end_matches("}]}");
            return format!("{before}\"members\":[{{{}}}]}}", sorted(list, "},{"));
        }
        match line.split_once("INITIAL_CLUSTER=\"") {
            Some((before, list)) => {
                format!("{before}INITIAL_CLUSTER=\"{}\"", sorted(list.trim_end_matches('"'), ","))
            }
            None => line.to_owned(),
        }
    };
    let mut lines: Vec<String> = text.split('\n').map(line).collect();
    if lines.iter().any(|line| line.contains(", started, ")) {
        lines.sort_unstable();
    }
    lines.join("\n")
}

/// The ids of the members: of the one that runs, and of one that was added.
fn members(etcd: &Etcd) -> Vec<String> {
    let list = etcd.prepare(&["member", "list"]);
    let mut ids: Vec<String> =
        list.lines().map(|line| line.split(',').next().expect("an id").to_owned()).collect();
    if list.lines().next().is_some_and(|line| line.contains(", unstarted, ")) {
        ids.swap(0, 1);
    }
    ids
}

fn cluster_id(etcd: &Etcd) -> String {
    let text = etcd.prepare(&["endpoint", "status", "-w", "json"]);
    let id = text.split("\"cluster_id\":").nth(1).and_then(|text| text.split(',').next());
    format!("{:x}", id.expect("a cluster id").parse::<u64>().expect("a number"))
}

/// Runs a command; `@0` in it stands for the id of the member that runs, `@1` for that of the added one. What depends on the
/// etcd gets the same names everywhere.
fn run_with_names(etcd: &Etcd, program: &str, args: &[&str]) -> Output {
    let before = members(etcd);
    let id = |at: &str| before[at.parse::<usize>().expect("a place")].as_str();
    let with_ids: Vec<&str> = args.iter().map(|arg| arg.strip_prefix('@').map_or(*arg, id)).collect();
    let mut output = etcd.run(program, &with_ids, b"");
    let after = members(etcd);
    let mut ids = if after.len() < before.len() { before } else { after };
    ids.push(cluster_id(etcd));
    let mut names =
        vec![(etcd.endpoint.clone(), "CLIENT".to_owned()), (etcd.peer.clone(), "PEER".to_owned())];
    for (at, id) in ids.iter().enumerate() {
        for word in ["Member", "cluster"] {
            names.push((format!("{word} {id:>16}"), format!("{word} <{at}>")));
        }
        let number = u64::from_str_radix(id, 16).expect("an id");
        names.push((id.clone(), format!("<{at}>")));
        names.push((number.to_string(), format!("<{at}>")));
    }
    for bytes in [&mut output.stdout, &mut output.stderr] {
        let mut text = String::from_utf8(std::mem::take(bytes)).expect("text");
        for (from, to) in &names {
            text = text.replace(from, to);
        }
        // 3.4 does not say that it is a learner.
        if args.contains(&"--learner") {
            text = text.replace("added to", "added as learner to");
        }
        *bytes = in_one_order(&text).into_bytes();
    }
    output
}

/// Each tool changes the members of an etcd of its own. A learner that is not there leaves a lone member its quorum.
#[test]
fn changes_of_members_look_the_same() {
    let (for_theirs, for_ours) = (Etcd::start("members-theirs"), Etcd::start("members-ours"));
    let both = |args: &[&str]| {
        let (theirs, ours) =
            (run_with_names(&for_theirs, DEBIANS, args), run_with_names(&for_ours, OURS, args));
        compare(args, &theirs, &ours);
    };
    // An id is made of URLs and seconds, and never returns.
    for (format, urls) in
        [("simple", "http://127.0.0.1:1,http://127.0.0.1:2"), ("json", "http://127.0.0.1:4")]
    {
        both(&["member", "add", "new", "--learner", "--peer-urls", urls, "-w", format]);
        both(&["member", "promote", "@1", "-w", format]);
        both(&["member", "update", "@1", "--peer-urls=http://127.0.0.1:3", "-w", format]);
        both(&["member", "list", "-w", format]);
        both(&["member", "remove", "@1", "-w", format]);
        both(&["move-leader", "@0", "-w", format]);
    }
    for args in [
        &["member", "add"][..],
        &["member", "add", "x"],
        &["member", "add", "x", "http://127.0.0.1:1"],
        &["member", "add", "x", "y"],
        &["member", "add", "x", "--peer-urls=127.0.0.1:1"],
        &["member", "add", "x", "--peer-urls=http://127.0.0.1"],
        &["member", "add", "x", "--peer-urls=http://127.0.0.1:1/path"],
        &["member", "add", "x", "--peer-urls=http://127.0.0.1:1,"],
        &["member", "add", "x", "--peer-urls=a:1"],
        &["member", "add", "x", "--peer-urls=:1"],
        &["member", "add", "x", "--peer-urls=http://a:x"],
        &["member", "add", "x", "--peer-urls=http://[::1]"],
        &["member", "add", "x", "--peer-urls=ftp://a:1"],
        &["member", "remove"],
        &["member", "remove", "@0"],
        &["member", "remove", "1"],
        &["member", "remove", "zz"],
        &["member", "remove", "11111111111111111"],
        &["member", "remove", "1", "2"],
        &["member", "update"],
        &["member", "update", "1"],
        &["member", "update", "zz", "--peer-urls=http://127.0.0.1:1"],
        &["member", "update", "1", "--peer-urls=http://127.0.0.1:1"],
        &["member", "update", "1", "--peer-urls=nothing"],
        &["member", "promote"],
        &["member", "promote", "zz"],
        &["member", "promote", "1"],
        &["member", "promote", "@0"],
        &["move-leader"],
        &["move-leader", "zz"],
        &["move-leader", "1"],
        &["move-leader", "@0", "-w", "table"],
        &["endpoint", "hashkv", "--cluster", "-w", "json"],
    ] {
        both(args);
    }
}

//! The house rules, as tests: who may know whom, how long a file and a function may be, what every module begins with,
//! and where clocks, threads and unsafe code may stand.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 80;

/// Which of our crates each crate may depend on.
const MAY_KNOW: [(&str, &[&str]); 12] = [
    ("failpoint", &[]),
    ("fuzz", &[]),
    ("proto", &[]),
    ("disk", &[]),
    ("tls", &[]),
    ("dns", &[]),
    ("wal", &["disk", "failpoint", "proto"]),
    ("engine", &["disk", "failpoint", "proto"]),
    ("raft", &["disk", "failpoint", "proto", "wal"]),
    ("server", &["disk", "dns", "engine", "failpoint", "proto", "raft", "tls", "wal"]),
    ("tools", &["disk", "dns", "engine", "proto", "tls", "wal"]),
    ("benches", &["proto"]),
];

/// The only files with unsafe code.
const MAY_BE_UNSAFE: [&str; 4] =
    ["benches/engine/src/lmdb.rs", "disk/src/aligned.rs", "engine/src/map.rs", "wal/src/uring.rs"];

/// Functions longer than the rule, each with the reason.
const LONG_FUNCTIONS: [(&str, &str, &str); 0] = [];

/// Time, threads and randomness come from outside: what is written here stands in one place each.
const BANNED: [&str; 6] =
    ["SystemTime::now", "Instant::now", "thread::spawn", "thread::Builder", "sleep(", "getrandom"];

/// Where a banned word may stand, and why.
const MAY_USE: &[(&str, &str, &str)] = &[
    ("failpoint/src/", "sleep(", "a point sleeps"),
    ("failpoint/src/http.rs", "thread::Builder", "points are set while others sleep"),
    ("dns/src/exchange.rs", "Instant::now", "a server has so much time to answer"),
    ("dns/src/testing.rs", "thread::spawn", "a name server for tests"),
    ("server/src/discovery/", "sleep(", "pauses between attempts, and probes of a silent connection"),
    ("server/src/core/driver.rs", "Instant::now", "the driver hands the time to the core"),
    ("server/src/run.rs", "SystemTime::now", "request ids begin at the time of the start"),
    ("server/src/logging.rs", "SystemTime::now", "a log line has a time"),
    ("server/src/rpc/", "Instant::now", "deadlines and keepalive of connections"),
    ("server/src/rpc/", "sleep(", "deadlines and keepalive of connections"),
    ("server/src/rpc/server.rs", "thread::Builder", "connections are dealt out to runtimes"),
    ("server/src/outlet.rs", "Instant::now", "a pause before a leader that does not answer is asked again"),
    ("server/src/peer/", "Instant::now", "time limits and heartbeats of connections between members"),
    ("server/src/peer/route.rs", "SystemTime::now", "a peer that probes is told the time"),
    ("server/src/socket.rs", "Instant::now", "how long a write may wait"),
    ("server/src/tls/mod.rs", "Instant::now", "TLS files are looked at once a second"),
    ("server/src/tls/mod.rs", "thread::Builder", "handshakes have a thread of their own"),
    ("server/src/tls/self_signed.rs", "SystemTime::now", "a certificate is valid from now on"),
    ("wal/src/io.rs", "thread::Builder", "the plain path writes and syncs on a thread of its own"),
    ("wal/src/io.rs", "Instant::now", "the histogram of sync times"),
    ("wal/src/uring.rs", "Instant::now", "the histogram of sync times"),
    ("wal/src/prepare.rs", "thread::Builder", "segments are prepared in the background"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn source_files() -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = MAY_KNOW.iter().map(|(name, _)| root().join(name)).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of ours") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
                files.push((name, std::fs::read_to_string(&path).expect("a source file")));
            }
        }
    }
    files.sort();
    assert!(files.len() > 20, "the walk finds the sources: {}", files.len());
    files
}

/// Tests, tools and harnesses may look at the clock; what a server runs may not.
fn is_server_code(name: &str) -> bool {
    !name.starts_with("benches/")
        && !name.starts_with("fuzz/")
        && !name.starts_with("tools/")
        && name.contains("/src/")
        && !name.ends_with("tests.rs")
        && !name.contains("/tests/")
}

/// The source with comments, strings and characters blanked out, so that braces and words in them do not count.
fn code_only(text: &str) -> String {
    let bytes: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = match (bytes[at], bytes.get(at + 1)) {
            ('/', Some('/')) => find(&bytes, at, |i| bytes[i] == '\n'),
            ('/', Some('*')) => find(&bytes, at + 2, |i| bytes[i - 1] == '*' && bytes[i] == '/') + 1,
            ('r', Some('#' | '"')) if at == 0 || !word(bytes[at - 1]) => raw_string_end(&bytes, at),
            ('"', _) => string_end(&bytes, at),
            ('\'', Some('\\')) => find(&bytes, at + 3, |i| bytes[i] == '\'') + 1,
            ('\'', Some(_)) if bytes.get(at + 2) == Some(&'\'') => at + 3,
            _ => at,
        };
        if end == at {
            out.push(bytes[at]);
            at += 1;
        } else {
            let end = end.min(bytes.len());
            out.extend(bytes[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

fn word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn find(bytes: &[char], from: usize, is: impl Fn(usize) -> bool) -> usize {
    (from..bytes.len()).find(|i| is(*i)).unwrap_or(bytes.len())
}

fn string_end(bytes: &[char], begin: usize) -> usize {
    let mut at = begin + 1;
    while at < bytes.len() && bytes[at] != '"' {
        at += if bytes[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

fn raw_string_end(bytes: &[char], begin: usize) -> usize {
    let hashes = bytes[begin + 1..].iter().take_while(|c| **c == '#').count();
    let open = begin + 1 + hashes;
    if bytes.get(open) != Some(&'"') {
        return begin;
    }
    let closes = |i: usize| bytes[i] == '"' && (1..=hashes).all(|h| bytes.get(i + h) == Some(&'#'));
    find(bytes, open + 1, closes) + 1 + hashes
}

/// Name, first line and number of lines of every function with a body.
fn functions(code: &str) -> Vec<(String, usize, usize)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        if code[..at].chars().next_back().is_some_and(word) {
            continue;
        }
        let name: String = code[at + 3..].chars().take_while(|c| word(*c)).collect();
        let rest = &code[at..];
        let body = rest.find(['{', ';']);
        if name.is_empty() || body.is_none_or(|open| rest.as_bytes()[open] == b';') {
            continue;
        }
        let mut depth = 0;
        let end = rest.find(|c| {
            depth += match c {
                '{' => 1,
                '}' => -1,
                _ => 0,
            };
            c == '}' && depth == 0
        });
        let lines = rest[..end.map_or(rest.len(), |end| end + 1)].lines().count();
        found.push((name, code[..at].lines().count(), lines));
    }
    found
}

fn check(broken: Vec<String>) {
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn dependencies_run_downwards() {
    let mut broken = Vec::new();
    for (name, may_know) in MAY_KNOW {
        let manifest = std::fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
        let mut section = "";
        for line in manifest.lines() {
            if line.starts_with('[') {
                section = line;
            }
            let Some(other) = line.strip_prefix("trilith-") else { continue };
            let other: String = other.chars().take_while(|c| word(*c)).collect();
            if section == "[dependencies]" && !may_know.contains(&other.as_str()) {
                broken.push(format!("{name} may not know {other}"));
            }
        }
    }
    check(broken);
}

#[test]
fn files_and_functions_are_short() {
    let mut broken = Vec::new();
    for (file, text) in source_files() {
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            broken.push(format!("{file}: {lines} lines, and {FILE_LINES_MAX} is the most"));
        }
        for (name, line, lines) in functions(&code_only(&text)) {
            let excused = LONG_FUNCTIONS.iter().any(|(f, n, _)| *f == file && *n == name);
            if lines > FUNCTION_LINES_MAX && !excused {
                broken.push(format!(
                    "{file}:{line}: {name} has {lines} lines, and {FUNCTION_LINES_MAX} is the most"
                ));
            }
        }
    }
    check(broken);
}

#[test]
fn a_module_says_first_what_it_is() {
    let files = source_files();
    let silent = files.iter().filter(|(_, text)| !text.starts_with("//!"));
    check(silent.map(|(file, _)| format!("{file} does not open with //!")).collect());
}

#[test]
fn unsafe_code_stands_where_it_is_listed() {
    let files = source_files();
    let has_unsafe = |text: &str| {
        let code = code_only(text);
        code.match_indices("unsafe").any(|(at, _)| {
            let before = code[..at].chars().next_back().is_none_or(|c| !word(c));
            let after = code[at + 6..].chars().next().is_none_or(|c| !word(c));
            before && after
        })
    };
    let unsafe_files =
        files.iter().filter(|(file, text)| has_unsafe(text) && !MAY_BE_UNSAFE.contains(&file.as_str()));
    check(unsafe_files.map(|(file, _)| format!("{file} has unsafe code")).collect());
}

#[test]
fn nothing_is_left_for_later() {
    let mut broken = Vec::new();
    for (file, text) in source_files() {
        let code = code_only(&text);
        for word in ["todo!", "unimplemented!", "dbg!"] {
            if code.contains(word) {
                broken.push(format!("{file} has {word}"));
            }
        }
    }
    check(broken);
}

#[test]
fn clocks_threads_and_randomness_have_their_places() {
    let mut broken = BTreeSet::new();
    for (file, text) in source_files().iter().filter(|(file, _)| is_server_code(file)) {
        // Tests at the end of a file are no server code.
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let code = code_only(text);
        for banned in BANNED {
            let allowed = MAY_USE.iter().any(|(place, word, _)| file.starts_with(place) && *word == banned);
            let uses = |line: &&str| line.contains(banned) && !line.trim_start().starts_with("fn ");
            if !allowed && code.lines().any(|line| uses(&line)) {
                broken.insert(format!("{file} has {banned}"));
            }
        }
    }
    check(broken.into_iter().collect());
}

#[test]
fn the_lexer_of_these_tests_sees_what_it_should() {
    let code = code_only(
        "fn a() { '{'; \"}\\\"{\"; r#\"{\"#; // {\n /* { */ 'x: loop {} }\nfn b();\nfn c() {\n\n}\n",
    );
    let found: Vec<(String, usize)> =
        functions(&code).into_iter().map(|(name, _, lines)| (name, lines)).collect();
    assert_eq!(found, [("a".to_owned(), 2), ("c".to_owned(), 3)]);
    assert!(!code_only("// unsafe\n\"unsafe\"").contains("unsafe"));
}

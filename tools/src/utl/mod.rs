//! `etcdutl`: what can be done with snapshots and data directories while no member runs on them.
//!
//! Promises etcd's commands, output and exit codes. A file is read as what it is, etcd's or ours, whatever its name; one
//! that is damaged is refused with the place named; nothing appears under its name before it is whole and durable.

mod cluster;
mod export;
mod files;
mod print;
mod restore;
mod status;
mod upkeep;

use crate::completion::{self, Entry};
use crate::exit::Failure;
use crate::flags::Kind::{Bool, Int, List, Text, Uint};
use crate::flags::{Flag, Flags, Positional, describe, first_word, flag};
use crate::terminal::say;
use print::Printer;

/// The release of etcd whose command line this is.
const VERSION: &str = "3.7.1";
const API_VERSION: &str = "3.7";

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Status,
    Restore,
    HashKv,
    Export,
    Defrag,
    Migrate,
    Completion,
    Version,
}

#[derive(Debug)]
struct Command {
    path: &'static [&'static str],
    usage: &'static str,
    help: &'static str,
    flags: &'static [Flag],
    verb: Verb,
}

static GLOBAL_FLAGS: &[Flag] = &[
    Flag { short: Some('h'), ..flag("help", Bool, "false", "show this help") },
    Flag {
        short: Some('w'),
        ..flag("write-out", Text, "simple", "output format (fields, json, protobuf, simple, table)")
    },
];

static RESTORE_FLAGS: &[Flag] = &[
    flag("bump-revision", Uint, "0", "lift the revision by so much (with --mark-compacted)"),
    flag("data-dir", Text, "", "where to make the data directory (NAME.etcd)"),
    flag("initial-advertise-peer-urls", List, "http://localhost:2380", "peer URLs of this member"),
    flag("initial-cluster", Text, "default=http://localhost:2380", "members of the new cluster"),
    flag("initial-cluster-token", Text, "etcd-cluster", "token of the new cluster"),
    flag("initial-memory-map-size", Uint, "10737418240", "has no effect: the store takes what it needs"),
    flag("mark-compacted", Bool, "false", "count what was before the lifted revision as compacted"),
    flag("name", Text, "default", "name of this member"),
    flag("skip-hash-check", Bool, "false", "take a file without a hash, such as a copied database"),
    flag("wal-dir", Text, "", "where to make the log, if not in the data directory"),
];
static HASHKV_FLAGS: &[Flag] = &[flag("rev", Int, "0", "revision to hash at (0: the newest)")];
static EXPORT_FLAGS: &[Flag] =
    &[flag("data-dir", Text, "", "data directory of a member that is not running")];
static DEFRAG_FLAGS: &[Flag] =
    &[flag("data-dir", Text, "", "data directory of a member that is not running")];
static MIGRATE_FLAGS: &[Flag] = &[
    flag("data-dir", Text, "", "data directory of a member that is not running"),
    flag("force", Bool, "false", "set also a version that is not known"),
    flag("target-version", Text, "", "storage version to migrate to, as X.Y"),
];

static COMMANDS: &[Command] = &[
    Command {
        path: &["completion"],
        usage: "completion [bash|zsh|fish|powershell]",
        help: "Prints a script that completes commands",
        flags: &[],
        verb: Verb::Completion,
    },
    Command {
        path: &["defrag"],
        usage: "defrag --data-dir DIR",
        help: "Gives back unused space of a data directory",
        flags: DEFRAG_FLAGS,
        verb: Verb::Defrag,
    },
    Command {
        path: &["export"],
        usage: "export FILE --data-dir DIR",
        help: "Writes a data directory's store as a snapshot file that etcd restores",
        flags: EXPORT_FLAGS,
        verb: Verb::Export,
    },
    Command {
        path: &["hashkv"],
        usage: "hashkv FILE [--rev REVISION]",
        help: "Prints the hash of a file's key-value history",
        flags: HASHKV_FLAGS,
        verb: Verb::HashKv,
    },
    Command {
        path: &["migrate"],
        usage: "migrate --data-dir DIR --target-version X.Y",
        help: "Sets the storage version that snapshots and exports of a data directory carry",
        flags: MIGRATE_FLAGS,
        verb: Verb::Migrate,
    },
    Command {
        path: &["snapshot", "restore"],
        usage: "snapshot restore FILE --data-dir DIR [options]",
        help: "Makes a data directory of a snapshot",
        flags: RESTORE_FLAGS,
        verb: Verb::Restore,
    },
    Command {
        path: &["snapshot", "status"],
        usage: "snapshot status FILE",
        help: "Checks a snapshot and prints its hash, revision, keys and size",
        flags: &[],
        verb: Verb::Status,
    },
    Command {
        path: &["version"],
        usage: "version",
        help: "Prints the version of etcdutl",
        flags: &[],
        verb: Verb::Version,
    },
];

/// Runs `etcdutl` with `args` (without the program's name).
///
/// # Errors
/// The exit code and the text for standard error.
pub fn run(args: &[Vec<u8>]) -> Result<(), Failure> {
    let (path, args) = find(args)?;
    let Some(command) = COMMANDS.iter().find(|command| command.path == path.as_slice()) else {
        return say(group_help(&path).as_bytes());
    };
    let mut flags = Flags::new(&[command.flags, GLOBAL_FLAGS]);
    let rest = flags.parse(&args)?;
    if flags.bool("help") {
        return say(command_help(command).as_bytes());
    }
    match command.verb {
        Verb::Version => say(format!("etcdutl version: {VERSION}\nAPI version: {API_VERSION}\n").as_bytes()),
        Verb::Completion => completion(&rest),
        Verb::Defrag => upkeep::defrag(flags.text("data-dir")),
        Verb::Migrate => {
            upkeep::migrate(flags.text("data-dir"), flags.text("target-version"), flags.bool("force"))
        }
        Verb::Status => {
            let file = one_argument(&rest, "snapshot status requires exactly one argument")?;
            status::status(&file, Printer::new(flags.text("write-out"))?)
        }
        Verb::HashKv => {
            let file = one_argument(&rest, "hashkv requires exactly one argument")?;
            status::hash_kv(&file, flags.int("rev"), Printer::new(flags.text("write-out"))?)
        }
        Verb::Restore => {
            let file = one_argument(&rest, "snapshot restore requires exactly one argument")?;
            restore::restore(&file, &flags)
        }
        Verb::Export => {
            let file = one_argument(&rest, "export requires exactly one argument")?;
            export::export(&file, flags.text("data-dir"))
        }
    }
}

fn completion(rest: &Positional) -> Result<(), Failure> {
    let entry = |command: &Command| Entry { path: command.path, help: command.help, flags: command.flags };
    let entries: Vec<Entry> = COMMANDS.iter().map(entry).collect();
    match rest.args.as_slice() {
        [] => say(group_help(&["completion"]).as_bytes()),
        [shell, ..] => say(completion::script("etcdutl", shell, &entries, GLOBAL_FLAGS)?.as_bytes()),
    }
}

fn one_argument(rest: &Positional, otherwise: &str) -> Result<std::path::PathBuf, Failure> {
    use std::os::unix::ffi::OsStrExt;
    match rest.args.as_slice() {
        [only] => Ok(std::ffi::OsStr::from_bytes(only).into()),
        _ => Err(Failure::bad_args(otherwise)),
    }
}

/// Finds the command in `args`: its path, and the arguments without its words. A path that is no command is a group, or
/// the tool itself.
fn find(args: &[Vec<u8>]) -> Result<(Vec<&'static str>, Vec<Vec<u8>>), Failure> {
    let mut path: Vec<&'static str> = Vec::new();
    let mut rest = args.to_vec();
    while !COMMANDS.iter().any(|command| command.path == path.as_slice()) {
        let Some(at) = first_word(&rest, &[GLOBAL_FLAGS]) else { break };
        let word = String::from_utf8_lossy(&rest[at]).into_owned();
        let below = COMMANDS.iter().filter(|command| command.path.starts_with(&path));
        let known =
            below.filter_map(|command| command.path.get(path.len()).copied()).find(|known| *known == word);
        match known {
            Some(known) => path.push(known),
            None if path.is_empty() => {
                return Err(Failure::error(format_args!(
                    "unknown command {word:?} for \"etcdutl\"\nRun 'etcdutl --help' for usage."
                )));
            }
            None => break,
        }
        rest.remove(at);
    }
    Ok((path, rest))
}

fn command_help(command: &Command) -> String {
    let mut out = format!("{}\n\nUsage:\n  etcdutl {}\n\n", command.help, command.usage);
    if !command.flags.is_empty() {
        out += &format!("Flags:\n{}\n", describe(command.flags));
    }
    out + &format!("Global Flags:\n{}\n", describe(GLOBAL_FLAGS))
}

/// The help of the tool (an empty path) or of a group of commands.
fn group_help(path: &[&str]) -> String {
    let mut out = "Usage:\n  etcdutl [command]\n\nAvailable Commands:\n".to_owned();
    for command in COMMANDS.iter().filter(|command| command.path.starts_with(path)) {
        out += &format!("  {:17} {}\n", command.path.join(" "), command.help);
    }
    out + &format!("\nFlags:\n{}\n", describe(GLOBAL_FLAGS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<Vec<u8>> {
        line.split(' ').filter(|word| !word.is_empty()).map(|word| word.as_bytes().to_vec()).collect()
    }

    #[test]
    fn a_command_is_found_among_flags() {
        for (line, path, rest) in [
            ("snapshot status f -w json", &["snapshot", "status"][..], "f -w json"),
            ("-w json snapshot status f", &["snapshot", "status"], "-w json f"),
            ("--write-out=table hashkv f", &["hashkv"], "--write-out=table f"),
            ("snapshot", &["snapshot"], ""),
            ("", &[], ""),
        ] {
            assert_eq!(find(&words(line)), Ok((path.to_vec(), words(rest))), "{line}");
        }
        assert_eq!(find(&words("bogus")).unwrap_err().code, 1);
    }

    #[test]
    fn every_command_has_readable_flags_and_a_help() {
        for command in COMMANDS {
            assert!(!Flags::new(&[command.flags, GLOBAL_FLAGS]).bool("help"));
            assert!(command.usage.starts_with(&command.path.join(" ")), "{:?}", command.path);
            assert!(command_help(command).contains(command.help));
        }
        assert!(group_help(&["snapshot"]).contains("  snapshot restore"));
    }

    #[test]
    fn wrong_arguments_have_etcds_codes() {
        for (line, code, text) in [
            ("snapshot status", 128, "snapshot status requires exactly one argument"),
            ("snapshot restore a b", 128, "snapshot restore requires exactly one argument"),
            ("hashkv", 128, "hashkv requires exactly one argument"),
            ("snapshot status /no/such/file", 1, "stat /no/such/file: no such file or directory"),
            ("snapshot status x -w yaml", 4, "unsupported output format"),
            ("migrate --data-dir x", 1, "required flag(s) \"target-version\" not set"),
            ("migrate --target-version 3.6", 1, "required flag(s) \"data-dir\" not set"),
            (
                "migrate --data-dir x --target-version 3.6.1",
                128,
                "wrong target version format, expected \"X.Y\", got \"3.6.1\"",
            ),
            (
                "migrate --data-dir x --target-version 3.4",
                128,
                "target version \"3.4\" not supported. Minimal \"3.5\"",
            ),
            ("defrag", 1, "required flag(s) \"data-dir\" not set"),
            ("completion tcsh", 128, "invalid argument \"tcsh\" for \"etcdutl completion\""),
        ] {
            let failure = run(&words(line)).unwrap_err();
            assert_eq!((failure.code, failure.text.as_str()), (code, text), "{line}");
        }
    }
}

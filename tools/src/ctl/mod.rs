//! `etcdctl`: the table of its commands, and the way from arguments to one of them.
//!
//! Commands check their arguments before they connect, and print an answer once it is whole.

mod alarm;
mod defrag;
mod downgrade;
mod endpoint;
mod kv;
mod lease;
mod member;
mod snapshot;
mod table;
mod txn;
mod watch;

use tokio::time::Instant;

use crate::client::{Client, Config};
use crate::completion::{self, Entry};
use crate::exit::Failure;
use crate::flags::{Flags, Positional, describe, first_word};
use crate::print::{Answer, Printer};
use crate::terminal::{note, say};

#[cfg(test)]
pub(crate) use table::GLOBAL_FLAGS;
use table::{COMMANDS, Command, Verb};

/// The release of etcd whose command line this is.
const VERSION: &str = "3.7.1";
const API_VERSION: &str = "3.7";
const ENVIRONMENT: &str = "ETCDCTL";

/// A command that is being carried out.
struct Session {
    flags: Flags,
    rest: Positional,
    config: Config,
    printer: Printer,
    started: Instant,
}

impl Session {
    /// The arguments.
    fn args(&self) -> &[Vec<u8>] {
        &self.rest.args
    }

    /// An argument as text, for messages and numbers.
    fn text(&self, at: usize) -> String {
        self.args().get(at).map(|arg| String::from_utf8_lossy(arg).into_owned()).unwrap_or_default()
    }

    fn deadline(&self) -> Instant {
        self.started + self.config.command_timeout
    }

    async fn connect(&self) -> Result<Client, Failure> {
        self.config.connect(self.deadline()).await
    }

    fn print(&self, answer: &Answer<'_>) -> Result<(), Failure> {
        self.printer.print(answer)
    }
}

/// Runs `etcdctl` with `args` (without the program's name) and the process's environment.
///
/// # Errors
/// The exit code and the text for standard error.
pub fn run(args: Vec<Vec<u8>>) -> Result<(), Failure> {
    let (path, args) = find(&args)?;
    let Some(command) = COMMANDS.iter().find(|command| command.path == path.as_slice()) else {
        return say(group_help(&path).as_bytes());
    };
    let mut flags = Flags::new(&[command.flags, table::GLOBAL_FLAGS, table::HELP_FLAG]);
    let rest = flags.parse(&args)?;
    if flags.bool("help") {
        return say(command_help(command).as_bytes());
    }
    match command.verb {
        Verb::Version => {
            return say(format!("etcdctl version: {VERSION}\nAPI version: {API_VERSION}\n").as_bytes());
        }
        Verb::Options => {
            let list = describe(table::GLOBAL_FLAGS);
            return say(format!("The following options can be passed to any command:\n\n{list}").as_bytes());
        }
        Verb::Help => return help(&rest.args),
        Verb::Completion => return completion(command, &rest),
        Verb::Later => {
            return Err(Failure::bad_feature(format_args!(
                "{} is not supported yet",
                command.path.join(" ")
            )));
        }
        _ => {}
    }
    read_environment(&mut flags, command)?;
    let printer = Printer::new(flags.text("write-out"), flags.bool("hex"))?;
    let config = Config::from_flags(&flags)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::error(format_args!("no event loop: {error}")))?;
    let outcome = runtime.block_on(async {
        let session = Session { flags, rest, config, printer, started: Instant::now() };
        Box::pin(carry_out(command.verb, session)).await
    });
    // A thread may still wait for standard input; nobody waits for it.
    runtime.shutdown_background();
    outcome
}

async fn carry_out(verb: Verb, session: Session) -> Result<(), Failure> {
    match verb {
        Verb::Get => kv::get(session).await,
        Verb::Put => kv::put(&session).await,
        Verb::Del => kv::delete(&session).await,
        Verb::Compaction => kv::compaction(&session).await,
        Verb::Txn => txn::txn(&session).await,
        Verb::Watch => watch::watch(&session).await,
        Verb::LeaseGrant => lease::grant(&session).await,
        Verb::LeaseRevoke => lease::revoke(&session).await,
        Verb::LeaseTimeToLive => lease::time_to_live(&session).await,
        Verb::LeaseList => lease::list(&session).await,
        Verb::LeaseKeepAlive => lease::keep_alive(&session).await,
        Verb::EndpointStatus => endpoint::status(&session).await,
        Verb::EndpointHealth => endpoint::health(&session).await,
        Verb::Defrag => defrag::defrag(&session).await,
        Verb::DowngradeCancel => downgrade::cancel(&session).await,
        Verb::DowngradeEnable => downgrade::enable(&session).await,
        Verb::DowngradeValidate => downgrade::validate(&session).await,
        Verb::EndpointHashKv => endpoint::hash_kv(&session).await,
        Verb::AlarmDisarm => alarm::disarm(&session).await,
        Verb::AlarmList => alarm::list(&session).await,
        Verb::MemberAdd => member::add(&session).await,
        Verb::MemberPromote => member::promote(&session).await,
        Verb::MemberRemove => member::remove(&session).await,
        Verb::MemberUpdate => member::update(&session).await,
        Verb::MoveLeader => member::move_leader(&session).await,
        Verb::MemberList => member::list(&session).await,
        Verb::SnapshotSave => snapshot::save(&session).await,
        Verb::Completion | Verb::Version | Verb::Options | Verb::Help | Verb::Later => Ok(()),
    }
}

/// Finds the command in `args`: its path, and the arguments without its words. A word may be cut short as long as it
/// stays unique. A path that is no command is a group, or the tool itself.
fn find(args: &[Vec<u8>]) -> Result<(Vec<&'static str>, Vec<Vec<u8>>), Failure> {
    let mut path: Vec<&'static str> = Vec::new();
    let mut rest = args.to_vec();
    loop {
        if COMMANDS.iter().any(|command| command.path == path.as_slice()) {
            return Ok((path, rest));
        }
        let Some(at) = first_word(&rest, &[table::GLOBAL_FLAGS, table::HELP_FLAG, table::ENDPOINT_FLAGS])
        else {
            return Ok((path, rest));
        };
        let word = String::from_utf8_lossy(&rest[at]).into_owned();
        let mut words: Vec<&'static str> = COMMANDS
            .iter()
            .filter(|command| command.path.starts_with(&path))
            .filter_map(|command| command.path.get(path.len()).copied())
            .collect();
        words.dedup();
        let exact = words.iter().copied().find(|known| *known == word);
        let mut close = words.iter().copied().filter(|known| known.starts_with(&word));
        match exact.or_else(|| close.next().filter(|_| close.next().is_none())) {
            Some(known) => path.push(known),
            None if path.is_empty() => {
                return Err(Failure::error(format_args!(
                    "unknown command {word:?} for \"etcdctl\"\nRun 'etcdctl --help' for usage."
                )));
            }
            None => return Ok((path, rest)),
        }
        rest.remove(at);
    }
}

/// Applies `ETCDCTL_*`, and says which of these variables mean nothing.
fn read_environment(flags: &mut Flags, command: &Command) -> Result<(), Failure> {
    let globals = Flags::new(&[table::GLOBAL_FLAGS]).listing(ENVIRONMENT);
    let known = |name: &str| globals.iter().any(|(known, _)| known == name);
    flags.read_environment(ENVIRONMENT, |name| if known(name) { std::env::var_os(name) } else { None })?;
    for (name, value) in std::env::vars_os() {
        let Some(name) = name.to_str().filter(|name| name.starts_with("ETCDCTL_")) else { continue };
        let of_watch =
            command.verb == Verb::Watch && ["ETCDCTL_WATCH_KEY", "ETCDCTL_WATCH_RANGE_END"].contains(&name);
        let old_habit = name == "ETCDCTL_API" && value == "3";
        if !known(name) && !of_watch && !old_habit {
            note(format_args!(
                "warning: unrecognized environment variable {name}={}",
                value.to_string_lossy()
            ));
        }
    }
    if flags.bool("debug") {
        for (name, value) in flags.listing(ENVIRONMENT).into_iter().filter(|(name, _)| known(name)) {
            note(format_args!("{name}={value}"));
        }
    }
    Ok(())
}

fn completion(command: &Command, rest: &Positional) -> Result<(), Failure> {
    let entry = |command: &Command| Entry { path: command.path, help: command.help, flags: command.flags };
    let entries: Vec<Entry> = COMMANDS.iter().map(entry).collect();
    match rest.args.as_slice() {
        [] => say(command_help(command).as_bytes()),
        [shell, ..] => say(completion::script("etcdctl", shell, &entries, table::GLOBAL_FLAGS)?.as_bytes()),
    }
}

/// `help` and `help COMMAND`.
fn help(words: &[Vec<u8>]) -> Result<(), Failure> {
    let (path, _) = find(words)?;
    match COMMANDS.iter().find(|command| command.path == path.as_slice()) {
        Some(command) => say(command_help(command).as_bytes()),
        None => say(group_help(&path).as_bytes()),
    }
}

fn command_help(command: &Command) -> String {
    let name = command.path.join(" ");
    let mut out = format!("NAME:\n\t{name} - {}\n\nUSAGE:\n\tetcdctl {}\n\n", command.help, command.usage);
    if !command.flags.is_empty() {
        out += &format!("OPTIONS:\n{}\n", describe(command.flags));
    }
    out + &format!("GLOBAL OPTIONS:\n{}\n", describe(table::GLOBAL_FLAGS))
}

/// The help of the tool (an empty path) or of a group of commands.
fn group_help(path: &[&str]) -> String {
    let mut out = match path {
        [] => format!(
            "NAME:\n\tetcdctl - A simple command line client for etcd3.\n\nUSAGE:\n\tetcdctl [flags]\n\n\
             VERSION:\n\t{VERSION}\n\nAPI VERSION:\n\t{API_VERSION}\n\n"
        ),
        _ => format!(
            "NAME:\n\t{0} - {0} related commands\n\nUSAGE:\n\tetcdctl {0} <subcommand> [flags]\n\n",
            path.join(" ")
        ),
    };
    let commands = COMMANDS.iter().filter(|command| command.path.starts_with(path));
    let lines: Vec<_> =
        commands.map(|command| (command.path[path.len()..].join(" "), command.help)).collect();
    let width = lines.iter().map(|line| line.0.len()).max().unwrap_or(0);
    out += "COMMANDS:\n";
    for (name, help) in lines {
        out += &format!("\t{name:width$}  {help}\n");
    }
    out + &format!("\nOPTIONS:\n{}\n", describe(table::GLOBAL_FLAGS))
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
            ("get foo", &["get"][..], "foo"),
            ("--endpoints a:1 -w json get foo", &["get"], "--endpoints a:1 -w json foo"),
            ("--endpoints=a:1 -wjson --hex get get", &["get"], "--endpoints=a:1 -wjson --hex get"),
            ("lease --hex grant 5", &["lease", "grant"], "--hex 5"),
            ("compact 5", &["compaction"], "5"),
            ("lease time 12", &["lease", "timetolive"], "12"),
            ("endpoint --cluster health", &["endpoint", "health"], "--cluster"),
            ("lease bogus", &["lease"], "bogus"),
            ("-h", &[], "-h"),
            ("", &[], ""),
        ] {
            assert_eq!(find(&words(line)), Ok((path.to_vec(), words(rest))), "{line}");
        }
        let text = "unknown command \"bogus\" for \"etcdctl\"\nRun 'etcdctl --help' for usage.";
        assert_eq!(find(&words("bogus")), Err(Failure::error(text)));
        assert_eq!(find(&words("comp")).unwrap_err().code, 1, "compaction and completion");
    }

    #[test]
    fn every_command_has_readable_flags_and_a_help() {
        for command in COMMANDS {
            let flags = Flags::new(&[command.flags, table::GLOBAL_FLAGS, table::HELP_FLAG]);
            assert!(!flags.bool("help") && !flags.changed("help"));
            assert!(command.usage.starts_with(&command.path.join(" ")), "{:?}", command.path);
            assert!(command_help(command).contains(command.help));
        }
        assert!(group_help(&["lease"]).contains("\n\tkeep-alive"));
    }
}

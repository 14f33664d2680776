//! `benchmark`: etcd's load tool, with its flags and its report.
//!
//! One thread drives all connections: it costs the server's cores as little as it can. The figures are those of a closed
//! loop: each of `--clients` sends its next request when it has the answer to the last one.

mod load;
mod report;

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use trilith_proto::etcdserverpb as pb;
use trilith_proto::etcdserverpb::request_op::Request;

use crate::client::{Client, Config};
use crate::exit::Failure;
use crate::flags::Kind::{Bool, Duration as Time, Int, List, Text, Uint};
use crate::flags::{Flag, Flags, describe, first_word, flag};
use crate::gotext::{duration, human_bytes};
use crate::reach::Tls;

use crate::terminal::{note, say};
use load::{Load, Operation, key_of, random};

/// How long a connection may take when `--dial-timeout` says nothing.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the requests around the load may take: status, hash, compaction.
const SIDE_REQUEST: Duration = Duration::from_secs(60);

static GLOBAL_FLAGS: &[Flag] = &[
    flag("cacert", Text, "", "CA bundle to check servers with"),
    flag("cert", Text, "", "certificate file of the client"),
    flag("clients", Uint, "1", "clients that send requests, each one at a time"),
    flag("conns", Uint, "1", "connections that the clients share"),
    flag("dial-timeout", Time, "0s", "time to connect (0s: 5s)"),
    flag("endpoints", List, "127.0.0.1:2379", "where the cluster's members serve clients"),
    flag("key", Text, "", "key file of the client's certificate"),
    flag("precise", Bool, "false", "print all digits of the figures"),
    flag("sample", Bool, "false", "print figures of each second too"),
    flag("target-leader", Bool, "false", "connect to the leader alone"),
    flag("user", Text, "", "user to act for, as name[:password]"),
];
static HELP_FLAG: &[Flag] = &[Flag { short: Some('h'), ..flag("help", Bool, "false", "show this help") }];
static PUT_FLAGS: &[Flag] = &[
    flag("check-hashkv", Bool, "false", "ask for the store's hash at the end"),
    flag("compact-index-delta", Int, "1000", "revisions that a compaction keeps"),
    flag("compact-interval", Time, "0s", "time between compactions (0s: none)"),
    flag("key-size", Int, "8", "bytes of a key"),
    flag("key-space-size", Int, "1", "number of different keys"),
    flag("rate", Int, "0", "most requests in a second (0: no limit)"),
    flag("sequential-keys", Bool, "false", "take the keys in turn instead of at random"),
    flag("total", Int, "10000", "number of requests"),
    flag("val-size", Int, "8", "bytes of a value"),
];
static RANGE_FLAGS: &[Flag] = &[
    flag("consistency", Text, "l", "linearizable (l) or serializable (s)"),
    flag("rate", Int, "0", "most requests in a second (0: no limit)"),
    flag("total", Int, "10000", "number of requests"),
];
static TXN_PUT_FLAGS: &[Flag] = &[
    flag("key-size", Int, "8", "bytes of a key"),
    flag("key-space-size", Int, "1", "number of different keys"),
    flag("rate", Int, "0", "most transactions in a second (0: no limit)"),
    flag("total", Int, "10000", "number of transactions"),
    flag("txn-ops", Int, "1", "puts in a transaction"),
    flag("val-size", Int, "8", "bytes of a value"),
];

static COMMANDS: [(&str, &str, &[Flag]); 3] = [
    ("put", "put [flags]", PUT_FLAGS),
    ("range", "range key [end-range] [flags]", RANGE_FLAGS),
    ("txn-put", "txn-put [flags]", TXN_PUT_FLAGS),
];

/// Runs `benchmark` with `args`, without the program's name.
///
/// # Errors
/// Code 1 and a text for standard error: a flag is wrong, or no connection came about. Requests that fail are no error
/// of the tool: its report counts them.
pub fn run(mut args: Vec<Vec<u8>>) -> Result<(), Failure> {
    let Some(at) = first_word(&args, &[GLOBAL_FLAGS, HELP_FLAG]) else {
        return say(help().as_bytes());
    };
    let name = args.remove(at);
    let Some((name, usage, own_flags)) =
        COMMANDS.iter().find(|command| command.0.as_bytes() == name.as_slice())
    else {
        let name = String::from_utf8_lossy(&name);
        return Err(Failure::error(format_args!("unknown command {name:?} for \"benchmark\"")));
    };
    let mut flags = Flags::new(&[own_flags, GLOBAL_FLAGS, HELP_FLAG]);
    let args = flags.parse(&args)?.args;
    if flags.bool("help") {
        let (own, global) = (describe(own_flags), describe(GLOBAL_FLAGS));
        return say(
            format!("Usage:\n  benchmark {usage}\n\nFlags:\n{own}\nGlobal flags:\n{global}").as_bytes()
        );
    }
    let operation = match *name {
        "put" => put(&flags)?,
        "range" => range(&flags, &args)?,
        _ => txn_put(&flags)?,
    };
    let config = config(&flags)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::error(format_args!("no event loop: {error}")))?;
    runtime.block_on(Box::pin(measure(&flags, config, operation)))
}

fn help() -> String {
    let commands: String = COMMANDS.iter().map(|command| format!("  {}\n", command.1)).collect();
    format!(
        "A load tool for etcd's gRPC interface.\n\nCommands:\n{commands}\nGlobal flags:\n{}",
        describe(GLOBAL_FLAGS)
    )
}

fn config(flags: &Flags) -> Result<Config, Failure> {
    if !flags.text("user").is_empty() {
        return Err(Failure::error("--user: authentication is not supported yet"));
    }
    let dial_timeout = flags.duration("dial-timeout");
    let config = Config {
        endpoints: flags.list("endpoints").to_vec(),
        tls: Tls::from_flags(flags)?,
        dial_timeout: if dial_timeout.is_zero() { DIAL_TIMEOUT } else { dial_timeout },
        command_timeout: SIDE_REQUEST,
        keepalive_time: Duration::from_secs(30),
        keepalive_timeout: Duration::from_secs(20),
        max_request: usize::MAX,
        max_answer: 0,
    };
    config.check()?;
    Ok(config)
}

/// Sends the load and prints the report, and what `put` does beside it.
async fn measure(flags: &Flags, config: Config, operation: Operation) -> Result<(), Failure> {
    let config = if flags.bool("target-leader") { leader(&config).await? } else { config };
    let at_least_one = |name| flags.size(name).max(1);
    let mut connections = Vec::new();
    for _ in 0..at_least_one("conns") {
        connections.push(connect(&config).await?);
    }
    let total = u64::try_from(flags.int("total")).unwrap_or(0);
    let load =
        Load { clients: at_least_one("clients"), total, rate: u64::try_from(flags.int("rate")).unwrap_or(0) };
    let bar = indicatif::ProgressBar::new(total);
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let side = &connections[0];
    let compactions = async {
        if flags.has("compact-interval") && !flags.duration("compact-interval").is_zero() {
            compact_now_and_then(flags, side).await;
        }
        std::future::pending::<()>().await;
    };
    let recorder = tokio::select! {
        recorder = load::drive(&load, &connections, operation, &bar) => recorder,
        () = compactions => unreachable!("the compactions never end"),
    };
    bar.finish_and_clear();
    let report = recorder.report(flags.bool("precise"), flags.bool("sample"));
    say(format!("{report}\n").as_bytes())?;
    if flags.has("check-hashkv") && flags.bool("check-hashkv") {
        check_hash(&config).await?;
    }
    Ok(())
}

async fn connect(config: &Config) -> Result<Client, Failure> {
    let outcome = config.connect(Instant::now() + config.dial_timeout).await;
    outcome.map_err(|failure| Failure::error(format_args!("dial error: {}", failure.text)))
}

/// The same settings for the endpoint that leads.
async fn leader(config: &Config) -> Result<Config, Failure> {
    for endpoint in &config.endpoints {
        let only = config.only(endpoint);
        let client = connect(&only).await?;
        let status =
            client.call(client.maintenance().status(pb::StatusRequest {})).await.map_err(Failure::error)?;
        if status.header.is_some_and(|header| header.member_id == status.leader) {
            return Ok(only);
        }
    }
    Err(Failure::error("none of the endpoints is the leader"))
}

fn put(flags: &Flags) -> Result<Operation, Failure> {
    let keys = Keys::read(flags)?;
    let value = keys.value.clone();
    let sequential = flags.bool("sequential-keys");
    Ok(Arc::new(move |at| {
        let number = if sequential { at } else { random(at) } % keys.space;
        load::Op::Put(pb::PutRequest { key: keys.key(number), value: value.clone(), ..Default::default() })
    }))
}

fn txn_put(flags: &Flags) -> Result<Operation, Failure> {
    let keys = Keys::read(flags)?;
    let value = keys.value.clone();
    let wanted = flags.int("txn-ops");
    let ops = u64::try_from(wanted).ok().filter(|ops| (1..=keys.space).contains(ops)).ok_or_else(|| {
        let space = keys.space;
        Failure::error(format_args!(
            "expected --txn-ops between 1 and --key-space-size ({space}), got ({wanted})"
        ))
    })?;
    Ok(Arc::new(move |at| {
        let put = |nth: u64| {
            let key = keys.key(at.wrapping_mul(ops).wrapping_add(nth) % keys.space);
            let put = pb::PutRequest { key, value: value.clone(), ..Default::default() };
            pb::RequestOp { request: Some(Request::RequestPut(put)) }
        };
        load::Op::Txn(pb::TxnRequest { success: (0..ops).map(put).collect(), ..Default::default() })
    }))
}

fn range(flags: &Flags, args: &[Vec<u8>]) -> Result<Operation, Failure> {
    let (key, range_end) = match args {
        [key] => (key.clone(), Vec::new()),
        [key, end] => (key.clone(), end.clone()),
        _ => return Err(Failure::error("range needs a key, and may have an end")),
    };
    let serializable = match flags.text("consistency") {
        "l" => false,
        "s" => true,
        other => return Err(Failure::error(format_args!("expected --consistency l or s, got ({other})"))),
    };
    say(format!("bench with {} range\n", if serializable { "serializable" } else { "linearizable" })
        .as_bytes())?;
    let request =
        pb::RangeRequest { key: key.into(), range_end: range_end.into(), serializable, ..Default::default() };
    Ok(Arc::new(move |_| load::Op::Range(request.clone())))
}

/// The keys that a load writes, and the value it writes.
struct Keys {
    size: usize,
    space: u64,
    value: Bytes,
}

impl Keys {
    fn read(flags: &Flags) -> Result<Keys, Failure> {
        let wanted = flags.int("key-space-size");
        let space = u64::try_from(wanted).ok().filter(|space| *space > 0);
        let space = space.ok_or_else(|| {
            Failure::error(format_args!("expected positive --key-space-size, got ({wanted})"))
        })?;
        let size = flags.size("key-size");
        if key_of(space - 1, size).is_none() {
            let text = format_args!("--key-size {size} is too small for {space} different keys");
            return Err(Failure::error(text));
        }
        let value: Vec<u8> = (0..flags.size("val-size") as u64).map(|at| random(at) as u8).collect();
        Ok(Keys { size, space, value: value.into() })
    }

    fn key(&self, number: u64) -> Bytes {
        key_of(number, self.size).expect("the largest number fits: it was tried").into()
    }
}

/// Compacts to a distance behind the present revision, again and again; what fails is said and tried again.
async fn compact_now_and_then(flags: &Flags, client: &Client) {
    loop {
        tokio::time::sleep(flags.duration("compact-interval")).await;
        let outcome = async {
            let request = pb::RangeRequest { key: "foo".into(), ..Default::default() };
            let answer = client.kv().range(request).await?.into_inner();
            let revision = answer.header.unwrap_or_default().revision - flags.int("compact-index-delta");
            if revision > 0 {
                client.kv().compact(pb::CompactionRequest { revision, physical: false }).await?;
            }
            Ok::<(), tonic::Status>(())
        };
        if let Err(status) = outcome.await {
            note(format_args!("compaction failed: {}", crate::client::status_text(&status)));
        }
    }
}

async fn check_hash(config: &Config) -> Result<(), Failure> {
    let endpoint = &config.endpoints[0];
    let client = connect(&config.only(endpoint)).await?;
    let started = Instant::now();
    let hash = client.call(client.maintenance().hash_kv(pb::HashKvRequest { revision: 0 })).await;
    let hash = hash.map_err(|text| {
        Failure::error(format_args!("Failed to get the hashkv of endpoint {endpoint} ({text})"))
    })?;
    let took = duration(started.elapsed());
    let status = client.call(client.maintenance().status(pb::StatusRequest {})).await;
    let status = status.map_err(|text| {
        Failure::error(format_args!("Failed to get the status of endpoint {endpoint} ({text})"))
    })?;
    let size = human_bytes(u64::try_from(status.db_size).unwrap_or(0));
    let text = format!(
        "HashKV Summary:\n\tHashKV: {}\n\tEndpoint: {endpoint}\n\tTime taken to get hashkv: {took}\n\tDB size: {size}\n",
        hash.hash
    );
    say(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(table: &'static [Flag], line: &str) -> Flags {
        let mut flags = Flags::new(&[table, GLOBAL_FLAGS, HELP_FLAG]);
        flags
            .parse(&line.split_whitespace().map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>())
            .unwrap();
        flags
    }

    #[test]
    fn every_command_has_readable_flags() {
        for (name, usage, table) in COMMANDS {
            assert!(usage.starts_with(name) && !parsed(table, "").bool("help"));
        }
    }

    #[test]
    fn puts_have_the_sizes_that_were_asked_for() {
        let make =
            put(&parsed(PUT_FLAGS, "--key-size 10 --val-size 300 --key-space-size 5 --sequential-keys"))
                .unwrap();
        let keys: Vec<Bytes> = (0..10)
            .map(|at| match make(at) {
                load::Op::Put(put) => {
                    assert_eq!((put.key.len(), put.value.len()), (10, 300));
                    put.key
                }
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(keys[..5], keys[5..]);
        assert_eq!(std::collections::HashSet::<_>::from_iter(&keys).len(), 5);
        let make = txn_put(&parsed(TXN_PUT_FLAGS, "--txn-ops 3 --key-space-size 4")).unwrap();
        assert!(matches!(make(7), load::Op::Txn(txn) if txn.success.len() == 3 && txn.compare.is_empty()));
    }

    #[test]
    fn impossible_loads_are_refused() {
        for (outcome, part) in [
            (put(&parsed(PUT_FLAGS, "--key-space-size 0")), "expected positive --key-space-size, got (0)"),
            (put(&parsed(PUT_FLAGS, "--key-size 1 --key-space-size 65")), "--key-size 1 is too small"),
            (txn_put(&parsed(TXN_PUT_FLAGS, "--txn-ops 2")), "--txn-ops"),
            (range(&parsed(RANGE_FLAGS, "--consistency x"), &[b"a".to_vec()]), "--consistency"),
            (range(&parsed(RANGE_FLAGS, ""), &[]), "range needs a key"),
        ] {
            let failure = outcome.err().unwrap();
            assert!(failure.code == 1 && failure.text.contains(part), "{failure:?}");
        }
        assert!(put(&parsed(PUT_FLAGS, "--key-size 1 --key-space-size 64")).is_ok());
        assert!(config(&parsed(PUT_FLAGS, "--user root:pw")).unwrap_err().text.contains("--user"));
    }
}

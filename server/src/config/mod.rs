//! The configuration of a member: flags and `ETCD_` variables, read and checked as etcd does.
//!
//! `reference/flags.tsv` drives parsing, help and tests alike. A flag whose feature is not there yet is accepted at
//! its default and refused by name otherwise. Nothing here opens a file or a socket.

pub mod discovery;
mod parse;
mod table;
pub mod tls;
pub mod url;
mod value;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use trilith_wal::IoChoice;

use discovery::Discovery;
use parse::Given;
pub use parse::Note;
use table::{Kind, ROWS, Support};
use url::Url;

use crate::core::Retention;
use crate::corruption::Checks;
use crate::logging;

/// etcd's version that this server is equal to.
pub const ETCD_VERSION: &str = "3.7.1";

const ELECTION_MS_MAX: u64 = 50_000;
const PROGRESS_INTERVAL_DEFAULT: Duration = Duration::from_secs(600);
/// What --snapshot-count 0 stands for.
const SNAPSHOT_COUNT_DEFAULT: u64 = 10_000;
/// What --snapshot-catchup-entries 0 stands for.
const CATCHUP_ENTRIES_DEFAULT: u64 = 5000;
/// A quarter of it holds several checkpoints' worth of the largest requests.
const MEMORY_BUDGET_MIN: usize = 16 << 20;
const PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// What gRPC may add to a request.
const GRPC_OVERHEAD_BYTES: usize = 512 << 10;

/// Why the process ends before it has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Print to standard output and exit with 0.
    Print(String),
    /// The command line cannot be read: print to standard error and exit with 2.
    Usage(String),
    /// The configuration is wrong: log and exit with 1.
    Config(String),
}

impl Refusal {
    fn config(message: String) -> Refusal {
        Refusal::Config(message)
    }

    fn usage(message: String) -> Refusal {
        Refusal::Usage(format!("{message}\nRun 'etcd --help' for the flags.\n"))
    }

    fn help() -> Refusal {
        Refusal::Print(table::help())
    }
}

/// A flag's effective value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Name without dashes.
    pub name: &'static str,
    /// The value's text.
    pub text: String,
    /// The value is text also where it looks like a number.
    pub quoted: bool,
}

/// A member's configuration, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name within the initial cluster.
    pub name: String,
    /// Where the member lives.
    pub data_dir: PathBuf,
    /// Where the log lives, if elsewhere.
    pub wal_dir: Option<PathBuf>,
    /// Where clients are served.
    pub listen_client_urls: Vec<Url>,
    /// Where peers are served.
    pub listen_peer_urls: Vec<Url>,
    /// What clients are told.
    pub advertise_client_urls: Vec<Url>,
    /// What peers are told.
    pub advertise_peer_urls: Vec<Url>,
    /// Members by name; checked by [`Config::verify_bootstrap`] on a first start only.
    pub initial_cluster: Vec<(String, Vec<Url>)>,
    /// Goes into the ids; with a discovery service it is the service's token.
    pub initial_cluster_token: String,
    /// What finds the initial cluster at a first start.
    pub discovery: Discovery,
    /// `existing`: join a cluster that runs.
    pub initial_cluster_existing: bool,
    /// A member that was here before leaves all others behind.
    pub force_new_cluster: bool,
    /// One tick of raft's clock.
    pub heartbeat_interval: Duration,
    /// A multiple of it.
    pub election_timeout: Duration,
    /// Whether elections begin with a poll.
    pub pre_vote: bool,
    /// Members that may be learners.
    pub max_learners: usize,
    /// Whether a change of the members is refused that would put the quorum at risk.
    pub strict_reconfig_check: bool,
    /// Entries applied from one cut of raft's log to the next.
    pub snapshot_count: u64,
    /// Entries that a cut leaves for members that lag behind.
    pub catchup_entries: u64,
    /// Log segments to keep; 0 keeps all.
    pub max_wals: usize,
    /// How the log is written.
    pub wal_io: IoChoice,
    /// Whether long values are stored compressed.
    pub compress_values: bool,
    /// False: nothing is ever synced.
    pub fsync: bool,
    /// Largest proposal, in bytes.
    pub max_request_bytes: usize,
    /// Operations in a transaction.
    pub max_txn_ops: usize,
    /// How large the store may become, in bytes; 0: etcd's default; negative: without bound.
    pub quota_backend_bytes: i64,
    /// How much of the history is kept.
    pub retention: Retention,
    /// What a leader compares the members by.
    pub checks: Checks,
    /// Gate InitialCorruptCheck: a member that starts compares itself with the others.
    pub initial_corrupt_check: bool,
    /// Gate LeaseCheckpoint: what is left of leases goes into the log.
    pub lease_checkpoints: bool,
    /// Gate LeaseCheckpointPersist: and into the store, in a cluster of any version.
    pub lease_checkpoint_persist: bool,
    /// HTTP/2 streams per connection; `u32::MAX` for no limit.
    pub max_concurrent_streams: u32,
    /// Keepalive pings to clients: time between them, time to answer.
    pub grpc_keepalive: (Duration, Duration),
    /// Between progress answers to watchers.
    pub watch_progress_interval: Duration,
    /// An apply that takes longer is warned of.
    pub warning_apply_duration: Duration,
    /// Threads that serve connections.
    pub io_threads: usize,
    /// Bytes; None: by the memory of the machine.
    pub memory_budget: Option<usize>,
    /// Certificates and keys.
    pub tls: tls::Tls,
    /// Where log lines go.
    pub logging: logging::Options,
    /// Every flag with its effective value, for the log.
    pub effective: Vec<Setting>,
    /// To be logged once logging stands.
    pub notes: Vec<Note>,
}

impl Config {
    /// Reads the process's arguments (without its name) and variables.
    pub fn read(
        args: impl IntoIterator<Item = OsString>,
        env: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Config, Refusal> {
        let given = parse::read(args, env)?;
        if flag_is_true(&given, "version") {
            return Err(Refusal::Print(version()));
        }
        given.check_supported()?;
        Config::from_given(given).map_err(Refusal::Config)
    }

    fn from_given(given: Given) -> Result<Config, String> {
        let urls =
            |name: &str| url::parse_list(given.text(name)).map_err(|error| format!("--{name}: {error}"));
        let name = given.text("name").to_owned();
        let data_dir = match given.path("data-dir") {
            Some(dir) => PathBuf::from(dir),
            None => PathBuf::from(format!("{name}.etcd")),
        };
        let listen_peer_urls = urls("listen-peer-urls")?;
        check_addresses(&listen_peer_urls)?;
        let listen_client_urls = urls("listen-client-urls")?;
        check_addresses(&listen_client_urls)?;
        let tls = tls::Tls::read(&given, &listen_client_urls, &listen_peer_urls)?;
        let advertise_peer_urls = urls("initial-advertise-peer-urls")?;
        check_hosts("initial-advertise-peer-urls", &advertise_peer_urls)?;
        let advertise_client_urls = urls("advertise-client-urls")?;
        check_hosts("advertise-client-urls", &advertise_client_urls)?;
        let (heartbeat_interval, election_timeout) = raft_times(&given)?;
        if given.is_set("listen-client-urls") && !given.is_set("advertise-client-urls") {
            return Err(
                "--advertise-client-urls is required when --listen-client-urls is set explicitly".to_owned()
            );
        }
        let (discovery, initial_cluster) = discovery::read(&given, &name, &advertise_peer_urls)?;
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        Ok(Config {
            data_dir,
            wal_dir: given.path("wal-dir").map(PathBuf::from),
            listen_client_urls,
            listen_peer_urls,
            advertise_client_urls,
            advertise_peer_urls,
            initial_cluster,
            initial_cluster_token: discovery.token(&given),
            discovery,
            initial_cluster_existing: given.text("initial-cluster-state") == "existing",
            force_new_cluster: flag_is_true(&given, "force-new-cluster"),
            heartbeat_interval,
            election_timeout,
            pre_vote: flag_is_true(&given, "pre-vote"),
            max_learners: uint(&given, "max-learners")?,
            strict_reconfig_check: flag_is_true(&given, "strict-reconfig-check"),
            snapshot_count: uint_or(&given, "snapshot-count", SNAPSHOT_COUNT_DEFAULT)?,
            catchup_entries: uint_or(&given, "snapshot-catchup-entries", CATCHUP_ENTRIES_DEFAULT)?,
            max_wals: uint(&given, "max-wals")?,
            compress_values: flag_is_true(&given, "trilith-compress-values"),
            wal_io: match given.text("trilith-wal-io") {
                "uring" => IoChoice::Uring,
                "sync" => IoChoice::Sync,
                _ => IoChoice::Auto,
            },
            fsync: !flag_is_true(&given, "unsafe-no-fsync"),
            max_request_bytes: max_request_bytes(&given)?,
            max_txn_ops: uint(&given, "max-txn-ops")?,
            quota_backend_bytes: value::int_of(given.text("quota-backend-bytes")).unwrap_or_default(),
            retention: retention(&given)?,
            checks: checks(&given)?,
            initial_corrupt_check: given.gate("InitialCorruptCheck"),
            lease_checkpoints: given.gate("LeaseCheckpoint"),
            lease_checkpoint_persist: lease_checkpoint_persist(&given)?,
            max_concurrent_streams: uint(&given, "max-concurrent-streams")?,
            grpc_keepalive: keepalive(&given),
            watch_progress_interval: match duration(&given, "watch-progress-notify-interval") {
                Duration::ZERO => PROGRESS_INTERVAL_DEFAULT,
                interval => interval.max(PROGRESS_INTERVAL_MIN),
            },
            warning_apply_duration: duration(&given, "warning-apply-duration"),
            io_threads: match uint(&given, "trilith-io-threads")? {
                0 if cores <= 2 => 1,
                0 => (cores / 2).min(4),
                n => n,
            },
            memory_budget: memory_budget(&given)?,
            tls,
            logging: logging_of(&given)?,
            effective: effective(&given),
            notes: given.notes,
            name,
        })
    }

    /// What a first start needs beyond a valid configuration: this member in the initial cluster, as it is advertised, and
    /// no URL there twice. A member that joins need not be advertised as it is listed.
    pub fn verify_bootstrap(&self) -> Result<(), String> {
        let own = self.initial_cluster.iter().find(|(name, _)| *name == self.name);
        let Some((_, own)) = own else {
            return Err(format!(
                "couldn't find local name {:?} in the initial cluster configuration",
                self.name
            ));
        };
        // Records of DNS were compared by address, since they name hosts as they like.
        if !self.initial_cluster_existing && !matches!(self.discovery, Discovery::Srv(_)) {
            self.verify_advertised(own)?;
        }
        let mut seen = HashSet::new();
        let mut all = self.initial_cluster.iter().flat_map(|(_, urls)| urls);
        if !all.all(|url| seen.insert(url)) {
            return Err(format!("initial cluster {} has duplicate url", self.initial_cluster_text()));
        }
        Ok(())
    }

    /// The initial cluster as the flag has it, sorted.
    fn initial_cluster_text(&self) -> String {
        let members = self.initial_cluster.iter();
        let mut parts: Vec<String> =
            members.flat_map(|(name, urls)| urls.iter().map(move |url| format!("{name}={url}"))).collect();
        parts.sort();
        parts.join(",")
    }

    fn verify_advertised(&self, own: &[Url]) -> Result<(), String> {
        let missing = |from: &[Url], there: &[Url]| -> Vec<String> {
            from.iter().filter(|url| !there.contains(url)).map(Url::to_string).collect()
        };
        let not_advertised = missing(own, &self.advertise_peer_urls);
        if !not_advertised.is_empty() {
            let listed: Vec<_> = not_advertised.iter().map(|url| format!("{}={url}", self.name)).collect();
            let advertised = url::join(&self.advertise_peer_urls);
            return Err(format!(
                "--initial-cluster has {} but missing from --initial-advertise-peer-urls={advertised} \
                 (resolved urls: {advertised:?} != {:?})",
                listed.join(","),
                url::join(own),
            ));
        }
        let not_listed = missing(&self.advertise_peer_urls, own);
        if !not_listed.is_empty() {
            let own: Vec<_> =
                self.advertise_peer_urls.iter().map(|url| format!("{}={url}", self.name)).collect();
            return Err(format!(
                "--initial-advertise-peer-urls has {} but missing from --initial-cluster={}",
                not_listed.join(","),
                own.join(","),
            ));
        }
        Ok(())
    }

    /// Largest gRPC message that is received, and the size from which watch responses are cut.
    pub fn grpc_message_bytes(&self) -> usize {
        self.max_request_bytes + GRPC_OVERHEAD_BYTES
    }

    /// The folder of the log.
    pub fn wal_folder(&self) -> PathBuf {
        self.wal_dir.clone().unwrap_or_else(|| self.data_dir.join("member").join("wal"))
    }
}

/// What `--version` prints.
pub fn version() -> String {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!(
        "etcd Version: {ETCD_VERSION}\nGit SHA: {}\nGo Version: none\nGo OS/Arch: {}/{arch}\nTrilith Version: {}\n",
        option_env!("TRILITH_GIT_SHA").unwrap_or("Not provided"),
        std::env::consts::OS,
        env!("CARGO_PKG_VERSION"),
    )
}

fn flag_is_true(given: &Given, name: &str) -> bool {
    value::bool_of(given.text(name)) == Some(true)
}

fn uint<T: TryFrom<u64>>(given: &Given, name: &str) -> Result<T, String> {
    let text = given.text(name);
    let number = value::uint_of(text).and_then(|n| T::try_from(n).ok());
    number.ok_or_else(|| format!("--{name}={text} is out of range"))
}

/// 0 stands for the default.
fn uint_or(given: &Given, name: &str, default: u64) -> Result<u64, String> {
    uint(given, name).map(|n| if n == 0 { default } else { n })
}

/// Only for flags of that type, which were checked when they were read.
fn duration(given: &Given, name: &str) -> Duration {
    value::duration_of(given.text(name)).unwrap_or_default()
}

fn lease_checkpoint_persist(given: &Given) -> Result<bool, String> {
    let persist = given.gate("LeaseCheckpointPersist");
    if persist && !given.gate("LeaseCheckpoint") {
        return Err(
            "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint"
                .to_owned(),
        );
    }
    Ok(persist)
}

fn checks(given: &Given) -> Result<Checks, String> {
    let name = "compact-hash-check-time";
    let compactions = duration(given, name);
    if compactions.is_zero() {
        return Err(format!("--{name} must be >0 (set to {})", given.text(name)));
    }
    let compactions = if given.gate("CompactHashCheck") { compactions } else { Duration::ZERO };
    Ok(Checks { periodic: duration(given, "corrupt-check-time"), compactions })
}

fn memory_budget(given: &Given) -> Result<Option<usize>, String> {
    let text = given.text("trilith-memory-budget");
    match value::size_of(text).and_then(|bytes| usize::try_from(bytes).ok()) {
        Some(0) => Ok(None),
        Some(bytes) if bytes >= MEMORY_BUDGET_MIN => Ok(Some(bytes)),
        _ => Err(format!("--trilith-memory-budget={text} is less than 16MiB, or too large for this machine")),
    }
}

fn max_request_bytes(given: &Given) -> Result<usize, String> {
    let bytes: usize = uint(given, "max-request-bytes")?;
    // The log and gRPC hold lengths in 32 bits.
    if bytes > 1 << 30 {
        return Err(format!("--max-request-bytes={bytes} is too large: at most {} are possible", 1 << 30));
    }
    Ok(bytes)
}

/// A number alone is hours, or revisions; a duration in mode `revision` is, as in etcd, a number of nanoseconds.
fn retention(given: &Given) -> Result<Retention, String> {
    const HOUR: u64 = 3600;
    let (mode, text) = (given.text("auto-compaction-mode"), given.text("auto-compaction-retention"));
    let wrong = || format!("error parsing CompactionRetention: time: invalid duration {text:?}");
    let number = text.parse::<u64>().ok();
    let period = match number {
        Some(hours) => hours.checked_mul(HOUR).map(Duration::from_secs),
        None => value::duration_of(text),
    };
    let retention = match (mode, number) {
        ("revision", Some(kept)) => i64::try_from(kept).ok().map(Retention::Revisions),
        ("revision", None) => period.and_then(|p| i64::try_from(p.as_nanos()).ok()).map(Retention::Revisions),
        _ => period.map(Retention::Period),
    };
    match retention.ok_or_else(wrong)? {
        Retention::Revisions(0) | Retention::Period(Duration::ZERO) => Ok(Retention::All),
        retention => Ok(retention),
    }
}

/// Zero means etcd's own default; a day is as good as never.
fn keepalive(given: &Given) -> (Duration, Duration) {
    let or = |name, default| match duration(given, name) {
        Duration::ZERO => default,
        given => given,
    };
    (
        or("grpc-keepalive-interval", Duration::from_secs(7200)),
        or("grpc-keepalive-timeout", Duration::from_secs(20)),
    )
}

fn raft_times(given: &Given) -> Result<(Duration, Duration), String> {
    let heartbeat: u64 = uint(given, "heartbeat-interval")?;
    let election: u64 = uint(given, "election-timeout")?;
    if heartbeat == 0 {
        return Err(format!("--heartbeat-interval must be >0 (set to {heartbeat}ms)"));
    }
    if election == 0 {
        return Err(format!("--election-timeout must be >0 (set to {election}ms)"));
    }
    if heartbeat.saturating_mul(5) > election {
        return Err(format!(
            "--election-timeout[{election}ms] should be at least as 5 times as --heartbeat-interval[{heartbeat}ms]"
        ));
    }
    if election > ELECTION_MS_MAX {
        return Err(format!(
            "--election-timeout[{election}ms] is too long, and should be set less than {ELECTION_MS_MAX}ms"
        ));
    }
    Ok((Duration::from_millis(heartbeat), Duration::from_millis(election)))
}

fn check_addresses(urls: &[Url]) -> Result<(), String> {
    let tcp = urls.iter().filter(|url| url.host_port().is_some());
    tcp.map(Url::bind_address).try_for_each(|address| address.map(drop))
}

fn check_hosts(flag: &str, urls: &[Url]) -> Result<(), String> {
    match urls.iter().find(|url| url.host_port().is_some_and(|(host, _)| host.is_empty())) {
        Some(bad) => {
            let all = url::join(urls);
            Err(format!("--{flag} {all:?} must be \"host:port\" (unexpected empty host ({bad}))"))
        }
        None => Ok(()),
    }
}

/// `name=url,name=url`; a name may come several times.
pub(crate) fn cluster_of(text: &str) -> Result<Vec<(String, Vec<Url>)>, String> {
    let mut members: Vec<(String, Vec<Url>)> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, url) = part.split_once('=').unwrap_or((part, ""));
        if url.is_empty() {
            return Err(format!("empty URL given for {name:?}"));
        }
        let url = Url::parse(url)?;
        match members.iter_mut().find(|(other, _)| other == name) {
            Some((_, urls)) => urls.push(url),
            None => members.push((name.to_owned(), vec![url])),
        }
    }
    for (_, urls) in &mut members {
        urls.sort_by_key(Url::to_string);
    }
    Ok(members)
}

fn logging_of(given: &Given) -> Result<logging::Options, String> {
    if given.text("logger") != "zap" {
        return Err(format!("unknown logger option {:?}", given.text("logger")));
    }
    let level = given.text("log-level");
    let format = given.text("log-format");
    Ok(logging::Options {
        level: logging::level_of(level).ok_or_else(|| format!("unrecognized level: {level:?}"))?,
        json: match format {
            "json" => true,
            "console" => false,
            _ => return Err(format!("unknown log format: {format}, supported values json, console")),
        },
        outputs: given.text("log-outputs").split(',').map(str::to_owned).collect(),
    })
}

fn effective(given: &Given) -> Vec<Setting> {
    let shown = |support| matches!(support, Support::Works | Support::NoEffect | Support::DefaultOnly);
    let hidden = ["version", parse::SECRET];
    let flags =
        ROWS.iter().filter(|row| row.kind == Kind::Flag && shown(row.support) && !hidden.contains(&row.name));
    let quoted = |type_name: &str| !["bool", "int", "int64", "uint", "uint32", "uint64"].contains(&type_name);
    let setting = |row: &table::Row| Setting {
        name: row.name,
        text: given.text(row.name).to_owned(),
        quoted: quoted(row.type_name),
    };
    flags.map(setting).collect()
}

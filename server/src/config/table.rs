//! The flags: etcd's table (`reference/flags.tsv`), our own two, and which of them do what here.

use std::sync::LazyLock;

const TABLE: &str = include_str!("../../../reference/flags.tsv");

/// What a row of the table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A command line flag with its variable.
    Flag,
    /// A name inside `--feature-gates`.
    FeatureGate,
    /// A variable without a flag.
    EnvOnly,
    /// A key of the configuration file alone.
    ConfigKey,
}

/// What becomes of a flag here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Support {
    /// It does what it says.
    Works,
    /// Any valid value is taken: what it tunes in etcd has no counterpart here.
    NoEffect,
    /// Its feature is not there yet: only the default value is taken.
    DefaultOnly,
    /// etcd ignores it with a warning, and so do we.
    Ignored,
    /// etcd does not know it any more.
    Removed,
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// Name without dashes.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The variable's name.
    pub env: &'static str,
    /// Go's name of the type, or ours for lists and enums.
    pub type_name: &'static str,
    /// The default's text.
    pub default: &'static str,
    /// Heading in the help.
    pub group: &'static str,
    /// What becomes of it here.
    pub support: Support,
    /// A remark for the help.
    pub note: &'static str,
}

/// Flags that do what they say.
const WORKS: &[&str] = &[
    "advertise-client-urls",
    "auto-compaction-mode",
    "auto-compaction-retention",
    "compact-hash-check-time",
    "corrupt-check-time",
    "auto-tls",
    "cert-file",
    "cipher-suites",
    "client-cert-allowed-hostname",
    "client-cert-auth",
    "client-cert-file",
    "client-crl-file",
    "client-key-file",
    "data-dir",
    "discovery-dial-timeout",
    "discovery-endpoints",
    "discovery-fallback",
    "discovery-keepalive-time",
    "discovery-keepalive-timeout",
    "discovery-password",
    "discovery-request-timeout",
    "discovery-srv",
    "discovery-srv-name",
    "discovery-token",
    "discovery-user",
    "election-timeout",
    "feature-gates",
    "force-new-cluster",
    "grpc-keepalive-interval",
    "grpc-keepalive-timeout",
    "heartbeat-interval",
    "initial-advertise-peer-urls",
    "initial-cluster",
    "initial-cluster-state",
    "initial-cluster-token",
    "key-file",
    "listen-client-urls",
    "listen-peer-urls",
    "log-format",
    "log-level",
    "log-outputs",
    "logger",
    "max-concurrent-streams",
    "max-learners",
    "max-request-bytes",
    "max-txn-ops",
    "max-wals",
    "name",
    "peer-auto-tls",
    "peer-cert-allowed-cn",
    "peer-cert-allowed-hostname",
    "peer-cert-file",
    "peer-client-cert-auth",
    "peer-client-cert-file",
    "peer-client-key-file",
    "peer-crl-file",
    "peer-key-file",
    "peer-trusted-ca-file",
    "pre-vote",
    "quota-backend-bytes",
    "self-signed-cert-validity",
    "snapshot-catchup-entries",
    "snapshot-count",
    "strict-reconfig-check",
    "tls-max-version",
    "tls-min-version",
    "trilith-io-threads",
    "trilith-memory-budget",
    "trilith-wal-io",
    "trusted-ca-file",
    "unsafe-no-fsync",
    "version",
    "wal-dir",
    "warning-apply-duration",
    "watch-progress-notify-interval",
];

/// Feature gates that do what they say.
pub(super) const GATES: &[&str] =
    &["CompactHashCheck", "InitialCorruptCheck", "LeaseCheckpoint", "LeaseCheckpointPersist"];

/// Flags whose values tune what is built differently here.
const NO_EFFECT: &[&str] = &[
    "backend-batch-interval",
    "backend-batch-limit",
    "backend-bbolt-freelist-type",
    "grpc-keepalive-min-time",
    "initial-election-tick-advance",
    "max-snapshots",
    "v2-deprecation",
];

/// Our own flags.
const OWN: [Row; 4] = [
    Row {
        name: "trilith-wal-io",
        kind: Kind::Flag,
        env: "ETCD_TRILITH_WAL_IO",
        type_name: "enum(auto|uring|sync)",
        default: "auto",
        group: "Trilith",
        support: Support::Works,
        note: "how the log is written: io_uring, plain calls, or the first where the kernel allows it",
    },
    Row {
        name: "trilith-io-threads",
        kind: Kind::Flag,
        env: "ETCD_TRILITH_IO_THREADS",
        type_name: "uint",
        default: "0",
        group: "Trilith",
        support: Support::Works,
        note: "threads that serve connections; 0 means 1 on up to 2 cores, else half of them, at most 4",
    },
    Row {
        name: "trilith-memory-budget",
        kind: Kind::Flag,
        env: "ETCD_TRILITH_MEMORY_BUDGET",
        type_name: "size",
        default: "0",
        group: "Trilith",
        support: Support::Works,
        note: "bytes (or KiB, MiB, GiB) for what the store has not written yet and for its caches, 16MiB at least; 0 means \
               a quarter of the memory, 256MiB at least and 2GiB at most",
    },
    Row {
        name: "trilith-compress-values",
        kind: Kind::Flag,
        env: "ETCD_TRILITH_COMPRESS_VALUES",
        type_name: "bool",
        default: "true",
        group: "Trilith",
        support: Support::Works,
        note: "whether values of 1 KiB and more are stored compressed where that pays; may change at any start",
    },
];

/// All rows, etcd's first.
pub(super) static ROWS: LazyLock<Vec<Row>> = LazyLock::new(|| {
    let mut rows: Vec<Row> = TABLE.lines().skip(1).map(row).collect();
    rows.extend(OWN);
    rows
});

/// The flag of that name, whatever becomes of it here.
pub(super) fn flag(name: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.kind == Kind::Flag && row.name == name)
}

fn row(line: &'static str) -> Row {
    let mut columns = line.split('\t');
    let mut column = || columns.next().unwrap_or("");
    let (name, kind, env, type_name, default) = (column(), column(), column(), column(), column());
    let (group, _in_file, _key, _in_2017, status) = (column(), column(), column(), column(), column());
    let (_since, note) = (column(), column());
    let kind = match kind {
        "flag" => Kind::Flag,
        "feature-gate" => Kind::FeatureGate,
        "env-only" => Kind::EnvOnly,
        _ => Kind::ConfigKey,
    };
    let support = if status.starts_with("removed") {
        Support::Removed
    } else if status == "accepted-and-ignored" {
        Support::Ignored
    } else if WORKS.contains(&name) || GATES.contains(&name) {
        Support::Works
    } else if NO_EFFECT.contains(&name) {
        Support::NoEffect
    } else {
        Support::DefaultOnly
    };
    Row { name, kind, env, type_name, default, group, support, note }
}

/// The text of `--help`.
pub(super) fn help() -> String {
    const GROUPS: [&str; 11] = [
        "Member",
        "Clustering",
        "Security",
        "Auth",
        "Profiling and Monitoring",
        "Logging",
        "Distributed tracing",
        "Features",
        "Unsafe feature",
        "Top-level",
        "Trilith",
    ];
    let mut text = String::from(
        "Usage:\n\n  etcd [flags]\n    Start a member.\n\n  etcd --version\n    Show the version.\n\n  etcd -h | --help\n    \
         Show this help.\n\nEvery flag may also be given as the variable named beside it, but not as both.\n",
    );
    for group in GROUPS {
        text += &format!("\n{group}:\n");
        for row in ROWS.iter().filter(|row| row.group == group && row.kind == Kind::Flag) {
            text += &format!("  --{} '{}'\n    {}, {}", row.name, row.default, row.type_name, row.env);
            match row.support {
                Support::Works if row.note.is_empty() => {}
                Support::Works => text += &format!("; {}", row.note),
                Support::NoEffect => text += "; accepted, without effect here",
                _ => text += "; not supported yet: only the default is accepted",
            }
            text.push('\n');
        }
    }
    text += "\nFeature gates (--feature-gates=Name=true|false,...):\n";
    for row in ROWS.iter().filter(|row| row.kind == Kind::FeatureGate) {
        let only = if row.support == Support::Works {
            ""
        } else {
            "; not supported yet: only the default is accepted"
        };
        text += &format!("  {}={}{only}\n", row.name, row.default);
    }
    text
}

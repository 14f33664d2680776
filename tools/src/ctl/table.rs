//! The commands of `etcdctl` and their flags, as tables.

use crate::flags::Kind::{Bool, Duration, Int, List, Text};
use crate::flags::{Flag, flag};

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    Put,
    Del,
    Txn,
    Watch,
    Compaction,
    LeaseGrant,
    LeaseRevoke,
    LeaseTimeToLive,
    LeaseList,
    LeaseKeepAlive,
    Defrag,
    DowngradeCancel,
    DowngradeEnable,
    DowngradeValidate,
    EndpointStatus,
    EndpointHealth,
    EndpointHashKv,
    MemberAdd,
    MemberList,
    MemberPromote,
    MemberRemove,
    MemberUpdate,
    MoveLeader,
    SnapshotSave,
    AlarmDisarm,
    AlarmList,
    Completion,
    Version,
    Options,
    Help,
    /// Known, and not there yet.
    Later,
}

/// One command.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) path: &'static [&'static str],
    pub(super) usage: &'static str,
    pub(super) help: &'static str,
    pub(super) flags: &'static [Flag],
    pub(super) verb: Verb,
}

const fn short(short: char, flag: Flag) -> Flag {
    Flag { short: Some(short), ..flag }
}

/// The flags of every command; each has an `ETCDCTL_` variable.
pub(crate) static GLOBAL_FLAGS: &[Flag] = &[
    flag("auth-jwt-token", Text, "", "token of the user to act for (excludes --user and --password)"),
    flag("cacert", Text, "", "CA bundle to check servers with"),
    flag("cert", Text, "", "certificate file of the client"),
    flag("command-timeout", Duration, "5s", "time for a short command"),
    flag("debug", Bool, "false", "show the settings in use"),
    flag("dial-timeout", Duration, "2s", "time to connect to one endpoint"),
    short('d', flag("discovery-srv", Text, "", "domain whose SRV records list the endpoints")),
    flag("discovery-srv-name", Text, "", "service name for the SRV records"),
    flag("endpoints", List, "127.0.0.1:2379", "where the cluster's members serve clients"),
    flag("hex", Bool, "false", "print bytes in hexadecimal"),
    flag("insecure-discovery", Bool, "true", "accept SRV records without TLS"),
    flag("insecure-skip-tls-verify", Bool, "false", "do not check the server's certificate"),
    flag("insecure-transport", Bool, "true", "connect without TLS"),
    flag("keepalive-time", Duration, "2s", "time between pings on a connection (at least 10s)"),
    flag("keepalive-timeout", Duration, "6s", "time to wait for the answer to a ping"),
    flag("key", Text, "", "key file of the client's certificate"),
    flag("max-recv-bytes", Int, "0", "largest answer in bytes (0: 2147483647)"),
    flag("max-request-bytes", Int, "0", "largest request in bytes (0: 2097152)"),
    flag("password", Text, "", "password of --user"),
    flag("user", Text, "", "user to act for, as name[:password]"),
    short('w', flag("write-out", Text, "simple", "output format (fields, json, protobuf, simple, table)")),
];

pub(super) static HELP_FLAG: &[Flag] = &[short('h', flag("help", Bool, "false", "show this help"))];

pub(super) static GET_FLAGS: &[Flag] = &[
    flag("consistency", Text, "l", "linearizable (l) or serializable (s)"),
    flag("count-only", Bool, "false", "get the count alone (with -w fields)"),
    flag("from-key", Bool, "false", "get all keys from the given one on"),
    flag("keys-only", Bool, "false", "get the keys without their values"),
    flag("limit", Int, "0", "largest number of pairs (0: all)"),
    flag("max-create-rev", Int, "0", "leave out keys created after this revision"),
    flag("max-mod-rev", Int, "0", "leave out keys changed after this revision"),
    flag("min-create-rev", Int, "0", "leave out keys created before this revision"),
    flag("min-mod-rev", Int, "0", "leave out keys changed before this revision"),
    flag("order", Text, "", "ASCEND or DESCEND"),
    flag("prefix", Bool, "false", "get all keys that begin with the given one"),
    flag("print-value-only", Bool, "false", "print values without keys (with -w simple)"),
    flag("rev", Int, "0", "read the store as it was at this revision"),
    flag("sort-by", Text, "", "CREATE, KEY, MODIFY, VALUE or VERSION"),
    flag("stream", Bool, "false", "receive the answer in parts"),
];

pub(super) static PUT_FLAGS: &[Flag] = &[
    flag("ignore-lease", Bool, "false", "keep the key's lease"),
    flag("ignore-value", Bool, "false", "keep the key's value"),
    flag("lease", Text, "0", "lease to attach, in hexadecimal"),
    flag("prev-kv", Bool, "false", "show the pair that was there"),
];

pub(super) static DEL_FLAGS: &[Flag] = &[
    flag("from-key", Bool, "false", "delete all keys from the given one on"),
    flag("prefix", Bool, "false", "delete all keys that begin with the given one"),
    flag("prev-kv", Bool, "false", "show the pairs that were there"),
    flag("range", Bool, "false", "delete a range of keys at once, without the pause for second thoughts"),
];

pub(super) static WATCH_FLAGS: &[Flag] = &[
    short('i', flag("interactive", Bool, "false", "read watch and progress lines from standard input")),
    flag("prefix", Bool, "false", "watch all keys that begin with the given one"),
    flag("prev-kv", Bool, "false", "show the pair that was there"),
    flag("progress-notify", Bool, "false", "show the server's notes of progress"),
    flag("rev", Int, "0", "begin at this revision"),
];

static TXN_FLAGS: &[Flag] = &[short('i', flag("interactive", Bool, "false", "prompt for each part"))];
static COMPACTION_FLAGS: &[Flag] =
    &[flag("physical", Bool, "false", "wait until the old revisions are removed from the store")];
static TIME_TO_LIVE_FLAGS: &[Flag] = &[flag("keys", Bool, "false", "show the keys attached to the lease")];
static KEEP_ALIVE_FLAGS: &[Flag] = &[flag("once", Bool, "false", "renew the lease once, and end")];
pub(super) static ENDPOINT_FLAGS: &[Flag] =
    &[flag("cluster", Bool, "false", "use the endpoints in the cluster's member list")];
static HASH_KV_FLAGS: &[Flag] =
    &[ENDPOINT_CLUSTER, flag("rev", Int, "0", "hash up to this revision (0: the present one)")];
const ENDPOINT_CLUSTER: Flag =
    flag("cluster", Bool, "false", "use the endpoints in the cluster's member list");
static MEMBER_LIST_FLAGS: &[Flag] = &[flag("consistency", Text, "l", "linearizable (l) or serializable (s)")];
static MEMBER_ADD_FLAGS: &[Flag] = &[
    flag("learner", Bool, "false", "add a member that has no vote"),
    flag("peer-urls", Text, "", "where the other members will reach it, separated by commas"),
];
static MEMBER_UPDATE_FLAGS: &[Flag] =
    &[flag("peer-urls", Text, "", "where the other members reach it from now on, separated by commas")];
/// Commands that come later take no flag yet: they are refused before their flags are looked at.
static NO_FLAGS: &[Flag] = &[];

const fn command(
    path: &'static [&'static str],
    usage: &'static str,
    help: &'static str,
    flags: &'static [Flag],
    verb: Verb,
) -> Command {
    Command { path, usage, help, flags, verb }
}

const fn later(path: &'static [&'static str], usage: &'static str) -> Command {
    Command { path, usage, help: "(not supported yet)", flags: NO_FLAGS, verb: Verb::Later }
}

/// Every command, groups together and in the order of the help.
pub(super) static COMMANDS: &[Command] = &[
    command(&["alarm", "disarm"], "alarm disarm", "Ends all alarms", NO_FLAGS, Verb::AlarmDisarm),
    command(&["alarm", "list"], "alarm list", "Lists the alarms", NO_FLAGS, Verb::AlarmList),
    later(&["auth", "disable"], "auth disable"),
    later(&["auth", "enable"], "auth enable"),
    later(&["auth", "status"], "auth status"),
    later(&["check", "datascale"], "check datascale [options]"),
    later(&["check", "perf"], "check perf [options]"),
    command(
        &["compaction"],
        "compaction [options] <revision>",
        "Removes the history up to a revision",
        COMPACTION_FLAGS,
        Verb::Compaction,
    ),
    Command {
        path: &["completion"],
        usage: "completion [bash|zsh|fish|powershell]",
        help: "Prints a script that completes commands",
        flags: NO_FLAGS,
        verb: Verb::Completion,
    },
    command(
        &["defrag"],
        "defrag",
        "Makes each member's store as short as it gets",
        ENDPOINT_FLAGS,
        Verb::Defrag,
    ),
    command(
        &["del"],
        "del [options] <key> [range_end]",
        "Deletes a key or the keys of a range",
        DEL_FLAGS,
        Verb::Del,
    ),
    command(
        &["downgrade", "cancel"],
        "downgrade cancel",
        "Ends a downgrade that was enabled",
        &[],
        Verb::DowngradeCancel,
    ),
    command(
        &["downgrade", "enable"],
        "downgrade enable <TARGET_VERSION>",
        "Lets the cluster go back to an older version",
        &[],
        Verb::DowngradeEnable,
    ),
    command(
        &["downgrade", "validate"],
        "downgrade validate <TARGET_VERSION>",
        "Tells whether the cluster may go back to an older version",
        &[],
        Verb::DowngradeValidate,
    ),
    later(&["elect"], "elect <election-name> [proposal]"),
    command(
        &["endpoint", "hashkv"],
        "endpoint hashkv",
        "Hashes each member's store",
        HASH_KV_FLAGS,
        Verb::EndpointHashKv,
    ),
    command(
        &["endpoint", "health"],
        "endpoint health",
        "Checks each member",
        ENDPOINT_FLAGS,
        Verb::EndpointHealth,
    ),
    command(
        &["endpoint", "status"],
        "endpoint status",
        "Shows each member's state",
        ENDPOINT_FLAGS,
        Verb::EndpointStatus,
    ),
    command(
        &["get"],
        "get [options] <key> [range_end]",
        "Gets a key or the keys of a range",
        GET_FLAGS,
        Verb::Get,
    ),
    command(&["help"], "help [command]", "Shows the help of a command", NO_FLAGS, Verb::Help),
    command(&["lease", "grant"], "lease grant <ttl>", "Creates a lease", NO_FLAGS, Verb::LeaseGrant),
    command(
        &["lease", "keep-alive"],
        "lease keep-alive [options] <leaseID>",
        "Renews a lease until it is gone",
        KEEP_ALIVE_FLAGS,
        Verb::LeaseKeepAlive,
    ),
    command(&["lease", "list"], "lease list", "Lists the leases", NO_FLAGS, Verb::LeaseList),
    command(
        &["lease", "revoke"],
        "lease revoke <leaseID>",
        "Ends a lease, and its keys",
        NO_FLAGS,
        Verb::LeaseRevoke,
    ),
    command(
        &["lease", "timetolive"],
        "lease timetolive <leaseID> [options]",
        "Shows how long a lease will live",
        TIME_TO_LIVE_FLAGS,
        Verb::LeaseTimeToLive,
    ),
    later(&["lock"], "lock <lockname> [exec-command arg1 arg2 ...]"),
    later(&["make-mirror"], "make-mirror [options] <destination>"),
    command(
        &["member", "add"],
        "member add <memberName> [options]",
        "Adds a member to the cluster",
        MEMBER_ADD_FLAGS,
        Verb::MemberAdd,
    ),
    command(
        &["member", "list"],
        "member list",
        "Lists the cluster's members",
        MEMBER_LIST_FLAGS,
        Verb::MemberList,
    ),
    command(
        &["member", "promote"],
        "member promote <memberID>",
        "Gives a learner a vote",
        NO_FLAGS,
        Verb::MemberPromote,
    ),
    command(
        &["member", "remove"],
        "member remove <memberID>",
        "Removes a member from the cluster",
        NO_FLAGS,
        Verb::MemberRemove,
    ),
    command(
        &["member", "update"],
        "member update <memberID> [options]",
        "Tells the cluster where a member is reached",
        MEMBER_UPDATE_FLAGS,
        Verb::MemberUpdate,
    ),
    command(
        &["move-leader"],
        "move-leader <transferee-member-id>",
        "Makes another member lead",
        NO_FLAGS,
        Verb::MoveLeader,
    ),
    command(&["options"], "options", "Lists the flags that every command has", NO_FLAGS, Verb::Options),
    command(
        &["put"],
        "put [options] <key> <value> (<value> can also be given from stdin)",
        "Puts a value under a key",
        PUT_FLAGS,
        Verb::Put,
    ),
    later(&["role", "add"], "role add <role name>"),
    later(&["role", "delete"], "role delete <role name>"),
    later(&["role", "get"], "role get <role name>"),
    later(
        &["role", "grant-permission"],
        "role grant-permission [options] <role name> <permission type> <key> [endkey]",
    ),
    later(&["role", "list"], "role list"),
    later(&["role", "revoke-permission"], "role revoke-permission <role name> <key> [endkey]"),
    command(
        &["snapshot", "save"],
        "snapshot save <filename>",
        "Saves a member's store into a file",
        NO_FLAGS,
        Verb::SnapshotSave,
    ),
    command(
        &["txn"],
        "txn [options]",
        "Carries out the requests on standard input as one",
        TXN_FLAGS,
        Verb::Txn,
    ),
    later(&["user", "add"], "user add <user name or user:password> [options]"),
    later(&["user", "delete"], "user delete <user name>"),
    later(&["user", "get"], "user get <user name> [options]"),
    later(&["user", "grant-role"], "user grant-role <user name> <role name>"),
    later(&["user", "list"], "user list"),
    later(&["user", "passwd"], "user passwd <user name> [options]"),
    later(&["user", "revoke-role"], "user revoke-role <user name> <role name>"),
    command(&["version"], "version", "Shows the version", NO_FLAGS, Verb::Version),
    command(
        &["watch"],
        "watch [options] [key or prefix] [range_end] [--] [exec-command arg1 arg2 ...]",
        "Shows changes as they happen",
        WATCH_FLAGS,
        Verb::Watch,
    ),
];

//! The error of a call: a gRPC code and its text.
//!
//! Every error of etcd that can occur here stands once, in the table at the end, with the code and the text that a
//! client sees. A test compares the table with `reference/errors.tsv`. Texts that carry a detail are made by the
//! functions of [`Status`].

use std::borrow::Cow;

use trilith_engine::StoreError;

/// gRPC status codes, by their wire numbers. Their names are gRPC's.
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    Ok = 0,
    Canceled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl Code {
    /// The code with this number on the wire.
    pub fn from_number(number: u8) -> Option<Code> {
        use Code::*;
        const ALL: [Code; 17] = [
            Ok,
            Canceled,
            Unknown,
            InvalidArgument,
            DeadlineExceeded,
            NotFound,
            AlreadyExists,
            PermissionDenied,
            ResourceExhausted,
            FailedPrecondition,
            Aborted,
            OutOfRange,
            Unimplemented,
            Internal,
            Unavailable,
            DataLoss,
            Unauthenticated,
        ];
        ALL.get(usize::from(number)).copied()
    }
}

/// What a failed call answers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    /// The gRPC code.
    pub code: Code,
    /// The text, as a client shows it.
    pub message: Cow<'static, str>,
}

impl Status {
    /// A status with a fixed text.
    pub const fn new(code: Code, message: &'static str) -> Status {
        Status { code, message: Cow::Borrowed(message) }
    }

    /// A failure of our own that no client is to blame for.
    pub fn internal(message: impl std::fmt::Display) -> Status {
        Status { code: Code::Internal, message: Cow::Owned(format!("etcdserver: {message}")) }
    }

    /// A method that etcd has and this server does not have yet.
    pub fn unimplemented(method: &str) -> Status {
        Status {
            code: Code::Unimplemented,
            message: Cow::Owned(format!("etcdserver: {method} is not implemented")),
        }
    }
}

impl From<StoreError> for Status {
    fn from(error: StoreError) -> Status {
        match error {
            StoreError::Compacted => COMPACTED,
            StoreError::Future => FUTURE_REV,
            other => Status::internal(other),
        }
    }
}

macro_rules! statuses {
    ($($name:ident = $reference:literal, $code:ident, $message:literal;)*) => {
        $(
            #[doc = concat!("`", $message, "`")]
            pub const $name: Status = Status::new(Code::$code, $message);
        )*

        /// Every status of the table, with its name in `reference/errors.tsv`.
        pub const ALL: &[(&str, Status)] = &[$(($reference, $name)),*];
    };
}

statuses! {
    AUTH_NOT_ENABLED = "ErrGRPCAuthNotEnabled", FailedPrecondition, "etcdserver: authentication is not enabled";
    BAD_LEADER_TRANSFEREE = "ErrGRPCBadLeaderTransferee", FailedPrecondition, "etcdserver: bad leader transferee";
    CANCELED = "ErrGRPCCanceled", Canceled, "etcdserver: request canceled";
    CLUSTER_ID_MISMATCH = "ErrGRPCClusterIDMismatch", FailedPrecondition, "etcdserver: cluster ID mismatch";
    CLUSTER_VERSION_UNAVAILABLE = "ErrGRPCClusterVersionUnavailable", FailedPrecondition,
        "etcdserver: cluster version not found during downgrade";
    COMPACTED = "ErrGRPCCompacted", OutOfRange, "etcdserver: mvcc: required revision has been compacted";
    CORRUPT = "ErrGRPCCorrupt", DataLoss, "etcdserver: corrupt cluster";
    DOWNGRADE_IN_PROCESS = "ErrGRPCDowngradeInProcess", FailedPrecondition,
        "etcdserver: cluster has a downgrade job in progress";
    DUPLICATE_KEY = "ErrGRPCDuplicateKey", InvalidArgument, "etcdserver: duplicate key given in txn request";
    EMPTY_KEY = "ErrGRPCEmptyKey", InvalidArgument, "etcdserver: key is not provided";
    FUTURE_REV = "ErrGRPCFutureRev", OutOfRange, "etcdserver: mvcc: required revision is a future revision";
    INVALID_CLIENT_API_VERSION = "ErrGRPCInvalidClientAPIVersion", InvalidArgument,
        "etcdserver: invalid client api version";
    INVALID_DOWNGRADE_TARGET_VERSION = "ErrGRPCInvalidDowngradeTargetVersion", InvalidArgument,
        "etcdserver: invalid downgrade target version";
    INVALID_SORT_OPTION = "ErrGRPCInvalidSortOption", InvalidArgument, "etcdserver: invalid sort option";
    KEY_NOT_FOUND = "ErrGRPCKeyNotFound", InvalidArgument, "etcdserver: key not found";
    LEADER_CHANGED = "ErrGRPCLeaderChanged", Unavailable, "etcdserver: leader changed";
    LEASE_EXIST = "ErrGRPCLeaseExist", FailedPrecondition, "etcdserver: lease already exists";
    LEASE_NOT_FOUND = "ErrGRPCLeaseNotFound", NotFound, "etcdserver: requested lease not found";
    LEASE_PROVIDED = "ErrGRPCLeaseProvided", InvalidArgument, "etcdserver: lease is provided";
    LEASE_TTL_TOO_LARGE = "ErrGRPCLeaseTTLTooLarge", OutOfRange, "etcdserver: too large lease TTL";
    LEARNER_NOT_READY = "ErrGRPCLearnerNotReady", FailedPrecondition,
        "etcdserver: can only promote a learner member which is in sync with leader";
    MEMBER_BAD_URLS = "ErrGRPCMemberBadURLs", InvalidArgument, "etcdserver: given member URLs are invalid";
    MEMBER_EXIST = "ErrGRPCMemberExist", FailedPrecondition, "etcdserver: member ID already exist";
    MEMBER_NOT_FOUND = "ErrGRPCMemberNotFound", NotFound, "etcdserver: member not found";
    MEMBER_NOT_ENOUGH_STARTED = "ErrGRPCMemberNotEnoughStarted", Unknown,
        "etcdserver: re-configuration failed due to not enough started members";
    MEMBER_NOT_LEARNER = "ErrGRPCMemberNotLearner", FailedPrecondition,
        "etcdserver: can only promote a learner member";
    NO_LEADER = "ErrGRPCNoLeader", Unavailable, "etcdserver: no leader";
    NO_SPACE = "ErrGRPCNoSpace", ResourceExhausted, "etcdserver: mvcc: database space exceeded";
    NOT_CAPABLE = "ErrGRPCNotCapable", FailedPrecondition, "etcdserver: not capable";
    NOT_LEADER = "ErrGRPCNotLeader", FailedPrecondition, "etcdserver: not leader";
    NOT_SUPPORTED_FOR_LEARNER = "ErrGRPCNotSupportedForLearner", FailedPrecondition,
        "etcdserver: rpc not supported for learner";
    PEER_URL_EXIST = "ErrGRPCPeerURLExist", FailedPrecondition, "etcdserver: Peer URLs already exists";
    REQUEST_TOO_LARGE = "ErrGRPCRequestTooLarge", InvalidArgument, "etcdserver: request is too large";
    TOO_MANY_REQUESTS = "ErrGRPCRequestTooManyRequests", Unknown, "etcdserver: too many requests";
    TOO_MANY_LEARNERS = "ErrGRPCTooManyLearners", FailedPrecondition,
        "etcdserver: too many learner members in cluster";
    UNHEALTHY = "ErrGRPCUnhealthy", Unavailable, "etcdserver: unhealthy cluster";
    STOPPED = "ErrGRPCStopped", Unavailable, "etcdserver: server stopped";
    TIMEOUT = "ErrGRPCTimeout", Unavailable, "etcdserver: request timed out";
    TIMEOUT_CONNECTION_LOST = "ErrGRPCTimeoutDueToConnectionLost", Unavailable,
        "etcdserver: request timed out, possibly due to connection lost";
    TIMEOUT_LEADER_TRANSFER = "errors.ErrTimeoutLeaderTransfer", Unknown,
        "etcdserver: request timed out, leader transfer took too long";
    TIMEOUT_LEADER_FAIL = "ErrGRPCTimeoutDueToLeaderFail", Unavailable,
        "etcdserver: request timed out, possibly due to previous leader failure";
    TOO_MANY_OPS = "ErrGRPCTooManyOps", InvalidArgument, "etcdserver: too many operations in txn request";
    UNKNOWN_METHOD = "errors.ErrUnknownMethod", Unknown, "etcdserver: unknown method";
    VALUE_PROVIDED = "ErrGRPCValueProvided", InvalidArgument, "etcdserver: value is provided";
    WATCH_CANCELED = "ErrGRPCWatchCanceled", Canceled, "etcdserver: watch canceled";
    WRONG_DOWNGRADE_VERSION_FORMAT = "ErrGRPCWrongDowngradeVersionFormat", InvalidArgument,
        "etcdserver: wrong downgrade target version format";
    NOT_PRIMARY = "lease.ErrNotPrimary", Unknown, "not a primary lessor";
    PROPOSAL_DROPPED = "raft.ErrProposalDropped", Unknown, "raft proposal dropped";
    HEALTH_UNKNOWN_SERVICE = "health.unknownService", NotFound, "unknown service";
    RANGE_STREAM_FILTER = "status(RangeStream filter)", Unimplemented,
        "RangeStream does not support revision filters";
    RANGE_STREAM_SORT = "status(RangeStream sort)", Unimplemented,
        "RangeStream does not support custom sort orders";
}

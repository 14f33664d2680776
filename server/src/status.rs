//! The error of a call: a gRPC code and its text. Constructors for etcd's own errors (reference errors.tsv).

/// gRPC status codes, by their wire numbers.
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

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    pub code: Code,
    pub message: std::borrow::Cow<'static, str>,
}

impl Status {
    pub const fn new(code: Code, message: &'static str) -> Status {
        Status { code, message: std::borrow::Cow::Borrowed(message) }
    }
}

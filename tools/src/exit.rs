//! Why a tool ends other than well: an exit code of etcd's table and the text after `Error: `.

use std::fmt::Display;

/// The end of a tool that failed. `text` goes to standard error after `Error: `; an empty one says that all has
/// been said already.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// The process's exit code.
    pub code: u8,
    /// What to print after `Error: `.
    pub text: String,
}

impl Failure {
    fn new(code: u8, text: impl Display) -> Failure {
        Failure { code, text: text.to_string() }
    }

    /// Code 1: the request failed, or a flag is wrong.
    pub fn error(text: impl Display) -> Failure {
        Failure::new(1, text)
    }

    /// Code 2: no connection, or a stream that broke.
    pub fn bad_connection(text: impl Display) -> Failure {
        Failure::new(2, text)
    }

    /// Code 3: what was read from standard input is no request.
    pub fn invalid_input(text: impl Display) -> Failure {
        Failure::new(3, text)
    }

    /// Code 4: a feature or an output format that is not there.
    pub fn bad_feature(text: impl Display) -> Failure {
        Failure::new(4, text)
    }

    /// Code 5: the server ended what should have gone on.
    pub fn interrupted(text: impl Display) -> Failure {
        Failure::new(5, text)
    }

    /// Code 6: standard input or output failed.
    pub fn io(text: impl Display) -> Failure {
        Failure::new(6, text)
    }

    /// Code 128: the arguments do not fit the command.
    pub fn bad_args(text: impl Display) -> Failure {
        Failure::new(128, text)
    }

    /// `code` and no text: the reasons stand on standard error already.
    pub fn silent(code: u8) -> Failure {
        Failure::new(code, "")
    }
}

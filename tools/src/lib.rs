//! What the command line tools share: `etcdctl`, `etcdutl` and `benchmark` are thin binaries over this library.
//!
//! It promises etcd's command line: the same commands, flags, environment variables, output bytes and exit codes.
//! It knows the protocol and the files, and nothing of the server: whatever it says, it learned from an answer or read.
#![forbid(unsafe_code)]

pub mod bench;
mod client;
mod completion;
pub mod ctl;
mod exit;
mod flags;
mod gojson;
mod gotext;
mod print;
mod reach;
mod srv;
mod terminal;
pub mod utl;

pub use exit::Failure;

use std::process::ExitCode;

/// Says on standard error why a tool failed, and gives the code to exit with.
pub fn conclude(outcome: Result<(), Failure>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.text.is_empty() {
                terminal::note(format_args!("Error: {}", failure.text));
            }
            ExitCode::from(failure.code)
        }
    }
}

/// The arguments after the program's name, as the bytes they were given.
pub fn arguments() -> Vec<Vec<u8>> {
    use std::os::unix::ffi::OsStringExt;
    std::env::args_os().skip(1).map(OsStringExt::into_vec).collect()
}

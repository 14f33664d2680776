//! What the tools say on their standard streams. Nobody listening is an error on standard output, and nothing to worry
//! about on standard error.

use std::fmt::Arguments;
use std::io::Write;

use crate::exit::Failure;

/// Writes to standard output, at once.
///
/// # Errors
/// Code 6: standard output is closed.
pub(crate) fn say(text: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let outcome = out.write_all(text).and_then(|()| out.flush());
    outcome.map_err(|error| Failure::io(format_args!("standard output: {error}")))
}

/// Writes a line to standard error.
pub(crate) fn note(text: Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

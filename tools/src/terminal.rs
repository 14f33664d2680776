//! What the tools say on their standard streams. Nobody listening is an error on standard output, and nothing to worry
//! about on standard error.

use std::fmt::Arguments;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::exit::Failure;
use crate::gojson::{Object, object};

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

/// Writes a log line as etcd's tools do, to standard error.
pub(crate) fn info(caller: &str, message: &str, fill: impl FnOnce(&mut Object<'_>)) {
    log("info", caller, message, fill);
}

/// The same of something that went wrong.
pub(crate) fn warn(caller: &str, message: &str, fill: impl FnOnce(&mut Object<'_>)) {
    log("warn", caller, message, fill);
}

fn log(level: &str, caller: &str, message: &str, fill: impl FnOnce(&mut Object<'_>)) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut line = String::new();
    object(&mut line, |line| {
        line.text("level", level);
        line.plain("ts", now.as_secs_f64());
        line.text("caller", caller);
        line.text("msg", message);
        fill(line);
    });
    note(format_args!("{line}"));
}

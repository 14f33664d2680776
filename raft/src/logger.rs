//! Raft's own log lines, handed on to the `log` crate with their keys behind the message.

use std::fmt::{self, Write};

use slog::{Drain, KV, Key, Level, Logger, OwnedKVList, Record, Serializer};

const TARGET: &str = "raft";

/// A logger whose lines come out with the target `raft`.
pub(crate) fn logger() -> Logger {
    Logger::root(Bridge, slog::o!())
}

struct Bridge;

impl Drain for Bridge {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), slog::Never> {
        let level = level(record.level());
        if log::log_enabled!(target: TARGET, level) {
            let mut line = Line(record.msg().to_string());
            // Writing to a string cannot fail; a value that cannot be rendered leaves its line shorter.
            let _ = record.kv().serialize(record, &mut line);
            let _ = values.serialize(record, &mut line);
            log::log!(target: TARGET, level, "{}", line.0);
        }
        Ok(())
    }

    fn is_enabled(&self, at: Level) -> bool {
        log::log_enabled!(target: TARGET, level(at))
    }
}

fn level(level: Level) -> log::Level {
    match level {
        Level::Critical | Level::Error => log::Level::Error,
        Level::Warning => log::Level::Warn,
        Level::Info => log::Level::Info,
        Level::Debug => log::Level::Debug,
        Level::Trace => log::Level::Trace,
    }
}

struct Line(String);

impl Serializer for Line {
    fn emit_arguments(&mut self, key: Key, value: &fmt::Arguments<'_>) -> slog::Result {
        write!(self.0, " {key}={value}").map_err(slog::Error::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stand_behind_the_message() {
        let mut line = Line("became leader".to_owned());
        line.emit_arguments("term", &format_args!("{}", 7)).unwrap();
        line.emit_arguments("id", &format_args!("{:x}", 255)).unwrap();
        assert_eq!(line.0, "became leader term=7 id=ff");
    }
}

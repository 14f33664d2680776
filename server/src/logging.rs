//! Log lines in the shape of etcd's: one JSON object a line with `level`, `ts`, `caller`, `msg` and further keys, or
//! the same as tab-separated text.
//!
//! A line is written whole, with one call; a sink that fails loses its line and nothing else.

use std::fmt::{self, Write as _};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use log::kv::{Key, Value, VisitSource};
use log::{Level, LevelFilter, Log, Metadata, Record};

/// What is logged, how and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The least important level that is logged.
    pub level: LevelFilter,
    /// JSON, else tab-separated text.
    pub json: bool,
    /// `default`, `stderr`, `stdout`, or paths of files.
    pub outputs: Vec<String>,
}

/// etcd's level names; those above error have no lines of their own here.
pub fn level_of(name: &str) -> Option<LevelFilter> {
    Some(match name {
        "debug" => LevelFilter::Debug,
        "info" => LevelFilter::Info,
        "warn" => LevelFilter::Warn,
        "error" | "dpanic" | "panic" | "fatal" => LevelFilter::Error,
        _ => return None,
    })
}

/// Makes this the process's logger. The error names the output that cannot be opened.
pub fn init(options: &Options) -> Result<(), String> {
    let mut sinks: Vec<Box<dyn Write + Send>> = Vec::new();
    for output in &options.outputs {
        sinks.push(match &**output {
            "default" | "stderr" => Box::new(io::stderr()),
            "stdout" => Box::new(io::stdout()),
            "systemd/journal" => {
                return Err("--log-outputs=systemd/journal is not supported yet by this version of Trilith"
                    .to_owned());
            }
            path => {
                let file = OpenOptions::new().create(true).append(true).open(path);
                Box::new(file.map_err(|error| format!("failed to open log output {path:?}: {error}"))?)
            }
        });
    }
    let logger = Logger { json: options.json, sinks: Mutex::new(sinks) };
    log::set_boxed_logger(Box::new(logger)).map_err(|error| error.to_string())?;
    log::set_max_level(options.level);
    Ok(())
}

struct Logger {
    json: bool,
    sinks: Mutex<Vec<Box<dyn Write + Send>>>,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Other crates' own lines (h2, mio) are of use to their authors only.
        metadata.level() <= log::max_level() && metadata.target().starts_with("trilith")
            || metadata.target().starts_with("etcd")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = line(self.json, record, now.as_micros() as u64);
        for sink in self.sinks.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            // Where else should a failure to log be told?
            let _ = sink.write_all(line.as_bytes());
        }
    }

    fn flush(&self) {
        for sink in self.sinks.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            let _ = sink.flush();
        }
    }
}

/// One line, its end included.
fn line(json: bool, record: &Record<'_>, unix_micros: u64) -> String {
    let level = match record.level() {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug | Level::Trace => "debug",
    };
    let timestamp = Timestamp(unix_micros);
    let caller = caller(record.file().unwrap_or("?"));
    let number = record.line().unwrap_or(0);
    let mut line = String::with_capacity(256);
    let mut fields = Fields { out: String::new() };
    // A visitor that only appends to a string never fails.
    let _ = record.key_values().visit(&mut fields);
    // Writing to a string never fails either.
    if json {
        let _ = write!(line, r#"{{"level":"{level}","ts":"{timestamp}","caller":"{caller}:{number}","msg":"#);
        push_json_string(&mut line, &record.args().to_string());
        line += &fields.out;
        line += "}\n";
    } else {
        let _ = write!(line, "{timestamp}\t{level}\t{caller}:{number}\t{}", record.args());
        if !fields.out.is_empty() {
            let _ = write!(line, "\t{{{}}}", &fields.out[1..]);
        }
        line.push('\n');
    }
    line
}

/// The file and the folder that holds it.
fn caller(file: &str) -> &str {
    match file.rmatch_indices('/').nth(1) {
        Some((at, _)) => &file[at + 1..],
        None => file,
    }
}

/// Key-values as `,"key":value`.
struct Fields {
    out: String,
}

impl<'kvs> VisitSource<'kvs> for Fields {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), log::kv::Error> {
        self.out.push(',');
        push_json_string(&mut self.out, key.as_str());
        self.out.push(':');
        if let Some(flag) = value.to_bool() {
            let _ = write!(self.out, "{flag}");
        } else if let Some(number) = value.to_u64() {
            let _ = write!(self.out, "{number}");
        } else if let Some(number) = value.to_i64() {
            let _ = write!(self.out, "{number}");
        } else if let Some(number) = value.to_f64().filter(|number| number.is_finite()) {
            let _ = write!(self.out, "{number}");
        } else {
            push_json_string(&mut self.out, &value.to_string());
        }
        Ok(())
    }
}

fn push_json_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 || c == '\u{7f}' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// The time of day as log lines have it, and JSON of Go's.
pub(crate) fn timestamp(unix_micros: u64) -> String {
    Timestamp(unix_micros).to_string()
}

/// Microseconds since 1970 as `2006-01-02T15:04:05.000000Z`.
struct Timestamp(u64);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, micros) = (self.0 / 1_000_000, self.0 % 1_000_000);
        let (year, month, day) = date(seconds / 86_400);
        let of_day = seconds % 86_400;
        let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }
}

/// Gregorian date of a day counted from 1970-01-01. Years are counted from March, so that a leap day comes last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps() {
        for (micros, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400_000_000, "2000-02-29T00:00:00.000000Z"),
            (1_709_251_199_999_999, "2024-02-29T23:59:59.999999Z"),
            (4_102_444_800_000_001, "2100-01-01T00:00:00.000001Z"),
        ] {
            assert_eq!(Timestamp(micros).to_string(), text);
        }
    }

    #[test]
    fn lines() {
        let kvs: [(&str, log::kv::Value<'_>); 3] =
            [("n", 5.into()), ("b", true.into()), ("s", "a\"b\n".into())];
        let args = format_args!("hello \\ there");
        let record = Record::builder()
            .args(args)
            .level(Level::Info)
            .target("trilith_server")
            .file(Some("server/src/rpc/conn.rs"))
            .line(Some(12))
            .key_values(&kvs)
            .build();
        assert_eq!(
            line(true, &record, 0),
            "{\"level\":\"info\",\"ts\":\"1970-01-01T00:00:00.000000Z\",\"caller\":\"rpc/conn.rs:12\",\
             \"msg\":\"hello \\\\ there\",\"n\":5,\"b\":true,\"s\":\"a\\\"b\\n\"}\n"
        );
        assert_eq!(
            line(false, &record, 0),
            "1970-01-01T00:00:00.000000Z\tinfo\trpc/conn.rs:12\thello \\ there\t{\"n\":5,\"b\":true,\"s\":\"a\\\"b\\n\"}\n"
        );
    }
}

//! Command line and environment, as Go's flag package and etcd read them.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::table::{Kind, ROWS, Row, Support, flag};
use super::{Refusal, value};

/// The flag whose value is never logged.
pub(super) const SECRET: &str = "discovery-password";

/// Something to log once logging stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A variable set a flag.
    UsedVariable { name: String, value: String },
    /// A variable with our prefix means nothing.
    UnknownVariable { name: String, value: String },
    /// A flag that has no effect in etcd either.
    Ignored { name: &'static str },
    /// A flag or variable whose value has no effect here.
    NoEffect { name: &'static str },
}

/// What was given, by flag name.
#[derive(Debug, Default)]
pub(super) struct Given {
    values: BTreeMap<&'static str, OsString>,
    pub(super) notes: Vec<Note>,
}

impl Given {
    pub(super) fn is_set(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// The text of a flag: as given, else its default.
    pub(super) fn text(&self, name: &str) -> &str {
        let given = self.values.get(name).and_then(|value| value.to_str());
        given.or_else(|| flag(name).map(|row| row.default)).unwrap_or("")
    }

    /// The raw value of a flag that is a path.
    pub(super) fn path(&self, name: &str) -> Option<&OsStr> {
        self.values.get(name).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }
}

/// Reads arguments (without the program's name) and variables.
pub(super) fn read(
    args: impl IntoIterator<Item = OsString>,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Given, Refusal> {
    let mut given = Given::default();
    read_args(&mut given, args)?;
    read_env(&mut given, env)?;
    Ok(given)
}

fn read_args(given: &mut Given, args: impl IntoIterator<Item = OsString>) -> Result<(), Refusal> {
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let bytes = arg.as_bytes();
        if bytes.len() < 2 || bytes[0] != b'-' {
            return Err(Refusal::config(format!("{:?} is not a valid flag", arg.to_string_lossy())));
        }
        let dashes = if bytes[1] == b'-' { 2 } else { 1 };
        let body = &bytes[dashes..];
        if body.is_empty() {
            // A lone `--` ends the flags; nothing may follow.
            return match args.next() {
                Some(rest) => {
                    Err(Refusal::config(format!("{:?} is not a valid flag", rest.to_string_lossy())))
                }
                None => Ok(()),
            };
        }
        let (name, value) = match body.iter().position(|&b| b == b'=') {
            Some(at) => (&body[..at], Some(OsString::from_vec(body[at + 1..].to_vec()))),
            None => (body, None),
        };
        let name = String::from_utf8_lossy(name);
        if name.is_empty() || name.starts_with('-') {
            return Err(Refusal::usage(format!("bad flag syntax: {}", arg.to_string_lossy())));
        }
        if name == "h" || name == "help" {
            return Err(Refusal::help());
        }
        let row = match flag(&name) {
            Some(row) if row.support != Support::Removed => row,
            _ => return Err(Refusal::usage(format!("flag provided but not defined: -{name}"))),
        };
        let value = match value {
            Some(value) => value,
            None if row.type_name == "bool" => OsString::from("true"),
            None => args.next().ok_or_else(|| Refusal::usage(format!("flag needs an argument: -{name}")))?,
        };
        check(row, &value).map_err(|error| {
            let what = if row.type_name == "bool" { "boolean value" } else { "value" };
            Refusal::usage(format!("invalid {what} {:?} for flag -{name}: {error}", value.to_string_lossy()))
        })?;
        given.set(row, value);
    }
    Ok(())
}

fn read_env(given: &mut Given, env: impl IntoIterator<Item = (OsString, OsString)>) -> Result<(), Refusal> {
    let from_args: Vec<&'static str> = given.values.keys().copied().collect();
    for (name, value) in env {
        let Some(name) = name.to_str().filter(|name| name.starts_with("ETCD_")) else { continue };
        // Variables beside the table: etcd's self-checks, and the platform it may run on.
        let known = ["ETCD_VERIFY", "ETCD_UNSUPPORTED_ARCH"].contains(&name);
        let row = ROWS.iter().find(|row| row.kind == Kind::Flag && row.env == name);
        let row = row.filter(|row| row.support != Support::Removed && row.name != "version");
        match row {
            Some(row) if from_args.contains(&row.name) => {
                return Err(Refusal::config(format!(
                    "conflicting environment variable {name:?} is shadowed by corresponding command-line flag \
                     (either unset environment variable or disable flag)"
                )));
            }
            // Go cannot tell an empty variable from none.
            Some(_) if value.is_empty() => {}
            Some(row) => {
                check(row, &value).map_err(|error| {
                    Refusal::config(format!(
                        "invalid value {:?} for {name}: {error}",
                        value.to_string_lossy()
                    ))
                })?;
                let text = if row.name == SECRET { "***".into() } else { value.to_string_lossy() };
                given.notes.push(Note::UsedVariable { name: name.to_owned(), value: text.into_owned() });
                given.set(row, value);
            }
            None if known => {}
            None => {
                let value = value.to_string_lossy().into_owned();
                given.notes.push(Note::UnknownVariable { name: name.to_owned(), value });
            }
        }
    }
    Ok(())
}

fn check(row: &Row, value: &OsStr) -> Result<(), String> {
    match value.to_str() {
        // Saying the default is always right, also where it is no value of the type.
        Some(text) if text == row.default => Ok(()),
        Some(text) => value::check(row.type_name, text),
        None if row.name == "data-dir" || row.name == "wal-dir" => Ok(()),
        None => Err("not valid UTF-8".to_owned()),
    }
}

impl Given {
    fn set(&mut self, row: &'static Row, value: OsString) {
        match row.support {
            Support::Ignored => self.notes.push(Note::Ignored { name: row.name }),
            Support::NoEffect if !value::same(row.type_name, &value.to_string_lossy(), row.default) => {
                self.notes.push(Note::NoEffect { name: row.name });
            }
            _ => {}
        }
        self.values.insert(row.name, value);
    }

    /// Refuses what is not there yet, by name.
    pub(super) fn check_supported(&self) -> Result<(), Refusal> {
        for (&name, value) in &self.values {
            let Some(row) = flag(name).filter(|row| row.support == Support::DefaultOnly) else { continue };
            if !value::same(row.type_name, &value.to_string_lossy(), row.default) {
                return Err(Refusal::config(format!(
                    "--{name}={} is not supported yet by this version of Trilith: only the default '{}' is accepted",
                    value.to_string_lossy(),
                    row.default
                )));
            }
        }
        self.check_feature_gates()
    }

    /// Whether a feature gate is open; of several settings the last one counts.
    pub(super) fn gate(&self, name: &str) -> bool {
        let mut settings = self.text("feature-gates").rsplit(',').filter_map(|gate| gate.split_once('='));
        let of_it = settings.find(|(gate, _)| gate.trim() == name);
        of_it.is_some_and(|(_, value)| value::bool_of(value.trim()) == Some(true))
    }

    fn check_feature_gates(&self) -> Result<(), Refusal> {
        for gate in self.text("feature-gates").split(',').map(str::trim).filter(|gate| !gate.is_empty()) {
            let Some((name, text)) = gate.split_once('=') else {
                return Err(Refusal::config(format!("--feature-gates: missing bool value for {gate}")));
            };
            let (name, text) = (name.trim(), text.trim());
            let row = ROWS.iter().find(|row| row.kind == Kind::FeatureGate && row.name == name);
            let Some(row) = row else {
                return Err(Refusal::config(format!("--feature-gates: unrecognized feature gate: {name}")));
            };
            let Some(value) = value::bool_of(text) else {
                return Err(Refusal::config(format!("--feature-gates: invalid value of {name}={text}")));
            };
            if row.support != Support::Works && Some(value) != value::bool_of(row.default) {
                return Err(Refusal::config(format!(
                    "--feature-gates: {name}={value} is not supported yet by this version of Trilith: only the \
                     default {} is accepted",
                    row.default
                )));
            }
        }
        Ok(())
    }
}

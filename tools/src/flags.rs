//! Command line flags in the syntax of etcd's tools: `--flag=value`, `--flag value`, `-f value`, `-fvalue`, flags and
//! arguments in any order, `--` ends the flags, the last of several values wins.
//!
//! A [`Flag`] is a row of a table; [`Flags`] holds the values of the rows that a command has. A value is checked when
//! it is set, so reading one cannot fail. Asking for a flag that the command does not have, or for another kind than
//! the table says, is a mistake of the program and panics: the tests read every row.

use std::time::Duration;

use crate::exit::Failure;
use crate::gotext::{parse_bool, parse_duration, parse_int, quote};

/// What a flag holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Stands alone or with `=true` or `=false`.
    Bool,
    /// A signed number.
    Int,
    /// A number that is not negative.
    Uint,
    /// Any text.
    Text,
    /// Texts separated by commas; given again, it adds.
    List,
    /// A Go duration.
    Duration,
}

/// One row of a flag table.
#[derive(Debug)]
pub(crate) struct Flag {
    pub(crate) name: &'static str,
    pub(crate) short: Option<char>,
    pub(crate) kind: Kind,
    /// As it would be given on the command line.
    pub(crate) default: &'static str,
    pub(crate) help: &'static str,
}

/// A row without a short form.
pub(crate) const fn flag(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Flag {
    Flag { name, short: None, kind, default, help }
}

#[derive(Clone, Debug)]
enum Value {
    Bool(bool),
    Int(i64),
    Text(String),
    List(Vec<String>),
    Duration(Duration),
}

/// The flags of one command, with their values.
#[derive(Debug)]
pub(crate) struct Flags {
    rows: Vec<(&'static Flag, Value, bool)>,
}

/// What stood on the command line beside flags.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Positional {
    pub(crate) args: Vec<Vec<u8>>,
    /// How many of them stood before `--`, when it was there.
    pub(crate) before_dashes: Option<usize>,
}

impl Flags {
    /// All flags of `tables`, at their defaults.
    pub(crate) fn new(tables: &[&'static [Flag]]) -> Flags {
        let rows = tables.iter().copied().flatten();
        let default = |flag: &Flag| {
            read(flag.kind, flag.default).expect("the tables' defaults are valid: a test reads all")
        };
        Flags { rows: rows.map(|flag| (flag, default(flag), false)).collect() }
    }

    /// Sets the flags that stand in `args` and gives back the rest.
    ///
    /// # Errors
    /// Code 1, with the flag's name: it is unknown, its value is missing, or of the wrong kind.
    pub(crate) fn parse(&mut self, args: &[Vec<u8>]) -> Result<Positional, Failure> {
        let mut rest = Positional::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match arg.as_slice() {
                b"--" => {
                    rest.before_dashes = Some(rest.args.len());
                    rest.args.extend(args.cloned());
                    break;
                }
                [b'-', b'-', long @ ..] => self.parse_long(long, &mut args)?,
                [b'-', short @ ..] if !short.is_empty() => self.parse_short(short, &mut args)?,
                _ => rest.args.push(arg.clone()),
            }
        }
        Ok(rest)
    }

    fn parse_long<'a>(
        &mut self,
        text: &[u8],
        args: &mut impl Iterator<Item = &'a Vec<u8>>,
    ) -> Result<(), Failure> {
        let (name, value) = match text.iter().position(|b| *b == b'=') {
            Some(at) => (&text[..at], Some(&text[at + 1..])),
            None => (text, None),
        };
        let Some(at) = self.rows.iter().position(|row| row.0.name.as_bytes() == name) else {
            return Err(Failure::error(format_args!("unknown flag: --{}", String::from_utf8_lossy(name))));
        };
        match (value, self.rows[at].0.kind) {
            (Some(value), _) => self.set_bytes(at, value),
            (None, Kind::Bool) => self.set_bytes(at, b"true"),
            (None, _) => match args.next() {
                Some(value) => self.set_bytes(at, value),
                None => {
                    let name = String::from_utf8_lossy(name);
                    Err(Failure::error(format_args!("flag needs an argument: --{name}")))
                }
            },
        }
    }

    fn parse_short<'a>(
        &mut self,
        text: &[u8],
        args: &mut impl Iterator<Item = &'a Vec<u8>>,
    ) -> Result<(), Failure> {
        for (place, byte) in text.iter().enumerate() {
            let shown = String::from_utf8_lossy(text);
            let letter = char::from(*byte);
            let Some(at) = self.rows.iter().position(|row| row.0.short == Some(letter)) else {
                return Err(Failure::error(format_args!("unknown shorthand flag: '{letter}' in -{shown}")));
            };
            let value = match text[place + 1..].strip_prefix(b"=") {
                Some(value) => value,
                None if self.rows[at].0.kind == Kind::Bool => {
                    self.set_bytes(at, b"true")?;
                    continue;
                }
                None if place + 1 < text.len() => &text[place + 1..],
                None => match args.next() {
                    Some(value) => value,
                    None => {
                        let text = format_args!("flag needs an argument: '{letter}' in -{shown}");
                        return Err(Failure::error(text));
                    }
                },
            };
            return self.set_bytes(at, value);
        }
        Ok(())
    }

    fn set_bytes(&mut self, at: usize, value: &[u8]) -> Result<(), Failure> {
        let flag = self.rows[at].0;
        let outcome = match std::str::from_utf8(value) {
            Ok(text) => self.set(at, text),
            Err(_) => Err("not valid UTF-8".to_owned()),
        };
        outcome.map_err(|reason| {
            let short = flag.short.map(|letter| format!("-{letter}, ")).unwrap_or_default();
            let value = quote(value);
            Failure::error(format_args!(
                "invalid argument {value} for \"{short}--{}\" flag: {reason}",
                flag.name
            ))
        })
    }

    fn set(&mut self, at: usize, text: &str) -> Result<(), String> {
        let (flag, value, changed) = &mut self.rows[at];
        let new = read(flag.kind, text)?;
        match (value, new) {
            (Value::List(old), Value::List(new)) if *changed => old.extend(new),
            (value, new) => *value = new,
        }
        *changed = true;
        Ok(())
    }

    /// Takes from the environment what the command line did not give: `--dial-timeout` from `PREFIX_DIAL_TIMEOUT`.
    ///
    /// # Errors
    /// Code 1: a variable's value is wrong, or the flag was given too.
    pub(crate) fn read_environment(
        &mut self,
        prefix: &str,
        lookup: impl Fn(&str) -> Option<std::ffi::OsString>,
    ) -> Result<(), Failure> {
        for at in 0..self.rows.len() {
            let (flag, _, changed) = &self.rows[at];
            let variable = variable(prefix, flag.name);
            let Some(value) = lookup(&variable).filter(|value| !value.is_empty()) else { continue };
            if *changed {
                return Err(Failure::error(format_args!(
                    "conflicting environment variable {variable:?} is shadowed by corresponding command-line flag \
                     (either unset environment variable or disable flag)"
                )));
            }
            let value = value
                .to_str()
                .ok_or_else(|| Failure::error(format_args!("{variable} is not valid UTF-8")))?;
            self.set(at, value).map_err(|reason| {
                Failure::error(format_args!(
                    "invalid value {} for {variable}: {reason}",
                    quote(value.as_bytes())
                ))
            })?;
        }
        Ok(())
    }

    /// The variables that [`Flags::read_environment`] knows, with the flags' present values, as `--debug` lists them.
    pub(crate) fn listing(&self, prefix: &str) -> Vec<(String, String)> {
        let show = |value: &Value| match value {
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Text(value) => value.clone(),
            Value::List(values) => format!("[{}]", values.join(",")),
            Value::Duration(value) => crate::gotext::duration(*value),
        };
        let mut all: Vec<_> =
            self.rows.iter().map(|(flag, value, _)| (variable(prefix, flag.name), show(value))).collect();
        all.sort();
        all
    }

    fn value(&self, name: &str) -> &Value {
        let row = self.rows.iter().find(|row| row.0.name == name);
        &row.unwrap_or_else(|| panic!("the command has no flag --{name}")).1
    }

    /// Whether the command has the flag.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.rows.iter().any(|row| row.0.name == name)
    }

    /// Whether the flag was given, on the command line or in the environment.
    pub(crate) fn changed(&self, name: &str) -> bool {
        self.rows.iter().any(|row| row.0.name == name && row.2)
    }

    pub(crate) fn bool(&self, name: &str) -> bool {
        match self.value(name) {
            Value::Bool(value) => *value,
            other => panic!("--{name} holds {other:?}, not a boolean"),
        }
    }

    pub(crate) fn int(&self, name: &str) -> i64 {
        match self.value(name) {
            Value::Int(value) => *value,
            other => panic!("--{name} holds {other:?}, not a number"),
        }
    }

    /// A number that is not negative: a negative one counts as zero.
    pub(crate) fn size(&self, name: &str) -> usize {
        usize::try_from(self.int(name)).unwrap_or(0)
    }

    pub(crate) fn text(&self, name: &str) -> &str {
        match self.value(name) {
            Value::Text(value) => value,
            other => panic!("--{name} holds {other:?}, not a text"),
        }
    }

    pub(crate) fn list(&self, name: &str) -> &[String] {
        match self.value(name) {
            Value::List(value) => value,
            other => panic!("--{name} holds {other:?}, not a list"),
        }
    }

    pub(crate) fn duration(&self, name: &str) -> Duration {
        match self.value(name) {
            Value::Duration(value) => *value,
            other => panic!("--{name} holds {other:?}, not a duration"),
        }
    }
}

fn variable(prefix: &str, name: &str) -> String {
    format!("{prefix}_{}", name.to_ascii_uppercase().replace('-', "_"))
}

fn read(kind: Kind, text: &str) -> Result<Value, String> {
    match kind {
        Kind::Bool => parse_bool(text).map(Value::Bool),
        Kind::Int => parse_int(text, 0).map(Value::Int),
        Kind::Uint => {
            let value = parse_int(text, 0).ok().filter(|value| *value >= 0 && !text.starts_with(['-', '+']));
            let wrong = || format!("strconv.ParseUint: parsing {}: invalid syntax", quote(text.as_bytes()));
            value.map(Value::Int).ok_or_else(wrong)
        }
        Kind::Text => Ok(Value::Text(text.to_owned())),
        Kind::List if text.is_empty() => Ok(Value::List(Vec::new())),
        Kind::List => Ok(Value::List(text.split(',').map(|item| item.trim().to_owned()).collect())),
        Kind::Duration => parse_duration(text).map(Value::Duration),
    }
}

/// Where the first argument stands that is neither a flag nor a flag's value. A long flag that is not in `tables` is
/// taken to have a value.
pub(crate) fn first_word(args: &[Vec<u8>], tables: &[&[Flag]]) -> Option<usize> {
    let stands_alone = |name: &[u8]| {
        let boolean = |flag: &&Flag| flag.kind == Kind::Bool;
        tables.iter().copied().flatten().filter(boolean).any(|flag| match name {
            [b'-', b'-', long @ ..] => flag.name.as_bytes() == long,
            [b'-', short] => flag.short == Some(char::from(*short)),
            _ => false,
        })
    };
    let mut at = 0;
    while let Some(arg) = args.get(at) {
        match arg.as_slice() {
            b"--" => return None,
            [b'-', _, ..] => {
                let long = arg.starts_with(b"--");
                let takes_next = !arg.contains(&b'=') && (long || arg.len() == 2) && !stands_alone(arg);
                at += 1 + usize::from(takes_next);
            }
            _ => return Some(at),
        }
    }
    None
}

/// How a help text lists `flags`: one line each, the help texts in one column.
pub(crate) fn describe(flags: &[Flag]) -> String {
    let shown = |flag: &Flag| {
        let short = flag.short.map_or("    ".to_owned(), |letter| format!("-{letter}, "));
        let default = match flag.kind {
            Kind::Bool => format!("[={}]", flag.default),
            Kind::Text => format!("=\"{}\"", flag.default),
            Kind::List => format!("=[{}]", flag.default),
            _ => format!("={}", flag.default),
        };
        format!("  {short}--{}{default}", flag.name)
    };
    let mut lines: Vec<_> = flags.iter().map(|flag| (flag.name, shown(flag), flag.help)).collect();
    lines.sort_unstable();
    let width = lines.iter().map(|line| line.1.len()).max().unwrap_or(0);
    lines.iter().map(|(_, left, help)| format!("{left:width$}  {help}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    static TABLE: &[Flag] = &[
        flag("prefix", Kind::Bool, "false", ""),
        flag("limit", Kind::Int, "0", ""),
        flag("conns", Kind::Uint, "1", ""),
        flag("endpoints", Kind::List, "a,b", ""),
        flag("timeout", Kind::Duration, "5s", ""),
        Flag { name: "write-out", short: Some('w'), kind: Kind::Text, default: "simple", help: "" },
        Flag { name: "interactive", short: Some('i'), kind: Kind::Bool, default: "false", help: "" },
    ];

    fn parse(args: &[&str]) -> (Flags, Result<Positional, Failure>) {
        let mut flags = Flags::new(&[TABLE]);
        let args: Vec<Vec<u8>> = args.iter().map(|arg| arg.as_bytes().to_vec()).collect();
        let rest = flags.parse(&args);
        (flags, rest)
    }

    fn texts(args: &[&str]) -> Vec<Vec<u8>> {
        args.iter().map(|arg| arg.as_bytes().to_vec()).collect()
    }

    #[test]
    fn flags_and_arguments_come_in_any_order() {
        let (flags, rest) = parse(&[
            "k",
            "--prefix",
            "--limit",
            "-3",
            "e",
            "-w=json",
            "--limit=4",
            "-",
            "--",
            "--prefix=false",
        ]);
        let wanted = Positional { args: texts(&["k", "e", "-", "--prefix=false"]), before_dashes: Some(3) };
        assert_eq!(rest, Ok(wanted));
        assert!(flags.bool("prefix") && flags.changed("prefix") && !flags.changed("timeout"));
        assert_eq!((flags.int("limit"), flags.text("write-out")), (4, "json"));
        assert_eq!(
            (flags.list("endpoints"), flags.duration("timeout")),
            (&["a".to_owned(), "b".into()][..], Duration::from_secs(5))
        );
        for short in [&["-iwjson"][..], &["-i", "-w", "json"], &["-i=true", "-w=json"]] {
            let (flags, rest) = parse(short);
            assert_eq!(
                (rest, flags.bool("interactive"), flags.text("write-out")),
                (Ok(Positional::default()), true, "json")
            );
        }
        let (flags, _) = parse(&["--endpoints=x,y", "--endpoints", "z", "--prefix=F"]);
        assert_eq!(flags.list("endpoints").join(" "), "x y z");
        assert!(!flags.bool("prefix"));
    }

    #[test]
    fn what_is_wrong_with_a_flag_is_said_in_etcds_words() {
        for (args, text) in [
            (&["--bogus"][..], "unknown flag: --bogus"),
            (&["a", "--limit"], "flag needs an argument: --limit"),
            (
                &["--limit=x"],
                r#"invalid argument "x" for "--limit" flag: strconv.ParseInt: parsing "x": invalid syntax"#,
            ),
            (
                &["--conns=-1"],
                r#"invalid argument "-1" for "--conns" flag: strconv.ParseUint: parsing "-1": invalid syntax"#,
            ),
            (
                &["--timeout=5"],
                r#"invalid argument "5" for "--timeout" flag: time: missing unit in duration "5""#,
            ),
            (
                &["-i=x"],
                r#"invalid argument "x" for "-i, --interactive" flag: strconv.ParseBool: parsing "x": invalid syntax"#,
            ),
            (&["-iw"], "flag needs an argument: 'w' in -iw"),
            (&["-x"], "unknown shorthand flag: 'x' in -x"),
        ] {
            assert_eq!(parse(args).1, Err(Failure::error(text)));
        }
    }

    #[test]
    fn the_environment_gives_what_the_command_line_did_not() {
        let lookup = |name: &str| match name {
            "T_WRITE_OUT" => Some("json".into()),
            "T_LIMIT" => Some("".into()),
            "T_ENDPOINTS" => Some("e".into()),
            _ => None,
        };
        let mut flags = Flags::new(&[TABLE]);
        assert_eq!(flags.read_environment("T", lookup), Ok(()));
        assert_eq!(
            (flags.text("write-out"), flags.int("limit"), flags.list("endpoints").join(" ").as_str()),
            ("json", 0, "e")
        );
        let (mut flags, _) = parse(&["-w", "fields"]);
        let failure = flags.read_environment("T", lookup).unwrap_err();
        assert!(
            failure.text.starts_with("conflicting environment variable \"T_WRITE_OUT\" is shadowed"),
            "{failure:?}"
        );
        let failure = Flags::new(&[TABLE])
            .read_environment("T", |name| (name == "T_LIMIT").then(|| "x".into()))
            .unwrap_err();
        assert_eq!(
            failure.text,
            r#"invalid value "x" for T_LIMIT: strconv.ParseInt: parsing "x": invalid syntax"#
        );
    }
}

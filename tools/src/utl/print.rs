//! The output formats of `etcdutl`, byte for byte.

use crate::exit::Failure;
use crate::gojson::object;
use crate::print::draw;
use crate::terminal::say;

/// A number or a text of an answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    Number(i64),
    Text(&'a str),
}

/// A part of an answer, by the names that the formats give it, and how people read it.
#[derive(Debug)]
pub(super) struct Part<'a> {
    pub(super) title: &'static str,
    pub(super) field: &'static str,
    pub(super) json: &'static str,
    pub(super) value: Value<'a>,
    /// In the simple format and in tables.
    pub(super) shown: String,
}

#[derive(Clone, Copy, Debug)]
enum Format {
    Simple,
    Json,
    Fields,
    Table,
}

/// Writes answers in one format.
#[derive(Clone, Copy, Debug)]
pub(super) struct Printer(Format);

impl Printer {
    /// # Errors
    /// Code 4: no such format, or one that these answers do not have.
    pub(super) fn new(format: &str) -> Result<Printer, Failure> {
        Ok(Printer(match format {
            "simple" => Format::Simple,
            "json" => Format::Json,
            "fields" => Format::Fields,
            "table" => Format::Table,
            "protobuf" => return Err(Failure::bad_feature("protobuf not supported as output format")),
            _ => return Err(Failure::bad_feature("unsupported output format")),
        }))
    }

    pub(super) fn print(self, parts: &[Part<'_>]) -> Result<(), Failure> {
        say(self.render(parts).as_bytes())
    }

    fn render(self, parts: &[Part<'_>]) -> String {
        let shown = || parts.iter().map(|part| part.shown.clone()).collect::<Vec<_>>();
        let mut out = String::new();
        match self.0 {
            Format::Simple => out = shown().join(", ") + "\n",
            Format::Table => {
                let titles: Vec<_> = parts.iter().map(|part| part.title).collect();
                out = draw(&titles, &[shown()]);
            }
            Format::Json => {
                object(&mut out, |line| {
                    for part in parts {
                        match part.value {
                            Value::Number(number) => line.plain(part.json, number),
                            Value::Text(text) => line.text(part.json, text),
                        }
                    }
                });
                out.push('\n');
            }
            Format::Fields => {
                for part in parts {
                    match part.value {
                        Value::Number(number) => out += &format!("\"{}\" : {number}\n", part.field),
                        Value::Text(text) => out += &format!("\"{}\" : {text}\n", part.field),
                    }
                }
            }
        }
        out
    }
}

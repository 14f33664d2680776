//! JSON as Go's `encoding/json` writes it: members in the order given, plain integers, base64 bytes, and `<`, `>`, `&`
//! escaped in strings.

use std::fmt::{Display, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A JSON object under construction. A `*_set` function leaves out a member that has Go's zero value (`omitempty`); the
/// others write every member.
pub(crate) struct Object<'a> {
    out: &'a mut String,
    first: bool,
}

/// Writes one object; `fill` adds its members.
pub(crate) fn object(out: &mut String, fill: impl FnOnce(&mut Object<'_>)) {
    out.push('{');
    fill(&mut Object { out, first: true });
    out.push('}');
}

/// Writes one array of `items`, each written by `each`.
pub(crate) fn array<T>(
    out: &mut String,
    items: impl IntoIterator<Item = T>,
    mut each: impl FnMut(&mut String, T),
) {
    out.push('[');
    for (at, item) in items.into_iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        each(out, item);
    }
    out.push(']');
}

impl Object<'_> {
    /// Writes the name; the value must follow.
    pub(crate) fn name(&mut self, name: &str) -> &mut String {
        if !self.first {
            self.out.push(',');
        }
        self.first = false;
        string(self.out, name);
        self.out.push(':');
        self.out
    }

    /// A number or a boolean, zero or not.
    pub(crate) fn plain(&mut self, name: &str, value: impl Display) {
        let _ = write!(self.name(name), "{value}");
    }

    /// A number or a boolean, unless it is the zero of its type.
    pub(crate) fn plain_set<T: Display + Default + PartialEq>(&mut self, name: &str, value: T) {
        if value != T::default() {
            self.plain(name, value);
        }
    }

    /// A string, empty or not.
    pub(crate) fn text(&mut self, name: &str, value: &str) {
        string(self.name(name), value);
    }

    /// A string, unless it is empty.
    pub(crate) fn text_set(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.text(name, value);
        }
    }

    /// Bytes in base64, unless there are none.
    pub(crate) fn bytes_set(&mut self, name: &str, value: &[u8]) {
        if !value.is_empty() {
            bytes(self.name(name), value);
        }
    }

    /// An array of strings, unless it is empty.
    pub(crate) fn texts_set(&mut self, name: &str, values: &[String]) {
        if !values.is_empty() {
            array(self.name(name), values, |out, value| string(out, value));
        }
    }
}

/// Bytes as a base64 string.
pub(crate) fn bytes(out: &mut String, value: &[u8]) {
    out.push('"');
    STANDARD.encode_string(value, out);
    out.push('"');
}

fn string(out: &mut String, value: &str) {
    out.push('"');
    for c in value.chars() {
        let _ = match c {
            '"' => out.write_str("\\\""),
            '\\' => out.write_str("\\\\"),
            '\n' => out.write_str("\\n"),
            '\r' => out.write_str("\\r"),
            '\t' => out.write_str("\\t"),
            '\u{8}' => out.write_str("\\b"),
            '\u{c}' => out.write_str("\\f"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
                write!(out, "\\u{:04x}", u32::from(c))
            }
            c => out.write_char(c),
        };
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_escaped_as_go_escapes_them() {
        let mut out = String::new();
        string(&mut out, "a\"\\\n\r\t\u{8}\u{c}\u{1}<b>&\u{2028}ä😀\u{7f}");
        assert_eq!(out, "\"a\\\"\\\\\\n\\r\\t\\b\\f\\u0001\\u003cb\\u003e\\u0026\\u2028ä😀\u{7f}\"");
    }

    #[test]
    fn zero_values_are_left_out_where_go_leaves_them_out() {
        let mut out = String::new();
        object(&mut out, |o| {
            o.plain_set("a", 0u64);
            o.plain_set("b", false);
            o.text_set("c", "");
            o.bytes_set("d", b"");
            o.texts_set("e", &[]);
            o.plain("f", 0);
            o.text("g", "");
            o.plain_set("h", -1i64);
            o.bytes_set("i", b"foo");
            o.texts_set("j", &["x".into(), "y".into()]);
        });
        assert_eq!(out, r#"{"f":0,"g":"","h":-1,"i":"Zm9v","j":["x","y"]}"#);
    }
}

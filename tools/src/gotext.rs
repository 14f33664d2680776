//! Numbers, durations and quoted strings as Go writes and reads them: etcd's outputs and inputs are in Go's text.
//!
//! Every function here is pure. A reader either takes all of its text or names what is wrong with it in Go's words.

use std::fmt::Write;
use std::time::Duration;

const NANOS: [(&str, f64); 7] =
    [("ns", 1.0), ("us", 1e3), ("\u{b5}s", 1e3), ("\u{3bc}s", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9)];
const HOUR: f64 = 3600e9;

/// A string in double quotes, escaped as Go's `%q` does: printable characters stay, bytes that are no UTF-8 become `\xNN`.
pub(crate) fn quote(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + 2);
    out.push('"');
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            quote_char(&mut out, c);
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out.push('"');
    out
}

fn quote_char(out: &mut String, c: char) {
    let short = match c {
        '"' => "\\\"",
        '\\' => "\\\\",
        '\u{7}' => "\\a",
        '\u{8}' => "\\b",
        '\u{c}' => "\\f",
        '\n' => "\\n",
        '\r' => "\\r",
        '\t' => "\\t",
        '\u{b}' => "\\v",
        _ => "",
    };
    let code = u32::from(c);
    let _ = match () {
        () if !short.is_empty() => out.write_str(short),
        () if printable(c) => out.write_char(c),
        () if code < 0x20 || code == 0x7f => write!(out, "\\x{code:02x}"),
        () if code < 0x1_0000 => write!(out, "\\u{code:04x}"),
        () => write!(out, "\\U{code:08x}"),
    };
}

/// Letters, marks, numbers, punctuation, symbols and the ASCII space.
fn printable(c: char) -> bool {
    // After another character, `escape_debug` leaves exactly the printable ones alone.
    let text: String = ['a', c].iter().collect();
    c == '\'' || text.escape_debug().eq(text.chars())
}

/// Reads one Go string literal, double quoted or in backquotes, at the start of `text`. Gives its value and its length.
pub(crate) fn unquote_prefix(text: &[u8]) -> Option<(Vec<u8>, usize)> {
    match text.first()? {
        b'`' => {
            let end = text[1..].iter().position(|b| *b == b'`')?;
            Some((text[1..=end].to_vec(), end + 2))
        }
        b'"' => {
            let mut out = Vec::new();
            let mut at = 1;
            loop {
                match *text.get(at)? {
                    b'"' => return Some((out, at + 1)),
                    b'\n' => return None,
                    b'\\' => at = unescape(text, at + 1, &mut out)?,
                    byte => {
                        out.push(byte);
                        at += 1;
                    }
                }
            }
        }
        _ => None,
    }
}

/// One escape whose letter stands at `at`; gives the place after it.
fn unescape(text: &[u8], at: usize, out: &mut Vec<u8>) -> Option<usize> {
    let (digits, radix) = match *text.get(at)? {
        b'a' => return push(out, 7, at),
        b'b' => return push(out, 8, at),
        b'f' => return push(out, 12, at),
        b'n' => return push(out, b'\n', at),
        b'r' => return push(out, b'\r', at),
        b't' => return push(out, b'\t', at),
        b'v' => return push(out, 11, at),
        byte @ (b'\\' | b'"') => return push(out, byte, at),
        b'x' => (at + 1..at + 3, 16),
        b'u' => (at + 1..at + 5, 16),
        b'U' => (at + 1..at + 9, 16),
        b'0'..=b'7' => (at..at + 3, 8),
        _ => return None,
    };
    let end = digits.end;
    let wide = matches!(text[at], b'u' | b'U');
    let mut code = 0u32;
    for digit in text.get(digits)? {
        code = code * radix + char::from(*digit).to_digit(radix)?;
    }
    if wide {
        out.extend_from_slice(char::from_u32(code)?.encode_utf8(&mut [0; 4]).as_bytes());
    } else {
        out.push(u8::try_from(code).ok()?);
    }
    Some(end)
}

fn push(out: &mut Vec<u8>, byte: u8, at: usize) -> Option<usize> {
    out.push(byte);
    Some(at + 1)
}

/// A signed number in `radix`; radix 0 takes Go's prefixes `0x`, `0o`, `0b` and a leading zero.
///
/// # Errors
/// Go's words for what is wrong with the text.
pub(crate) fn parse_int(text: &str, radix: u32) -> Result<i64, String> {
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let (digits, radix) = if radix == 0 { radix_of(digits) } else { (digits, radix) };
    let fail = |what: &str| format!("strconv.ParseInt: parsing {}: {what}", quote(text.as_bytes()));
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(fail("invalid syntax"));
    }
    let magnitude = i128::from_str_radix(digits, radix).unwrap_or(i128::MAX);
    i64::try_from(if negative { -magnitude } else { magnitude }).map_err(|_| fail("value out of range"))
}

/// A hexadecimal number of 64 bits without a sign.
///
/// # Errors
/// Go's words for what is wrong with the text.
pub(crate) fn parse_hex(text: &str) -> Result<u64, String> {
    let fail = |what: &str| format!("strconv.ParseUint: parsing {}: {what}", quote(text.as_bytes()));
    if text.is_empty() || !text.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(fail("invalid syntax"));
    }
    u64::from_str_radix(text, 16).map_err(|_| fail("value out of range"))
}

fn radix_of(digits: &str) -> (&str, u32) {
    let lower = digits.to_ascii_lowercase();
    match lower.as_bytes() {
        [b'0', b'x', ..] => (&digits[2..], 16),
        [b'0', b'o', ..] => (&digits[2..], 8),
        [b'0', b'b', ..] => (&digits[2..], 2),
        [b'0', _, ..] => (&digits[1..], 8),
        _ => (digits, 10),
    }
}

/// Go's `true` and `false` in their twelve spellings.
pub(crate) fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("strconv.ParseBool: parsing {}: invalid syntax", quote(text.as_bytes()))),
    }
}

/// A duration such as `5s`, `1m30s` or `100ms`. A negative one is taken as zero: no flag has a use for it.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let fail = |what: &str| format!("time: {what} {}", quote(text.as_bytes()));
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(fail("invalid duration"));
    }
    let mut nanos = 0f64;
    while !rest.is_empty() {
        let length = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..length].parse().map_err(|_| fail("invalid duration"))?;
        rest = &rest[length..];
        let length = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = &rest[..length];
        rest = &rest[length..];
        let scale = match NANOS.iter().find(|(name, _)| *name == unit) {
            Some((_, scale)) => *scale,
            None if unit == "h" => HOUR,
            None if unit.is_empty() => return Err(fail("missing unit in duration")),
            None => {
                let unit = quote(unit.as_bytes());
                return Err(format!("time: unknown unit {unit} in duration {}", quote(text.as_bytes())));
            }
        };
        nanos += number * scale;
    }
    if nanos > i64::MAX as f64 {
        return Err(fail("invalid duration"));
    }
    Ok(Duration::from_nanos(if negative { 0 } else { nanos.round() as u64 }))
}

/// A duration as Go prints it: `1.374282ms`, `2s`, `1m30s`.
pub(crate) fn duration(time: Duration) -> String {
    let nanos = time.as_nanos();
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{}\u{b5}s", decimal(nanos, 1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", decimal(nanos, 1_000_000)),
        _ => {
            let minutes = nanos / 60_000_000_000;
            let seconds = decimal(nanos % 60_000_000_000, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

/// `value / unit` without trailing zeros.
fn decimal(value: u128, unit: u128) -> String {
    let digits = unit.ilog10() as usize;
    let text = format!("{}.{:0digits$}", value / unit, value % unit);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Bytes for people, in powers of 1000: `20 kB`, `1.7 MB`.
pub(crate) fn human_bytes(size: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if size < 10 {
        return format!("{size} B");
    }
    let power = (size as f64).log(1000.0).floor();
    let value = (size as f64 / 1000f64.powf(power) * 10.0 + 0.5).floor() / 10.0;
    let unit = UNITS[(power as usize).min(UNITS.len() - 1)];
    if value < 10.0 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_quoted_as_go_quotes_them() {
        for (given, wanted) in [
            (&b"foo"[..], r#""foo""#),
            (b"a\"b\\c'd", r#""a\"b\\c'd""#),
            (b"\n\t\x00\x7f\x1b\x07", r#""\n\t\x00\x7f\x1b\a""#),
            (b"\xff\xfe", r#""\xff\xfe""#),
            ("ä€😀\u{301}".as_bytes(), "\"ä€😀\u{301}\""),
            ("\u{a0}\u{ad}\u{2028}\u{e000}".as_bytes(), r#""\u00a0\u00ad\u2028\ue000""#),
            ("\u{10ffff}".as_bytes(), r#""\U0010ffff""#),
        ] {
            assert_eq!(quote(given), wanted);
            assert_eq!(unquote_prefix(wanted.as_bytes()), Some((given.to_vec(), wanted.len())));
        }
    }

    #[test]
    fn literals_are_read_up_to_their_end() {
        assert_eq!(unquote_prefix(b"`a\\n`) x"), Some((b"a\\n".to_vec(), 5)));
        assert_eq!(unquote_prefix(br#""\101\x42\u00e4" rest"#), Some(("ABä".as_bytes().to_vec(), 16)));
        for bad in [&b"foo"[..], b"\"foo", b"`foo", br#""\q""#, br#""\x4""#, br#""\ud800""#, b"\"a\nb\"", b""]
        {
            assert_eq!(unquote_prefix(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn numbers_and_their_errors_are_gos() {
        assert_eq!(parse_int("-12", 10), Ok(-12));
        assert_eq!(parse_int("7fffffffffffffff", 16), Ok(i64::MAX));
        assert_eq!(parse_int("-9223372036854775808", 10), Ok(i64::MIN));
        assert_eq!(parse_int("0x10", 0), Ok(16));
        assert_eq!(parse_int("010", 0), Ok(8));
        assert_eq!(parse_int("0", 0), Ok(0));
        assert_eq!(parse_int("zz", 16), Err(r#"strconv.ParseInt: parsing "zz": invalid syntax"#.into()));
        assert_eq!(parse_int("", 10), Err(r#"strconv.ParseInt: parsing "": invalid syntax"#.into()));
        assert_eq!(parse_int("+-1", 10), Err(r#"strconv.ParseInt: parsing "+-1": invalid syntax"#.into()));
        let wide = "9223372036854775808";
        assert_eq!(
            parse_int(wide, 10),
            Err(format!("strconv.ParseInt: parsing \"{wide}\": value out of range"))
        );
    }

    #[test]
    fn durations_are_gos() {
        for (text, nanos) in
            [("5s", 5e9), ("1m30s", 90e9), ("1.5h", 5400e9), ("100ms", 1e8), ("7us", 7e3), ("0", 0.0)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_nanos(nanos as u64)), "{text}");
        }
        assert_eq!(parse_duration("5"), Err("time: missing unit in duration \"5\"".into()));
        assert_eq!(parse_duration("x"), Err("time: invalid duration \"x\"".into()));
        assert_eq!(parse_duration("5q"), Err("time: unknown unit \"q\" in duration \"5q\"".into()));
        for (nanos, text) in [
            (0, "0s"),
            (999, "999ns"),
            (855_331, "855.331µs"),
            (1_374_282, "1.374282ms"),
            (2_000_000_000, "2s"),
            (90_500_000_000, "1m30.5s"),
            (3_600_000_000_000, "1h0m0s"),
        ] {
            assert_eq!(duration(Duration::from_nanos(nanos)), text);
        }
    }

    #[test]
    fn sizes_are_for_people() {
        for (size, text) in [
            (0, "0 B"),
            (9, "9 B"),
            (82, "82 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (20_480, "20 kB"),
            (1_700_000, "1.7 MB"),
            (2_147_483_648, "2.1 GB"),
            (8_589_934_592, "8.6 GB"),
        ] {
            assert_eq!(human_bytes(size), text);
        }
    }
}

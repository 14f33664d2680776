//! Values as Go's flag package reads them.

use std::time::Duration;

/// Checks a value's text against a type name of the table; the texts of the errors are Go's.
pub(super) fn check(type_name: &str, text: &str) -> Result<(), String> {
    let parse_error = || Err("parse error".to_owned());
    match type_name {
        "bool" if bool_of(text).is_none() => parse_error(),
        "uint" | "uint64" if uint_of(text).is_none() => parse_error(),
        "size" if size_of(text).is_none() => parse_error(),
        "uint32" => match uint_of(text) {
            None => parse_error(),
            Some(n) if n > u64::from(u32::MAX) => Err("value out of range".to_owned()),
            Some(_) => Ok(()),
        },
        "int" | "int64" if int_of(text).is_none() => parse_error(),
        "duration" if duration_of(text).is_none() => parse_error(),
        "url-list" if text == "*" => Ok(()),
        "url-list" => super::url::parse_list(text).map(|_| ()),
        _ => match type_name.strip_prefix("enum(").and_then(|rest| rest.strip_suffix(')')) {
            Some(choices) if !choices.split('|').any(|choice| choice == text) => {
                Err("invalid value".to_owned())
            }
            _ => Ok(()),
        },
    }
}

/// Whether two texts of a type stand for the same value.
pub(super) fn same(type_name: &str, a: &str, b: &str) -> bool {
    match type_name {
        "bool" => bool_of(a) == bool_of(b),
        "uint" | "uint32" | "uint64" => uint_of(a) == uint_of(b),
        "int" | "int64" => int_of(a) == int_of(b),
        "duration" => duration_of(a) == duration_of(b),
        "size" => size_of(a) == size_of(b),
        _ => a == b,
    }
}

pub(super) fn bool_of(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Decimal, or with a 0x, 0o, 0b or 0 prefix; underscores between digits.
pub(super) fn uint_of(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let (digits, radix) = match lower.strip_prefix('0') {
        Some(rest) => match rest.as_bytes().first() {
            None => return Some(0),
            Some(b'x') => (&rest[1..], 16),
            Some(b'o') => (&rest[1..], 8),
            Some(b'b') => (&rest[1..], 2),
            Some(_) => (rest, 8),
        },
        None => (&lower[..], 10),
    };
    if digits.starts_with('+') || digits.ends_with('_') || digits.contains("__") {
        return None;
    }
    u64::from_str_radix(&digits.replace('_', ""), radix).ok()
}

/// Bytes: a number, or one of KiB, MiB, GiB. (Go's flags have no such type; our own have.)
pub(super) fn size_of(text: &str) -> Option<u64> {
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
    let unit = units.into_iter().find_map(|(name, bytes)| Some((text.strip_suffix(name)?, bytes)));
    let (number, bytes) = unit.unwrap_or((text, 1));
    uint_of(number)?.checked_mul(bytes)
}

pub(super) fn int_of(text: &str) -> Option<i64> {
    match text.strip_prefix('-') {
        Some(rest) => 0i64.checked_sub_unsigned(uint_of(rest)?),
        None => i64::try_from(uint_of(text.strip_prefix('+').unwrap_or(text))?).ok(),
    }
}

/// Go's duration text, such as `1h15m0.5s`; a negative one has no use here and counts as malformed.
pub(super) fn duration_of(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut nanos: u128 = 0;
    let mut any = false;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (digits, after) = rest.split_at(number);
        let unit_len = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_len);
        nanos = nanos.checked_add(scaled(digits, unit_nanos(unit)?)?)?;
        any = true;
        rest = after;
    }
    // Go's durations are 64 bits of nanoseconds.
    let nanos = u64::try_from(nanos).ok().filter(|&nanos| nanos <= i64::MAX as u64)?;
    any.then_some(Duration::from_nanos(nanos))
}

fn unit_nanos(unit: &str) -> Option<u128> {
    Some(match unit {
        "ns" => 1,
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60 * 1_000_000_000,
        "h" => 3600 * 1_000_000_000,
        _ => return None,
    })
}

/// A decimal number times a unit, cut to whole nanoseconds.
fn scaled(digits: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if (whole.is_empty() && fraction.is_empty()) || whole.len() > 19 || fraction.contains('.') {
        return None;
    }
    let parse = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u128>().ok() };
    let fraction = &fraction[..fraction.len().min(18)];
    Some(
        parse(whole)?.checked_mul(unit)?
            + parse(fraction)?.checked_mul(unit)? / 10u128.pow(fraction.len() as u32),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (text, n) in [("0", 0), ("10", 10), ("0x10", 16), ("010", 8), ("0b11", 3), ("1_000", 1000)] {
            assert_eq!(uint_of(text), Some(n), "{text}");
        }
        for bad in ["", "-1", "+1", "1.5", "ten", "08", "1__0", "18446744073709551616"] {
            assert_eq!(uint_of(bad), None, "{bad}");
        }
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("7KiB", 7168), ("512MiB", 512 << 20), ("3GiB", 3 << 30)]
        {
            assert_eq!(size_of(text), Some(bytes), "{text}");
        }
        for bad in ["MiB", "1.5GiB", "1 MiB", "1MB", "1kib", "-1KiB", "17179869184GiB"] {
            assert_eq!(size_of(bad), None, "{bad}");
        }
        assert_eq!(int_of("-9223372036854775808"), Some(i64::MIN));
        assert_eq!(int_of("9223372036854775808"), None);
    }

    #[test]
    fn durations() {
        for (text, nanos) in [
            ("0", 0),
            ("0s", 0),
            ("1us", 1_000),
            ("100ms", 100_000_000),
            ("1h0m0s", 3_600_000_000_000),
            ("1.5s", 1_500_000_000),
            (".5m", 30_000_000_000),
            ("2h45m0.25s", 9_900_250_000_000),
        ] {
            assert_eq!(duration_of(text), Some(Duration::from_nanos(nanos)), "{text}");
        }
        for bad in ["", "5", "s", "5x", "1.2.3s", ".s", "-1s", "1 s", "9999999999h"] {
            assert_eq!(duration_of(bad), None, "{bad}");
        }
    }
}

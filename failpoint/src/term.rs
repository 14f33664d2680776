//! Terms: what a point does, as `2*sleep(50)->10%return("text")`.

use std::time::Duration;

/// What a point does.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    Off,
    Panic(String),
    Sleep(Duration),
    Return(String),
    Print,
}

/// When a link of the chain acts.
#[derive(Debug, Clone, PartialEq)]
enum When {
    Always,
    /// So many times more.
    Times(u64),
    /// In so many of a million cases.
    Millionths(u64),
}

#[derive(Debug, Clone, PartialEq)]
struct Link {
    when: When,
    action: Action,
}

/// A chain: the first link that has something left acts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Terms {
    links: Vec<Link>,
    /// As it was given.
    pub(crate) text: String,
}

impl Terms {
    /// Reads a chain; `Err` has what cannot be read.
    pub(crate) fn parse(text: &str) -> Result<Terms, String> {
        let mut links = Vec::new();
        let mut rest = text.trim();
        loop {
            let (link, after) = link(rest).ok_or_else(|| format!("failpoint: could not parse {rest:?}"))?;
            links.push(link);
            match after.strip_prefix("->") {
                Some(next) => rest = next,
                None if after.is_empty() => break,
                None => return Err(format!("failpoint: could not parse {after:?}")),
            }
        }
        Ok(Terms { links, text: text.trim().to_owned() })
    }

    /// The next action. `random` is below a million, drawn anew for each call.
    pub(crate) fn next(&mut self, random: u64) -> Action {
        for link in &mut self.links {
            match &mut link.when {
                When::Times(0) => {}
                When::Times(left) => {
                    *left -= 1;
                    return link.action.clone();
                }
                When::Millionths(share) if random >= *share => {}
                When::Always | When::Millionths(_) => return link.action.clone(),
            }
        }
        Action::Off
    }
}

/// A link, and what stands behind it.
fn link(text: &str) -> Option<(Link, &str)> {
    let (when, rest) = match text.find(|c: char| !c.is_ascii_digit() && c != '.') {
        Some(at) if at > 0 => {
            let (number, rest) = text.split_at(at);
            match rest.split_at_checked(1)? {
                ("*", rest) => (When::Times(number.parse().ok()?), rest),
                ("%", rest) => {
                    let percent: f64 = number.parse().ok()?;
                    (When::Millionths((percent.clamp(0.0, 100.0) * 10_000.0) as u64), rest)
                }
                _ => return None,
            }
        }
        _ => (When::Always, text),
    };
    let word = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
    let (word, rest) = rest.split_at(word);
    let (argument, rest) = match rest.strip_prefix('(') {
        Some(rest) => {
            let (argument, rest) = argument(rest)?;
            (Some(argument), rest)
        }
        None => (None, rest),
    };
    let action = match (word, argument) {
        ("off", None) => Action::Off,
        ("print", None) => Action::Print,
        ("panic", argument) => Action::Panic(argument.unwrap_or_default()),
        ("return", argument) => Action::Return(argument.unwrap_or_default()),
        ("sleep", Some(argument)) => Action::Sleep(duration(&argument)?),
        _ => return None,
    };
    Some((Link { when, action }, rest))
}

/// A text in quotes, or anything without them, up to the closing bracket; and what stands behind that.
fn argument(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (argument, rest) = text.split_once(')')?;
        return Some((argument.trim().to_owned(), rest));
    };
    let mut argument = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((argument, quoted[at + 1..].strip_prefix(')')?)),
            '\\' => argument.push(characters.next()?.1),
            c => argument.push(c),
        }
    }
    None
}

/// Milliseconds, or Go's text of one or more numbers with units.
fn duration(text: &str) -> Option<Duration> {
    if let Ok(ms) = text.parse() {
        return Some(Duration::from_millis(ms));
    }
    let mut sum = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let seconds = match &after[..end] {
            "ns" => 1e-9,
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let time = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        sum = sum.checked_add(time)?;
        rest = &after[end..];
    }
    (!text.is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actions(text: &str, count: usize) -> Vec<Action> {
        let mut terms = Terms::parse(text).unwrap();
        (0..count).map(|_| terms.next(500_000)).collect()
    }

    #[test]
    fn terms_do_what_they_say() {
        let sleep = |ms| Action::Sleep(Duration::from_millis(ms));
        let text = |text: &str| Action::Return(text.to_owned());
        assert_eq!(actions("sleep(50)", 2), [sleep(50), sleep(50)]);
        assert_eq!(actions("sleep(\"1s200ms\")", 1), [sleep(1200)]);
        assert_eq!(actions("2*print->off", 3), [Action::Print, Action::Print, Action::Off]);
        assert_eq!(actions("1*return(\"a)->b\")->1*return(x)", 3), [text("a)->b"), text("x"), Action::Off]);
        assert_eq!(actions("50.1%return->panic(\"p\")", 1), [text("")]);
        assert_eq!(actions("50%return->panic(\"p\\\"\")", 1), [Action::Panic("p\"".to_owned())]);
        assert_eq!(actions("panic", 1), [Action::Panic(String::new())]);
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "",
            "x",
            "sleep",
            "sleep(x)",
            "sleep(\"\")",
            "2*",
            "2print",
            "off->",
            "print(",
            "return(\"a",
            "off x",
            "%off",
        ] {
            assert!(Terms::parse(bad).is_err(), "{bad}");
        }
    }
}

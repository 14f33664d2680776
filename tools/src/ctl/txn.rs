//! `txn`: conditions and two lists of requests from standard input, each list ended by an empty line.

use std::io::BufRead;

use trilith_proto::etcdserverpb as pb;
use trilith_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use trilith_proto::etcdserverpb::request_op::Request;

use super::{Session, kv, table};
use crate::exit::Failure;
use crate::flags::Flags;
use crate::gotext::{parse_int, quote, unquote_prefix};
use crate::print::Answer;
use crate::terminal::say;

pub(super) async fn txn(session: &Session) -> Result<(), Failure> {
    if !session.args().is_empty() {
        return Err(Failure::bad_args("txn command does not accept argument"));
    }
    let interactive = session.flags.bool("interactive");
    let prompt = |text: &str| if interactive { say(format!("{text}\n").as_bytes()) } else { Ok(()) };
    let request = read_request(&mut std::io::stdin().lock(), prompt)?;
    // The reading took its own time: the command's begins here.
    let client = session.config.connect(session.config.deadline()).await?;
    client.check_size(&request)?;
    let answer = client.call(client.kv().txn(request)).await.map_err(Failure::error)?;
    session.print(&Answer::Txn(&answer))
}

fn read_request(
    input: &mut impl BufRead,
    prompt: impl Fn(&str) -> Result<(), Failure>,
) -> Result<pb::TxnRequest, Failure> {
    prompt("compares:")?;
    let compare = read_list(input, |line| compare(line).map_err(Failure::invalid_input))?;
    prompt("success requests (get, put, del):")?;
    let success = read_list(input, operation)?;
    prompt("failure requests (get, put, del):")?;
    let failure = read_list(input, operation)?;
    Ok(pb::TxnRequest { compare, success, failure })
}

/// Reads lines up to an empty one.
fn read_list<T>(
    input: &mut impl BufRead,
    parse: impl Fn(&[u8]) -> Result<T, Failure>,
) -> Result<Vec<T>, Failure> {
    let mut list = Vec::new();
    loop {
        let mut line = Vec::new();
        input.read_until(b'\n', &mut line).map_err(Failure::invalid_input)?;
        if line.pop() != Some(b'\n') {
            return Err(Failure::invalid_input("EOF"));
        }
        match line.trim_ascii() {
            [] => return Ok(list),
            line => list.push(parse(line)?),
        }
    }
}

/// `mod("key") > "0"`: what to compare, the key, how, and with what.
fn compare(line: &[u8]) -> Result<pb::Compare, String> {
    let shown = String::from_utf8_lossy(line);
    let malformed = || format!("malformed comparison: {shown}");
    let at = line.iter().position(|byte| *byte == b'(').ok_or_else(malformed)?;
    let (target, rest) = (String::from_utf8_lossy(&line[..at]), &line[at + 1..]);
    let (key, length) = unquote_prefix(rest.trim_ascii_start()).ok_or_else(malformed)?;
    let rest = rest.trim_ascii_start()[length..].strip_prefix(b")").ok_or_else(malformed)?.trim_ascii_start();
    let end = rest.iter().position(u8::is_ascii_whitespace).ok_or_else(malformed)?;
    let result = match &rest[..end] {
        b"=" => CompareResult::Equal,
        b"!=" => CompareResult::NotEqual,
        b">" => CompareResult::Greater,
        b"<" => CompareResult::Less,
        _ => return Err(malformed()),
    };
    let (value, _) = unquote_prefix(rest[end..].trim_ascii_start()).ok_or_else(malformed)?;
    let number = |radix| {
        let text = String::from_utf8_lossy(&value);
        parse_int(&text, radix).map_err(|reason| format!("invalid txn compare request: {shown} ({reason})"))
    };
    let (target, operand) = match &*target {
        "ver" | "version" => (CompareTarget::Version, TargetUnion::Version(number(10)?)),
        "c" | "create" => (CompareTarget::Create, TargetUnion::CreateRevision(number(10)?)),
        "m" | "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(number(10)?)),
        "val" | "value" => (CompareTarget::Value, TargetUnion::Value(value.clone().into())),
        "lease" => (CompareTarget::Lease, TargetUnion::Lease(number(16)?)),
        other => return Err(format!("{} (unknown target {other})", malformed())),
    };
    Ok(pb::Compare {
        result: result.into(),
        target: target.into(),
        key: key.into(),
        target_union: Some(operand),
        ..Default::default()
    })
}

/// One `get`, `put` or `del` with the flags of the command of that name.
fn operation(line: &[u8]) -> Result<pb::RequestOp, Failure> {
    let shown = String::from_utf8_lossy(line);
    let words = split(line).map_err(Failure::invalid_input)?;
    let [verb, args @ ..] = words.as_slice() else { return Err(Failure::invalid_input("empty request")) };
    if args.is_empty() {
        return Err(Failure::invalid_input(format_args!("invalid txn compare request: {shown}")));
    }
    let invalid = |_| Failure::invalid_input(format_args!("invalid txn request: {shown}"));
    let parse = |flags: &'static [crate::flags::Flag]| {
        let mut flags = Flags::new(&[flags]);
        flags.parse(args).map(|rest| (flags, rest.args)).map_err(invalid)
    };
    let request = match verb.as_slice() {
        b"get" => {
            let (flags, args) = parse(table::GET_FLAGS)?;
            Request::RequestRange(kv::range_request(&flags, &args)?)
        }
        b"put" => {
            let (flags, args) = parse(table::PUT_FLAGS)?;
            // Standard input holds the transaction, and so no value.
            Request::RequestPut(kv::put_request(&flags, &args, Vec::new)?)
        }
        b"del" => {
            let (flags, args) = parse(table::DEL_FLAGS)?;
            Request::RequestDeleteRange(kv::delete_request(&flags, &args)?)
        }
        _ => return Err(invalid(Failure::silent(0))),
    };
    Ok(pb::RequestOp { request: Some(request) })
}

/// Splits a line into words: double quotes hold Go's escapes, single quotes none.
///
/// # Errors
/// A word in double quotes that is no string of Go.
pub(super) fn split(line: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut words = Vec::new();
    let mut rest = line;
    while let Some(first) = rest.first() {
        let length = match first {
            b'"' => quoted_length(rest),
            b'\'' => rest[1..].iter().position(|byte| *byte == b'\'').map(|at| at + 2),
            byte if byte.is_ascii_whitespace() => None,
            _ => Some(rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len())),
        };
        // White space, and a quote that is never closed, belong to no word.
        let Some(length) = length else {
            rest = &rest[1..];
            continue;
        };
        let word = &rest[..length];
        words.push(match first {
            b'"' => unquote_prefix(word).ok_or_else(|| format!("bad string {}", quote(word)))?.0,
            b'\'' => word[1..length - 1].to_vec(),
            _ => word.to_vec(),
        });
        rest = &rest[length..];
    }
    Ok(words)
}

/// The length of a double-quoted word, up to the first quote that no backslash precedes.
fn quoted_length(text: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_split_as_a_shell_would() {
        let words = |line: &str| {
            split(line.as_bytes())
                .map(|all| all.iter().map(|w| String::from_utf8_lossy(w).into_owned()).collect::<Vec<_>>())
        };
        assert_eq!(
            words(r#"put key1 "over \"wrote\"\x21" 'a b\n' x"y"#).unwrap(),
            ["put", "key1", "over \"wrote\"!", r"a b\n", r#"x"y"#]
        );
        assert_eq!(
            words("  watch   foo --rev 4 -- echo hi ").unwrap(),
            ["watch", "foo", "--rev", "4", "--", "echo", "hi"]
        );
        assert_eq!(words(r#"get """#).unwrap(), ["get", ""]);
        assert_eq!(words(r#"a "b c"#).unwrap(), ["a", "b", "c"]);
        assert_eq!(words(r#"a "\q""#), Err(r#"bad string "\"\\q\"""#.into()));
    }

    #[test]
    fn comparisons_are_read() {
        let compared = compare(br#"value( "a\x00") != "b c" rest"#).unwrap();
        let wanted = pb::Compare {
            result: CompareResult::NotEqual.into(),
            target: CompareTarget::Value.into(),
            key: "a\0".into(),
            target_union: Some(TargetUnion::Value("b c".into())),
            ..Default::default()
        };
        assert_eq!(compared, wanted);
        assert_eq!(compare(br#"lease("k") = "1f""#).unwrap().target_union, Some(TargetUnion::Lease(31)));
        for (line, text) in [
            ("bla", "malformed comparison: bla"),
            (r#"mod("a") ~ "1""#, r#"malformed comparison: mod("a") ~ "1""#),
            (r#"mod("a")>"1""#, r#"malformed comparison: mod("a")>"1""#),
            (r#"mod(a) > "1""#, r#"malformed comparison: mod(a) > "1""#),
            (r#"foo("a") > "1""#, r#"malformed comparison: foo("a") > "1" (unknown target foo)"#),
            (
                r#"ver("a") > "x""#,
                r#"invalid txn compare request: ver("a") > "x" (strconv.ParseInt: parsing "x": invalid syntax)"#,
            ),
        ] {
            assert_eq!(compare(line.as_bytes()), Err(text.into()));
        }
    }

    #[test]
    fn a_transaction_is_three_lists() {
        let read = |text: &str| read_request(&mut text.as_bytes(), |_| Ok(()));
        let txn =
            read("mod(\"k\") > \"0\"\n\nput k \"a b\" --prev-kv\nget k --limit 2\n\ndel k --prefix\n \n")
                .unwrap();
        assert_eq!((txn.compare.len(), txn.success.len(), txn.failure.len()), (1, 2, 1));
        let wanted =
            pb::PutRequest { key: "k".into(), value: "a b".into(), prev_kv: true, ..Default::default() };
        assert_eq!(txn.success[0].request, Some(Request::RequestPut(wanted)));
        let wanted = pb::DeleteRangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
        assert_eq!(txn.failure[0].request, Some(Request::RequestDeleteRange(wanted)));
        assert_eq!(read("\n\n\n"), Ok(pb::TxnRequest::default()));
        for (text, code, reason) in [
            ("\n\n", 3, "EOF"),
            ("\n\nput", 3, "EOF"),
            ("\nput\n", 3, "invalid txn compare request: put"),
            ("\nfoo a\n", 3, "invalid txn request: foo a"),
            ("\nget a --bogus\n", 3, "invalid txn request: get a --bogus"),
            ("\nput a\n", 128, "put command needs 1 argument and input from stdin or 2 arguments"),
        ] {
            assert_eq!(read(text), Err(Failure { code, text: reason.into() }), "{text:?}");
        }
    }
}

//! `get`, `put`, `del` and `compaction`; the requests are built here for `txn` too.

use std::io::Read;
use std::time::Duration;

use bytes::Bytes;
use trilith_proto::etcdserverpb as pb;
use trilith_proto::etcdserverpb::range_request::{SortOrder, SortTarget};

use super::Session;
use crate::exit::Failure;
use crate::flags::Flags;
use crate::gotext::{parse_int, quote};
use crate::print::{Answer, Format};
use crate::terminal::{note, say};

/// How long a range waits before it is deleted.
const SECOND_THOUGHTS: Duration = Duration::from_secs(2);
/// A range that ends here has no end; a key that is empty begins here.
const ZERO: &[u8] = b"\0";

pub(super) async fn get(mut session: Session) -> Result<(), Failure> {
    let request = range_request(&session.flags, session.args())?;
    let client = session.connect().await?;
    let answer = if session.flags.bool("stream") {
        client.call(streamed(&client, request)).await
    } else {
        client.call(client.kv().range(request)).await
    };
    let answer = answer.map_err(Failure::error)?;
    if session.flags.bool("count-only") && session.printer.format != Format::Fields {
        return Err(Failure::bad_args("--count-only is only for `--write-out=fields`"));
    }
    if session.flags.bool("print-value-only") {
        if session.printer.format != Format::Simple {
            return Err(Failure::bad_args("print-value-only is only for `--write-out=simple`"));
        }
        session.printer.value_only = true;
    }
    session.print(&Answer::Get(&answer))
}

/// The parts of a streamed answer, put together.
async fn streamed(
    client: &crate::client::Client,
    request: pb::RangeRequest,
) -> Result<tonic::Response<pb::RangeResponse>, tonic::Status> {
    let mut parts = client.kv().range_stream(request).await?.into_inner();
    let mut whole = pb::RangeResponse::default();
    while let Some(part) = parts.message().await? {
        let part = part.range_response.unwrap_or_default();
        whole.header = part.header.or(whole.header);
        whole.kvs.extend(part.kvs);
        whole.more |= part.more;
        whole.count = whole.count.max(part.count);
    }
    Ok(tonic::Response::new(whole))
}

pub(super) async fn put(session: &Session) -> Result<(), Failure> {
    let request = put_request(&session.flags, session.args(), || {
        let mut value = Vec::new();
        std::io::stdin().read_to_end(&mut value).map(|_| value).unwrap_or_default()
    })?;
    let client = session.connect().await?;
    client.check_size(&request)?;
    let answer = client.call(client.kv().put(request)).await.map_err(Failure::error)?;
    session.print(&Answer::Put(&answer))
}

pub(super) async fn delete(session: &Session) -> Result<(), Failure> {
    let request = delete_request(&session.flags, session.args())?;
    if let ([from, to], false) = (session.args(), session.flags.bool("range")) {
        note(format_args!(
            "Warning: Keys between {} and {} will be deleted. Please interrupt the command within next 2 seconds to \
             cancel. You can provide `--range` flag to avoid the delay.",
            quote(from),
            quote(to)
        ));
        tokio::time::sleep(SECOND_THOUGHTS).await;
    }
    let client = session.config.connect(session.config.deadline()).await?;
    let answer = client.call(client.kv().delete_range(request)).await.map_err(Failure::error)?;
    session.print(&Answer::Delete(&answer))
}

pub(super) async fn compaction(session: &Session) -> Result<(), Failure> {
    if session.args().len() != 1 {
        return Err(Failure::bad_args("compaction command needs 1 argument"));
    }
    let revision = parse_int(&session.text(0), 10).map_err(Failure::error)?;
    let client = session.connect().await?;
    let request = pb::CompactionRequest { revision, physical: session.flags.bool("physical") };
    client.call(client.kv().compact(request)).await.map_err(Failure::error)?;
    say(format!("compacted revision {revision}\n").as_bytes())
}

pub(super) fn range_request(flags: &Flags, args: &[Vec<u8>]) -> Result<pb::RangeRequest, Failure> {
    if args.is_empty() {
        return Err(Failure::bad_args(
            "get command needs one argument as key and an optional argument as range_end",
        ));
    }
    if flags.bool("keys-only") && flags.bool("count-only") {
        let text = "`--keys-only` and `--count-only` cannot be set at the same time, choose one";
        return Err(Failure::bad_args(text));
    }
    let (key, range_end) = key_range(flags.bool("prefix"), flags.bool("from-key"), args)?;
    let (sort_order, sort_target) = sorting(flags)?;
    Ok(pb::RangeRequest {
        key,
        range_end,
        limit: flags.int("limit"),
        revision: flags.int("rev").max(0),
        sort_order: sort_order.into(),
        sort_target: sort_target.into(),
        serializable: !linearizable(flags)?,
        keys_only: flags.bool("keys-only"),
        count_only: flags.bool("count-only"),
        min_mod_revision: flags.int("min-mod-rev"),
        max_mod_revision: flags.int("max-mod-rev"),
        min_create_revision: flags.int("min-create-rev"),
        max_create_revision: flags.int("max-create-rev"),
    })
}

/// Reads `--consistency`.
pub(super) fn linearizable(flags: &Flags) -> Result<bool, Failure> {
    match flags.text("consistency") {
        "l" => Ok(true),
        "s" => Ok(false),
        other => {
            Err(Failure::bad_feature(format_args!("unknown consistency flag {}", quote(other.as_bytes()))))
        }
    }
}

fn sorting(flags: &Flags) -> Result<(SortOrder, SortTarget), Failure> {
    let order = flags.text("order");
    let order = match order.to_uppercase().as_str() {
        "" => SortOrder::None,
        "ASCEND" => SortOrder::Ascend,
        "DESCEND" => SortOrder::Descend,
        _ => return Err(Failure::bad_feature(format_args!("bad sort order {order}"))),
    };
    let target = flags.text("sort-by");
    let target = match target.to_uppercase().as_str() {
        "" | "KEY" => SortTarget::Key,
        "CREATE" => SortTarget::Create,
        "MODIFY" => SortTarget::Mod,
        "VALUE" => SortTarget::Value,
        "VERSION" => SortTarget::Version,
        _ => return Err(Failure::bad_feature(format_args!("bad sort target {target}"))),
    };
    // Ascending keys are what the server finds anyway; asking for it would make it read the whole range first.
    match (order, target) {
        (SortOrder::Ascend, SortTarget::Key) => Ok((SortOrder::None, target)),
        other => Ok(other),
    }
}

/// The value may have to be read from elsewhere: `stdin` gives it.
pub(super) fn put_request(
    flags: &Flags,
    args: &[Vec<u8>],
    stdin: impl FnOnce() -> Vec<u8>,
) -> Result<pb::PutRequest, Failure> {
    let usage = || Failure::bad_args("put command needs 1 argument and input from stdin or 2 arguments");
    let [key, rest @ ..] = args else { return Err(usage()) };
    let ignore_value = flags.bool("ignore-value");
    let value = match rest.first() {
        Some(_) if ignore_value => {
            return Err(Failure::bad_args("put command needs only 1 argument when 'ignore-value' is set"));
        }
        None if ignore_value => Vec::new(),
        Some(value) => value.clone(),
        None => Some(stdin()).filter(|value| !value.is_empty()).ok_or_else(usage)?,
    };
    let bad_lease = |reason| Failure::bad_args(format_args!("bad lease ID ({reason}), expecting ID in Hex"));
    Ok(pb::PutRequest {
        key: Bytes::copy_from_slice(key),
        value: value.into(),
        lease: parse_int(flags.text("lease"), 16).map_err(bad_lease)?,
        prev_kv: flags.bool("prev-kv"),
        ignore_value,
        ignore_lease: flags.bool("ignore-lease"),
    })
}

pub(super) fn delete_request(flags: &Flags, args: &[Vec<u8>]) -> Result<pb::DeleteRangeRequest, Failure> {
    if args.is_empty() || args.len() > 2 {
        return Err(Failure::bad_args(
            "del command needs one argument as key and an optional argument as range_end",
        ));
    }
    let (key, range_end) = key_range(flags.bool("prefix"), flags.bool("from-key"), args)?;
    Ok(pb::DeleteRangeRequest { key, range_end, prev_kv: flags.bool("prev-kv") })
}

/// The key and the range's end that the arguments and flags name.
fn key_range(prefix: bool, from_key: bool, args: &[Vec<u8>]) -> Result<(Bytes, Bytes), Failure> {
    if prefix && from_key {
        return Err(Failure::bad_args(
            "`--prefix` and `--from-key` cannot be set at the same time, choose one",
        ));
    }
    if args.len() > 1 && (prefix || from_key) {
        let text = "too many arguments, only accept one argument when `--prefix` or `--from-key` is set";
        return Err(Failure::bad_args(text));
    }
    let key = Bytes::copy_from_slice(&args[0]);
    Ok(match args.get(1) {
        Some(end) => (key, Bytes::copy_from_slice(end)),
        None if prefix => prefix_range(key),
        None if from_key && key.is_empty() => (Bytes::from_static(ZERO), Bytes::from_static(ZERO)),
        None if from_key => (key, Bytes::from_static(ZERO)),
        None => (key, Bytes::new()),
    })
}

/// The range of all keys that begin with `prefix`.
pub(super) fn prefix_range(prefix: Bytes) -> (Bytes, Bytes) {
    if prefix.is_empty() {
        return (Bytes::from_static(ZERO), Bytes::from_static(ZERO));
    }
    let end = match prefix.iter().rposition(|byte| *byte < 0xff) {
        Some(at) => {
            let mut end = prefix[..=at].to_vec();
            end[at] += 1;
            Bytes::from(end)
        }
        None => Bytes::from_static(ZERO),
    };
    (prefix, end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::table::{DEL_FLAGS, GET_FLAGS, PUT_FLAGS};

    fn parse(table: &'static [crate::flags::Flag], line: &[&[u8]]) -> (Flags, Vec<Vec<u8>>) {
        let mut flags = Flags::new(&[table]);
        let line: Vec<_> = line.iter().map(|word| word.to_vec()).collect();
        let rest = flags.parse(&line).unwrap();
        (flags, rest.args)
    }

    fn range(line: &[&[u8]]) -> Result<pb::RangeRequest, Failure> {
        let (flags, args) = parse(GET_FLAGS, line);
        range_request(&flags, &args)
    }

    #[test]
    fn prefixes_end_after_their_last_key() {
        for (prefix, start, end) in [
            (&b"foo"[..], &b"foo"[..], &b"fop"[..]),
            (b"a\xff", b"a\xff", b"b"),
            (b"\xff\xff", b"\xff\xff", b"\0"),
            (b"", b"\0", b"\0"),
        ] {
            assert_eq!(
                prefix_range(Bytes::from_static(prefix)),
                (Bytes::from_static(start), Bytes::from_static(end))
            );
        }
    }

    #[test]
    fn get_flags_become_a_range_request() {
        let wanted =
            pb::RangeRequest { key: "a".into(), range_end: "b".into(), limit: 3, ..Default::default() };
        assert_eq!(range(&[b"a", b"b", b"--limit=3", b"--rev=-1", b"--order=ascend"]), Ok(wanted));
        let wanted = pb::RangeRequest {
            key: "\0".into(),
            range_end: "\0".into(),
            revision: 7,
            sort_order: SortOrder::Descend.into(),
            sort_target: SortTarget::Mod.into(),
            serializable: true,
            keys_only: true,
            ..Default::default()
        };
        let line: [&[u8]; 7] = [
            b"",
            b"--from-key",
            b"--rev=7",
            b"--order=Descend",
            b"--sort-by=modify",
            b"--consistency=s",
            b"--keys-only",
        ];
        assert_eq!(range(&line), Ok(wanted));
        assert_eq!(range(&[b"\xff\xfe"]).unwrap().key, Bytes::from_static(b"\xff\xfe"));
    }

    #[test]
    fn wrong_arguments_are_named() {
        for (line, code, text) in [
            (&[][..], 128, "get command needs one argument as key and an optional argument as range_end"),
            (
                &[&b"a"[..], b"--prefix", b"--from-key"][..],
                128,
                "`--prefix` and `--from-key` cannot be set at the same time, choose one",
            ),
            (
                &[b"a", b"b", b"--prefix"],
                128,
                "too many arguments, only accept one argument when `--prefix` or `--from-key` is set",
            ),
            (
                &[b"a", b"--keys-only", b"--count-only"],
                128,
                "`--keys-only` and `--count-only` cannot be set at the same time, choose one",
            ),
            (&[b"a", b"--order=x"], 4, "bad sort order x"),
            (&[b"a", b"--sort-by=x"], 4, "bad sort target x"),
            (&[b"a", b"--consistency=x"], 4, "unknown consistency flag \"x\""),
        ] {
            assert_eq!(range(line), Err(Failure { code, text: text.into() }));
        }
        let (flags, args) = parse(DEL_FLAGS, &[b"a", b"b", b"c"]);
        assert_eq!(delete_request(&flags, &args).unwrap_err().code, 128);
    }

    #[test]
    fn a_value_comes_from_the_line_or_from_elsewhere() {
        let put = |line: &[&[u8]], stdin: &[u8]| {
            let (flags, args) = parse(PUT_FLAGS, line);
            put_request(&flags, &args, || stdin.to_vec())
        };
        assert_eq!(put(&[b"k", b"--", b"-v"], b"no").unwrap().value, "-v");
        assert_eq!(put(&[b"k"], b"in\n").unwrap().value, "in\n");
        assert_eq!(
            put(&[b"k", b"", b"--lease=1F"], b"no").unwrap(),
            pb::PutRequest { key: "k".into(), lease: 31, ..Default::default() }
        );
        let text = "put command needs 1 argument and input from stdin or 2 arguments";
        assert_eq!(put(&[b"k"], b""), Err(Failure::bad_args(text)));
        assert_eq!(put(&[], b"x"), Err(Failure::bad_args(text)));
        assert_eq!(put(&[b"k", b"--ignore-value"], b"no").unwrap().value, "");
        assert_eq!(put(&[b"k", b"v", b"--ignore-value"], b"").unwrap_err().code, 128);
        let text = r#"bad lease ID (strconv.ParseInt: parsing "zz": invalid syntax), expecting ID in Hex"#;
        assert_eq!(put(&[b"k", b"v", b"--lease=zz"], b""), Err(Failure::bad_args(text)));
    }
}

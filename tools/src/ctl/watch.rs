//! `watch`: one stream for all watches of the process, shown as events arrive.
//!
//! When the connection breaks, the stream is opened again and every watch goes on after the last event that was shown:
//! none is shown twice, none is left out, unless it was compacted meanwhile, and then the watch says so and ends.

use std::collections::VecDeque;
use std::io::BufRead;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status, Streaming};
use trilith_proto::etcdserverpb as pb;
use trilith_proto::etcdserverpb::watch_request::RequestUnion;
use trilith_proto::mvccpb::Event;

use super::{Session, kv, table, txn};
use crate::client::status_text;
use crate::exit::Failure;
use crate::flags::{Flags, Positional};
use crate::gotext::quote;
use crate::print::{Answer, event_type};
use crate::terminal::{note, say};

/// A reconnection goes on as long as it takes; this is one round of it.
const RECONNECT_ROUND: Duration = Duration::from_secs(3600);
/// How long to wait before a stream that was refused is opened again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
const FUTURE: &str = "etcdserver: mvcc: required revision is a future revision";

/// What to watch, and what to run at each event.
#[derive(Clone, Debug, PartialEq)]
struct Plan {
    request: pb::WatchCreateRequest,
    exec: Vec<Vec<u8>>,
}

/// A watch on the stream.
struct Watch {
    plan: Plan,
    /// The server's name for it, once it is created on the present stream.
    id: Option<i64>,
}

pub(super) async fn watch(session: &Session) -> Result<(), Failure> {
    let environment = Environment::read()?;
    if session.flags.bool("interactive") {
        let (lines, queue) = mpsc::unbounded_channel();
        std::thread::spawn(move || read_lines(&lines));
        return Watches::new(session, environment).run(Some(queue)).await;
    }
    let plan = plan(&session.flags, &session.rest, &environment).map_err(Failure::bad_args)?;
    let mut watches = Watches::new(session, environment);
    watches.all.push(Watch { plan, id: None });
    watches.run(None).await
}

/// `ETCDCTL_WATCH_KEY` and `ETCDCTL_WATCH_RANGE_END`.
#[derive(Default)]
struct Environment {
    key: Vec<u8>,
    range_end: Vec<u8>,
}

impl Environment {
    fn read() -> Result<Environment, Failure> {
        let get = |name| std::env::var_os(name).unwrap_or_default().as_bytes().to_vec();
        let found = Environment { key: get("ETCDCTL_WATCH_KEY"), range_end: get("ETCDCTL_WATCH_RANGE_END") };
        if found.key.is_empty() && !found.range_end.is_empty() {
            return Err(Failure::bad_args(format_args!(
                "ETCDCTL_WATCH_KEY is empty but got ETCDCTL_WATCH_RANGE_END={}",
                quote(&found.range_end)
            )));
        }
        Ok(found)
    }
}

/// Key and range from the arguments or the environment, the command to run from what follows `--`.
fn plan(flags: &Flags, rest: &Positional, environment: &Environment) -> Result<Plan, &'static str> {
    let (words, exec) = rest.args.split_at(rest.before_dashes.unwrap_or(rest.args.len()));
    if rest.before_dashes.is_some() && exec.is_empty() {
        return Err("bad number of arguments (found separator --, but no commands)");
    }
    if !environment.key.is_empty() && !words.is_empty() {
        return Err("bad number of arguments (found conflicting environment key)");
    }
    let of_environment = [environment.key.clone(), environment.range_end.clone()];
    let words = match words {
        [] if !environment.key.is_empty() && environment.range_end.is_empty() => &of_environment[..1],
        [] if !environment.key.is_empty() => &of_environment[..],
        [] => return Err("bad number of arguments"),
        words => words,
    };
    let prefix = flags.bool("prefix");
    let key = Bytes::copy_from_slice(&words[0]);
    let (key, range_end) = match words {
        [_, _] if prefix => return Err("`range_end` and `--prefix` are mutually exclusive"),
        [_, end] => (key, Bytes::copy_from_slice(end)),
        _ if prefix => kv::prefix_range(key),
        _ => (key, Bytes::new()),
    };
    let request = pb::WatchCreateRequest {
        key,
        range_end,
        start_revision: flags.int("rev"),
        progress_notify: flags.bool("progress-notify"),
        prev_kv: flags.bool("prev-kv"),
        ..Default::default()
    };
    Ok(Plan { request, exec: exec.to_vec() })
}

/// Runs on a thread of its own, because reading standard input cannot be given up.
fn read_lines(lines: &mpsc::UnboundedSender<Result<Vec<u8>, String>>) {
    let mut input = std::io::stdin().lock();
    loop {
        let mut line = Vec::new();
        let outcome = match input.read_until(b'\n', &mut line) {
            Ok(_) if line.pop() == Some(b'\n') => Ok(line),
            Ok(_) => Err("EOF".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        let last = outcome.is_err();
        if lines.send(outcome).is_err() || last {
            return;
        }
    }
}

type Lines = mpsc::UnboundedReceiver<Result<Vec<u8>, String>>;

struct Watches<'a> {
    session: &'a Session,
    environment: Environment,
    all: Vec<Watch>,
    /// Those that the server has not confirmed yet, in the order in which they were asked for: indexes into `all`.
    unconfirmed: VecDeque<usize>,
}

/// An open stream.
struct Stream {
    requests: mpsc::UnboundedSender<pb::WatchRequest>,
    answers: Streaming<pb::WatchResponse>,
}

impl<'a> Watches<'a> {
    fn new(session: &'a Session, environment: Environment) -> Watches<'a> {
        Watches { session, environment, all: Vec::new(), unconfirmed: VecDeque::new() }
    }

    /// Shows events until all is over: the server ends the only watch, or standard input ends.
    async fn run(&mut self, mut lines: Option<Lines>) -> Result<(), Failure> {
        let interactive = lines.is_some();
        let mut stream = None;
        if !interactive {
            let first = self.session.started + self.session.config.dial_timeout;
            stream = Some(self.open(first).await.map_err(|failure| Failure { code: 2, ..failure })?);
        }
        loop {
            tokio::select! {
                line = next_line(&mut lines) => match line {
                    Ok(line) => self.obey(&line, &mut stream).await?,
                    Err(reason) => {
                        let text = format_args!("error reading watch request line: {reason}");
                        return Err(Failure::invalid_input(text));
                    }
                },
                answer = next_answer(&mut stream) => match answer {
                    Ok(Some(answer)) => self.take(answer).await?,
                    Ok(None) => stream = Some(self.reopen().await?),
                    Err(status) if passing(&status) => stream = Some(self.reopen().await?),
                    Err(status) => {
                        note(format_args!("watch was canceled ({})", status_text(&status)));
                        self.all.clear();
                        stream = None;
                    }
                },
            }
            if self.all.is_empty() && !interactive {
                return Err(Failure::interrupted("watch is canceled by the server"));
            }
        }
    }

    async fn reopen(&mut self) -> Result<Stream, Failure> {
        loop {
            match self.open(Instant::now() + RECONNECT_ROUND).await {
                Err(failure) if failure.code == 1 => continue,
                outcome => return outcome,
            }
        }
    }

    /// Opens a stream and asks for all watches on it. There must be one: the server answers nothing before it is asked.
    async fn open(&mut self, deadline: Instant) -> Result<Stream, Failure> {
        loop {
            let client = self.session.config.connect(deadline).await?;
            let (requests, queue) = mpsc::unbounded_channel();
            let mut request = Request::new(UnboundedReceiverStream::new(queue));
            // Without a leader nothing new can be heard: the server then ends the stream.
            request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
            self.unconfirmed.clear();
            for at in 0..self.all.len() {
                self.all[at].id = None;
                self.ask(at, &requests);
            }
            match client.watch().watch(request).await {
                Ok(answers) => return Ok(Stream { requests, answers: answers.into_inner() }),
                Err(status) if passing(&status) && Instant::now() < deadline => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(status) => return Err(Failure::bad_connection(status_text(&status))),
            }
        }
    }

    /// A request that cannot be queued belongs to a broken stream, and that shows when it is read.
    fn ask(&mut self, at: usize, requests: &mpsc::UnboundedSender<pb::WatchRequest>) {
        let create = RequestUnion::CreateRequest(self.all[at].plan.request.clone());
        let _ = requests.send(pb::WatchRequest { request_union: Some(create) });
        self.unconfirmed.push_back(at);
    }

    /// Carries out a line of standard input.
    async fn obey(&mut self, line: &[u8], stream: &mut Option<Stream>) -> Result<(), Failure> {
        let shown = String::from_utf8_lossy(line);
        let words = txn::split(line).map_err(Failure::invalid_input)?;
        match words.first().map(Vec::as_slice) {
            Some(b"watch") if words.len() < 2 && self.environment.key.is_empty() => {
                note(format_args!("Invalid command {shown} (command type or key is not provided)"));
            }
            Some(b"watch") => {
                let mut flags = Flags::new(&[table::WATCH_FLAGS]);
                let rest = flags.parse(&words[1..]).map_err(|failure| Failure::bad_args(failure.text))?;
                match plan(&flags, &rest, &self.environment) {
                    Ok(plan) => {
                        self.all.push(Watch { plan, id: None });
                        match stream {
                            Some(stream) => self.ask(self.all.len() - 1, &stream.requests),
                            None => *stream = Some(self.reopen().await?),
                        }
                    }
                    Err(reason) if reason.starts_with('`') => {
                        note(format_args!("Invalid command {shown} ({reason})"))
                    }
                    Err(reason) => return Err(Failure::bad_args(reason)),
                }
            }
            Some(b"progress") => {
                let request = RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
                if let Some(stream) = stream {
                    let _ = stream.requests.send(pb::WatchRequest { request_union: Some(request) });
                }
            }
            Some(_) => note(format_args!("Invalid command {shown} (only support watch)")),
            None => note(format_args!("Invalid command: {shown} (watch and progress supported)")),
        }
        Ok(())
    }

    /// Shows one answer to whom it concerns.
    async fn take(&mut self, answer: pb::WatchResponse) -> Result<(), Failure> {
        if answer.created
            && let Some(at) = self.unconfirmed.pop_front()
        {
            self.all[at].id = Some(answer.watch_id);
            let request = &mut self.all[at].plan.request;
            let now = answer.header.map_or(0, |header| header.revision);
            if request.start_revision == 0 {
                request.start_revision = now + 1;
            }
            if !answer.canceled {
                return Ok(());
            }
        }
        let of_all = answer.watch_id == -1;
        let concerned = |watch: &Watch| watch.id.is_some() && (of_all || watch.id == Some(answer.watch_id));
        for at in 0..self.all.len() {
            if concerned(&self.all[at]) {
                self.show(at, &answer).await?;
            }
        }
        if answer.canceled {
            // Indexes change: nothing is unconfirmed while an answer about an older watch can still shift them.
            let gone = self.all.iter().position(|watch| watch.id == Some(answer.watch_id));
            if let Some(gone) = gone {
                self.all.remove(gone);
                self.unconfirmed.iter_mut().filter(|at| **at > gone).for_each(|at| *at -= 1);
            }
        }
        Ok(())
    }

    async fn show(&mut self, at: usize, answer: &pb::WatchResponse) -> Result<(), Failure> {
        let revision = answer.header.map_or(0, |header| header.revision);
        if answer.canceled {
            note(format_args!("watch was canceled ({})", cancel_text(answer)));
        } else if answer.events.is_empty() {
            say(format!("progress notify: {revision}\n").as_bytes())?;
        }
        self.session.print(&Answer::Watch(answer))?;
        let plan = &mut self.all[at].plan;
        if let Some(last) = answer.events.last() {
            plan.request.start_revision = last.kv.as_ref().map_or(revision, |kv| kv.mod_revision) + 1;
        }
        if !plan.exec.is_empty() {
            for event in &answer.events {
                execute(plan.exec.clone(), revision, event).await?;
            }
        }
        Ok(())
    }
}

async fn next_line(lines: &mut Option<Lines>) -> Result<Vec<u8>, String> {
    match lines {
        Some(lines) => lines.recv().await.unwrap_or_else(|| Err("EOF".to_owned())),
        None => std::future::pending().await,
    }
}

async fn next_answer(stream: &mut Option<Stream>) -> Result<Option<pb::WatchResponse>, Status> {
    match stream {
        Some(stream) => stream.answers.message().await,
        None => std::future::pending().await,
    }
}

/// Whether a stream that broke so may be opened again.
fn passing(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Internal | Code::Unknown)
}

fn cancel_text(answer: &pb::WatchResponse) -> String {
    if answer.compact_revision != 0 {
        COMPACTED.to_owned()
    } else if answer.cancel_reason.is_empty() {
        FUTURE.to_owned()
    } else {
        status_text(&Status::failed_precondition(&answer.cancel_reason))
    }
}

/// Runs the command for one event, and waits for it.
async fn execute(exec: Vec<Vec<u8>>, revision: i64, event: &Event) -> Result<(), Failure> {
    use std::os::unix::ffi::OsStringExt;
    let words: Vec<_> = exec.into_iter().map(std::ffi::OsString::from_vec).collect();
    let Some((program, args)) = words.split_first() else { return Ok(()) };
    let kv = event.kv.clone().unwrap_or_default();
    let mut command = std::process::Command::new(program);
    command
        .args(args)
        .env("ETCD_WATCH_REVISION", revision.to_string())
        .env("ETCD_WATCH_EVENT_TYPE", quote(event_type(event.r#type).as_bytes()))
        .env("ETCD_WATCH_KEY", quote(&kv.key))
        .env("ETCD_WATCH_VALUE", quote(&kv.value));
    let outcome = tokio::task::spawn_blocking(move || command.status()).await;
    let reason = match outcome {
        Ok(Ok(status)) if status.success() => return Ok(()),
        Ok(Ok(status)) => status.to_string().replace("exit status: ", "exit status "),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    let shown: Vec<_> = words.iter().map(|word| quote(word.as_bytes())).collect();
    note(format_args!("command [{}] error ({reason})", shown.join(" ")));
    Err(Failure::silent(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(line: &str, environment: &Environment) -> Result<Plan, &'static str> {
        let mut flags = Flags::new(&[table::WATCH_FLAGS]);
        let rest = flags.parse(&txn::split(line.as_bytes()).unwrap()).unwrap();
        plan(&flags, &rest, environment)
    }

    #[test]
    fn arguments_and_environment_name_what_to_watch() {
        let none = Environment::default();
        let key = Environment { key: b"k".to_vec(), range_end: Vec::new() };
        let range = Environment { key: b"k".to_vec(), range_end: b"m".to_vec() };
        let request = |key: &str, end: &str| pb::WatchCreateRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            range_end: Bytes::copy_from_slice(end.as_bytes()),
            ..Default::default()
        };
        for (line, environment, key, end, exec) in [
            ("a", &none, "a", "", 0),
            ("a b", &none, "a", "b", 0),
            ("a b -- echo x", &none, "a", "b", 2),
            ("a --prefix", &none, "a", "b", 0),
            ("--prefix ''", &none, "\0", "\0", 0),
            ("", &key, "k", "", 0),
            ("", &range, "k", "m", 0),
            ("-- echo", &range, "k", "m", 1),
        ] {
            let plan = planned(line, environment).unwrap();
            assert_eq!((plan.request, plan.exec.len()), (request(key, end), exec), "{line}");
        }
        let plan = planned("a --rev 4 --prev-kv --progress-notify", &none).unwrap();
        let wanted = pb::WatchCreateRequest {
            start_revision: 4,
            prev_kv: true,
            progress_notify: true,
            ..request("a", "")
        };
        assert_eq!(plan.request, wanted);
        for (line, environment, text) in [
            ("", &none, "bad number of arguments"),
            ("-- echo", &none, "bad number of arguments"),
            ("a --", &none, "bad number of arguments (found separator --, but no commands)"),
            ("a", &key, "bad number of arguments (found conflicting environment key)"),
            ("a b --prefix", &none, "`range_end` and `--prefix` are mutually exclusive"),
        ] {
            assert_eq!(planned(line, environment), Err(text), "{line}");
        }
    }

    #[test]
    fn a_watch_says_why_it_ended() {
        let answer = |compact_revision, reason: &str| pb::WatchResponse {
            compact_revision,
            cancel_reason: reason.into(),
            canceled: true,
            ..Default::default()
        };
        assert_eq!(cancel_text(&answer(5, "")), COMPACTED);
        assert_eq!(cancel_text(&answer(0, "")), FUTURE);
        assert_eq!(cancel_text(&answer(0, "etcdserver: permission denied")), "etcdserver: permission denied");
        let text = "rpc error: code = FailedPrecondition desc = mvcc: watcher range is empty";
        assert_eq!(cancel_text(&answer(0, "mvcc: watcher range is empty")), text);
    }
}

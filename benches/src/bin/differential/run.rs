//! Sends operations to both servers and compares; finds a short list of operations that still differ.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use trilith_benches::client::{Client, Stream};
use trilith_benches::member::{Launch, Member};
use trilith_benches::{Error, Result};

use crate::compare::difference;
use crate::op::{Op, Response};

/// Reads that are under way at once.
pub(crate) const READS_MAX: usize = 32;
/// The remaining time of a lease is in whole seconds, asked for at slightly different moments.
const TTL_SLACK_SECONDS: i64 = 2;

/// One server and the connection to it.
#[derive(Debug)]
pub(crate) struct Side {
    launch: Launch,
    member: Option<Member>,
    pub(crate) client: Client,
    keep_alive: Option<Stream>,
}

impl Side {
    async fn start(launch: Launch) -> Result<Side> {
        let member = Some(launch.start().await?);
        let client = Client::connect(launch.client).await?;
        Ok(Side { launch, member, client, keep_alive: None })
    }

    async fn restart(&mut self) -> Result<()> {
        self.keep_alive = None;
        if let Some(member) = self.member.take() {
            member.kill()?;
        }
        self.member = Some(self.launch.start().await?);
        self.client = Client::connect(self.launch.client).await?;
        Ok(())
    }

    /// What the server said last, for the report of a failed call.
    fn context(&self, op: &Op, error: Error) -> Error {
        let tail = self.member.as_ref().map(Member::log_tail).unwrap_or_default();
        let op: String = format!("{op:?}").chars().take(400).collect();
        format!("{}: {error} at {op}\n{tail}", self.launch.binary.display()).into()
    }

    async fn send(&mut self, op: &Op) -> Result<Response> {
        let sent = op.send(&mut self.client, &mut self.keep_alive).await;
        sent.map_err(|error| self.context(op, error))
    }
}

/// How to start a pair of servers.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) etcd: PathBuf,
    pub(crate) ours: PathBuf,
    pub(crate) ours_flags: Vec<String>,
    pub(crate) folder: PathBuf,
}

/// A real etcd and ours.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) etcd: Side,
    pub(crate) ours: Side,
    started: Instant,
    restarted: bool,
}

/// The operation at which two servers differ, and how.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) op: usize,
    pub(crate) text: String,
}

impl Pair {
    /// Starts both on empty folders under a name of their own.
    pub(crate) async fn start(setup: &Setup, name: &str) -> Result<Pair> {
        let flags: Vec<&str> = setup.ours_flags.iter().map(String::as_str).collect();
        let etcd_flags = ["--quota-backend-bytes=8589934592", "--log-level=error"];
        let etcd = Launch::new(&setup.etcd, setup.folder.join(format!("{name}-etcd")), &etcd_flags)?;
        let ours = Launch::new(&setup.ours, setup.folder.join(format!("{name}-ours")), &flags)?;
        for folder in [&etcd.folder, &ours.folder] {
            if folder.exists() {
                std::fs::remove_dir_all(folder)?;
            }
        }
        let (etcd, ours) = (Side::start(etcd).await?, Side::start(ours).await?);
        Ok(Pair { etcd, ours, started: Instant::now(), restarted: false })
    }

    /// A restarted server gives its leases their full time again.
    fn ttl_slack(&self) -> i64 {
        let run = if self.restarted { self.started.elapsed().as_secs() as i64 } else { 0 };
        TTL_SLACK_SECONDS + run
    }

    fn compare(&self, index: usize, op: &Op, etcd: &Response, ours: &Response) -> Option<Found> {
        difference(op, etcd, ours, self.ttl_slack()).map(|text| Found { op: index, text })
    }

    /// Sends the operations in order; reads that stand together go out at once. The answers of the real etcd, or
    /// the first difference, whose index counts from `base`.
    pub(crate) async fn exchange(
        &mut self,
        ops: &[Op],
        base: usize,
    ) -> Result<std::result::Result<Vec<Response>, Found>> {
        let mut answers = Vec::with_capacity(ops.len());
        let mut at = 0;
        while at < ops.len() {
            let reads = ops[at..].iter().take(READS_MAX).take_while(|op| op.is_read()).count();
            let step = reads.max(1);
            let batch = &ops[at..at + step];
            let pairs = if reads > 1 { self.reads(batch).await? } else { vec![self.one(&batch[0]).await?] };
            for (i, (op, (etcd, ours))) in batch.iter().zip(pairs).enumerate() {
                if let Some(found) = self.compare(base + at + i, op, &etcd, &ours) {
                    return Ok(Err(found));
                }
                answers.push(etcd);
            }
            at += step;
        }
        Ok(Ok(answers))
    }

    async fn one(&mut self, op: &Op) -> Result<(Response, Response)> {
        if let Op::Restart = op {
            self.restarted = true;
            self.ours.restart().await?;
            return Ok((Response::Restarted, Response::Restarted));
        }
        let (etcd, ours) = tokio::join!(self.etcd.send(op), self.ours.send(op));
        Ok((etcd?, ours?))
    }

    async fn reads(&mut self, ops: &[Op]) -> Result<Vec<(Response, Response)>> {
        let spawn = |side: &Side, op: &Op| {
            let (mut client, op) = (side.client.clone(), op.clone());
            tokio::spawn(async move { op.send_unary(&mut client).await })
        };
        let calls: Vec<_> = ops.iter().map(|op| (spawn(&self.etcd, op), spawn(&self.ours, op))).collect();
        let mut pairs = Vec::with_capacity(ops.len());
        for (op, (etcd, ours)) in ops.iter().zip(calls) {
            let etcd = etcd.await?.map_err(|error| self.etcd.context(op, error))?;
            let ours = ours.await?.map_err(|error| self.ours.context(op, error))?;
            pairs.push((etcd, ours));
        }
        Ok(pairs)
    }
}

/// A shorter list of operations at whose last one two fresh servers still differ: parts are left out as long as a
/// difference remains and time is left.
pub(crate) async fn shrink(setup: &Setup, mut ops: Vec<Op>, time: Duration) -> Result<(Vec<Op>, Found)> {
    let begin = Instant::now();
    let mut found = match replay(setup, &ops).await? {
        Some(found) => found,
        None => return Err("the operations do not differ when they are sent again".into()),
    };
    ops.truncate(found.op + 1);
    let mut part = ops.len().div_ceil(2);
    while part > 0 && begin.elapsed() < time {
        let mut at = 0;
        let mut shorter = false;
        // The last operation is the one that shows the difference.
        while at + 1 < ops.len() && begin.elapsed() < time {
            let mut fewer = ops.clone();
            fewer.drain(at..(at + part).min(ops.len() - 1));
            match replay(setup, &fewer).await? {
                Some(less) => {
                    fewer.truncate(less.op + 1);
                    (ops, found, shorter) = (fewer, less, true);
                }
                None => at += part,
            }
        }
        part = if part == 1 && shorter { 1 } else { part / 2 };
    }
    Ok((ops, found))
}

async fn replay(setup: &Setup, ops: &[Op]) -> Result<Option<Found>> {
    let mut pair = Pair::start(setup, "replay").await?;
    Ok(pair.exchange(ops, 0).await?.err())
}

//! Clients of a cluster: writers that write each key once, and readers that look for what was acknowledged.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use trilith_benches::Result;
use trilith_benches::client::{Client, path};
use trilith_benches::rng::Rng;
use trilith_proto::etcdserverpb::{PutRequest, PutResponse, RangeRequest, RangeResponse};

pub(crate) const KEY_PREFIX: &str = "k";
/// A call that takes longer is given up; the write may be done all the same.
const CALL: Duration = Duration::from_secs(3);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(10);
/// A client that retries gives up after this long.
const GIVE_UP: Duration = Duration::from_secs(20);
const READERS: usize = 4;

/// The key, and the value, of the write with this number.
pub(crate) fn key(number: usize) -> Bytes {
    format!("{KEY_PREFIX}{number:012}").into()
}

/// All that was written, by number, and what was answered.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// The revision, once it is acknowledged.
    writes: RefCell<Vec<Option<i64>>>,
    acknowledged: Cell<usize>,
    /// Largest revision in any answer to a write.
    newest: Cell<i64>,
    reads: Cell<usize>,
    retries: Cell<usize>,
    failed: Cell<usize>,
    violation: RefCell<Option<String>>,
}

impl History {
    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged.get()
    }

    pub(crate) fn reads(&self) -> usize {
        self.reads.get()
    }

    /// How many writes were begun.
    pub(crate) fn written(&self) -> usize {
        self.writes.borrow().len()
    }

    /// The revision of a write that was acknowledged.
    pub(crate) fn revision_of(&self, number: usize) -> Option<i64> {
        self.writes.borrow().get(number).copied().flatten()
    }

    /// What a client saw that must not be.
    pub(crate) fn violation(&self) -> Result<()> {
        self.violation.borrow().as_ref().map_or(Ok(()), |what| Err(what.clone().into()))
    }

    fn violate(&self, what: String) {
        self.violation.borrow_mut().get_or_insert(what);
    }

    fn begin(&self) -> usize {
        let mut writes = self.writes.borrow_mut();
        writes.push(None);
        writes.len() - 1
    }

    fn acknowledge(&self, number: usize, revision: i64) {
        self.writes.borrow_mut()[number] = Some(revision);
        self.acknowledged.set(self.acknowledged.get() + 1);
        self.newest.set(self.newest.get().max(revision));
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (written, acknowledged, reads) = (self.written(), self.acknowledged(), self.reads());
        let (retries, failed) = (self.retries.get(), self.failed.get());
        write!(f, "{acknowledged} of {written} writes acknowledged and there, {reads} reads, none stale; ")?;
        write!(f, "{retries} calls without an answer of use, {failed} requests given up")
    }
}

/// Clients at work.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) history: Rc<History>,
    stop: Rc<Cell<bool>>,
    clients: RefCell<JoinSet<()>>,
    retrying: bool,
}

impl Load {
    /// `retrying`: each write is sent until it is answered; else one without an answer is left alone.
    pub(crate) fn start(addresses: Vec<SocketAddr>, clients: usize, seed: u64, retrying: bool) -> Load {
        let (history, stop) = (Rc::new(History::default()), Rc::new(Cell::new(false)));
        let mut tasks = JoinSet::new();
        for number in 0..clients + READERS {
            let rng = Rng::new(seed.wrapping_add(number as u64 + 1));
            let (history, stop) = (history.clone(), stop.clone());
            let mut worker = Worker { addresses: addresses.clone(), connection: None, rng, history };
            tasks.spawn_local(async move {
                while !stop.get() {
                    match number < clients {
                        true => worker.write(retrying).await,
                        false => worker.read().await,
                    }
                }
            });
        }
        Load { history, stop, clients: RefCell::new(tasks), retrying }
    }

    /// Ends the clients; an error when they saw what must not be, or, retrying, gave a request up.
    pub(crate) async fn stop(&self) -> Result<()> {
        self.stop.set(true);
        let mut clients = self.clients.take();
        while let Some(ended) = clients.join_next().await {
            ended?;
        }
        if self.retrying && self.history.failed.get() > 0 {
            return Err(format!("{} requests failed", self.history.failed.get()).into());
        }
        self.history.violation()
    }
}

struct Worker {
    addresses: Vec<SocketAddr>,
    connection: Option<Client>,
    rng: Rng,
    history: Rc<History>,
}

impl Worker {
    /// A call to some member; after a failure the next goes to another one.
    async fn call<Q: prost::Message, A: prost::Message + Default>(
        &mut self,
        path: &str,
        request: &Q,
    ) -> Result<A> {
        let address = *self.rng.pick(&self.addresses);
        let call = async {
            if self.connection.is_none() {
                self.connection = Some(Client::connect(address).await?);
            }
            let Some(client) = &mut self.connection else { return Err("no connection".into()) };
            client.call(path, request).await
        };
        let outcome = timeout(CALL, call).await.unwrap_or_else(|_| Err("no answer in time".into()));
        if outcome.is_err() {
            self.connection = None;
            self.history.retries.set(self.history.retries.get() + 1);
            sleep(PAUSE).await;
        }
        outcome
    }

    async fn write(&mut self, retrying: bool) {
        let number = self.history.begin();
        let request = PutRequest { key: key(number), value: key(number), ..PutRequest::default() };
        let began = Instant::now();
        loop {
            match self.call::<_, PutResponse>(path::PUT, &request).await {
                Ok(answer) => {
                    return self.history.acknowledge(number, answer.header.unwrap_or_default().revision);
                }
                Err(_) if retrying && began.elapsed() < GIVE_UP => {}
                Err(_) => return self.history.failed.set(self.history.failed.get() + 1),
            }
        }
    }

    /// Looks for something acknowledged before.
    async fn read(&mut self) {
        let written = self.history.written();
        let newest = self.history.newest.get();
        let recent = (self.rng.below(200) as usize).min(written);
        let number = written - recent;
        let Some(revision) = self.history.revision_of(number) else {
            return sleep(PAUSE).await;
        };
        let request = RangeRequest { key: key(number), ..RangeRequest::default() };
        let Ok(answer) = self.call::<_, RangeResponse>(path::RANGE, &request).await else { return };
        self.history.reads.set(self.history.reads.get() + 1);
        let shown = answer.header.unwrap_or_default().revision;
        if shown < newest {
            self.history
                .violate(format!("a read shows revision {shown}, and {newest} was acknowledged before it"));
        }
        if answer.kvs.first().is_none_or(|kv| kv.mod_revision < revision) {
            let found = answer.kvs.first().map(|kv| kv.mod_revision);
            self.history.violate(format!(
                "a read of {KEY_PREFIX}{number} at revision {shown} found {found:?}, and {revision} was acknowledged"
            ));
        }
    }
}

//! Delivers changes to watchers.
//!
//! A watcher is a cursor. While it keeps up it is *synced*: the hub puts the changes that concern it into its
//! stream's queue as they are published. When its stream reads too slowly, or when it starts in the past, it is
//! *lagging*: its stream reads what it misses from the store, in bounded rounds, until it can join the synced ones
//! again without losing, doubling or reordering a change.
//!
//! Promises: [`Hub::publish`] never waits for a watcher, and what is held for a stream is bounded in bytes (plus
//! one transaction's changes). The lock is held for a transfer between queues, never for a read of the store.
//! [`state`] and [`catchup`] hold the logic and know neither threads nor the clock.

mod catchup;
mod encode;
mod matcher;
mod state;

#[cfg(test)]
mod model;

pub use encode::Encoder;
pub use state::{Created, Delivery, Refused, What};

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use trilith_engine::{Change, Reader, StoreError};
use trilith_proto::etcdserverpb::WatchCreateRequest;

use state::{State, Work};

/// Where the core hands over what it applied. Shared by all watch streams.
#[derive(Debug)]
pub struct Hub {
    reader: Reader,
    state: Mutex<State>,
}

impl Hub {
    /// A hub whose history is the store's, from its present revision on.
    pub fn new(reader: Reader) -> Arc<Hub> {
        let revision = reader.root().view().revision();
        Arc::new(Hub { reader, state: Mutex::new(State::new(revision)) })
    }

    /// After each publish of the store that changed keys, in revision order. Quick; never waits for a watcher.
    pub fn publish(&self, changes: Vec<Change>) {
        let wakers = self.lock().publish(&changes);
        for waker in wakers {
            waker.wake();
        }
    }

    /// Another store has taken the place of the one that was read, with all that happened up to a revision (W21).
    pub fn restore(&self, revision: i64) {
        let wakers = self.lock().restore(revision);
        for waker in wakers {
            waker.wake();
        }
    }

    /// A new stream of watchers; dropping it ends them.
    pub fn open(self: &Arc<Hub>) -> Stream {
        let key = self.lock().open();
        Stream { hub: self.clone(), key }
    }

    /// Streams and watchers that are open.
    pub fn counts(&self) -> (usize, usize) {
        self.lock().counts()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held would be a broken invariant; release builds abort on it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The watchers of one client stream. Driven by one task.
#[derive(Debug)]
pub struct Stream {
    hub: Arc<Hub>,
    key: u64,
}

impl Stream {
    /// Starts a watcher. Its `created` answer must be sent before what `poll_deliveries` hands out next.
    pub fn create(&mut self, request: &WatchCreateRequest) -> Result<Created, Refused> {
        // Taken before the lock: whoever was told of a revision before asking for this watcher is told the truth.
        let revision = self.hub.reader.root().view().revision();
        self.hub.lock().create(self.key, request, revision)
    }

    /// Ends a watcher: the revision for the answer, or None when there is no such watcher.
    pub fn cancel(&mut self, watch_id: i64) -> Option<i64> {
        self.hub.lock().cancel(self.key, watch_id)
    }

    /// Queues one progress answer for the whole stream if every watcher has all that happened.
    pub fn request_progress(&mut self) {
        self.hub.lock().request_progress(self.key);
    }

    /// Queues progress answers for the watchers that asked for them and were quiet since the last call.
    pub fn tick_progress(&mut self) {
        self.hub.lock().tick_progress(self.key);
    }

    /// What is to be sent next, in order; waits until there is something. May come back empty after a round of
    /// catching up that found nothing: then it is to be called again. An error of the store ends the stream.
    pub fn poll_deliveries(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<Delivery>, StoreError>> {
        let work = self.hub.lock().take_work(self.key, cx.waker());
        match work {
            Work::None => Poll::Pending,
            Work::Deliveries(deliveries) => Poll::Ready(Ok(deliveries)),
            Work::Round(round) => {
                let root = self.hub.reader.root();
                let done = round.run(&root.view())?;
                self.hub.lock().finish_round(self.key, &done);
                Poll::Ready(Ok(done.into_deliveries()))
            }
        }
    }

    /// The store as it is now, for values before a change.
    pub fn root(&self) -> trilith_engine::Root {
        self.hub.reader.root()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.hub.lock().close(self.key);
    }
}

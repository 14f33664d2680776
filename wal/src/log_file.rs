//! The log that is written: gathers records into batches, cuts segments, and keeps the order.
//!
//! Positions are settled when a record is encoded, since its checksum depends on all before it: `append` decides
//! where a batch ends and where a segment is cut, `poll` only moves finished batches to the disk.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message;
use trilith_disk::AlignedBuf;
use trilith_proto::{raftpb, walpb};

use crate::create::{Seed, head};
use crate::error::io_error;
use crate::io::{Batch, BatchIo, Done, Wake};
use crate::names::{self, Name};
use crate::prepare::{Preparer, step};
use crate::record::{BLOCK_BYTES, Encoder, FILLER_MAX, frame_bound};
use crate::segment::{ALL, Segment};
use crate::{EntryRef, Metadata, Options, Stats, Ticket, WalError};

/// A batch is closed when it would grow beyond this, or beyond a sixteenth of a segment.
const BATCH_BYTES_MAX: u64 = 1 << 20;
/// Buffers that are kept for later batches, and how large they may be.
const SPARE_BUFFERS: usize = crate::MAX_IN_FLIGHT + 1;
const SPARE_BUFFER_BYTES_MAX: usize = 2 << 20;

pub(crate) fn batch_bytes(segment_bytes: u64) -> u64 {
    BATCH_BYTES_MAX.min(segment_bytes / 16).max(2 * BLOCK_BYTES as u64)
}

/// raftpb.HardState as plain numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct State {
    term: u64,
    vote: u64,
    commit: u64,
}

impl State {
    pub(crate) fn of(state: &raftpb::HardState) -> State {
        let number = |n: Option<u64>| n.unwrap_or(0);
        State { term: number(state.term), vote: number(state.vote), commit: number(state.commit) }
    }

    /// Raft's empty state is never written.
    fn is_empty(self) -> bool {
        self == State::default()
    }

    fn encode(self, encoder: &mut Encoder, out: &mut AlignedBuf) {
        if !self.is_empty() {
            encoder.hard_state(out, self.term, self.vote, self.commit);
        }
    }
}

/// A segment with entries that may still be needed; its lock is held.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) name: Name,
    pub(crate) segment: Arc<Segment>,
}

/// What waits for its turn, in order.
#[derive(Debug)]
enum Queued {
    Batch {
        ticket: u64,
        offset: u64,
        buf: AlignedBuf,
    },
    /// The batches after it belong to a new segment. It waits until all before it are durable.
    /// Its length is that of a segment unless a record needs more.
    Cut {
        name: Name,
        head: AlignedBuf,
        bytes: u64,
    },
}

/// A log open for appending.
#[derive(Debug)]
pub struct Wal {
    options: Options,
    // The I/O path comes before the preparer: fields are dropped in order, and its batches may need no more
    // than what is there already.
    io: Box<dyn BatchIo>,
    preparer: Preparer,
    wake: Option<Wake>,

    metadata: Metadata,
    encoder: Encoder,
    /// The hard state given last; whether it still has to be written, and whether it may not wait for more.
    state: State,
    state_pending: bool,
    state_due: bool,
    /// Index of the entry or mark appended last.
    last_index: u64,

    /// Records that are in no batch yet, all due to become durable. Their ticket is `next_ticket`.
    gather: AlignedBuf,
    /// Sequence number of the segment that `gather` belongs to, and the offset there.
    seq: u64,
    position: u64,
    next_ticket: u64,
    queue: VecDeque<Queued>,

    /// The segment that batches are submitted to.
    segment: Arc<Segment>,
    /// The name of the segment that was asked for and is not there yet.
    installing: Option<Name>,
    /// The next segment was asked to be prepared.
    prepared: bool,
    /// Tickets under way, oldest first, and whether they are through.
    in_flight: VecDeque<(u64, bool)>,
    durable: u64,
    done: Vec<Done>,
    spare: Vec<AlignedBuf>,

    /// Segments that may be needed, oldest first; the newest is last.
    held: VecDeque<Held>,
    /// Segments that are not, oldest first.
    released: VecDeque<PathBuf>,
    stats: Stats,
    failed: Option<String>,
}

impl Wal {
    pub(crate) fn start(
        options: Options,
        io: Box<dyn BatchIo>,
        preparer: Preparer,
        wake: Option<Wake>,
        segment: Arc<Segment>,
        seed: Seed,
    ) -> Result<Wal, WalError> {
        let Seed { metadata, state, crc, last_index, position, mut held, newest, released } = seed;
        let seq = newest.seq;
        held.push_back(Held { name: newest, segment: segment.clone() });
        let mut wal = Wal {
            options,
            io,
            preparer,
            wake,
            metadata,
            encoder: Encoder { crc },
            state,
            state_pending: false,
            state_due: false,
            last_index,
            gather: AlignedBuf::with_capacity(BLOCK_BYTES),
            seq,
            position,
            next_ticket: 1,
            queue: VecDeque::new(),
            segment,
            installing: None,
            prepared: false,
            in_flight: VecDeque::new(),
            durable: 0,
            done: Vec::new(),
            spare: Vec::new(),
            held,
            released,
            stats: Stats::default(),
            failed: None,
        };
        wal.recycle_surplus()?;
        Ok(wal)
    }

    /// Gathers entries, then a hard state, into the next batch; copies them into the log's buffer and does no I/O.
    /// The batch must become durable before its ticket is reported. With `must_sync` false and no entries (only
    /// the commit index moved) the hard state rides along with a later batch and never causes one by itself. An
    /// empty hard state (all zeros) is not written.
    ///
    /// The ticket is that of the newest record gathered. After a failure nothing is gathered.
    pub fn append<'a>(
        &mut self,
        entries: impl IntoIterator<Item = EntryRef<'a>>,
        hard_state: Option<&raftpb::HardState>,
        must_sync: bool,
    ) -> Ticket {
        if self.failed.is_some() {
            return self.newest_ticket();
        }
        for entry in entries {
            self.make_room(frame_bound(entry.data.len()));
            self.encoder.entry(&mut self.gather, &entry);
            self.last_index = entry.index;
        }
        if let Some(state) = hard_state.map(State::of).filter(|s| !s.is_empty()) {
            self.make_room(0);
            self.state = state;
            self.state_pending = true;
            self.state_due |= must_sync;
        }
        self.newest_ticket()
    }

    /// Gathers a snapshot mark; always due to become durable.
    pub fn append_snapshot(&mut self, snapshot: &walpb::Snapshot) -> Ticket {
        if self.failed.is_some() {
            return self.newest_ticket();
        }
        let index = snapshot.index.unwrap_or(0);
        let mut mark = snapshot.clone();
        mark.index = Some(index);
        mark.term.get_or_insert(0);
        let data = mark.encode_to_vec();
        self.make_room(frame_bound(data.len()));
        self.encoder.snapshot(&mut self.gather, &data);
        self.last_index = self.last_index.max(index);
        self.newest_ticket()
    }

    fn newest_ticket(&self) -> Ticket {
        let gathering = u64::from(!self.gather.is_empty() || self.state_pending);
        Ticket(self.next_ticket - 1 + gathering)
    }

    /// Makes sure that a frame of up to that many bytes can go into `gather`: closes the batch, and cuts the
    /// segment, where it would grow too long. A record that no segment holds gets a longer one of its own.
    fn make_room(&mut self, frame: usize) {
        // Closing adds the hard state and the filler.
        let alone = (frame + frame_bound(0) + FILLER_MAX) as u64;
        let with_frame = self.gather.len() as u64 + alone;
        if self.position + with_frame > self.options.segment_bytes {
            self.cut((BLOCK_BYTES as u64 + alone).next_multiple_of(BLOCK_BYTES as u64));
        } else if !self.gather.is_empty() && with_frame > batch_bytes(self.options.segment_bytes) {
            self.close_batch();
        }
    }

    /// Ends the batch: the newest hard state, of all that were given meanwhile, and the filler.
    fn close_batch(&mut self) {
        if self.state_pending {
            self.state.encode(&mut self.encoder, &mut self.gather);
            self.state_pending = false;
            self.state_due = false;
        }
        if self.gather.is_empty() {
            return;
        }
        self.encoder.fill_block(&mut self.gather);
        let mut next = self.spare.pop().unwrap_or_else(|| AlignedBuf::with_capacity(BLOCK_BYTES));
        next.clear();
        let buf = std::mem::replace(&mut self.gather, next);
        let (ticket, offset) = (self.next_ticket, self.position);
        self.next_ticket += 1;
        self.position += buf.len() as u64;
        self.queue.push_back(Queued::Batch { ticket, offset, buf });
    }

    /// Ends the segment; the next one has to be that long. A hard state that no batch needs goes into its head.
    fn cut(&mut self, bytes: u64) {
        if !self.gather.is_empty() || self.state_due {
            self.close_batch();
        }
        self.seq += 1;
        let name = Name::new(&self.options.dir, self.seq, self.last_index.saturating_add(1));
        let state = self.state;
        let head = head(&mut self.encoder, self.metadata, |e, out| state.encode(e, out));
        self.state_pending = false;
        self.state_due = false;
        self.position = head.len() as u64;
        self.queue.push_back(Queued::Cut { name, head, bytes });
    }

    /// Hands gathered batches to the I/O path as far as slots are free, and takes what is through. Never blocks.
    /// Returns the newest ticket that is durable together with all before it. The first error of the disk is
    /// returned as it is; after it the log is stopped and every call says so.
    pub fn poll(&mut self) -> Result<Ticket, WalError> {
        self.check()?;
        let result = self.advance();
        self.latch(result)?;
        Ok(Ticket(self.durable))
    }

    fn check(&self) -> Result<(), WalError> {
        self.failed.as_ref().map_or(Ok(()), |what| Err(WalError::Stopped(what.clone())))
    }

    fn latch<T>(&mut self, result: Result<T, WalError>) -> Result<T, WalError> {
        if let Err(e) = &result {
            self.failed = Some(e.to_string());
        }
        result
    }

    fn advance(&mut self) -> Result<(), WalError> {
        // Before looking: what comes in later wakes again. With nothing under way there is nothing to look for but
        // a prepared segment, and a call of the kernel per poll would be dear.
        if let Some(wake) = &self.wake
            && !self.in_flight.is_empty()
        {
            wake.clear();
        }
        loop {
            self.reap()?;
            self.take_installed()?;
            if self.preparer.is_full() && self.preparer.is_idle() {
                self.recycle_oldest()?;
            }
            if !self.submit()? {
                return Ok(());
            }
        }
    }

    fn reap(&mut self) -> Result<(), WalError> {
        self.io.reap(&mut self.done)?;
        let mut done = std::mem::take(&mut self.done);
        for Done { batch, micros, result } in done.drain(..) {
            result?;
            if let Some(entry) = self.in_flight.iter_mut().find(|(ticket, _)| *ticket == batch.ticket) {
                entry.1 = true;
            }
            self.stats.bytes_written += batch.buf.len() as u64;
            self.stats.syncs += u64::from(self.options.fsync);
            if let Some(micros) = micros {
                self.stats.sync_times.record(micros);
            }
            if self.spare.len() < SPARE_BUFFERS && batch.buf.capacity() <= SPARE_BUFFER_BYTES_MAX {
                self.spare.push(batch.buf);
            }
        }
        self.done = done;
        while let Some((ticket, true)) = self.in_flight.front() {
            debug_assert_eq!(*ticket, self.durable + 1, "batches become durable in order");
            self.durable = *ticket;
            self.in_flight.pop_front();
        }
        Ok(())
    }

    fn take_installed(&mut self) -> Result<(), WalError> {
        if let Some(installed) = self.preparer.installed() {
            self.segment = installed?;
            let name = self.installing.take();
            let name = name.expect("the preparer answers only what it was asked, one at a time");
            self.held.push_back(Held { name, segment: self.segment.clone() });
            self.prepared = false;
            let zeroed = self.segment.frontier();
            if zeroed != ALL && self.preparer.takes_unwritten() {
                self.segment.set_frontier(ALL);
            } else if zeroed != ALL {
                // Batches were large when it was made, and are no more.
                self.segment.set_frontier(zeroed.max(step(self.options.segment_bytes)));
                self.preparer.rest(self.segment.clone())?;
            }
            self.recycle_surplus()?;
        }
        Ok(())
    }

    /// Submits what may be submitted; whether it was anything.
    fn submit(&mut self) -> Result<bool, WalError> {
        let mut any = false;
        while self.installing.is_none() {
            // The window counts from the oldest batch that is not durable, not by free slots: recovery relies on
            // it (see `recover`).
            let room = self.in_flight.len() < self.io.slots();
            let due = !self.gather.is_empty() || self.state_due;
            if self.queue.is_empty() && due && room {
                self.close_batch();
            }
            match self.queue.pop_front() {
                None => break,
                Some(Queued::Cut { name, head, bytes }) if self.in_flight.is_empty() => {
                    self.installing = Some(name.clone());
                    self.preparer.install(name, head, bytes)?;
                    any = true;
                }
                Some(Queued::Batch { ticket, offset, buf })
                    if room && offset + buf.len() as u64 <= self.segment.frontier() =>
                {
                    self.preparer.batch(buf.len() as u64);
                    self.in_flight.push_back((ticket, false));
                    let segment = self.segment.clone();
                    self.io.submit(Batch { ticket, segment, offset, buf })?;
                    self.prepare_ahead(offset)?;
                    any = true;
                }
                Some(waiting) => {
                    if let Queued::Batch { offset, buf, .. } = &waiting {
                        self.preparer.used(offset + buf.len() as u64);
                    }
                    self.queue.push_front(waiting);
                    break;
                }
            }
        }
        Ok(any)
    }

    /// Asks for the next segment when a quarter of this one is used: early enough, and a log that is hardly
    /// written never costs a second segment.
    fn prepare_ahead(&mut self, offset: u64) -> Result<(), WalError> {
        self.preparer.used(offset);
        if !self.prepared && offset > self.options.segment_bytes / 4 {
            self.prepared = true;
            self.preparer.prepare()?;
        }
        Ok(())
    }

    /// Whether the disk has no space for the next segment, nor for what is left of this one. Nothing is lost by
    /// it: what was acknowledged is durable, what is appended is gathered, and is written as far as this segment
    /// has room; the rest waits until [`Wal::retry`] finds space. Who proposes entries should stop for as long, since
    /// what waits is kept in memory. Reported as early as a quarter of a segment is used.
    pub fn is_full(&self) -> bool {
        self.preparer.is_full() && self.released.is_empty()
    }

    /// Looks whether a full disk has space again. Who owns the log calls it now and then; a release of segments
    /// does the same by itself, since their blocks are taken before new ones.
    pub fn retry(&mut self) -> Result<(), WalError> {
        self.check()?;
        if !self.preparer.is_full() || !self.preparer.is_idle() {
            return Ok(());
        }
        let result = self.preparer.retry();
        self.latch(result)
    }

    /// Blocks until everything gathered is durable: for shutdown and tests. A hard state that was to ride along
    /// is written as well. [`WalError::Full`] when that needs space that is not there; the log goes on after it.
    pub fn flush(&mut self) -> Result<Ticket, WalError> {
        self.check()?;
        self.close_batch();
        let target = Ticket(self.next_ticket - 1);
        loop {
            let durable = self.poll()?;
            if durable >= target && self.queue.is_empty() && self.installing.is_none() {
                return Ok(durable);
            }
            // In this order: a job that was not through when it was looked at may have changed the other.
            if self.preparer.is_idle() && self.is_full() && self.in_flight.is_empty() {
                return Err(WalError::Full { path: self.options.dir.clone() });
            }
            if let Some(wake) = &self.wake {
                let waited = wake.wait().map_err(io_error("wait for", &self.options.dir));
                wake.clear();
                self.latch(waited)?;
            }
        }
    }

    /// Becomes readable when `poll` has something to do (edge-triggered: it may stay readable). None when completions come with `poll` itself (simulated disk).
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.wake.as_ref().map(Wake::fd)
    }

    /// Entries up to and including this index are no longer needed, since a durable state holds them: segments
    /// with only such entries are released, and recycled when there are more than `max_segments`. The segment that
    /// a reader starts at who holds the state at `index` stays, by etcd's rule as well as ours.
    pub fn release_to(&mut self, index: u64) -> Result<(), WalError> {
        self.check()?;
        let needed = names::start_for(self.held.iter().map(|h| h.name.index), index).unwrap_or(0);
        self.released.extend(self.held.drain(..needed).map(|h| h.name.path));
        let result = self.recycle_surplus();
        self.latch(result)
    }

    fn recycle_surplus(&mut self) -> Result<(), WalError> {
        let max = self.options.max_segments;
        while max > 0 && self.released.len() + self.held.len() > max {
            if !self.recycle_oldest()? {
                break;
            }
        }
        Ok(())
    }

    fn recycle_oldest(&mut self) -> Result<bool, WalError> {
        let Some(oldest) = self.released.pop_front() else { return Ok(false) };
        self.preparer.recycle(oldest)?;
        Ok(true)
    }

    pub(crate) fn held(&self) -> &VecDeque<Held> {
        &self.held
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.options.dir
    }

    /// "io_uring" or "sync".
    pub fn io_name(&self) -> &'static str {
        self.io.name()
    }

    /// Counters since the log was opened.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }
}

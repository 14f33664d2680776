//! Writing: a transaction is a row of changes that share one main revision.
//!
//! Promises: a change writes its pair, its index entry and its lease attachment together; a put costs the same
//! whether its key has two versions or a million; a transaction that changes nothing leaves the revision alone.

use super::codec::{self, Chunks, Live, Pair, RevisionKey};
use super::read::{inconsistent, newest_of};
use super::{CURRENT_REVISION, Change, KeyRange, Revision};
use crate::{Store, StoreError, TreeId, VALUE_MAX, Value, View};

/// What the writer keeps between transactions: room that is used again.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    chunks: Chunks,
    key: Vec<u8>,
    value: Vec<u8>,
}

/// A transaction on the writer. Dropping it ends it: the revision moves when something changed.
#[derive(Debug)]
pub struct Txn<'s> {
    store: &'s mut Store,
    /// Main of its changes.
    main: i64,
    changes: Vec<Change>,
}

impl Store {
    /// Begins a transaction: its changes share main revision current + 1, subs count from 0.
    pub fn txn(&mut self) -> Txn<'_> {
        let main = self.view().revision() + 1;
        Txn { store: self, main, changes: Vec::new() }
    }
}

impl Txn<'_> {
    /// Reads see the transaction's own writes.
    pub fn view(&self) -> View<'_> {
        self.store.view()
    }

    /// The revision that its answers carry: main of its changes, or the current one while there are none.
    pub fn revision(&self) -> i64 {
        if self.changes.is_empty() { self.main - 1 } else { self.main }
    }

    /// Writes a new version of the key; detaches it from its old lease and attaches it to `lease` unless 0.
    pub fn put(&mut self, key: &[u8], value: &[u8], lease: i64) -> Result<(), StoreError> {
        let mut room = std::mem::take(&mut self.store.mvcc);
        let done = self.put_with(&mut room, key, value, lease);
        self.store.mvcc = room;
        done
    }

    fn put_with(
        &mut self,
        room: &mut Writer,
        key: &[u8],
        value: &[u8],
        lease: i64,
    ) -> Result<(), StoreError> {
        // A value of this length fits, whatever is stored with it; the store refuses others, before anything changes.
        let indexed = match value.len() < VALUE_MAX / 2 {
            true => self.index_put(room, key, lease)?,
            false => None,
        };
        let old = match indexed {
            Some(old) => old,
            None => self.view().newest_at(key, self.main, &mut room.key)?.and_then(|(_, live)| live),
        };
        let live = next_version(key, old, self.main, lease)?;
        let (kv, kept_key) = Pair { key, value, modified: self.main, live }.encode(&mut room.chunks);
        if indexed.is_none() {
            live.encode(old.is_some(), &mut room.value);
        }
        let leases = (old.map_or(0, |live| live.lease), lease);
        let change = Change { revision: self.next_revision(), deleted: false, key: kept_key, kv };
        self.write(room, change, leases, indexed.is_some())
    }

    /// Writes the index entry of a put, if the entry before it is in the same leaf. What the key was until now: the
    /// outer None: nothing was written. The inner one: not live.
    fn index_put(
        &mut self,
        room: &mut Writer,
        key: &[u8],
        lease: i64,
    ) -> Result<Option<Option<Live>>, StoreError> {
        codec::index_key(&mut room.key, key, self.next_revision());
        let (main, Writer { key: entry, value, .. }) = (self.main, room);
        let written = self.store.insert_behind(TreeId::Index, entry, value, |before, of, value| {
            let old = newest_of(key, before, || Ok(Value::Page(of)))?.and_then(|(_, live)| live);
            next_version(key, old, main, lease)?.encode(old.is_some(), value);
            Ok(old)
        });
        // It has written nothing; the changes before it have.
        written.inspect_err(|error| self.stop_if(!self.changes.is_empty(), error))
    }

    /// An error after which a part of the transaction is written stops the store: that must not be published.
    fn stop_if(&self, part_is_written: bool, error: &StoreError) {
        if part_is_written {
            self.store.state().source.stop(error);
        }
    }

    /// Deletes the live keys of the interval in key order; how many.
    pub fn delete_range(&mut self, range: KeyRange<'_>) -> Result<i64, StoreError> {
        let mut room = std::mem::take(&mut self.store.mvcc);
        let done = self.delete_range_with(&mut room, range);
        self.store.mvcc = room;
        done
    }

    fn delete_range_with(&mut self, room: &mut Writer, range: KeyRange<'_>) -> Result<i64, StoreError> {
        // The list is a copy: the trees change under our hands.
        let mut doomed = Vec::new();
        for key in self.view().keys(range, 0)? {
            let key = key?;
            doomed.push((key.key.into_owned(), key.lease));
        }
        for (key, lease) in &doomed {
            let revision = self.next_revision();
            let (kv, kept_key) = codec::encode_tombstone(&mut room.chunks, key);
            room.value.clear();
            room.value.extend_from_slice(&codec::TOMBSTONE_VALUE);
            self.write(room, Change { revision, deleted: true, key: kept_key, kv }, (*lease, 0), false)?;
        }
        Ok(doomed.len() as i64)
    }

    /// Ends the transaction and hands out its changes.
    pub fn end(self) -> Vec<Change> {
        self.changes
    }

    fn next_revision(&self) -> Revision {
        Revision { main: self.main, sub: self.changes.len() as i64 }
    }

    /// Writes a change into `Key`, into `Index` with the value that stands in `room` unless it is `indexed`, and moves
    /// the key from one lease to another.
    fn write(
        &mut self,
        room: &mut Writer,
        change: Change,
        leases: (i64, i64),
        indexed: bool,
    ) -> Result<(), StoreError> {
        let key = RevisionKey::new(change.revision, change.deleted);
        let begun = indexed || !self.changes.is_empty();
        let written = self.store.append(TreeId::Key, &key, &change.kv);
        written.inspect_err(|error| self.stop_if(begun, error))?;
        let written = self.write_rest(room, &change, leases, indexed);
        written.inspect_err(|error| self.stop_if(true, error))?;
        self.changes.push(change);
        Ok(())
    }

    fn write_rest(
        &mut self,
        room: &mut Writer,
        change: &Change,
        leases: (i64, i64),
        indexed: bool,
    ) -> Result<(), StoreError> {
        if self.changes.is_empty() {
            // From the first change on the transaction reads at its own revision.
            self.store.set_counter(CURRENT_REVISION, self.main as u64);
        }
        if !indexed {
            codec::index_key(&mut room.key, &change.key, change.revision);
            self.store.insert(TreeId::Index, &room.key, &room.value)?;
        }
        self.move_lease(room, &change.key, leases.0, leases.1)
    }

    fn move_lease(&mut self, room: &mut Writer, key: &[u8], from: i64, to: i64) -> Result<(), StoreError> {
        if from == to {
            return Ok(());
        }
        if from != 0 {
            codec::lease_key(&mut room.key, from, key);
            if !self.store.remove(TreeId::LeaseKey, &room.key)? {
                return Err(inconsistent(TreeId::LeaseKey, "nothing for a key with a lease", &room.key));
            }
        }
        if to != 0 {
            codec::lease_key(&mut room.key, to, key);
            self.store.insert(TreeId::LeaseKey, &room.key, b"")?;
        }
        Ok(())
    }
}

/// What a key is after a put in the transaction `main`; `old`: what it was before, None if not live.
fn next_version(key: &[u8], old: Option<Live>, main: i64, lease: i64) -> Result<Live, StoreError> {
    let Some(old) = old else { return Ok(Live { create_revision: main, version: 1, lease }) };
    let version = old.version.checked_add(1);
    let version = version.ok_or_else(|| inconsistent(TreeId::Index, "no next version", key))?;
    Ok(Live { create_revision: old.create_revision, version, lease })
}

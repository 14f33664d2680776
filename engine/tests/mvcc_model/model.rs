//! The model: the list of all events, and every answer computed from it by going through the whole list.

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use prost::Message;
use trilith_engine::{Change, KeyRange, Revision};
use trilith_proto::mvccpb::KeyValue;

/// A change that was made, and what etcd stores of it.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) at: Revision,
    pub(crate) deleted: bool,
    pub(crate) kv: KeyValue,
}

impl Event {
    pub(crate) fn change(&self) -> Change {
        let kv = Bytes::from(self.kv.encode_to_vec());
        Change { revision: self.at, deleted: self.deleted, key: self.kv.key.clone(), kv }
    }

    fn stored_key(&self) -> Vec<u8> {
        let mut key = [&self.at.main.to_be_bytes()[..], b"_", &self.at.sub.to_be_bytes()].concat();
        if self.deleted {
            key.push(b't');
        }
        key
    }
}

/// The history since it was compacted.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) events: Vec<Rc<Event>>,
    pub(crate) revision: i64,
    pub(crate) compacted: i64,
    /// X9: what compactions found that were marked when the one before had ended: revision, the one before, hash.
    pub(crate) hashes: Vec<(i64, i64, u32)>,
}

pub(crate) fn holds(range: KeyRange<'_>, key: &[u8]) -> bool {
    match range.end {
        None => key == range.start,
        Some(b"") => key >= range.start,
        Some(end) => key >= range.start && key < end,
    }
}

impl Model {
    pub(crate) fn new() -> Model {
        Model { events: Vec::new(), revision: 1, compacted: -1, hashes: Vec::new() }
    }

    /// The newest event of each key with main <= revision.
    fn newest(&self, revision: i64) -> BTreeMap<&[u8], &Rc<Event>> {
        let seen = self.events.iter().take_while(|event| event.at.main <= revision);
        seen.map(|event| (&event.kv.key[..], event)).collect()
    }

    /// Live keys at a revision, in key order.
    pub(crate) fn live(&self, range: KeyRange<'_>, revision: i64) -> Vec<&KeyValue> {
        let newest = self.newest(revision).into_values();
        newest.filter(|event| !event.deleted && holds(range, &event.kv.key)).map(|event| &event.kv).collect()
    }

    pub(crate) fn put(&mut self, at: Revision, key: &[u8], value: &[u8], lease: i64) {
        let old = self.newest(i64::MAX).get(key).filter(|event| !event.deleted).map(|event| event.kv.clone());
        let kv = KeyValue {
            key: Bytes::copy_from_slice(key),
            value: Bytes::copy_from_slice(value),
            create_revision: old.as_ref().map_or(at.main, |old| old.create_revision),
            mod_revision: at.main,
            version: old.map_or(1, |old| old.version + 1),
            lease,
        };
        self.events.push(Rc::new(Event { at, deleted: false, kv }));
        self.revision = at.main;
    }

    /// How many.
    pub(crate) fn delete_range(&mut self, mut at: Revision, range: KeyRange<'_>) -> i64 {
        let keys: Vec<Bytes> = self.live(range, i64::MAX).iter().map(|kv| kv.key.clone()).collect();
        for key in &keys {
            let kv = KeyValue { key: key.clone(), ..Default::default() };
            self.events.push(Rc::new(Event { at, deleted: true, kv }));
            at.sub += 1;
            self.revision = at.main;
        }
        keys.len() as i64
    }

    /// Rule K9, at once.
    pub(crate) fn compact(&mut self, revision: i64) {
        let newest = self.newest(revision);
        let kept = |event: &Rc<Event>| {
            event.at.main > revision
                || (Rc::ptr_eq(newest[&event.kv.key[..]], event)
                    && (!event.deleted || event.at.main == revision))
        };
        self.events = self.events.iter().filter(|event| kept(event)).cloned().collect();
        self.compacted = revision;
    }

    /// What tree `Index` names, in its order.
    pub(crate) fn index_entries(&self) -> Vec<(Vec<u8>, Revision)> {
        let mut entries: Vec<_> = self.events.iter().map(|event| (event.kv.key.to_vec(), event.at)).collect();
        entries.sort();
        entries
    }

    pub(crate) fn lease_keys(&self, lease: i64) -> Vec<Bytes> {
        let newest = self.newest(i64::MAX).into_values();
        newest
            .filter(|event| event.kv.lease == lease && lease != 0)
            .map(|event| event.kv.key.clone())
            .collect()
    }

    /// X8, word by word.
    pub(crate) fn hash_kv(&self, revision: i64) -> u32 {
        let newest = self.newest(revision);
        self.hash_with(revision, newest.into_values().filter(|event| !event.deleted).collect())
    }

    /// X9, to be noted before a compaction: a tombstone at its revision is kept.
    pub(crate) fn note_hash(&mut self, revision: i64) {
        let newest = self.newest(revision).into_values();
        let keep = newest.filter(|event| !event.deleted || event.at.main == revision).collect();
        let hash = self.hash_with(revision, keep);
        self.hashes.push((revision, self.compacted, hash));
    }

    fn hash_with(&self, revision: i64, keep: Vec<&Rc<Event>>) -> u32 {
        let mut bytes = b"key".to_vec();
        for event in &self.events {
            let main = event.at.main;
            let kept = keep.is_empty() || keep.iter().any(|kept| Rc::ptr_eq(kept, event));
            let skipped =
                main > revision || main <= self.compacted && !kept || event.deleted && main == self.compacted;
            if !skipped {
                bytes.extend_from_slice(&event.stored_key());
                bytes.extend_from_slice(&event.kv.encode_to_vec());
            }
        }
        crc32c::crc32c(&bytes)
    }
}

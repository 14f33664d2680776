//! The index and the attachments of a history that comes from elsewhere: what an import needs.
//!
//! Promises: from the entries of tree `Key` alone it makes what the transactions would have made that wrote them. It
//! must never let an entry pass that another part could not read.

use super::codec::{self, Live, RevisionKey};
use super::compact::{FINISHED, SCHEDULED};
use super::{COMPACT_REVISION, CURRENT_REVISION, Revision};
use crate::{Store, StoreError, TreeId};

/// Numbers of the fields of mvccpb.KeyValue, with their wire types.
const KEY: u64 = 0x0a;
const CREATE_REVISION: u64 = 0x10;
const MOD_REVISION: u64 = 0x18;
const VERSION: u64 = 0x20;
const VALUE: u64 = 0x2a;
const LEASE: u64 = 0x30;

/// Greatest revision and version that are taken in, so that what goes on from there has room to count.
const NUMBER_MAX: i64 = i64::MAX / 2;

/// Writes what the index must know of an entry of tree `Key`: into `record` its key in tree `Index`, into `facts` what
/// [`Indexer::add`] needs. Answers its main revision. Errors: what is wrong with it.
pub(crate) fn index_record(
    entry: &[u8],
    pair: &[u8],
    record: &mut Vec<u8>,
    facts: &mut Vec<u8>,
) -> Result<i64, &'static str> {
    let (revision, tombstone) = RevisionKey::parse(entry).ok_or("the key is no revision")?;
    if !(1..=NUMBER_MAX).contains(&revision.main) || !(0..=i64::from(u32::MAX)).contains(&revision.sub) {
        return Err("the revision is out of range");
    }
    let (key, live, modified) = parse_pair(pair).ok_or("the value is no pair of a key and a value")?;
    if tombstone {
        facts.clear();
        facts.extend_from_slice(&codec::FIRST_TOMBSTONE_VALUE);
    } else {
        // An entry without a pair lifts the revision and is nobody's.
        if !pair.is_empty() && modified != revision.main {
            return Err("the pair is of another revision");
        }
        if !(0..=revision.main).contains(&live.create_revision) || !(0..=NUMBER_MAX).contains(&live.version) {
            return Err("the pair's numbers are out of range");
        }
        live.encode(false, facts);
    }
    codec::index_key(record, key, revision);
    Ok(revision.main)
}

/// User key of a record of [`index_record`], and whether it is a put.
pub(crate) fn indexed<'r>(record: &'r [u8], facts: &[u8]) -> (&'r [u8], bool) {
    let (key, _) = codec::parse_index_key(record).expect("a record that index_record made");
    (key, Live::parse(facts).expect("facts that index_record made").is_some())
}

/// User key, what the index keeps, and the mod revision of a stored pair.
fn parse_pair(pair: &[u8]) -> Option<(&[u8], Live, i64)> {
    let mut key: &[u8] = b"";
    let mut live = Live { create_revision: 0, version: 0, lease: 0 };
    let (mut modified, mut last, mut rest) = (0, 0, pair);
    while !rest.is_empty() {
        let (tag, after) = codec::take_varint(rest)?;
        let (number, after) = codec::take_varint(after)?;
        // Ascending, as every encoder writes them: so the key comes first, and no field twice.
        if tag <= last {
            return None;
        }
        last = tag;
        rest = after;
        match tag {
            KEY | VALUE => {
                let (bytes, after) = rest.split_at_checked(usize::try_from(number).ok()?)?;
                if tag == KEY {
                    key = bytes;
                }
                rest = after;
            }
            CREATE_REVISION => live.create_revision = number as i64,
            MOD_REVISION => modified = number as i64,
            VERSION => live.version = number as i64,
            LEASE => live.lease = number as i64,
            _ => return None,
        }
    }
    Some((key, live, modified))
}

/// Fills tree `Index` from records in its order, and says which attachments there are.
#[derive(Debug, Default)]
pub(crate) struct Indexer {
    /// The user key of the last record, and what it was if it was a put.
    key: Vec<u8>,
    live: Option<Live>,
    value: Vec<u8>,
}

impl Indexer {
    /// Adds a record of [`index_record`]. `attached` hears the keys of tree `LeaseKey`.
    pub(crate) fn add<E: From<StoreError>>(
        &mut self,
        store: &mut Store,
        record: &[u8],
        facts: &[u8],
        attached: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (key, _) = codec::parse_index_key(record).expect("a record that index_record made");
        let live = Live::parse(facts).expect("facts that index_record made");
        if key != self.key {
            self.end(attached)?;
            self.key.clear();
            self.key.extend_from_slice(key);
        }
        self.value.clear();
        self.value.extend_from_slice(facts);
        if self.live.is_some() {
            codec::after_a_put(&mut self.value);
        }
        self.live = live;
        Ok(store.insert(TreeId::Index, record, &self.value)?)
    }

    /// After the last record of a key: its attachment, if the newest version has one.
    pub(crate) fn end<E>(&mut self, mut attached: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        if let Some(Live { lease, .. }) = self.live
            && lease != 0
        {
            let mut buffer = Vec::with_capacity(8 + self.key.len());
            codec::lease_key(&mut buffer, lease, &self.key);
            attached(&buffer)?;
        }
        self.live = None;
        Ok(())
    }
}

impl Store {
    /// Sets the revisions of a history whose newest entry has main `newest` (0: it has none), with the marks of
    /// compactions that stand in tree `Meta`. Errors: Inconsistent when a mark is none.
    pub(crate) fn set_history(&mut self, newest: i64) -> Result<(), StoreError> {
        let mut compacted = -1;
        for name in [SCHEDULED, FINISHED] {
            let Some(mark) = self.view().get(TreeId::Meta, name)? else { continue };
            let (revision, _) = RevisionKey::parse(&mark)
                .filter(|(revision, _)| (0..=NUMBER_MAX).contains(&revision.main))
                .ok_or_else(|| super::read::inconsistent(TreeId::Meta, "malformed revision", name))?;
            compacted = compacted.max(revision.main);
        }
        self.set_counter(CURRENT_REVISION, newest.max(compacted).max(0) as u64);
        self.set_counter(COMPACT_REVISION, (compacted + 1) as u64);
        Ok(())
    }
}

/// The key of an entry that lifts the revision to `main`, and the mark that everything before is compacted.
pub(crate) fn lift(main: i64) -> (Vec<u8>, (&'static [u8], Vec<u8>)) {
    let key = RevisionKey::new(Revision { main, sub: 0 }, false).to_vec();
    (key.clone(), (SCHEDULED, key))
}

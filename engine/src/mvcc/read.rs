//! Reading: the live keys of an interval at a revision, and the history in order.
//!
//! Promises: the work of a read grows with what it returns (and with the dead keys between), never with the number
//! of versions that a key has; what a `View` says is one revision of the store, whatever the writer does meanwhile.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;

use super::codec::{self, Chunks, Live, RevisionKey};
use super::{COMPACT_REVISION, CURRENT_REVISION, Change, KeyMeta, KeyRange, Revision};
use crate::{Cursor, StoreError, TreeId, Value, View};

/// So many versions of a key are passed one by one before its newest is looked up by search.
const WALK_MAX: usize = 4;

/// Greater than the sub revision of any change.
const SUB_MAX: i64 = u32::MAX as i64;

pub(super) fn inconsistent(tree: TreeId, what: &str, key: &[u8]) -> StoreError {
    StoreError::Inconsistent(format!("tree {tree:?}: {what} at {}", key.escape_ascii()))
}

/// The newest entry of a user key in tree `Index` below a limit: revision, and None for a tombstone.
pub(super) type Newest = (Revision, Option<Live>);

impl<'a> View<'a> {
    /// Current revision: main of the last transaction; 1 for an empty store.
    pub fn revision(&self) -> i64 {
        (self.counter(CURRENT_REVISION) as i64).max(1)
    }

    /// Last compaction (scheduled or done); -1 if never.
    pub fn compact_revision(&self) -> i64 {
        self.counter(COMPACT_REVISION) as i64 - 1
    }

    /// Live keys of the interval at `revision` (<= 0: the current one, inside a transaction its own), in key
    /// order. Errors: Compacted, Future.
    pub fn keys(&self, range: KeyRange<'_>, revision: i64) -> Result<Keys<'a>, StoreError> {
        let current = self.revision();
        let revision = if revision <= 0 { current } else { revision };
        if revision > current {
            return Err(StoreError::Future);
        }
        if revision < self.compact_revision() {
            return Err(StoreError::Compacted);
        }
        self.keys_at(range, revision)
    }

    /// The same at a revision that is there.
    pub(super) fn keys_at(&self, range: KeyRange<'_>, revision: i64) -> Result<Keys<'a>, StoreError> {
        let mut probe = Vec::with_capacity(range.start.len() + codec::INDEX_SUFFIX);
        let position = match range.end {
            None => match self.newest_at(range.start, revision, &mut probe)? {
                Some((modified, Some(live))) => Position::Single(modified, live),
                _ => Position::End,
            },
            Some(_) => {
                codec::index_key(&mut probe, range.start, Revision::default());
                Position::At(self.seek(TreeId::Index, &probe)?)
            }
        };
        let end = range.end.filter(|end| !end.is_empty()).map(<[u8]>::to_vec);
        let key = match range.end {
            None => {
                probe.truncate(range.start.len());
                Cow::Owned(std::mem::take(&mut probe))
            }
            Some(_) => Cow::Borrowed(&b""[..]),
        };
        Ok(Keys { view: *self, revision, end, position, key, begun: false, probe })
    }

    /// The stored mvccpb.KeyValue bytes of a revision that `keys` named.
    pub fn kv(&self, revision: Revision) -> Result<Value<'a>, StoreError> {
        let key = RevisionKey::new(revision, false);
        self.get(TreeId::Key, &key)?
            .ok_or_else(|| inconsistent(TreeId::Key, "no entry for an index entry", &key))
    }

    /// How many bytes [`View::kv`] has, without reading long ones.
    pub fn kv_len(&self, revision: Revision) -> Result<usize, StoreError> {
        let key = RevisionKey::new(revision, false);
        self.value_len(TreeId::Key, &key)?
            .ok_or_else(|| inconsistent(TreeId::Key, "no entry for an index entry", &key))
    }

    /// Every change with main revision in [from, to], in revision order: for watchers that catch up.
    /// Superseded revisions that a compaction has removed are not among them. Errors: none but those of the disk;
    /// who needs all changes asks for no revision below `compact_revision`.
    pub fn changes(&self, from: i64, to: i64) -> Result<Changes<'a>, StoreError> {
        let start = RevisionKey::new(Revision { main: from.max(0), sub: 0 }, false);
        Ok(Changes { cursor: Some(self.seek(TreeId::Key, &start)?), to, chunks: Chunks::default() })
    }

    /// Keys attached to a lease, in byte order.
    pub fn lease_keys(&self, lease: i64) -> Result<Vec<Bytes>, StoreError> {
        let prefix = lease.to_be_bytes();
        let mut cursor = self.seek(TreeId::LeaseKey, &prefix)?;
        let mut keys = Vec::new();
        while let Some(key) = cursor.key().and_then(|entry| entry.strip_prefix(&prefix)) {
            keys.push(Bytes::copy_from_slice(key));
            cursor.next()?;
        }
        Ok(keys)
    }

    /// The newest entry of a user key with a main revision <= `revision`. `probe` is room to build a key in.
    pub(super) fn newest_at(
        &self,
        key: &[u8],
        revision: i64,
        probe: &mut Vec<u8>,
    ) -> Result<Option<Newest>, StoreError> {
        codec::index_key(probe, key, Revision { main: revision, sub: SUB_MAX });
        self.newest_before(key.len(), probe)
    }

    /// The newest entry of a user key (so many bytes at the front of `probe`) before the index key `probe`.
    pub(super) fn newest_before(&self, key_len: usize, probe: &[u8]) -> Result<Option<Newest>, StoreError> {
        let user_key = &probe[..key_len];
        let (tree, root) = self.state.tree(TreeId::Index);
        if let Some((leaf, i)) = tree.find_before(root, probe)? {
            return newest_of(user_key, &tree.key(&leaf, i)?, || tree.value(&leaf, i));
        }
        // It stands in the leaf before.
        let cursor = self.seek_before(TreeId::Index, probe)?;
        let (Some(entry), Some(value)) = (cursor.key(), cursor.value()?) else { return Ok(None) };
        newest_of(user_key, entry, || Ok(value))
    }
}

/// What an entry of tree `Index` says, if it is one of the user key.
pub(super) fn newest_of<'v>(
    user_key: &[u8],
    entry: &[u8],
    value: impl FnOnce() -> Result<Value<'v>, StoreError>,
) -> Result<Option<Newest>, StoreError> {
    let (found, revision) = parse_index_key(entry)?;
    if found != user_key {
        return Ok(None);
    }
    let live = Live::parse(&value()?).ok_or_else(|| inconsistent(TreeId::Index, "malformed value", entry))?;
    Ok(Some((revision, live)))
}

pub(super) fn parse_index_key(entry: &[u8]) -> Result<(&[u8], Revision), StoreError> {
    codec::parse_index_key(entry).ok_or_else(|| inconsistent(TreeId::Index, "malformed key", entry))
}

fn index_value(cursor: &Cursor<'_>) -> Result<Option<Live>, StoreError> {
    let value = cursor.value()?;
    value
        .and_then(|value| Live::parse(&value))
        .ok_or_else(|| inconsistent(TreeId::Index, "malformed value", cursor.key().unwrap_or_default()))
}

/// Where `Keys` stands.
#[derive(Debug)]
enum Position<'a> {
    /// Before the only key, which is live.
    Single(Revision, Live),
    /// At the oldest entry of a user key that was not looked at yet, or at the end of the tree.
    At(Cursor<'a>),
    End,
}

/// Iterator of `View::keys`; owns its bounds.
pub struct Keys<'a> {
    view: View<'a>,
    revision: i64,
    /// None: no end.
    end: Option<Vec<u8>>,
    position: Position<'a>,
    /// The user key in hand.
    key: Cow<'a, [u8]>,
    /// `key` is one of the tree's.
    begun: bool,
    /// Room to build keys in.
    probe: Vec<u8>,
}

impl fmt::Debug for Keys<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("revision", &self.revision)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl<'a> Keys<'a> {
    /// How many keys are left. At the current revision that is known without looking at them; at an older one they
    /// are passed one by one.
    pub fn remaining(self) -> Result<u64, StoreError> {
        let mut steps = usize::MAX;
        Ok(self.remaining_within(&mut steps)?.unwrap_or_default())
    }

    /// The same, if it takes no more than `steps` entries to find out; the steps taken are subtracted. What was found
    /// out in vain makes the next attempt cheaper.
    pub fn remaining_within(mut self, steps: &mut usize) -> Result<Option<u64>, StoreError> {
        if self.revision == self.view.revision()
            && let Position::At(cursor) = &self.position
        {
            let Some(from) = cursor.key() else { return Ok(Some(0)) };
            if let Some(end) = &self.end {
                codec::index_key(&mut self.probe, end, Revision::default());
            }
            let to = self.end.is_some().then_some(&self.probe[..]);
            let Some(live) = self.view.live(Some(from), to, steps)? else { return Ok(None) };
            let live = u64::try_from(live);
            return live.map(Some).map_err(|_| inconsistent(TreeId::Index, "wrong count of live keys", from));
        }
        let mut count = 0;
        while self.advance()?.is_some() {
            let Some(left) = steps.checked_sub(1) else { return Ok(None) };
            *steps = left;
            count += 1;
        }
        Ok(Some(count))
    }

    /// Goes to the next live key and leaves it in `self.key`.
    fn advance(&mut self) -> Result<Option<(Revision, Live)>, StoreError> {
        loop {
            match std::mem::replace(&mut self.position, Position::End) {
                Position::End => return Ok(None),
                Position::Single(modified, live) => return Ok(Some((modified, live))),
                Position::At(cursor) => {
                    let Some(entry) = cursor.key_value()? else { return Ok(None) };
                    let key = match entry {
                        Value::Page(entry) => Cow::Borrowed(parse_index_key(entry)?.0),
                        entry => Cow::Owned(parse_index_key(&entry)?.0.to_vec()),
                    };
                    // Keys that do not ascend, under right checksums, could send the search round in a circle.
                    if self.begun && key <= self.key {
                        return Err(inconsistent(TreeId::Index, "keys out of order", &key));
                    }
                    (self.key, self.begun) = (key, true);
                    if self.end.as_ref().is_some_and(|end| self.key.as_ref() >= end.as_slice()) {
                        return Ok(None);
                    }
                    let (newest, cursor) = self.pass_key(cursor)?;
                    self.position = Position::At(cursor);
                    if let Some((modified, Some(live))) = newest {
                        return Ok(Some((modified, live)));
                    }
                }
            }
        }
    }

    /// From the oldest entry of `self.key` to that of the next key: the newest entry at our revision.
    fn pass_key(&mut self, mut cursor: Cursor<'a>) -> Result<(Option<Newest>, Cursor<'a>), StoreError> {
        let mut newest = None;
        for _ in 0..WALK_MAX {
            let Some(revision) = self.revision_here(&cursor)? else { return Ok((newest, cursor)) };
            if revision.main <= self.revision {
                newest = Some((revision, index_value(&cursor)?));
            }
            cursor.next()?;
        }
        if self.revision_here(&cursor)?.is_none() {
            return Ok((newest, cursor));
        }
        // Many versions. Their end first: a read at the current revision, the usual one, then needs no other search.
        codec::index_key_after(&mut self.probe, &self.key);
        let mut last = self.view.seek_before(TreeId::Index, &self.probe)?;
        if let Some(revision) = self.revision_here(&last)? {
            newest = if revision.main <= self.revision {
                Some((revision, index_value(&last)?))
            } else {
                self.view.newest_at(&self.key, self.revision, &mut self.probe)?
            };
        }
        last.next()?;
        Ok((newest, last))
    }

    /// The revision of the entry if it is one of `self.key`.
    fn revision_here(&self, cursor: &Cursor<'_>) -> Result<Option<Revision>, StoreError> {
        let Some(entry) = cursor.key() else { return Ok(None) };
        let (key, revision) = parse_index_key(entry)?;
        Ok((key == &*self.key).then_some(revision))
    }
}

impl<'a> Iterator for Keys<'a> {
    type Item = Result<KeyMeta<'a>, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (modified, live) = match self.advance() {
            Ok(found) => found?,
            Err(error) => return Some(Err(error)),
        };
        let Live { create_revision, version, lease } = live;
        // A single key is handed out once.
        let key = if self.begun { self.key.clone() } else { std::mem::take(&mut self.key) };
        Some(Ok(KeyMeta { key, modified, create_revision, version, lease }))
    }
}

/// Iterator of `View::changes`.
pub struct Changes<'a> {
    /// None: past the end.
    cursor: Option<Cursor<'a>>,
    to: i64,
    chunks: Chunks,
}

impl fmt::Debug for Changes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").field("to", &self.to).finish_non_exhaustive()
    }
}

impl Changes<'_> {
    fn advance(&mut self) -> Result<Option<Change>, StoreError> {
        let Some(cursor) = &mut self.cursor else { return Ok(None) };
        let Some(entry) = cursor.key() else { return Ok(None) };
        let (revision, deleted) =
            RevisionKey::parse(entry).ok_or_else(|| inconsistent(TreeId::Key, "malformed key", entry))?;
        if revision.main > self.to {
            self.cursor = None;
            return Ok(None);
        }
        let pair = cursor.value()?;
        let (kv, key) = pair
            .and_then(|pair| self.chunks.copy_pair(&pair))
            .ok_or_else(|| inconsistent(TreeId::Key, "malformed pair", entry))?;
        cursor.next()?;
        Ok(Some(Change { revision, deleted, key, kv }))
    }
}

impl Iterator for Changes<'_> {
    type Item = Result<Change, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.advance();
        if next.is_err() {
            self.cursor = None;
        }
        next.transpose()
    }
}

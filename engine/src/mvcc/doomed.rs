//! Finding what a compaction removes: a reader of a root, in bounded pieces.
//!
//! In tree `Index` the revisions of a user key stand together, oldest first. So a pass over it sees for each entry
//! whether a newer one that the compaction covers follows, and needs no search. Where few revisions were written
//! since the last compaction, only the keys that they name are passed: the work is then proportional to what was
//! written, however many keys there are.
//!
//! Promises: what it lists is doomed by the rule in `compact`, and stays so; a piece is bounded in memory and in
//! time; the pages from which the writer will remove are read and verified here, not on the writer's thread. It
//! changes nothing.

use std::fmt;
use std::sync::Arc;

use super::Revision;
use super::codec::{self, Live, RevisionKey};
use super::hash::CompactionHash;
use super::read::{inconsistent, parse_index_key};
use crate::edit_bulk::{self, SortedKeys};
use crate::root::State;
use crate::{Cursor, StoreError, TreeId, View};

/// Up to so many revisions since the last compaction are looked up one by one; a look-up costs as much as passing
/// about twenty entries of the index.
const FEW: i64 = 16 << 10;
/// What an entry of a list takes beside its index key.
const LISTED_BYTES: usize = 48;

/// How large a piece may become.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    /// Entries of the index to look at; two at least, or a piece might end where it began.
    looked: usize,
    /// Bytes of the lists, and of keys to look up. The larger, the more of what a leaf of `Key` loses goes at once.
    bytes: usize,
}

impl Limit {
    /// Some 300,000 entries of short keys; 100 to 200 ms of a thread that may be busy for so long.
    pub(super) const PIECE: Limit = Limit { looked: 2 << 20, bytes: 24 << 20 };

    /// A piece of about so many entries.
    pub(super) fn of(entries: usize) -> Limit {
        let entries = entries.clamp(1, 1 << 20);
        Limit { looked: 4 * entries, bytes: LISTED_BYTES * entries }
    }
}

/// Where a piece begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Position {
    /// Nothing was looked at. `Key` and `Index` agree, and the last compaction that finished was to this revision.
    Since(i64),
    /// At the first entry of tree `Index` that is not less.
    Index(Vec<u8>),
}

/// A piece of a compaction's walk, to be looked through.
pub struct CompactionJob {
    pub(super) state: Arc<State>,
    pub(super) target: i64,
    pub(super) position: Position,
    pub(super) limit: Limit,
    /// Revisions to hash at first, see `Removal`.
    pub(super) hash: Option<(i64, i64)>,
}

impl fmt::Debug for CompactionJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompactionJob")
            .field("target", &self.target)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

/// Keys of one tree that go, and how many of them are gone.
#[derive(Debug, Default)]
pub(super) struct List {
    pub(super) keys: SortedKeys,
    pub(super) removed: usize,
}

/// What a job has found, for [`crate::Store::remove_doomed`].
#[derive(Debug)]
pub struct Doomed {
    pub(super) target: i64,
    pub(super) from: Position,
    /// Where the next piece begins; None after the last.
    pub(super) next: Option<Position>,
    /// In tree `Key`.
    pub(super) history: List,
    /// In tree `Index`.
    pub(super) index: List,
    pub(super) hash: Option<CompactionHash>,
    pub(super) done: bool,
}

impl Doomed {
    /// Whether all of it has been removed.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// How many entries it lists.
    pub fn entries(&self) -> usize {
        self.index.keys.len()
    }

    /// Whether an entry that it lists is left.
    pub(super) fn is_listed(&self) -> bool {
        [&self.history, &self.index].iter().any(|list| list.removed < list.keys.len())
    }
}

impl CompactionJob {
    /// Looks through the piece. Blocks: not for the writer's thread. Errors: Io, Corrupt, Inconsistent.
    pub fn run(self) -> Result<Doomed, StoreError> {
        let view = View { state: &self.state };
        let hash =
            self.hash.map(|(before, revision)| view.hash_of_compaction(before, revision)).transpose()?;
        let mut scan = Scan { view, target: self.target, limit: self.limit, ..Scan::of(view) };
        let next = match &self.position {
            Position::Index(from) => scan.pass_index(from)?,
            Position::Since(finished) => match scan.changed_since(*finished)? {
                Some(keys) => {
                    keys.iter().try_for_each(|key| scan.look_up(key))?;
                    None
                }
                None => scan.pass_index(b"")?,
            },
        };
        let Scan { index, mut history, .. } = scan;
        history.sort_unstable();
        if let Some(pair) = history.windows(2).find(|pair| pair[0] == pair[1]) {
            let key = RevisionKey::new(pair[0].0, pair[0].1);
            return Err(inconsistent(TreeId::Index, "two entries for a revision", &key));
        }
        let mut keys = SortedKeys::default();
        history.iter().for_each(|(revision, tombstone)| keys.push(&RevisionKey::new(*revision, *tombstone)));
        let (tree, root) = self.state.tree(TreeId::Key);
        edit_bulk::touch(&tree, root, &keys)?;
        Ok(Doomed {
            target: self.target,
            from: self.position,
            next: next.map(Position::Index),
            history: List { keys, removed: 0 },
            index: List { keys: index, removed: 0 },
            hash,
            done: false,
        })
    }
}

/// An entry of the key in hand: its revision, and whether it is a tombstone.
type Entry = (Revision, bool);

struct Scan<'a> {
    view: View<'a>,
    target: i64,
    limit: Limit,
    looked: usize,
    /// Room to build keys in.
    probe: Vec<u8>,
    index: SortedKeys,
    history: Vec<Entry>,
}

impl<'a> Scan<'a> {
    fn of(view: View<'a>) -> Scan<'a> {
        Scan {
            view,
            target: 0,
            limit: Limit::PIECE,
            looked: 0,
            probe: Vec::new(),
            index: SortedKeys::default(),
            history: Vec::new(),
        }
    }

    fn is_full(&self) -> bool {
        let bytes = self.index.bytes() + self.index.len() * LISTED_BYTES;
        self.looked >= self.limit.looked || bytes >= self.limit.bytes
    }

    fn doom(&mut self, key: &[u8], entry: Entry) {
        codec::index_key(&mut self.probe, key, entry.0);
        self.index.push(&self.probe);
        self.history.push(entry);
    }

    /// The newest entry of a key that the compaction covers.
    fn judge_newest(&mut self, key: &[u8], newest: Option<Entry>) {
        if let Some(newest @ (revision, true)) = newest
            && revision.main < self.target
        {
            self.doom(key, newest);
        }
    }

    /// Passes the index from a place on; where the next piece begins.
    fn pass_index(&mut self, from: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let mut cursor = self.view.seek(TreeId::Index, from)?;
        let mut key = Vec::new();
        // The newest entry of the key, of those that the compaction covers: it is not known yet whether it stays.
        let mut newest: Option<Entry> = None;
        while let Some(entry) = cursor.key() {
            let (user_key, revision) = parse_index_key(entry)?;
            if user_key != key {
                self.judge_newest(&key, newest.take());
                if self.is_full() {
                    return Ok(Some(entry.to_vec()));
                }
                key.clear();
                key.extend_from_slice(user_key);
            }
            self.looked += 1;
            if revision.main > self.target {
                self.judge_newest(&key, newest.take());
            } else if let Some(superseded) = newest.replace((revision, is_tombstone(&cursor)?)) {
                self.doom(&key, superseded);
                if self.is_full() {
                    codec::index_key(&mut self.probe, &key, revision);
                    return Ok(Some(self.probe.clone()));
                }
            }
            cursor.next()?;
        }
        self.judge_newest(&key, newest);
        Ok(None)
    }

    /// The keys that were changed from a revision up to the target, in order. None if they are not few.
    fn changed_since(&self, finished: i64) -> Result<Option<Vec<Vec<u8>>>, StoreError> {
        if self.target - finished >= FEW {
            return Ok(None);
        }
        let start = RevisionKey::new(Revision { main: finished, sub: 0 }, false);
        // Their number first: a pair may be long.
        let (mut count, mut cursor) = (0, self.view.seek(TreeId::Key, &start)?);
        while self.is_covered(&cursor)? {
            count += 1;
            if count >= FEW {
                return Ok(None);
            }
            cursor.next()?;
        }
        let (mut keys, mut bytes) = (Vec::new(), 0);
        cursor = self.view.seek(TreeId::Key, &start)?;
        while self.is_covered(&cursor)? {
            let pair = cursor.value()?;
            let key =
                pair.as_deref().and_then(|pair| Some(&pair[codec::key_of_pair(pair)?])).ok_or_else(|| {
                    inconsistent(TreeId::Key, "malformed pair", cursor.key().unwrap_or_default())
                })?;
            bytes += key.len();
            if bytes > self.limit.bytes {
                return Ok(None);
            }
            keys.push(key.to_vec());
            cursor.next()?;
        }
        keys.sort_unstable();
        keys.dedup();
        Ok(Some(keys))
    }

    /// Whether the cursor is at an entry of tree `Key` that the compaction covers.
    fn is_covered(&self, cursor: &Cursor<'_>) -> Result<bool, StoreError> {
        let Some(entry) = cursor.key() else { return Ok(false) };
        let (revision, _) =
            RevisionKey::parse(entry).ok_or_else(|| inconsistent(TreeId::Key, "malformed key", entry))?;
        Ok(revision.main <= self.target)
    }

    /// Lists what is doomed of one key.
    fn look_up(&mut self, key: &[u8]) -> Result<(), StoreError> {
        codec::index_key(&mut self.probe, key, Revision::default());
        let mut cursor = self.view.seek(TreeId::Index, &self.probe)?;
        let mut newest = None;
        while let Some(entry) = cursor.key() {
            let (user_key, revision) = parse_index_key(entry)?;
            if user_key != key || revision.main > self.target {
                break;
            }
            if let Some(superseded) = newest.replace((revision, is_tombstone(&cursor)?)) {
                self.doom(key, superseded);
            }
            cursor.next()?;
        }
        self.judge_newest(key, newest);
        Ok(())
    }
}

pub(super) fn is_tombstone(cursor: &Cursor<'_>) -> Result<bool, StoreError> {
    let value = cursor.value()?;
    let live = value
        .and_then(|value| Live::parse(&value))
        .ok_or_else(|| inconsistent(TreeId::Index, "malformed value", cursor.key().unwrap_or_default()))?;
    Ok(live.is_none())
}

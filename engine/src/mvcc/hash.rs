//! etcd's two hashes: CRC-32C over what its backend would hold.
//!
//! Promises: equal to etcd's value for the same requests. It reads a view and holds nothing back. What a whole part of
//! a tree adds is taken from the sums of the part, so the cost does not grow with the store (see `hash_kv`).

use std::sync::Arc;

use super::codec::{self, RevisionKey};
use super::doomed::is_tombstone;
use super::read::{inconsistent, parse_index_key};
use super::{KeyRange, Revision};
use crate::{Cursor, StoreError, TreeId, View, crc};

/// etcd's buckets in the order of their names, which is the order of its file.
pub const BUCKETS: [(&str, TreeId); 10] = [
    ("alarm", TreeId::Alarm),
    ("auth", TreeId::Auth),
    ("authRoles", TreeId::AuthRoles),
    ("authUsers", TreeId::AuthUsers),
    ("cluster", TreeId::Cluster),
    ("key", TreeId::Key),
    ("lease", TreeId::Lease),
    ("members", TreeId::Members),
    ("members_removed", TreeId::MembersRemoved),
    ("meta", TreeId::Meta),
];

/// A look-up in the index costs as much as passing so many of its entries in order.
const LOOK_UP: u64 = 20;
/// Fewer than that are looked up without asking how long the index is, which costs something by itself.
const MANY: u64 = if cfg!(test) { 5 } else { 1000 };
/// So many entries a pass lists at most where nobody else would list any: some tens of megabytes.
const LISTED_MAX: usize = if cfg!(test) { 100 } else { 1 << 20 };

/// So many compactions have their hashes kept.
const HASHES_MAX: usize = 10;

/// What a compaction found when it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CompactionHash {
    /// Its revision.
    pub(crate) revision: i64,
    /// That of the compaction before it; -1 for none.
    pub(crate) before: i64,
    pub(crate) hash: u32,
}

/// The hashes with another, newest last.
pub(crate) fn with(hashes: &[CompactionHash], new: CompactionHash) -> Arc<[CompactionHash]> {
    let from = (hashes.len() + 1).saturating_sub(HASHES_MAX);
    hashes[from..].iter().copied().chain([new]).collect()
}

/// What differs between members of one cluster, and is not hashed.
const META_SKIPPED: [&[u8]; 3] = [b"consistent_index", b"term", b"storageVersion"];

impl<'a> View<'a> {
    /// etcd's Hash over all buckets (X7): each bucket's name, then key and value of its entries.
    pub fn hash(&self) -> Result<u32, StoreError> {
        let mut hash = 0;
        for (name, tree) in BUCKETS {
            hash = crc32c::crc32c_append(hash, name.as_bytes());
            if tree != TreeId::Meta {
                let sums = self.sums(tree, None, None)?;
                hash = crc::combine(hash, sums.crc, sums.bytes);
                continue;
            }
            let mut cursor = self.seek(tree, b"")?;
            while let Some(key) = cursor.key() {
                if !META_SKIPPED.contains(&key) {
                    hash = append(hash, key, &cursor)?;
                }
                cursor.next()?;
            }
        }
        Ok(hash)
    }

    /// etcd's HashKV at a revision (0: current): hash, compact revision, hash revision (X8, X9). Errors: Compacted,
    /// Future.
    ///
    /// Of the entries at or below the compact revision those count that are the newest of their key at `revision`
    /// and no tombstone: the keep set. If no key is live at `revision`, that set is empty, and etcd counts all that
    /// its backend holds, which is what the compaction kept; tombstones at the compact revision never count, since
    /// some versions of etcd keep them and some do not. The index answers both, so the hash does not depend on how
    /// far the removal has come.
    ///
    /// What lies above the compact revision counts whole: a sum. Of what lies below, once the compaction has removed
    /// what it should, all counts but what was superseded since; so the work grows with the smaller of two numbers,
    /// the entries below and the changes since, and is a few pages when there is nothing of one of them. Where both are
    /// many, one pass over the index is less work than looking each of them up.
    ///
    /// At the revision of one of the last compactions it is what the compaction found, beside the compact revision
    /// before it.
    pub fn hash_kv(&self, revision: i64) -> Result<(u32, i64, i64), StoreError> {
        // 0 asks for the current revision, though a compaction to 0 is allowed, too.
        let mut kept = self.state.hashes.iter().filter(|kept| kept.revision > 0);
        if let Some(kept) = kept.find(|kept| kept.revision == revision) {
            return Ok((kept.hash, kept.before, revision));
        }
        let compacted = self.compact_revision();
        let revision = if revision == 0 { self.revision() } else { revision };
        if revision > 0 && revision < compacted {
            return Err(StoreError::Compacted);
        }
        if revision > self.revision() {
            return Err(StoreError::Future);
        }
        if revision < 0 {
            return Ok((crc32c::crc32c(b"key"), compacted, revision));
        }
        Ok((self.hash_between(compacted, revision, false)?, compacted, revision))
    }

    /// Revisions of the compactions whose hashes are kept, newest first: [`View::hash_kv`] answers with these.
    pub fn hashed_compactions(&self) -> Vec<i64> {
        let kept = self.state.hashes.iter().rev().map(|kept| kept.revision);
        kept.filter(|revision| *revision > 0).collect()
    }

    /// What a compaction to `revision` keeps for [`View::hash_kv`], of a view in which nothing that it supersedes has been
    /// removed and everything that the one to `before` does.
    pub(crate) fn hash_of_compaction(
        &self,
        before: i64,
        revision: i64,
    ) -> Result<CompactionHash, StoreError> {
        Ok(CompactionHash { revision, before, hash: self.hash_between(before, revision, true)? })
    }

    /// `compacts`: a tombstone at `revision` is in the keep set, which so is not empty.
    fn hash_between(&self, compacted: i64, revision: i64, compacts: bool) -> Result<u32, StoreError> {
        let name = crc32c::crc32c(b"key");
        let (middle, end) = (first_of(compacted + 1), first_of(revision + 1));
        let above = self.sums(TreeId::Key, Some(&middle), Some(&end))?;
        let below = self.sums(TreeId::Key, None, Some(&middle))?;
        let settled = self.finished_compaction()? >= compacted;
        let few = settled && above.count < below.count;
        let look_ups = if few { above.count } else { below.count };
        let passes = look_ups >= MANY && self.sums(TreeId::Index, None, None)?.count / LOOK_UP < look_ups;
        let superseded = match passes {
            // Looking them up would list as many.
            true if few => self.superseded_by_pass(compacted, revision, compacts, usize::MAX)?,
            true => self.superseded_by_pass(compacted, revision, compacts, LISTED_MAX)?,
            false if few => Some(self.superseded(compacted, revision, compacts)?),
            false => None,
        };
        let hash = match superseded {
            _ if below.count == 0 => name,
            None => self.kept(name, compacted, revision, compacts)?,
            Some(superseded) => {
                let kept = self.sums_without(TreeId::Key, None, Some(&middle), &superseded)?;
                crc::combine(name, kept.crc, kept.bytes)
            }
        };
        Ok(crc::combine(hash, above.crc, above.bytes))
    }

    /// Keys of the entries at or below the compact revision that do not count, and perhaps of some that are gone,
    /// ascending. None: more than `most`.
    fn superseded_by_pass(
        &self,
        compacted: i64,
        revision: i64,
        compacts: bool,
        most: usize,
    ) -> Result<Option<Vec<RevisionKey>>, StoreError> {
        let kept_at = self.kept_at(compacted, revision, compacts)?;
        let mut superseded = Vec::new();
        let mut supersede = |entry: Option<(Revision, bool)>| {
            superseded.extend(entry.map(|(at, tombstone)| RevisionKey::new(at, tombstone)));
            superseded.len() <= most
        };
        // Of the key in hand: its newest entry that is compacted, until one supersedes it.
        let (mut key, mut newest) = (Vec::new(), None);
        let mut cursor = self.seek(TreeId::Index, b"")?;
        while let Some(entry) = cursor.key() {
            let (user_key, at) = parse_index_key(entry)?;
            let mut gone = None;
            if user_key != key {
                gone = newest.take().filter(|(_, tombstone)| *tombstone);
                key.clear();
                key.extend_from_slice(user_key);
            }
            if !supersede(gone) {
                return Ok(None);
            }
            let older = match at.main {
                main if main <= compacted => newest.replace((at, is_tombstone(&cursor)?)),
                main if main <= kept_at => newest.take(),
                _ => None,
            };
            if !supersede(older) {
                return Ok(None);
            }
            cursor.next()?;
        }
        supersede(newest.filter(|(_, tombstone)| *tombstone));
        superseded.sort_unstable_by(|a, b| a[..].cmp(&b[..]));
        Ok(Some(superseded))
    }

    /// Keys of the entries at or below the compact revision that do not count, of a settled compaction, ascending.
    fn superseded(
        &self,
        compacted: i64,
        revision: i64,
        compacts: bool,
    ) -> Result<Vec<RevisionKey>, StoreError> {
        let mut superseded = Vec::new();
        self.each(compacted, compacted, |at, tombstone, _| {
            if tombstone {
                superseded.push(RevisionKey::new(at, true));
            }
            Ok(())
        })?;
        if self.kept_at(compacted, revision, compacts)? != revision {
            return Ok(superseded);
        }
        let mut probe = Vec::new();
        self.each(compacted + 1, revision, |at, _, cursor| {
            let pair = cursor.value()?;
            let key = user_key(pair.as_deref().unwrap_or_default(), cursor)?;
            codec::index_key(&mut probe, key, at);
            match self.newest_before(key.len(), &probe)? {
                Some((before, Some(_))) if before.main <= compacted => {
                    superseded.push(RevisionKey::new(before, false));
                }
                _ => {}
            }
            Ok(())
        })?;
        superseded.sort_unstable_by(|a, b| a[..].cmp(&b[..]));
        Ok(superseded)
    }

    /// Appends the entries at or below the compact revision that count, looking at each.
    fn kept(&self, name: u32, compacted: i64, revision: i64, compacts: bool) -> Result<u32, StoreError> {
        let kept_at = self.kept_at(compacted, revision, compacts)?;
        let (mut hash, mut probe) = (name, Vec::new());
        self.each(0, compacted, |at, tombstone, cursor| {
            if tombstone {
                return Ok(());
            }
            let pair = cursor.value()?;
            let key = user_key(pair.as_deref().unwrap_or_default(), cursor)?;
            if self.newest_at(key, kept_at, &mut probe)?.is_some_and(|(newest, _)| newest == at) {
                hash = append(hash, cursor.key().unwrap_or_default(), cursor)?;
            }
            Ok(())
        })?;
        Ok(hash)
    }

    /// Every entry of tree `Key` with from <= main <= to: its revision, and whether it is a tombstone.
    fn each(
        &self,
        from: i64,
        to: i64,
        mut visit: impl FnMut(Revision, bool, &Cursor<'a>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut cursor = self.seek(TreeId::Key, &first_of(from.max(0)))?;
        while let Some(key) = cursor.key() {
            // The index has no more than 32 bits for the sub.
            let (at, tombstone) = RevisionKey::parse(key)
                .filter(|(at, _)| u32::try_from(at.sub).is_ok())
                .ok_or_else(|| inconsistent(TreeId::Key, "malformed key", key))?;
            if at.main > to {
                break;
            }
            visit(at, tombstone, &cursor)?;
            cursor.next()?;
        }
        Ok(())
    }

    /// The revision that decides which compacted entries are hashed: `revision`, or the compact one if the keep set is
    /// empty: no key is live at `revision`, and, of a compaction, none was deleted there.
    fn kept_at(&self, compacted: i64, revision: i64, compacts: bool) -> Result<i64, StoreError> {
        let mut live = self.keys_at(KeyRange { start: b"", end: Some(b"") }, revision)?;
        let mut any = match revision == self.revision() {
            true => live.remaining()? > 0,
            false => live.next().transpose()?.is_some(),
        };
        if compacts && !any {
            self.each(revision, revision, |_, tombstone, _| {
                any |= tombstone;
                Ok(())
            })?;
        }
        Ok(if any { revision } else { compacted })
    }
}

/// The key of tree `Key` before which all smaller main revisions are.
fn first_of(main: i64) -> RevisionKey {
    RevisionKey::new(Revision { main, sub: 0 }, false)
}

fn user_key<'p>(pair: &'p [u8], cursor: &Cursor<'_>) -> Result<&'p [u8], StoreError> {
    codec::key_of_pair(pair)
        .map(|range| &pair[range])
        .ok_or_else(|| inconsistent(TreeId::Key, "malformed pair", cursor.key().unwrap_or_default()))
}

/// The hash with the cursor's entry behind it.
fn append(hash: u32, key: &[u8], cursor: &Cursor<'_>) -> Result<u32, StoreError> {
    let value = cursor.value()?;
    Ok(crc32c::crc32c_append(crc32c::crc32c_append(hash, key), value.as_deref().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use trilith_disk::sim::SimDisk;

    use super::*;
    use crate::Store;
    use crate::tests::model_options;
    use crate::tests::rng::Rng;

    /// The three ways to find what of the compacted entries counts, of one store.
    fn assert_alike(store: &Store, revision: i64, compacts: bool) -> bool {
        let (view, compacted) = (store.view(), store.view().compact_revision());
        let middle = first_of(compacted + 1);
        let without = |superseded: &[RevisionKey]| {
            view.sums_without(TreeId::Key, None, Some(&middle), superseded).unwrap().crc
        };
        let kept = view.kept(0, compacted, revision, compacts).unwrap();
        let passed = view.superseded_by_pass(compacted, revision, compacts, LISTED_MAX).unwrap();
        if let Some(passed) = &passed {
            assert!(passed.windows(2).all(|pair| pair[0][..] < pair[1][..]));
            assert_eq!(without(passed), kept, "by a pass, of {compacted} at {revision}");
        }
        if view.finished_compaction().unwrap() >= compacted {
            let looked_up = view.superseded(compacted, revision, compacts).unwrap();
            assert_eq!(without(&looked_up), kept, "by look-ups, of {compacted} at {revision}");
        }
        passed.is_some()
    }

    #[test]
    fn what_counts_is_found_alike_by_a_pass_and_by_look_ups() {
        let mut rng = Rng(crate::tests::seed(51));
        let (mut by_pass, mut too_many) = (0, 0);
        for _ in 0..30 {
            let mut store = Store::open(model_options(&SimDisk::new())).unwrap();
            let keys = 1 + rng.below(60);
            for _ in 0..200 {
                let mut txn = store.txn();
                for _ in 0..=rng.below(4) {
                    let key = format!("key/{}", rng.below(keys));
                    match rng.below(4) {
                        0 => drop(txn.delete_range(KeyRange { start: key.as_bytes(), end: None }).unwrap()),
                        _ => txn.put(key.as_bytes(), &vec![7; rng.below(700)], 0).unwrap(),
                    }
                }
                txn.end();
                let (compacted, current) = (store.view().compact_revision(), store.view().revision());
                if rng.chance(25) && compacted < current {
                    let span = (current - compacted) as usize;
                    store.compact(compacted + 1 + rng.below(span) as i64).unwrap();
                    // In part, or all of it.
                    let steps = if rng.chance(2) { usize::MAX } else { rng.below(4) };
                    (0..steps).any(|_| store.compact_step(1 + rng.below(20)).unwrap());
                }
                if rng.chance(4) && compacted >= 0 {
                    let compacted = store.view().compact_revision();
                    let span = (store.view().revision() - compacted) as usize + 1;
                    let revision = compacted + rng.below(span) as i64;
                    let is_listed = assert_alike(&store, revision, rng.chance(2));
                    *if is_listed { &mut by_pass } else { &mut too_many } += 1;
                }
            }
        }
        assert!(by_pass > 500 && too_many > 10, "{by_pass} by a pass, {too_many} were too many");
    }
}

//! etcd's two hashes: CRC-32C over what its backend would hold.
//!
//! Promises: equal to etcd's value for the same requests. It reads a view and holds nothing back. What a whole part of
//! a tree adds is taken from the sums of the part, so the cost does not grow with the store (see `hash_kv`).

use super::codec::{self, RevisionKey};
use super::read::inconsistent;
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
    /// the entries below and the changes since, and is a few pages when there is nothing of one of them.
    pub fn hash_kv(&self, revision: i64) -> Result<(u32, i64, i64), StoreError> {
        let compacted = self.compact_revision();
        let revision = if revision == 0 { self.revision() } else { revision };
        if revision > 0 && revision < compacted {
            return Err(StoreError::Compacted);
        }
        if revision > self.revision() {
            return Err(StoreError::Future);
        }
        let name = crc32c::crc32c(b"key");
        if revision < 0 {
            return Ok((name, compacted, revision));
        }
        let (middle, end) = (first_of(compacted + 1), first_of(revision + 1));
        let above = self.sums(TreeId::Key, Some(&middle), Some(&end))?;
        let below = self.sums(TreeId::Key, None, Some(&middle))?;
        let settled = self.finished_compaction()? >= compacted;
        let hash = if below.count == 0 {
            name
        } else if settled && above.count < below.count {
            let superseded = self.superseded(compacted, revision)?;
            let kept = self.sums_without(TreeId::Key, None, Some(&middle), &superseded)?;
            crc::combine(name, kept.crc, kept.bytes)
        } else {
            self.kept(name, compacted, revision)?
        };
        Ok((crc::combine(hash, above.crc, above.bytes), compacted, revision))
    }

    /// Keys of the entries at or below the compact revision that do not count, of a settled compaction, ascending.
    fn superseded(&self, compacted: i64, revision: i64) -> Result<Vec<RevisionKey>, StoreError> {
        let mut superseded = Vec::new();
        self.each(compacted, compacted, |at, tombstone, _| {
            if tombstone {
                superseded.push(RevisionKey::new(at, true));
            }
            Ok(())
        })?;
        if self.kept_at(compacted, revision)? != revision {
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
    fn kept(&self, name: u32, compacted: i64, revision: i64) -> Result<u32, StoreError> {
        let kept_at = self.kept_at(compacted, revision)?;
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
            let (at, tombstone) =
                RevisionKey::parse(key).ok_or_else(|| inconsistent(TreeId::Key, "malformed key", key))?;
            if at.main > to {
                break;
            }
            visit(at, tombstone, &cursor)?;
            cursor.next()?;
        }
        Ok(())
    }

    /// The revision that decides which compacted entries are hashed: `revision`, or the compact one if no key is
    /// live at `revision`.
    fn kept_at(&self, compacted: i64, revision: i64) -> Result<i64, StoreError> {
        let mut live = self.keys(KeyRange { start: b"", end: Some(b"") }, revision)?;
        let any = match revision == self.revision() {
            true => live.remaining()? > 0,
            false => live.next().transpose()?.is_some(),
        };
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

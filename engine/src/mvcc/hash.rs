//! etcd's two hashes: CRC-32C over what its backend would hold.
//!
//! Promises: equal to etcd's value for the same requests. It reads a view and holds nothing back; the index tells
//! entry by entry what a compaction keeps, so memory does not grow with the number of keys.

use super::codec::{self, RevisionKey};
use super::read::inconsistent;
use super::{KeyRange, Revision};
use crate::{StoreError, TreeId, View};

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

impl View<'_> {
    /// etcd's Hash over all buckets (X7): each bucket's name, then key and value of its entries.
    pub fn hash(&self) -> Result<u32, StoreError> {
        let mut crc = 0;
        for (name, tree) in BUCKETS {
            crc = crc32c::crc32c_append(crc, name.as_bytes());
            let mut cursor = self.seek(tree, b"")?;
            while let Some(key) = cursor.key() {
                if !(tree == TreeId::Meta && META_SKIPPED.contains(&key)) {
                    crc = crc32c::crc32c_append(crc, key);
                    let value = cursor.value()?;
                    crc = crc32c::crc32c_append(crc, value.as_deref().unwrap_or_default());
                }
                cursor.next()?;
            }
        }
        Ok(crc)
    }

    /// etcd's HashKV at a revision (0: current): hash, compact revision, hash revision (X8, X9). Errors: Compacted,
    /// Future.
    ///
    /// Of the entries at or below the compact revision those count that are the newest of their key at `revision`
    /// and no tombstone: the keep set. If no key is live at `revision`, that set is empty, and etcd counts all that
    /// its backend holds, which is what the compaction kept; tombstones at the compact revision never count, since
    /// some versions of etcd keep them and some do not. The index answers both, so the hash does not depend on how
    /// far the removal has come.
    pub fn hash_kv(&self, revision: i64) -> Result<(u32, i64, i64), StoreError> {
        let compacted = self.compact_revision();
        let revision = if revision == 0 { self.revision() } else { revision };
        if revision > 0 && revision < compacted {
            return Err(StoreError::Compacted);
        }
        if revision > self.revision() {
            return Err(StoreError::Future);
        }
        let mut crc = crc32c::crc32c(b"key");
        let mut probe = Vec::new();
        // At which revision an entry must be the newest of its key; found out when first needed.
        let mut kept_at = None;
        let mut cursor = self.seek(TreeId::Key, b"")?;
        while let Some(key) = cursor.key() {
            let (at, tombstone) =
                RevisionKey::parse(key).ok_or_else(|| inconsistent(TreeId::Key, "malformed key", key))?;
            if at.main > revision {
                break;
            }
            let value = cursor.value()?;
            let pair = value.as_deref().unwrap_or_default();
            let counts = at.main > compacted
                || (!tombstone && {
                    let kept_at = match kept_at {
                        Some(kept_at) => kept_at,
                        None => *kept_at.insert(self.kept_at(compacted, revision)?),
                    };
                    let user_key = codec::key_of_pair(pair)
                        .ok_or_else(|| inconsistent(TreeId::Key, "malformed pair", key))?;
                    self.is_newest(&pair[user_key], at, kept_at, &mut probe)?
                });
            if counts {
                crc = crc32c::crc32c_append(crc32c::crc32c_append(crc, key), pair);
            }
            cursor.next()?;
        }
        Ok((crc, compacted, revision))
    }

    /// The revision that decides which compacted entries are hashed: `revision`, or the compact one if no key is
    /// live at `revision`.
    fn kept_at(&self, compacted: i64, revision: i64) -> Result<i64, StoreError> {
        let all = KeyRange { start: b"", end: Some(b"") };
        Ok(match self.keys(all, revision)?.next().transpose()? {
            Some(_) => revision,
            None => compacted,
        })
    }

    fn is_newest(
        &self,
        key: &[u8],
        entry: Revision,
        at: i64,
        probe: &mut Vec<u8>,
    ) -> Result<bool, StoreError> {
        Ok(self.newest_at(key, at, probe)?.is_some_and(|(newest, _)| newest == entry))
    }
}

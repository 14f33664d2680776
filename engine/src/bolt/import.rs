//! A bbolt file of etcd's becomes a store.
//!
//! The buckets are copied entry by entry in the order of their keys, which fills pages. What the index needs of each
//! entry of bucket `key` is sorted on the way (in files, if memory does not hold it), and the index is filled in
//! order, too.
//!
//! Promises: the store appears under its name when it is whole and durable, or not at all; memory is bounded by the
//! options and one value; an entry that etcd would not have written is refused by name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use trilith_disk::Disk;

use super::sort::Sorter;
use super::{BoltError, BoltFile, CONSISTENT_INDEX, TERM};
use crate::mvcc::{Indexer, index_record, lift};
use crate::order::Order;
use crate::{BUCKETS, Options, Store, StoreError, TreeId};

/// The least memory that an import is given, in bytes.
const MEMORY_MIN: usize = 8 << 20;

/// What to import, and how.
#[derive(Debug, Clone)]
pub struct Import {
    /// Where both files live.
    pub disk: Arc<dyn Disk>,
    /// The bbolt file: a snapshot, or the database of a data directory.
    pub from: PathBuf,
    /// The store to make. Files beside it whose names begin with its own and `.import` are written over.
    pub to: PathBuf,
    /// Take a file without a right SHA-256 at its end: its structure is walked through instead.
    pub skip_hash_check: bool,
    /// If not 0, an entry is added that lifts the revision by so much, and everything before it counts as compacted:
    /// etcd's `--bump-revision` with `--mark-compacted`.
    pub bump_revision: u64,
    /// Bytes of memory for what is not written yet and for sorting; at least 8 MiB are taken.
    pub memory: usize,
}

/// What was imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Raft index and term of the entry applied last, as bucket `meta` says; 0 where it says nothing. They are the
    /// store's applied index and term now.
    pub applied: (u64, u64),
    /// The store's revision.
    pub revision: i64,
    /// The compacted revision; -1 for none.
    pub compact_revision: i64,
    /// Entries in all buckets that were copied.
    pub entries: u64,
    /// Buckets that etcd does not have, which were left out.
    pub left_out: Vec<String>,
}

/// Imports a file. `progress` hears, now and then, how many bytes of how many are done.
/// Errors: Io; Damaged, HashMissing and HashMismatch for the file; Entry for what stands in it; Store.
pub fn import(options: &Import, progress: &mut dyn FnMut(u64, u64)) -> Result<Imported, BoltError> {
    let file = BoltFile::open(options.disk.as_ref(), &options.from)?;
    let io = |action| move |source| BoltError::Io { path: options.to.clone(), action, source };
    if options.disk.exists(&options.to) {
        return Err(io("make")(std::io::ErrorKind::AlreadyExists.into()));
    }
    // The file is read twice: to compare the hash, and to copy.
    let total = file.size() * 2;
    match options.skip_hash_check {
        true => file.check()?,
        false => file.require_hash(&mut |done| progress(done, total))?,
    }
    let mut name = options.to.clone().into_os_string();
    name.push(".import");
    let new = PathBuf::from(name);
    remove(options.disk.as_ref(), &new).map_err(io("remove what an earlier import left"))?;
    let made = make(options, &file, &new, progress);
    if made.is_err() {
        // The error tells more than a file that cannot be removed.
        let _ = remove(options.disk.as_ref(), &new);
    }
    let imported = made?;
    options.disk.rename(&new, &options.to).map_err(io("rename"))?;
    let dir = options.to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    options.disk.sync_dir(dir).map_err(io("sync the folder"))?;
    progress(total, total);
    Ok(imported)
}

fn remove(disk: &dyn Disk, path: &Path) -> std::io::Result<()> {
    if disk.exists(path) { disk.remove(path) } else { Ok(()) }
}

fn make(
    options: &Import,
    file: &BoltFile,
    new: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Imported, BoltError> {
    let memory = options.memory.max(MEMORY_MIN);
    let store = Store::open(Options {
        path: new.to_owned(),
        disk: options.disk.clone(),
        map: true,
        dirty_bytes_max: memory / 2,
        compress: true,
    })?;
    let sorter = |end: &str, order| {
        let mut stem = new.as_os_str().to_owned();
        stem.push(end);
        Sorter::new(options.disk.clone(), PathBuf::from(stem), order, memory / 4)
    };
    let mut copy = Copy {
        file,
        store,
        index: sorter(".index", Order::KeyThenRevision),
        applied: (0, 0),
        newest: 0,
        entries: 0,
        done: 0,
        progress,
    };
    let mut left_out = Vec::new();
    for bucket in file.buckets()? {
        match BUCKETS.iter().find(|(name, _)| name.as_bytes() == bucket.name) {
            Some((name, tree)) => copy.bucket(&bucket, name, *tree)?,
            None => left_out.push(bucket.name.escape_ascii().to_string()),
        }
    }
    copy.lift(options.bump_revision)?;
    let (applied, newest, entries) = (copy.applied, copy.newest, copy.entries);
    let mut store = copy.index_and_attachments(sorter(".attached", Order::Bytes))?;
    store.set_history(newest)?;
    store.set_applied(applied.0, applied.1);
    checkpoint(&mut store)?;
    let view = store.view();
    let (revision, compact_revision) = (view.revision(), view.compact_revision());
    Ok(Imported { applied, revision, compact_revision, entries, left_out })
}

fn checkpoint(store: &mut Store) -> Result<(), StoreError> {
    store.publish();
    let job = store.begin_checkpoint().expect("no other checkpoint is running, and none has failed");
    store.finish_checkpoint(job.run()?).map(|_| ())
}

/// Inserts, and writes a checkpoint when memory is full.
fn insert(store: &mut Store, tree: TreeId, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
    store.insert(tree, key, value)?;
    make_room(store)
}

fn make_room(store: &mut Store) -> Result<(), StoreError> {
    if store.checkpoint_due() { checkpoint(store) } else { Ok(()) }
}

/// An import under way.
struct Copy<'c> {
    file: &'c BoltFile,
    store: Store,
    index: Sorter,
    applied: (u64, u64),
    /// Main revision of the newest entry of bucket `key`; 0 before there is one.
    newest: i64,
    entries: u64,
    /// Bytes of keys and values copied.
    done: u64,
    progress: &'c mut dyn FnMut(u64, u64),
}

impl Copy<'_> {
    fn bucket(&mut self, bucket: &super::Bucket, name: &'static str, tree: TreeId) -> Result<(), BoltError> {
        let (mut record, mut facts) = (Vec::new(), Vec::new());
        let mut entries = self.file.entries(bucket)?;
        while let Some(entry) = entries.next()? {
            let (key, value) = (entry.key, entry.value);
            let bad = |problem| {
                let key = key.escape_ascii().to_string();
                BoltError::Entry { path: self.file.path().to_owned(), bucket: name, key, problem }
            };
            let number = || match value.try_into() {
                Ok(bytes) => Ok(u64::from_be_bytes(bytes)),
                Err(_) => Err(bad("the value is no number of 8 bytes")),
            };
            match (tree, key) {
                // The root has these beside its trees.
                (TreeId::Meta, CONSISTENT_INDEX) => self.applied.0 = number()?,
                (TreeId::Meta, TERM) => self.applied.1 = number()?,
                _ => insert(&mut self.store, tree, key, value)?,
            }
            if tree == TreeId::Key {
                self.newest = index_record(key, value, &mut record, &mut facts).map_err(bad)?;
                self.index.push(&record, &facts)?;
            }
            self.entries += 1;
            self.done += (key.len() + value.len()) as u64;
            if self.entries.is_multiple_of(4096) {
                let size = self.file.size();
                (self.progress)(size + self.done.min(size), size * 2);
            }
        }
        Ok(())
    }

    /// Adds the entry that lifts the revision.
    fn lift(&mut self, by: u64) -> Result<(), BoltError> {
        if by == 0 {
            return Ok(());
        }
        let lifted = i64::try_from(by).ok().and_then(|by| self.newest.checked_add(by));
        let main = lifted.ok_or_else(|| {
            StoreError::Inconsistent(format!("revision {} cannot be lifted by {by}", self.newest))
        })?;
        let (key, (mark, compacted)) = lift(main);
        let (mut record, mut facts) = (Vec::new(), Vec::new());
        index_record(&key, b"", &mut record, &mut facts).map_err(|problem| {
            StoreError::Inconsistent(format!("revision {} cannot be lifted by {by}: {problem}", self.newest))
        })?;
        insert(&mut self.store, TreeId::Key, &key, b"")?;
        insert(&mut self.store, TreeId::Meta, mark, &compacted)?;
        self.index.push(&record, &facts)?;
        self.newest = main;
        Ok(())
    }

    /// Fills the two trees that etcd does not have.
    fn index_and_attachments(self, mut attached: Sorter) -> Result<Store, BoltError> {
        let Copy { mut store, index, .. } = self;
        let mut indexer = Indexer::default();
        index.drain(|record, facts| {
            indexer.add(&mut store, record, facts, |key| attached.push(key, b""))?;
            Ok(make_room(&mut store)?)
        })?;
        indexer.end(|key| attached.push(key, b""))?;
        attached.drain(|key, value| Ok(insert(&mut store, TreeId::LeaseKey, key, value)?))?;
        Ok(store)
    }
}

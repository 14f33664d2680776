//! Writing a frozen root to the file, beside the running writer.
//!
//! Two phases: everything new (nodes bottom up, extents, bitmaps) and a sync; then the meta page and a sync. Until
//! the second sync the checkpoint before is the state of the file, and nothing that it refers to has been
//! written over.
//!
//! Where there is no room for what is new, the checkpoint is abandoned: it has written to free pages only and
//! nobody knows of it yet, so map and marks are put back and the writer has lost nothing. That does not hold for a
//! sync that fails: of the pages it was for nobody knows whether they are on disk.
//!
//! What is new is synced in small parts on the way: one sync of everything at the end would hand the disk all at once, and
//! the log's syncs, which callers wait for, would stand behind it.
//!
//! Then what lies behind the last page that anybody may need is cut off the file. A page there is used neither by
//! this checkpoint nor by the one before it, nor can a root refer to it: it would be held (`space.rs`), and only the
//! writer lets go of it, when no such root is left. New roots refer to what these two checkpoints use.
//!
//! Promises: it writes only to places that no checkpoint and no root refers to. The first error that is not a
//! lack of room stops the store.

use std::sync::Arc;

use crate::extent::Extent;
use crate::meta::Meta;
use crate::node::Node;
use crate::pack::Packer;
use crate::page::{Link, PAGE, PageMut, Place};
use crate::root::State;
use crate::search::TreeRoot;
use crate::source::Source;
use crate::space::{REGION_PAGES, REGIONS_MAX, Space};
use crate::sums;
use crate::{StoreError, TREES};

/// Writes are gathered up to this many bytes.
pub(crate) const WRITE_BYTES: usize = 1 << 20;
/// Written bytes are synced when they are so many: some milliseconds of a disk.
pub(crate) const SYNC_BYTES: usize = if cfg!(test) { 16 * PAGE } else { 4 << 20 };

/// A durable checkpoint, and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Durable {
    /// Which of the two meta pages.
    pub(crate) slot: u64,
    pub(crate) checkpoint: u64,
    pub(crate) applied: (u64, u64),
    pub(crate) previous_applied_index: u64,
}

impl Durable {
    pub(crate) fn info(&self) -> CheckpointInfo {
        CheckpointInfo {
            applied_index: self.applied.0,
            applied_term: self.applied.1,
            previous_applied_index: self.previous_applied_index,
        }
    }
}

/// What the newest durable checkpoint and the one before it hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CheckpointInfo {
    /// Raft index of the last entry that the newest checkpoint holds.
    pub applied_index: u64,
    /// Term of that entry.
    pub applied_term: u64,
    /// The index that the checkpoint before it holds: the log must be kept from there.
    pub previous_applied_index: u64,
}

/// A frozen root to be written out.
#[derive(Debug)]
pub struct CheckpointJob {
    pub(crate) state: Arc<State>,
    pub(crate) space: Space,
    pub(crate) durable: Durable,
    /// The number that it gets.
    pub(crate) checkpoint: u64,
    /// Compress long values.
    pub(crate) compress: bool,
    /// What the checkpoint before uses and this one does not.
    pub(crate) freed: Vec<(u64, u32)>,
    /// Nodes that the checkpoint before wrote, to be freed on this thread.
    pub(crate) retired: Vec<Arc<Node>>,
}

/// A checkpoint that is durable, or was abandoned.
#[derive(Debug)]
pub struct CheckpointDone {
    /// Kept, so that the writer sees what was written.
    pub(crate) state: Arc<State>,
    pub(crate) space: Space,
    /// Why it was abandoned, if it was.
    pub(crate) durable: Result<Durable, StoreError>,
    pub(crate) freed: Vec<(u64, u32)>,
}

impl CheckpointJob {
    /// Writes, syncs, writes the meta page, syncs. Blocks: not for the writer's thread. Where there was no room
    /// the outcome says so, and `Store::finish_checkpoint` gives the error.
    /// Errors: Io, Corrupt; after one the store takes no more changes.
    pub fn run(mut self) -> Result<CheckpointDone, StoreError> {
        self.retired.clear();
        self.space.begin();
        let durable = match self.write_new() {
            // Not if it was a sync's: that has stopped the store.
            Err(error) if error.is_no_space() && self.state.source.check_running().is_ok() => {
                self.abandon();
                Err(error)
            }
            written => {
                trilith_failpoint::hit("beforeCommit");
                let durable = written.and_then(|roots| self.commit(roots));
                trilith_failpoint::hit("afterCommit");
                Ok(durable.inspect_err(|error| self.state.source.stop(error))?)
            }
        };
        Ok(CheckpointDone { state: self.state, space: self.space, durable, freed: self.freed })
    }

    /// Writes what is new to free places; the trees' roots there.
    fn write_new(&mut self) -> Result<[Option<Link>; TREES], StoreError> {
        let source = self.state.source.clone();
        for (first, pages) in &self.freed {
            let held = self.space.hold(*first, *pages);
            held.map_err(|page| source.corrupt(page, "bit of a page in use", 1, 0))?;
        }
        let mut out = Output {
            source: &source,
            space: &mut self.space,
            checkpoint: self.checkpoint,
            run: Vec::with_capacity(WRITE_BYTES + PAGE),
            run_page: 0,
            unsynced: 0,
            packer: Packer::new(self.compress),
        };
        let mut roots = [None; TREES];
        for (root, link) in self.state.trees.iter().zip(&mut roots) {
            *link = match root {
                TreeRoot::Empty => None,
                TreeRoot::Disk(link) => Some(*link),
                TreeRoot::Memory(node) => Some(out.node(node)?),
            };
        }
        out.flush()?;
        for (page, bytes) in self.space.touched_bitmaps(self.checkpoint) {
            source.write(&bytes, page)?;
        }
        Ok(roots)
    }

    /// Nothing refers to what was written: it is as if it had not been.
    fn abandon(&mut self) {
        self.space.abandon();
        for root in &self.state.trees {
            if let TreeRoot::Memory(node) = root {
                clear_marks(node, self.checkpoint);
            }
        }
    }

    /// Makes what was written the state of the file.
    fn commit(&mut self, roots: [Option<Link>; TREES]) -> Result<Durable, StoreError> {
        let source = &self.state.source;
        source.sync()?;
        let meta = Meta {
            checkpoint: self.checkpoint,
            applied: self.state.applied,
            counters: self.state.counters,
            roots,
            high_water: self.space.used_end(),
            places: self.space.next_places().collect(),
        };
        let slot = 1 - self.durable.slot;
        trilith_failpoint::hit("trilithBeforeMeta");
        source.write(&meta.encode(), slot)?;
        source.sync()?;
        self.space.written();
        self.space.survey();
        source.cut(self.space.high_water());
        Ok(Durable {
            slot,
            checkpoint: self.checkpoint,
            applied: self.state.applied,
            previous_applied_index: self.durable.applied.0,
        })
    }
}

/// Takes back the marks of an abandoned checkpoint.
fn clear_marks(node: &Node, abandoned: u64) {
    node.written.clear(abandoned);
    for blob in node.blobs() {
        blob.written.clear(abandoned);
    }
    for place in (0..node.page().count()).filter_map(|i| node.child_in_memory(i)) {
        clear_marks(node.child_at(place), abandoned);
    }
}

/// Pages on their way to the file.
struct Output<'o> {
    source: &'o Source,
    space: &'o mut Space,
    checkpoint: u64,
    /// Bytes not written yet, for the pages from `run_page` on.
    run: Vec<u8>,
    run_page: u64,
    /// Bytes written since the last sync.
    unsynced: usize,
    packer: Packer,
}

impl Output<'_> {
    /// Writes a node after its children; the link for its parent.
    fn node(&mut self, node: &Node) -> Result<Link, StoreError> {
        let mut bytes = *node.bytes();
        let mut page = PageMut(&mut bytes);
        self.longs(node, &mut page)?;
        for i in 0..node.page().count() {
            if node.page().is_leaf() {
                break;
            }
            let link = match node.child(i) {
                Place::Disk(link) => link,
                Place::Memory(place) => self.node(node.child_at(place))?,
            };
            page.set_child(i, Place::Disk(link));
        }
        let sums = sums::of_node(node);
        if !sums.fit() {
            // What is below it was read from links that say so.
            return Err(self.source.corrupt(node.page().id(), "sums below the page", 1 << 48, sums.count));
        }
        page.clear_gap();
        let id = self.allocate(1)?;
        page.stamp(id, self.checkpoint);
        let link = Link { page: id, check: crc32c::crc32c(&bytes), sums };
        self.append(id, &bytes)?;
        node.written.set(self.checkpoint, link);
        Ok(link)
    }

    /// Writes the long keys and values of a node.
    fn longs(&mut self, node: &Node, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        let mut packer = std::mem::take(&mut self.packer);
        let packed = packer.pack(self.checkpoint, node, page, |bytes, pages| {
            let first = self.allocate(u64::from(pages))?;
            self.append(first, bytes)?;
            Ok(Extent { page: first, pages })
        });
        self.packer = packer;
        packed
    }

    fn allocate(&mut self, pages: u64) -> Result<u64, StoreError> {
        let max = REGIONS_MAX as u64 * REGION_PAGES * PAGE as u64;
        let full = || StoreError::Full { path: self.source.path().to_owned(), max };
        let first = self.space.allocate(pages).ok_or_else(full)?;
        self.source.prepare(first, pages)?;
        Ok(first)
    }

    /// Appends whole pages, the last filled with zeros.
    fn append(&mut self, page: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let follows = page == self.run_page + (self.run.len() / PAGE) as u64;
        if !follows || self.run.len() + bytes.len() > WRITE_BYTES {
            self.flush()?;
            self.run_page = page;
        }
        self.run.extend_from_slice(bytes);
        self.run.resize(self.run.len().next_multiple_of(PAGE), 0);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        if !self.run.is_empty() {
            self.source.write(&self.run, self.run_page)?;
            self.source.note_written(self.run_page, (self.run.len() / PAGE) as u64);
            self.unsynced += self.run.len();
            self.run.clear();
        }
        if self.unsynced >= SYNC_BYTES {
            self.unsynced = 0;
            self.source.sync().inspect_err(|error| self.source.stop(error))?;
        }
        Ok(())
    }
}

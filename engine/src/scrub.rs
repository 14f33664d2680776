//! The scrub: reads what lies in the file, page by page, and compares it with what its referrers know of it.
//!
//! Readers verify a page when they first touch it, and trust it from then on; pages that nobody reads are verified by
//! nobody. The scrub reads each page of each tree from the file, with its extents, however often it was verified; that its
//! keys lie where those above it say is a part of that. It works in pieces: each takes a root, holds it for one piece only,
//! and goes on by key where the last one ended, so pages that are written meanwhile are no matter. It reads on past damage.
//! Meta pages and bitmaps are not its business: they are written over while it runs, have checksums of their own, and
//! opening can do without the newest.
//!
//! Promises: what it reports is damaged: the root that it reads from keeps the pages from being written. After a
//! finding no reader trusts the page any more. It never changes a byte and keeps no time.

use crate::extent::Extent;
use crate::page::{Link, PAGE, Place};
use crate::search::{Bounds, Tree, TreeRoot};
use crate::source::NodeRef;
use crate::{Root, StoreError, TREES, TreeId};

/// Passing by a node in memory costs something too, or a piece might have no end.
const NODE_BYTES: u64 = 64;

/// A walk over the whole store, for ever: a pass ends where the next begins.
#[derive(Debug, Clone, Default)]
pub struct Scrub {
    tree: usize,
    /// Where in the tree it goes on.
    from: Vec<u8>,
}

/// What one piece came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrubPiece {
    /// Bytes read from the file.
    pub bytes: u64,
    /// Whether a pass ended: everything has been read since it began.
    pub ended_pass: bool,
}

struct Walk<'a> {
    tree: Tree<'a>,
    read: u64,
    cost: u64,
    cost_max: u64,
    /// The branches above the node in hand, and which child of each it is below.
    path: Vec<(NodeRef<'a>, usize)>,
    /// Set when the piece ends in the middle of a tree.
    next: Option<Vec<u8>>,
}

impl Scrub {
    /// Reads about so many bytes of the file as the root refers to it. Blocks: not for the writer's thread.
    /// What is damaged is kept for `Store::take_damage`.
    pub fn run(&mut self, root: &Root, bytes: u64) -> ScrubPiece {
        let state = &root.0;
        if self.tree == 0 && self.from.is_empty() {
            state.source.damages().forget();
        }
        let (mut read, mut cost) = (0, 0);
        while cost < bytes {
            let id = TreeId::ALL[self.tree];
            let tree = Tree { source: &state.source, id };
            let mut walk =
                Walk { tree, read: 0, cost: 0, cost_max: bytes - cost, path: Vec::new(), next: None };
            walk.tree(&state.trees[self.tree], &self.from);
            (read, cost) = (read + walk.read, cost + walk.cost);
            if let Some(next) = walk.next {
                self.from = next;
                break;
            }
            self.from.clear();
            self.tree = (self.tree + 1) % TREES;
            if self.tree == 0 {
                return ScrubPiece { bytes: read, ended_pass: true };
            }
        }
        ScrubPiece { bytes: read, ended_pass: false }
    }
}

impl<'a> Walk<'a> {
    fn tree(&mut self, root: &'a TreeRoot, from: &[u8]) {
        match root {
            TreeRoot::Empty => {}
            TreeRoot::Memory(node) => self.node(&NodeRef::Dirty(node), from),
            TreeRoot::Disk(link) => self.place(Place::Disk(*link), None, from),
        }
    }

    /// A page, or a node in memory, with all below it from a key on. The parent: which child of it this is.
    fn place(&mut self, place: Place<Link>, parent: Option<(&NodeRef<'a>, usize)>, from: &[u8]) {
        match (place, parent) {
            (Place::Disk(link), _) => {
                let (source, tree) = (self.tree.source, self.tree.id as u8);
                self.count(PAGE as u64);
                let level = parent.map(|(parent, _)| parent.page().level() - 1);
                match source.page_on_disk(&link, tree, level) {
                    Ok(node) => {
                        if let Some((parent, i)) = parent
                            && let Err(error) =
                                self.tree.fits(&node, parent, i, || Some(Bounds::of(&self.path)))
                        {
                            self.damaged(link.page, 1, &error);
                        }
                        self.below(&node, parent, from);
                    }
                    Err(error) => self.damaged(link.page, 1, &error),
                }
            }
            (Place::Memory(place), Some((NodeRef::Dirty(node), _))) => {
                self.below(&NodeRef::Dirty(node.child_at(place)), parent, from);
            }
            (Place::Memory(_), _) => unreachable!("pages on disk name no memory: checked when they are read"),
        }
    }

    fn below(&mut self, node: &NodeRef<'a>, parent: Option<(&NodeRef<'a>, usize)>, from: &[u8]) {
        self.path.extend(parent.map(|(parent, i)| (parent.clone(), i)));
        self.node(node, from);
        self.path.truncate(self.path.len() - usize::from(parent.is_some()));
    }

    fn node(&mut self, node: &NodeRef<'a>, from: &[u8]) {
        self.cost += NODE_BYTES;
        let page = node.page();
        for usage in page.usages() {
            self.extent(node, usage.extent);
        }
        if page.is_leaf() {
            return;
        }
        let order = self.tree.order();
        // Separators that cannot be read are damage that has been noted, and are passed over.
        let first = self.tree.covering(node, from).unwrap_or_else(|_| {
            let leads =
                |i: &usize| self.tree.key(node, *i).is_ok_and(|key| order.compare(&key, from).is_le());
            (1..page.count()).rev().find(leads).unwrap_or(0)
        });
        for i in first..page.count() {
            if i > first
                && self.cost >= self.cost_max
                && let Ok(key) = self.tree.key(node, i)
                && order.compare(&key, from).is_gt()
            {
                self.next = Some(key.to_vec());
                return;
            }
            self.place(page.child(i), Some((node, i)), from);
            if self.next.is_some() {
                return;
            }
        }
    }

    fn extent(&mut self, node: &NodeRef<'a>, extent: Extent) {
        self.count(extent.bytes());
        let source = self.tree.source;
        let checked = source.read(extent.page, extent.bytes() as usize).and_then(|bytes| {
            for (_, _, long) in node.page().longs().filter(|(_, _, long)| long.extent == extent) {
                let found = crc32c::crc32c(&bytes[long.at as usize..][..long.stored as usize]);
                if found != long.stored_crc {
                    let (expected, found) = (u64::from(long.stored_crc), u64::from(found));
                    return Err(source.corrupt(extent.page, "extent checksum", expected, found));
                }
            }
            Ok(())
        });
        if let Err(error) = checked {
            self.damaged(extent.page, extent.pages, &error);
        }
    }

    fn count(&mut self, bytes: u64) {
        self.read += bytes;
        self.cost += bytes;
    }

    fn damaged(&mut self, page: u64, pages: u32, error: &StoreError) {
        self.tree.source.distrust(page, u64::from(pages));
        self.tree.source.damages().add(self.tree.id, page, error);
    }
}

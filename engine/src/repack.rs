//! Finding what could stand closer together: a reader's walk over the branches of a root.
//!
//! The walk looks for nodes that stand behind the place where the file could end, and for neighbours that fill fewer
//! pages together. It reads branches only, since a branch has its children's places and what they hold; on its second
//! round it also looks into leaves that may have long keys or values, whose places stand nowhere else. What it finds
//! is a list of positions for the writer, which looks again before it touches anything: the list may be out of date.
//!
//! Promises: a bounded number of pages is read in one go, and the walk can go on from where it stopped. What the
//! writer is about to take has been read, so that the writer need not wait for the disk. It never changes anything.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::extent::{Extent, Usage};
use crate::page::{
    HEADER, KEY_INLINE_MAX, LEAF_CELL_HEAD, Link, PAGE, PageView, Place, SLOT_BYTES, VALUE_INLINE_MAX,
};
use crate::root::State;
use crate::search::{Tree, TreeRoot};
use crate::source::NodeRef;
use crate::{StoreError, TREES, TreeId};

/// What cells may take of a page that is filled on purpose: the next insert should not split it at once.
pub(crate) const FULL: usize = (PAGE - HEADER) * 19 / 20;
/// So many neighbours are looked at, and handed to the writer, together.
const GROUP_MAX: usize = 16;
/// Neighbours with more pages than this, their long keys and values counted, are not handed over together.
const STEP_MAX: usize = 64;
/// A group is packed when that frees at least one page in so many.
const WORTH: usize = 5;
/// The same for the extents of a page: written anew, they are nearly full.
const WORTH_LONGS: usize = 10;
/// Pages that one walk reads.
const READS_MAX: usize = 16_384;

/// Where a walk goes on: the tree, and the first key that it has not come to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Position {
    tree: usize,
    key: Vec<u8>,
}

/// Neighbours under one parent, for the writer to look after.
#[derive(Debug, Clone)]
pub(crate) struct Work {
    pub(crate) tree: TreeId,
    /// Level of the nodes.
    pub(crate) level: u8,
    /// A key that the first of them covers.
    pub(crate) key: Vec<u8>,
    /// How many.
    pub(crate) count: usize,
}

/// A walk over a published root, to be run on a thread that may block.
#[derive(Debug)]
pub struct ShrinkScan {
    pub(crate) state: Arc<State>,
    /// Where the file could end.
    pub(crate) cut: u64,
    /// How many pages may have to be written for what is found.
    pub(crate) pages_max: usize,
    /// Look into leaves that may have long keys or values.
    pub(crate) leaves: bool,
    pub(crate) from: Position,
}

/// What a walk found.
#[derive(Debug)]
pub struct ShrinkPlan {
    pub(crate) work: VecDeque<Work>,
    /// None: it came to the end.
    pub(crate) rest: Option<Position>,
}

impl ShrinkScan {
    /// Walks until enough is found or read. Blocks. Errors: Io, Corrupt.
    pub fn run(self) -> Result<ShrinkPlan, StoreError> {
        let mut plan = ShrinkPlan { work: VecDeque::new(), rest: None };
        let mut left = Left { pages: self.pages_max, reads: READS_MAX };
        for number in self.from.tree..TREES {
            let (tree, root) = self.state.tree(TreeId::ALL[number]);
            let Some(top) = tree.top(root)? else { continue };
            let from = if number == self.from.tree { &self.from.key[..] } else { b"" };
            let mut walk = Walk { scan: &self, tree, left, work: &mut plan.work, stopped: None };
            walk.tree(root, &top, from)?;
            left = walk.left;
            if let Some(key) = walk.stopped {
                plan.rest = Some(Position { tree: number, key });
                break;
            }
        }
        Ok(plan)
    }
}

/// How many more pages may have to be written for what is found, and may be read.
#[derive(Debug, Clone, Copy)]
struct Left {
    pages: usize,
    reads: usize,
}

/// A node, as its parent sees it.
#[derive(Debug, Clone, Copy, Default)]
struct Child {
    /// Bytes that its cells take. None: not known, or not to be packed since it was changed a moment ago.
    used: Option<usize>,
    /// It stands behind the cut, or refers to something that had better be written anew.
    behind: bool,
    /// Pages of the extents that it refers to and that had better be written anew.
    pages: usize,
}

struct Walk<'w, 'a> {
    scan: &'a ShrinkScan,
    tree: Tree<'a>,
    left: Left,
    work: &'w mut VecDeque<Work>,
    /// The key from which on nothing was looked at.
    stopped: Option<Vec<u8>>,
}

impl<'a> Walk<'_, 'a> {
    fn tree(&mut self, root: &TreeRoot, top: &NodeRef<'a>, from: &[u8]) -> Result<(), StoreError> {
        let level = top.page().level();
        let mut pages = self.unwanted_pages(top.page());
        if let TreeRoot::Disk(link) = root {
            pages += usize::from(link.page >= self.scan.cut);
        }
        if level > 0 {
            self.branch(top, b"", from)?;
        }
        if pages > 0 {
            self.add(level, Vec::new(), 1, pages);
        }
        Ok(())
    }

    fn add(&mut self, level: u8, key: Vec<u8>, count: usize, pages: usize) {
        self.left.pages = self.left.pages.saturating_sub(pages);
        self.work.push_back(Work { tree: self.tree.id, level, key, count });
    }

    /// Pages of a page's extents that had better be written anew.
    fn unwanted_pages(&self, page: PageView<'_>) -> usize {
        unwanted(page, self.scan.cut).iter().map(|extent| extent.pages as usize).sum()
    }

    /// A branch whose keys begin at `low`, from the child on that covers `from`. How many bytes its cells will take when
    /// what was found has been done.
    fn branch(&mut self, node: &NodeRef<'a>, low: &[u8], from: &[u8]) -> Result<usize, StoreError> {
        let page = node.page();
        self.left.reads = self.left.reads.saturating_sub(1);
        let first = if from.is_empty() { 0 } else { self.tree.covering(node, from)? };
        let mut children = Vec::new();
        for i in first..page.count() {
            if self.stopped.is_some() {
                break;
            }
            if self.left.pages == 0 || self.left.reads == 0 {
                self.stopped = Some(self.low_key(node, i, low)?);
                break;
            }
            let child = if page.level() == 1 {
                self.leaf(node, i)?
            } else {
                let child = self.tree.child(node, i)?;
                let key = self.low_key(node, i, low)?;
                let used = self.branch(&child, &key, if i == first { from } else { b"" })?;
                let pages = self.unwanted_pages(child.page());
                match self.link(node, i) {
                    None => Child { used: None, behind: pages > 0, pages },
                    Some(link) => {
                        let behind = pages > 0 || link.page >= self.scan.cut;
                        Child { used: Some(used), behind, pages }
                    }
                }
            };
            children.push(child);
        }
        let saved = self.list(node, low, first, &children)?;
        let cell = page.used_bytes() / page.count();
        // What links say that were changed may be more than there is.
        Ok(page.used_bytes().saturating_sub(saved * cell))
    }

    /// The writer will need what is to be written anew, and should find it in memory.
    fn read_ahead(&self, node: &NodeRef<'a>) -> Result<(), StoreError> {
        let extents = unwanted(node.page(), self.scan.cut);
        for (_, _, long) in node.page().longs().filter(|(_, _, long)| extents.contains(&long.extent)) {
            self.tree.source.long(&long)?;
        }
        Ok(())
    }

    fn low_key(&self, node: &NodeRef<'a>, i: usize, low: &[u8]) -> Result<Vec<u8>, StoreError> {
        Ok(if i == 0 { low.to_vec() } else { self.tree.key(node, i)?.to_vec() })
    }

    /// Where a child stands; None for one that is in memory.
    fn link(&self, node: &NodeRef<'a>, i: usize) -> Option<Link> {
        match node.page().child(i) {
            Place::Disk(link) => Some(link),
            Place::Memory(_) => None,
        }
    }

    fn leaf(&mut self, node: &NodeRef<'a>, i: usize) -> Result<Child, StoreError> {
        let Some(link) = self.link(node, i) else {
            // It will be written anew anyway, with what it has in memory.
            return Ok(Child::default());
        };
        let mut child = Child { used: None, behind: link.page >= self.scan.cut, pages: 0 };
        if link.sums.bytes > KEY_INLINE_MAX.min(VALUE_INLINE_MAX) as u64 && self.scan.leaves {
            self.left.reads = self.left.reads.saturating_sub(1);
            let leaf = self.tree.child(node, i)?;
            child.used = Some(leaf.page().used_bytes());
            child.pages = self.unwanted_pages(leaf.page());
            child.behind |= child.pages > 0;
        } else {
            // Right where nothing is long; where something is, it seems to be more than it is.
            let used = link.sums.bytes + link.sums.count * (SLOT_BYTES + LEAF_CELL_HEAD) as u64;
            child.used = Some(used as usize).filter(|used| *used <= PAGE - HEADER);
        }
        Ok(child)
    }

    /// Lists what is to be done with children of a branch, of which the first is child `first`; how many there will be less.
    fn list(
        &mut self,
        node: &NodeRef<'a>,
        low: &[u8],
        first: usize,
        children: &[Child],
    ) -> Result<usize, StoreError> {
        let level = node.page().level() - 1;
        let (mut at, mut saved) = (0, 0);
        while at < children.len() {
            let rest = &children[at..children.len().min(at + GROUP_MAX)];
            let (count, less) = worth_packing(rest)
                .unwrap_or_else(|| (rest.iter().take_while(|child| child.behind).count(), 0));
            saved += less;
            if count == 0 {
                at += 1;
                continue;
            }
            let mut pages = 0;
            let fits = |child: &&Child| {
                pages += 1 + child.pages;
                pages <= STEP_MAX || pages == 1 + child.pages
            };
            let count = rest[..count].iter().take_while(fits).count();
            let longs = rest[..count].iter().map(|child| child.pages).sum::<usize>();
            for i in first + at..first + at + count {
                self.read_ahead(&self.tree.child(node, i)?)?;
            }
            self.add(level, self.low_key(node, first + at, low)?, count, longs + count - less.min(count - 1));
            at += count;
        }
        Ok(saved)
    }
}

/// The extents of a page that had better be written anew: those behind the cut, and those that are in part dead
/// if that makes them notably fewer pages.
pub(crate) fn unwanted(page: PageView<'_>, cut: u64) -> Vec<Extent> {
    let mut usages = page.usages();
    let sparse = |usage: &Usage| usage.live * 16 < usage.extent.bytes() * 15;
    let (mut pages, mut live) = (0, 0);
    for usage in usages.iter().filter(|usage| sparse(usage)) {
        (pages, live) = (pages + usage.extent.pages as usize, live + usage.live);
    }
    let less = pages - (live as usize).div_ceil(PAGE);
    let worth = less > 0 && less * WORTH_LONGS >= pages;
    usages.retain(|usage| usage.extent.page >= cut || worth && sparse(usage));
    usages.into_iter().map(|usage| usage.extent).collect()
}

/// How many of the nodes, from the first on, had better be packed into fewer, and how many fewer.
fn worth_packing(children: &[Child]) -> Option<(usize, usize)> {
    let (mut used, mut best) = (0, None);
    for (i, child) in children.iter().enumerate() {
        let Some(bytes) = child.used else { break };
        if i == 0 && bytes * 10 > FULL * 9 {
            break;
        }
        used += bytes.min(FULL);
        let count = i + 1;
        let less = count - used.div_ceil(FULL).clamp(1, count);
        if bytes < FULL && less * WORTH >= count {
            best = Some((count, less));
        }
    }
    best
}

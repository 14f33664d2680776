//! Walks whole trees and verifies every invariant: the order of keys, bounds, levels, sums, and which pages are
//! reached. For tests, for the tools, and to rebuild the map of used pages when a part of it is lost.

use crate::page::{CellValue, PAGE, Place, Sums, VALUE_INLINE_MAX};
use crate::search::{Tree, TreeRoot};
use crate::source::{NodeRef, Source};
use crate::space::{RESERVED_PAGES, Space};
use crate::sums::weight;
use crate::{StoreError, TREES, TreeId};

/// Extents of the file that a walk reached: first page, pages.
pub(crate) type Extents = Vec<(u64, u32)>;

struct Walk<'w, 'a> {
    tree: Tree<'a>,
    extents: &'w mut Extents,
}

/// Walks every tree. Errors: the first invariant that does not hold, as Corrupt; Io.
pub(crate) fn walk(
    source: &Source,
    trees: &[TreeRoot; TREES],
    extents: &mut Extents,
) -> Result<(), StoreError> {
    for id in TreeId::ALL {
        let (tree, root) = (Tree { source, id }, &trees[id as usize]);
        let Some(top) = tree.top(root)? else { continue };
        let mut walk = Walk { tree, extents };
        let found = walk.node(&top, None, None)?;
        if let TreeRoot::Disk(link) = root {
            walk.extents.push((link.page, 1));
            walk.same_sums(link.page, link.sums, found)?;
        }
    }
    Ok(())
}

/// Verifies that the extents cover each page in use exactly once, those set aside left out.
pub(crate) fn check_pages(source: &Source, space: &Space, extents: &[(u64, u32)]) -> Result<(), StoreError> {
    let mut reached = std::collections::HashSet::new();
    for (first, pages) in extents {
        for page in *first..first + u64::from(*pages) {
            if !space.is_used(page) {
                return Err(source.corrupt(page, "bit of a page in use", 1, 0));
            }
            if !reached.insert(page) {
                return Err(source.corrupt(page, "references to the page", 1, 2));
            }
        }
    }
    let expected = reached.len() as u64 + space.region_count() as u64 * RESERVED_PAGES;
    if space.used_pages() != expected {
        return Err(source.corrupt(0, "pages in use", expected, space.used_pages()));
    }
    Ok(())
}

impl<'a> Walk<'_, 'a> {
    fn bad(&self, node: &NodeRef<'a>, field: &'static str, expected: usize, found: usize) -> StoreError {
        self.tree.source.corrupt(node.page().id(), field, expected as u64, found as u64)
    }

    fn same_sums(&self, page: u64, expected: Sums, found: Sums) -> Result<(), StoreError> {
        for (field, expected, found) in [
            ("entry count", expected.count, found.count),
            ("byte count", expected.bytes, found.bytes),
            ("content checksum", u64::from(expected.crc), u64::from(found.crc)),
            ("live weight", expected.live as u64, found.live as u64),
        ] {
            if expected != found {
                return Err(self.tree.source.corrupt(page, field, expected, found));
            }
        }
        Ok(())
    }

    /// A node whose keys must be in [from, to).
    fn node(
        &mut self,
        node: &NodeRef<'a>,
        from: Option<&[u8]>,
        to: Option<&[u8]>,
    ) -> Result<Sums, StoreError> {
        let page = node.page();
        page.validate().map_err(|bad| self.bad(node, bad.field, 0, bad.found as usize))?;
        if page.tree() != self.tree.id as u8 {
            return Err(self.bad(node, "tree", self.tree.id as usize, usize::from(page.tree())));
        }
        let first = page.first_keyed();
        let order = self.tree.order();
        let mut before = from.map(<[u8]>::to_vec);
        let mut sums = Sums::default();
        for i in first..page.count() {
            let key = self.tree.key(node, i)?;
            let ordered = match &before {
                None => true,
                // A key may equal the separator before it, but not the key before it.
                Some(before) if i == first => order.compare(before, &key).is_le(),
                Some(before) => order.compare(before, &key).is_lt(),
            };
            if !ordered || to.is_some_and(|to| order.compare(&key, to).is_ge()) {
                return Err(self.bad(node, "key order", i, i));
            }
            if page.is_leaf() {
                sums = sums.then(self.entry(node, i, &key)?);
            }
            before = Some(key.to_vec());
        }
        self.extents_of(node)?;
        let sums = if page.is_leaf() { sums } else { self.children(node, from, to)? };
        if let NodeRef::Dirty(node) = node
            && let Some(noted) = node.sums.get()
        {
            self.same_sums(page.id(), *noted, sums)?;
        }
        Ok(sums)
    }

    /// The extents that the node owns; none of its references overlap.
    fn extents_of(&mut self, node: &NodeRef<'a>) -> Result<(), StoreError> {
        let mut longs: Vec<_> = node.page().longs().map(|(_, _, long)| long).collect();
        longs.sort_unstable_by_key(|long| (long.extent, long.at));
        for pair in longs.windows(2) {
            let end = pair[0].at + pair[0].stored;
            if pair[0].extent == pair[1].extent && end > pair[1].at {
                return Err(self.bad(node, "long parts overlap", end as usize, pair[1].at as usize));
            }
        }
        longs.dedup_by_key(|long| long.extent);
        self.extents.extend(longs.iter().map(|long| (long.extent.page, long.extent.pages)));
        Ok(())
    }

    fn entry(&mut self, node: &NodeRef<'a>, i: usize, key: &[u8]) -> Result<Sums, StoreError> {
        let value = self.tree.value(node, i)?;
        if let CellValue::Long(_, len) = node.page().value(i)
            && (value.len() != len as usize || value.len() <= VALUE_INLINE_MAX)
        {
            return Err(self.bad(node, "value length", len as usize, value.len()));
        }
        let crc = crc32c::crc32c_append(crc32c::crc32c(key), &value);
        let live = if self.tree.id == TreeId::Index { weight(&value) } else { 0 };
        Ok(Sums { count: 1, bytes: (key.len() + value.len()) as u64, crc, live })
    }

    fn children(
        &mut self,
        node: &NodeRef<'a>,
        from: Option<&[u8]>,
        to: Option<&[u8]>,
    ) -> Result<Sums, StoreError> {
        let page = node.page();
        let mut sums = Sums::default();
        for i in 0..page.count() {
            let child = self.tree.child(node, i)?;
            if child.page().level() + 1 != page.level() {
                return Err(self.bad(
                    &child,
                    "level",
                    usize::from(page.level()),
                    usize::from(child.page().level()),
                ));
            }
            let low = if i == 0 { None } else { Some(self.tree.key(node, i)?) };
            let high = if i + 1 == page.count() { None } else { Some(self.tree.key(node, i + 1)?) };
            let found = self.node(&child, low.as_deref().or(from), high.as_deref().or(to))?;
            if let Place::Disk(link) = page.child(i) {
                self.extents.push((link.page, 1));
                self.same_sums(link.page, link.sums, found)?;
            }
            sums = sums.then(found);
        }
        debug_assert!(page.used_bytes() <= PAGE);
        Ok(sums)
    }
}

//! Bytes of nodes that are used again: they are bounded, seen by nobody, and leave nothing in the file.

use trilith_disk::sim::SimDisk;

use super::durable::checkpoint;
use super::model::*;
use super::rng::Rng;
use crate::node::NODE_BYTES;
use crate::page::{CELLS, PAGE, get_u16, slot_at};
use crate::sheet::SPARE_MAX;
use crate::{Store, TreeId};

/// Every page of the tree, all of which is on disk: what stands between its slots and its cells.
fn gaps(store: &Store, tree: TreeId) -> Vec<Vec<u8>> {
    let (tree, root) = store.state().tree(tree);
    let mut nodes: Vec<_> = tree.top(root).unwrap().into_iter().collect();
    let mut gaps = Vec::new();
    while let Some(node) = nodes.pop() {
        let page = node.page();
        gaps.push(page.0[slot_at(page.count())..get_u16(page.0, CELLS)].to_vec());
        if !page.is_leaf() {
            nodes.extend((0..page.count()).map(|i| tree.child(&node, i).unwrap()));
        }
    }
    gaps
}

#[test]
fn bytes_are_used_again_within_a_bound_and_leave_nothing_in_the_file() {
    let mut rng = Rng(seed(32));
    let mut store = Store::open(sim_options(&SimDisk::new())).unwrap();
    for round in 0..4 {
        for _ in 0..60 {
            for _ in 0..100 {
                let key = (rng.next() % 20_000).to_be_bytes();
                store.insert(TreeId::Meta, &key, &vec![0xee; 10 + rng.below(60)]).unwrap();
            }
            store.publish();
        }
        // Nobody holds an old root: there are the nodes of the tree, and the spare ones.
        let nodes = store.dirty_bytes() / PAGE;
        let (all, bound) = (store.memory_bytes(), (nodes + SPARE_MAX) * NODE_BYTES);
        assert!(all > nodes * NODE_BYTES && all <= bound, "round {round}: {all} bytes of {bound}");
        checkpoint(&mut store);
        let gaps = gaps(&store, TreeId::Meta);
        assert!(gaps.len() > 100 && gaps.iter().any(|gap| gap.len() > 500));
        assert!(gaps.iter().flatten().all(|byte| *byte == 0), "round {round}");
    }
}

//! The map of the file against a plain set.

use std::collections::BTreeSet;

use super::rng::Rng;
use crate::space::*;

#[test]
fn allocation_takes_the_lowest_free_place() {
    let seed = 4;
    println!("seed {seed}");
    let mut rng = Rng(seed);
    let mut space = Space::empty();
    // Used or held pages; and the extents that are used, held.
    let mut taken: BTreeSet<u64> = (0..RESERVED_PAGES).collect();
    let mut used: Vec<(u64, u32)> = Vec::new();
    let mut held = used.clone();
    for step in 0..6000 {
        match rng.below(if step / 1000 % 2 == 0 { 4 } else { 7 }) {
            0..=2 => {
                let pages = if rng.chance(4) { 1 + rng.below(40) as u64 } else { 1 };
                let first = space.allocate(pages).unwrap();
                let lowest = (0..).find(|p| (*p..p + pages).all(|p| !taken.contains(&p))).unwrap();
                assert_eq!(first, lowest);
                taken.extend(first..first + pages);
                used.push((first, pages as u32));
            }
            3 | 4 if !used.is_empty() => {
                let (first, pages) = used.swap_remove(rng.below(used.len()));
                space.hold(first, pages).unwrap();
                held.push((first, pages));
            }
            _ if !held.is_empty() => {
                let (first, pages) = held.swap_remove(rng.below(held.len()));
                space.release(first, pages);
                taken.retain(|p| !(first..first + u64::from(pages)).contains(p));
            }
            _ => {}
        }
        assert_eq!(space.high_water(), taken.last().unwrap() + 1);
        let used_pages: u64 = used.iter().map(|(_, pages)| u64::from(*pages)).sum();
        assert_eq!(space.used_pages(), used_pages + RESERVED_PAGES);
    }
}

#[test]
fn extents_stay_within_regions_and_the_file_has_an_end() {
    let mut space = Space::empty();
    let large = EXTENT_PAGES_MAX / 2 + 1;
    for region in 0..REGIONS_MAX as u64 {
        assert_eq!(space.allocate(large), Some(region * REGION_PAGES + RESERVED_PAGES));
    }
    assert_eq!(space.allocate(large), None, "no region has room");
    assert_eq!(space.allocate(1), Some(RESERVED_PAGES + large));
}

#[test]
fn regions_that_nobody_needs_go() {
    let mut space = Space::empty();
    let large = EXTENT_PAGES_MAX;
    let extents: Vec<u64> = (0..4).map(|_| space.allocate(large).unwrap()).collect();
    space.written();
    space.hold(extents[2], large as u32).unwrap();
    space.hold(extents[3], large as u32).unwrap();
    space.survey();
    assert_eq!(space.used_end(), 2 * REGION_PAGES);
    assert_eq!(space.high_water(), 4 * REGION_PAGES, "what is held stays");
    assert_eq!(space.next_places().count(), 2, "and is not named");
    assert!(space.touched_bitmaps(1).next().is_none());
    space.written();
    space.release(extents[3], large as u32);
    space.survey();
    assert_eq!((space.region_count(), space.high_water()), (3, 3 * REGION_PAGES));
    // Used again while the checkpoint before still names place 1.
    space.release(extents[2], large as u32);
    assert_eq!(space.allocate(7), Some(extents[2]));
    let written: Vec<u64> = space.touched_bitmaps(2).map(|(page, _)| page).collect();
    assert_eq!(written, [bitmap_page(2, 0)]);
    space.hold(extents[2], 7).unwrap();
    space.release(extents[2], 7);
    space.survey();
    assert_eq!(space.region_count(), 2);
    space.hold(extents[0], large as u32).unwrap();
    space.hold(extents[1], large as u32).unwrap();
    space.release(extents[0], large as u32);
    space.release(extents[1], large as u32);
    space.survey();
    assert_eq!((space.region_count(), space.high_water()), (1, RESERVED_PAGES));
}

/// Opened from a checkpoint that does not name a region in which the one before uses pages.
#[test]
fn pages_of_the_checkpoint_before_are_held_in_any_region() {
    let mut before = Space::empty();
    for _ in 0..3 {
        before.allocate(EXTENT_PAGES_MAX).unwrap();
    }
    let mut newest = Space::empty();
    newest.written();
    for (region, (_, bytes)) in before.touched_bitmaps(1).enumerate() {
        let held = newest.hold_older(region, &decode_bitmap(&bytes, region, 1).unwrap(), 1);
        assert_eq!(held.len() as u64, EXTENT_PAGES_MAX);
    }
    assert_eq!(newest.high_water(), 3 * REGION_PAGES);
    assert_eq!(newest.allocate(1), Some(3 * REGION_PAGES + RESERVED_PAGES));
}

#[test]
fn bitmaps_go_round() {
    let mut space = Space::empty();
    let first = space.allocate(100).unwrap();
    space.hold(first + 10, 5).unwrap();
    let written: Vec<_> = space.touched_bitmaps(7).collect();
    let [(page, bytes)] = &written[..] else { panic!("one region") };
    assert_eq!(*page, bitmap_page(0, 1));
    for (region, newest) in [(1, 7), (0, 6)] {
        assert!(decode_bitmap(bytes, region, newest).is_none(), "another region, or too new");
    }
    let mut read = Space::default();
    read.push(&decode_bitmap(bytes, 0, 7).unwrap(), 1);
    assert_eq!(read.used_pages(), space.used_pages());
    assert_eq!(read.allocate(5), Some(first + 10), "what was held is not in the bitmap");
    assert_eq!(read.next_places().collect::<Vec<_>>(), [0]);
    for at in (0..BITMAP_BYTES).step_by(61) {
        let mut bad = bytes.clone();
        bad[at] ^= 16;
        assert!(decode_bitmap(&bad, 0, 7).is_none(), "byte {at}");
    }
}

#[test]
fn what_is_not_in_use_cannot_be_given_up() {
    let mut space = Space::empty();
    space.begin();
    assert_eq!(space.hold(100, 2), Err(100), "free");
    assert_eq!(space.hold(3, 1), Err(3), "set aside");
    assert_eq!(space.hold(1 << 40, 1), Err(1 << 40), "beyond the file");
    let first = space.allocate(1).unwrap();
    assert_eq!(space.hold(first, 1), Ok(()));
    assert_eq!(space.hold(first, 1), Err(first), "twice");
}

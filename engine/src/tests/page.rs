//! Page edits against a plain vector, and searches within a page.

use super::rng::Rng;
use crate::order::Order;
use crate::page::*;

fn random_key(rng: &mut Rng, order: Order) -> Vec<u8> {
    let shared = [0, 3, 130, 140][rng.below(4)];
    let mut key = vec![b'p'; shared];
    // Few values, so that heads are often equal; zeros, so that keys differ only in length.
    key.extend((0..rng.below(7)).map(|_| [0, 1, 255][rng.below(3)]));
    if order == Order::KeyThenRevision {
        key.extend_from_slice(&[rng.below(4) as u8; 12]);
    }
    key
}

fn check(page: PageView<'_>, order: Order, model: &[(Vec<u8>, Vec<u8>)]) {
    assert_eq!(page.count(), model.len());
    if model.is_empty() {
        return;
    }
    assert_eq!(page.validate(), Ok(()));
    for (i, (key, value)) in model.iter().enumerate() {
        assert_eq!(page.key(i), (&key[..], false));
        let CellValue::Inline(range) = page.value(i) else { panic!("a short value") };
        assert_eq!(&page.0[range], &value[..]);
    }
    assert!(model.windows(2).all(|w| order.compare(&w[0].0, &w[1].0).is_lt()));
}

/// The range that a search is narrowed to: all before it is less, all behind it greater.
fn check_narrow(page: PageView<'_>, order: Order, model: &[(Vec<u8>, Vec<u8>)], key: &[u8]) {
    let range = page.narrow(key);
    assert!(model[..range.start].iter().all(|(k, _)| order.compare(k, key).is_lt()));
    assert!(model[range.end..].iter().all(|(k, _)| order.compare(k, key).is_gt()));
}

#[test]
fn edits_equal_a_vector() {
    for seed in 0..12 {
        println!("seed {seed}");
        let mut rng = Rng(seed);
        let order = if seed % 2 == 0 { Order::Bytes } else { Order::KeyThenRevision };
        let mut bytes = [0; PAGE];
        let mut page = PageMut(&mut bytes);
        page.init(1, 0, order);
        let mut model: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        for step in 0..3000 {
            let key = random_key(&mut rng, order);
            let found = model.binary_search_by(|(k, _)| order.compare(k, &key));
            let value = vec![step as u8; rng.below(90)];
            match found {
                Ok(i) if rng.chance(3) || step / 500 % 2 == 1 => {
                    page.remove(i);
                    model.remove(i);
                }
                Ok(i) => {
                    let CellValue::Inline(range) = page.view().value(i) else { panic!("a short value") };
                    let value = vec![step as u8; range.len()];
                    page.overwrite(range, &value);
                    model[i].1 = value;
                }
                Err(i) if page.view().free_bytes() >= leaf_cell_bytes(key.len(), value.len()) => {
                    page.insert_short(i, &key, &value);
                    model.insert(i, (key, value));
                }
                Err(i) => {
                    page.truncate(i);
                    page.refresh_heads();
                    model.truncate(i);
                }
            }
            check(page.view(), order, &model);
            check_narrow(page.view(), order, &model, &random_key(&mut rng, order));
            let used: usize = model.iter().map(|(k, v)| leaf_cell_bytes(k.len(), v.len())).sum();
            assert_eq!(page.view().used_bytes(), used);
        }
    }
}

/// Whatever a page's bytes are: what passes validation can be read without a panic.
#[test]
fn random_bytes_are_refused_or_readable() {
    let (mut rng, mut passed) = (Rng(3), 0);
    let mut whole = [0; PAGE];
    let mut page = PageMut(&mut whole);
    page.init(1, 0, Order::Bytes);
    for i in 0..40 {
        page.insert_short(i, &[i as u8; 20], &[7; 30]);
    }
    for _ in 0..20_000 {
        let mut bytes = whole;
        for _ in 0..rng.below(4) + 1 {
            let within = if rng.chance(2) { 300 } else { PAGE };
            bytes[rng.below(within)] = rng.next() as u8;
        }
        let page = PageView(&bytes);
        if page.validate().is_err() || page.names_memory() {
            continue;
        }
        passed += 1;
        for i in 0..page.count() {
            let (key, long) = page.key(i);
            if long {
                page.long_key(i);
            }
            if page.is_leaf() {
                page.value(i);
            } else {
                page.child(i);
            }
            page.narrow(key);
        }
    }
    assert!(passed > 1000, "{passed}");
}

/// What no offset shows: cells that share bytes, keys that do not ascend, sizes that no split copes with.
#[test]
fn a_page_that_cannot_be_edited_safely_is_refused() {
    let mut whole = [0; PAGE];
    let mut page = PageMut(&mut whole);
    page.init(0, 0, Order::Bytes);
    for i in 0..40 {
        page.insert_short(i, format!("key/{i:04}").as_bytes(), &[7; 30]);
    }
    assert_eq!(page.view().validate(), Ok(()));
    let refused = |field: &str, change: &dyn Fn(&mut PageBytes)| {
        let mut bytes = whole;
        change(&mut bytes);
        assert_eq!(PageView(&bytes).validate().unwrap_err().field, field);
    };
    let slot = |i: usize| HEADER + SLOT_BYTES * i;
    refused("slot", &|page| page.copy_within(slot(3)..slot(4), slot(4)));
    refused("key order", &|page| {
        let third: [u8; SLOT_BYTES] = page[slot(3)..slot(4)].try_into().unwrap();
        page.copy_within(slot(4)..slot(5), slot(3));
        page[slot(4)..slot(5)].copy_from_slice(&third);
    });
    refused("heads", &|page| page[slot(5) + 2] ^= 1);
    // The last cell lies lowest: it may grow over the one before it without leaving the page.
    let last = PageView(&whole).cell(39);
    refused("value length", &|page| put_u16(page, last + 3, VALUE_INLINE_MAX + 1));
    refused("slot", &|page| put_u16(page, last + 3, 31));
    let mut branch = [0; PAGE];
    let mut page = PageMut(&mut branch);
    page.init(0, 1, Order::Bytes);
    page.insert_child(0, b"", None, Place::Disk(Link::default()));
    page.insert_child(1, b"m", None, Place::Disk(Link::default()));
    assert_eq!(page.view().validate(), Ok(()));
    page.insert_child(0, b"a", None, Place::Disk(Link::default()));
    assert_eq!(page.view().validate().unwrap_err().field, "first separator");
}

//! Writing to stores that were changed in every way under right checksums (`fuzz.rs` makes them): puts, deletes,
//! compactions, checkpoints and shrinking end in a result or an error. What was written is there, and a store that
//! was sound stays sound.
//!
//! The long form: `TRILITH_FUZZ_SECONDS=600 cargo test --release -p trilith-engine --lib fuzz -- --nocapture`

use trilith_fuzz::Rng;

use super::fuzz::{MEMORY_BYTES, SECONDS, Sound, allow, may_be, on_disk};
use super::model::sim_options;
use super::model::{TREES, random_key, random_value};
use super::rng;
use crate::{KeyRange, Revision, Store, StoreError, TreeId, View};

/// What one round does, at most.
const STEPS: usize = 120;
/// Steps of a walk: more than any of the stores needs.
const WALK: usize = 2000;

/// Keys of the stores that the rounds begin with, and others near them.
fn user_key(rng: &mut Rng) -> Vec<u8> {
    let mut key = format!("key/{}", rng.below(70)).into_bytes();
    match rng.below(12) {
        0 => key.resize(800, b'x'),
        1 => key.resize(1200, b'y'),
        2 => key.truncate(rng.below(key.len())),
        _ => {}
    }
    key
}

fn insert(store: &mut Store, old: &mut rng::Rng) -> Result<(), StoreError> {
    let tree = TREES[old.below(TREES.len())];
    let (key, value) = (random_key(old, tree, 260), random_value(old));
    store.insert(tree, &key, &value)?;
    let found = store.view().get(tree, &key)?;
    assert_eq!(found.as_deref(), Some(&value[..]), "what was written is there");
    Ok(())
}

fn remove(store: &mut Store, old: &mut rng::Rng) -> Result<(), StoreError> {
    let tree = TREES[old.below(TREES.len())];
    let key = random_key(old, tree, 260);
    store.remove(tree, &key)?;
    assert!(store.view().get(tree, &key)?.is_none(), "what was removed is gone");
    Ok(())
}

/// Whether the index has an entry behind a put, of the same key.
fn is_hidden(view: View<'_>, key: &[u8], put: Revision) -> Result<bool, StoreError> {
    let (main, sub) = (put.main.to_be_bytes(), (put.sub as u32 + 1).to_be_bytes());
    let behind = view.seek(TreeId::Index, &[key, &main, &sub].concat())?;
    Ok(behind.key().is_some_and(|entry| entry.len() == key.len() + 12 && entry.starts_with(key)))
}

fn transaction(store: &mut Store, rng: &mut Rng, old: &mut rng::Rng) -> Result<(), StoreError> {
    let mut txn = store.txn();
    let mut made = 0;
    for _ in 0..=rng.below(3) {
        let (from, to) = (user_key(rng), user_key(rng));
        match rng.below(8) {
            0 => made += txn.delete_range(KeyRange { start: &from, end: None })?,
            1 if from < to => made += txn.delete_range(KeyRange { start: &from, end: Some(&to) })?,
            _ => {
                let lease = rng.below(4) as i64;
                txn.put(&from, &random_value(old), lease)?;
                let put = Revision { main: txn.revision(), sub: made };
                made += 1;
                let found = txn.view().keys(KeyRange { start: &from, end: None }, 0)?.next().transpose()?;
                let is_there = found.as_ref().is_some_and(|f| (f.modified, f.lease) == (put, lease));
                // Nothing hides it but an entry of an index that was changed, of the same key and a later revision.
                let right = is_there || is_hidden(txn.view(), &from, put)?;
                assert!(right, "{found:?} instead of {put:?}");
            }
        }
    }
    txn.end();
    Ok(())
}

fn compact(store: &mut Store, rng: &mut Rng) -> Result<(), StoreError> {
    let (compacted, current) = (store.view().compact_revision(), store.view().revision());
    let span = usize::try_from(current.saturating_sub(compacted)).unwrap_or(0);
    let done = store.compact(current.saturating_sub(rng.below(span.clamp(1, 300)) as i64));
    if !matches!(done, Err(StoreError::Compacted | StoreError::Future)) {
        done?;
    }
    if rng.one_in(2) {
        store.publish();
        let Some(job) = store.begin_compaction()? else { return Ok(()) };
        let mut doomed = job.run()?;
        for _ in 0..WALK {
            store.remove_doomed(&mut doomed, 1 + rng.below(200))?;
            if doomed.is_done() {
                return Ok(());
            }
        }
        panic!("the removal of a piece has an end");
    }
    for _ in 0..WALK {
        if store.compact_step(1 + rng.below(300))? {
            return Ok(());
        }
    }
    panic!("a compaction has an end");
}

fn checkpoint(store: &mut Store) -> Result<(), StoreError> {
    store.publish();
    if let Some(job) = store.begin_checkpoint() {
        store.finish_checkpoint(job.run()?)?;
    }
    Ok(())
}

/// Until the file is as short as it gets, or for a while.
fn shrink(store: &mut Store, rng: &mut Rng) -> Result<(), StoreError> {
    store.shrink_now();
    for _ in 0..WALK {
        if store.shrink_rests() || rng.one_in(100) {
            return Ok(());
        }
        if let Some(scan) = store.begin_shrink_scan() {
            store.finish_shrink_scan(scan.run());
        }
        store.shrink_step(1 + rng.below(30))?;
        if store.shrink_wants_checkpoint() {
            checkpoint(store)?;
        }
    }
    panic!("shrinking has an end");
}

fn step(store: &mut Store, rng: &mut Rng, old: &mut rng::Rng) -> Result<(), StoreError> {
    match rng.below(30) {
        0 => checkpoint(store),
        1 => shrink(store, rng),
        2 | 3 => compact(store, rng),
        4..=9 => insert(store, old),
        10..=15 => remove(store, old),
        16 => {
            store.publish();
            Ok(())
        }
        _ => transaction(store, rng, old),
    }
}

/// An error that bytes on disk can cause, or that follows one.
fn follows(error: &StoreError) {
    if !matches!(error, StoreError::Stopped { .. }) {
        may_be(error);
    }
}

#[test]
fn whatever_stands_in_a_store_writing_to_it_ends() {
    let stores: Vec<Sound> = (0..4).map(Sound::new).collect();
    let (mut opened, mut stopped) = (0, 0);
    let rounds = trilith_fuzz::run("writes to a store", SECONDS, MEMORY_BYTES, |rng| {
        let whole = &stores[rng.below(stores.len())];
        let mut bytes = whole.bytes.clone();
        for _ in 0..rng.below(4) {
            whole.change(&mut bytes, rng);
        }
        whole.put_right(&mut bytes);
        let disk = on_disk(&bytes);
        let Some(mut store) = allow(Store::open(sim_options(&disk))) else { return };
        let mut old = rng::Rng(rng.next());
        opened += 1;
        // In half of the rounds what is written to has been read by nobody before.
        let is_sound = rng.one_in(2) && store.check().is_ok();
        for _ in 0..STEPS {
            if let Err(error) = step(&mut store, rng, &mut old) {
                follows(&error);
                if matches!(error, StoreError::Stopped { .. }) {
                    stopped += 1;
                    break;
                }
            }
            if is_sound && rng.one_in(10) {
                // A transaction between trees that disagree may have stopped it half way.
                let runs = store.insert(TreeId::Auth, b"probe", b"").is_ok();
                assert!(!runs || store.check().is_ok(), "a sound store stays sound: {:?}", store.check());
            }
        }
        let _ = store.check().inspect_err(may_be);
        drop(store);
        if let Some(store) = allow(Store::open(sim_options(&disk))) {
            let checked = store.check();
            assert!(!is_sound || checked.is_ok(), "its checkpoints are sound: {checked:?}");
            let _ = checked.inspect_err(may_be);
        }
    });
    println!("{opened} of {rounds} opened, {stopped} stopped");
    assert!(rounds < 20 || opened * 2 > rounds, "{opened} of {rounds}");
}

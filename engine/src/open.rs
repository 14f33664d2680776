//! Making and opening the store's file.
//!
//! Promises: opening reads the meta pages, the bitmaps and the root pages, nothing else, unless a bitmap is lost.
//! The state is the newest checkpoint that is whole; the one before stays whole until the next is durable.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use trilith_disk::{File, Open};

use crate::check::walk;
use crate::checkpoint::Durable;
use crate::meta::{Meta, NoMeta};
use crate::page::PAGE;
use crate::search::Tree;
use crate::source::Source;
use crate::space::{BITMAP_BYTES, Bitmap, REGION_PAGES, RESERVED_PAGES, Space, bitmap_page, decode_bitmap};
use crate::{Options, StoreError, TreeId};

/// A file that has been opened.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) source: Arc<Source>,
    pub(crate) meta: Meta,
    pub(crate) durable: Durable,
    pub(crate) space: Space,
    /// What only the checkpoint before uses.
    pub(crate) held: Vec<(u64, u32)>,
    pub(crate) next_checkpoint: u64,
}

/// Opens the file, or makes it.
pub(crate) fn open(options: &Options) -> Result<Opened, StoreError> {
    let file = match options.disk.exists(&options.path) {
        true => locked(options, &options.path, Open::Existing)?,
        false => create(options)?,
    };
    let source = Arc::new(Source::new(options, file)?);
    // What a crash left in the page cache must be on disk before we build on it.
    source.sync()?;
    let (mut metas, mut errors) = (Vec::new(), Vec::new());
    for slot in [0, 1] {
        match read_meta(&source, slot) {
            Ok(meta) => metas.push((slot, meta)),
            // Whatever the other page says: a newer version has been at work here.
            Err(error @ StoreError::Unsupported { .. }) => return Err(error),
            Err(error) => errors.push(error),
        }
    }
    metas.sort_by_key(|(_, meta)| std::cmp::Reverse(meta.checkpoint));
    let next_checkpoint = metas.first().map_or(0, |(_, meta)| meta.checkpoint) + 1;
    for (i, (slot, meta)) in metas.iter().enumerate() {
        match load(&source, *slot, meta) {
            Err(error) => {
                log::warn!("checkpoint {} is not whole: {error}", meta.checkpoint);
                errors.insert(i, error);
            }
            Ok(mut space) => {
                let older = metas.get(i + 1).map(|(_, older)| older);
                let held = older.map_or_else(Vec::new, |older| hold_older(&source, older, &mut space));
                let durable = Durable {
                    slot: *slot,
                    checkpoint: meta.checkpoint,
                    applied: meta.applied,
                    previous_applied_index: older.unwrap_or(meta).applied.0,
                };
                return Ok(Opened { source, meta: meta.clone(), durable, space, held, next_checkpoint });
            }
        }
    }
    Err(errors.swap_remove(0))
}

/// Opens a file and takes its lock.
fn locked(options: &Options, path: &Path, how: Open) -> Result<Arc<dyn File>, StoreError> {
    let io = |action| move |source| StoreError::Io { path: path.to_owned(), action, source };
    let file = options.disk.open(path, how).map_err(io("open"))?;
    match file.lock() {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(StoreError::Locked { path: options.path.clone() })
        }
        result => result.map(|()| file).map_err(io("lock")),
    }
}

/// Makes the file under another name and renames it when it is whole, so that a crash leaves no half file.
fn create(options: &Options) -> Result<Arc<dyn File>, StoreError> {
    let (disk, path) = (&options.disk, &options.path);
    let io = |action| move |source| StoreError::Io { path: path.clone(), action, source };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let new: PathBuf = path.with_file_name(name);
    let file = locked(options, &new, Open::OpenOrCreate)?;
    if disk.exists(path) {
        // Another process has made it meanwhile, and has its lock.
        return locked(options, path, Open::Existing);
    }
    file.set_len(0).map_err(io("make"))?;
    file.allocate(0, RESERVED_PAGES * PAGE as u64).map_err(io("make"))?;
    let space = Space::empty();
    for (page, bytes) in space.touched_bitmaps(0) {
        file.write_all_at(&bytes, page * PAGE as u64).map_err(io("make"))?;
    }
    for slot in [0, 1] {
        let meta = Meta::empty(slot, space.used_end(), space.next_places().collect());
        file.write_all_at(&meta.encode(), slot * PAGE as u64).map_err(io("make"))?;
    }
    file.sync_data().map_err(io("make"))?;
    disk.rename(&new, path).map_err(io("make"))?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    disk.sync_dir(dir).map_err(io("make"))?;
    Ok(file)
}

fn read_meta(source: &Source, slot: u64) -> Result<Meta, StoreError> {
    let bytes = source.read(slot, PAGE)?;
    let page = bytes[..].try_into().expect("a page was read");
    Meta::decode(page).map_err(|error| match error {
        NoMeta::Damaged { field, expected, found } => source.corrupt(slot, field, expected, found),
        NoMeta::Unsupported { field, expected, found } => {
            StoreError::Unsupported { path: source.path().to_owned(), field, expected, found }
        }
    })
}

/// Reads the map of the file as a checkpoint left it, and the root pages.
fn load(source: &Source, slot: u64, meta: &Meta) -> Result<Space, StoreError> {
    if meta.high_water > source.file_pages() {
        return Err(source.corrupt(
            slot,
            "length of the file in pages",
            meta.high_water,
            source.file_pages(),
        ));
    }
    let regions = meta.high_water.div_ceil(REGION_PAGES);
    if meta.places.len() as u64 != regions {
        return Err(source.corrupt(slot, "region count", regions, meta.places.len() as u64));
    }
    let trees = meta.trees();
    for id in TreeId::ALL {
        Tree { source, id }.top(&trees[id as usize])?;
    }
    let (mut space, mut lost) = (Space::default(), false);
    for (region, place) in meta.places.iter().enumerate() {
        match read_bitmap(source, region, *place, meta.checkpoint) {
            Some(bitmap) => space.push(&bitmap, *place),
            None => {
                log::warn!("the bitmap of region {region} is lost, walking the trees for it");
                space.push_lost(*place);
                lost = true;
            }
        }
    }
    if lost {
        let mut extents = Vec::new();
        walk(source, &trees, &mut extents)?;
        for (first, pages) in extents {
            space
                .mark(first, pages)
                .map_err(|page| source.corrupt(page, "region", space.region_count() as u64, page))?;
        }
    }
    if space.used_end() != meta.high_water {
        return Err(source.corrupt(slot, "high water", space.used_end(), meta.high_water));
    }
    Ok(space)
}

fn read_bitmap(source: &Source, region: usize, place: usize, newest: u64) -> Option<Bitmap> {
    let bytes = source.read(bitmap_page(region, place), BITMAP_BYTES);
    bytes.ok().and_then(|bytes| decode_bitmap(&bytes, region, newest))
}

/// Keeps the checkpoint before whole, as far as its bitmaps are there: a later checkpoint that was cut off may have
/// written over some.
fn hold_older(source: &Source, older: &Meta, space: &mut Space) -> Vec<(u64, u32)> {
    let mut held = Vec::new();
    for (region, place) in older.places.iter().enumerate() {
        if let Some(bitmap) = read_bitmap(source, region, *place, older.checkpoint) {
            held.extend(space.hold_older(region, &bitmap, *place));
        }
    }
    held
}

//! A start reads what it needs of the store and no more, however large it is.
#![allow(clippy::unwrap_used)]

mod common;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Bed, config};
use trilith_disk::sim::SimDisk;
use trilith_disk::{Disk, File, Open};
use trilith_server::core::Config;

/// A disk that counts what is read of the store's file.
#[derive(Debug, Clone)]
struct Counting {
    disk: SimDisk,
    read: Arc<AtomicU64>,
}

#[derive(Debug)]
struct CountingFile {
    file: Arc<dyn File>,
    read: Option<Arc<AtomicU64>>,
}

impl Disk for Counting {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        let read = path.ends_with("snap/db").then(|| self.read.clone());
        Ok(Arc::new(CountingFile { file: self.disk.open(path, how)?, read }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        self.disk.list(dir)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir_all(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }

    fn exists(&self, path: &Path) -> bool {
        self.disk.exists(path)
    }
}

impl File for CountingFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if let Some(read) = &self.read {
            read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        }
        self.file.read_exact_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.allocate(offset, len)
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.zero_range(offset, len)
    }

    fn lock(&self) -> io::Result<()> {
        self.file.lock()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Bytes of the store that a start reads until it is ready and has answered one linearizable read.
fn read_at_start(keys: usize) -> (u64, u64) {
    let mut bed = Bed::new();
    for n in 0..keys {
        bed.put(&format!("k{n:06}"), &"v".repeat(400));
    }
    let disk = bed.restart().disk;
    let read = Arc::new(AtomicU64::new(0));
    let counting = Counting { disk: disk.clone(), read: Arc::clone(&read) };
    let config = Config { disk: Arc::new(counting), ..config(&disk) };
    let mut bed = Bed::with(config, disk).unwrap();
    assert!(bed.get("k000000").is_some());
    (read.load(Ordering::Relaxed), bed.handle.facts().db_size_in_use)
}

#[test]
fn a_start_reads_as_little_of_a_large_store_as_of_a_small_one() {
    let (small, small_size) = read_at_start(20);
    let (large, large_size) = read_at_start(12_000);
    assert!(large_size > 50 * small_size, "{small_size} and {large_size} bytes in use");
    // Meta pages, bitmaps and roots; a few levels more of the trees that are looked into.
    assert!(large <= small + 20 * 4096, "{large} bytes read of {large_size}, {small} of {small_size}");
    assert!(large < large_size / 20, "{large} bytes read of {large_size}");
}

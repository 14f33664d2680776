//! Sorts more records than memory holds: sorted runs in files, merged.
//!
//! Promises: memory stays within the budget (and one record for each run); the files go when it goes; what comes back
//! is what was put in, or an error.

use std::cmp::Ordering;
use std::path::PathBuf;
use std::sync::Arc;

use trilith_disk::{Disk, File, Open};

use super::BoltError;
use crate::order::Order;
use crate::page::get_u32;

/// A record's two lengths, before its key and value.
const LENGTHS: usize = 8;
/// Bytes of a run that are written or read at once.
const BLOCK: usize = 256 << 10;

/// A sorted run in a file.
#[derive(Debug)]
struct Run {
    path: PathBuf,
    file: Arc<dyn File>,
    len: u64,
    crc: u32,
}

/// Takes records (key and value) in any order and gives them back by their keys.
#[derive(Debug)]
pub(super) struct Sorter {
    disk: Arc<dyn Disk>,
    /// Runs are named after it.
    stem: PathBuf,
    order: Order,
    budget: usize,
    data: Vec<u8>,
    /// Where each record begins in `data`.
    places: Vec<usize>,
    runs: Vec<Run>,
}

/// Key and value of the record that begins the bytes.
fn record(bytes: &[u8]) -> (&[u8], &[u8]) {
    let (key, value) = (get_u32(bytes, 0) as usize, get_u32(bytes, 4) as usize);
    bytes[LENGTHS..LENGTHS + key + value].split_at(key)
}

impl Sorter {
    /// `budget`: bytes of memory. `stem`: a path; the files' names are made of it.
    pub(super) fn new(disk: Arc<dyn Disk>, stem: PathBuf, order: Order, budget: usize) -> Sorter {
        Sorter { disk, stem, order, budget, data: Vec::new(), places: Vec::new(), runs: Vec::new() }
    }

    /// Errors: Io.
    pub(super) fn push(&mut self, key: &[u8], value: &[u8]) -> Result<(), BoltError> {
        let bytes = LENGTHS + key.len() + value.len();
        let held = self.data.len() + self.places.len() * size_of::<usize>();
        if !self.places.is_empty() && held + bytes > self.budget {
            self.spill()?;
        }
        self.places.push(self.data.len());
        for len in [key.len(), value.len()] {
            self.data.extend_from_slice(&(len as u32).to_le_bytes());
        }
        self.data.extend_from_slice(key);
        self.data.extend_from_slice(value);
        Ok(())
    }

    fn sort(&mut self) {
        let (data, order) = (&self.data, self.order);
        self.places.sort_unstable_by(|a, b| order.compare(record(&data[*a..]).0, record(&data[*b..]).0));
    }

    /// Writes what is in memory as a run.
    fn spill(&mut self) -> Result<(), BoltError> {
        self.sort();
        let mut name = self.stem.clone().into_os_string();
        name.push(format!(".sort{}", self.runs.len()));
        let path = PathBuf::from(name);
        let io = |action| {
            let path = path.clone();
            move |source| BoltError::Io { path, action, source }
        };
        let file = self.disk.open(&path, Open::OpenOrCreate).map_err(io("open"))?;
        // Noted before it is written, so that it is removed whatever happens.
        self.runs.push(Run { path: path.clone(), file: file.clone(), len: 0, crc: 0 });
        file.set_len(0).map_err(io("cut"))?;
        let (mut block, mut len, mut crc) = (Vec::with_capacity(BLOCK), 0, 0);
        for (i, place) in self.places.iter().enumerate() {
            let (key, value) = record(&self.data[*place..]);
            block.extend_from_slice(&self.data[*place..*place + LENGTHS + key.len() + value.len()]);
            if block.len() >= BLOCK || i + 1 == self.places.len() {
                file.write_all_at(&block, len).map_err(io("write"))?;
                crc = crc32c::crc32c_append(crc, &block);
                len += block.len() as u64;
                block.clear();
            }
        }
        if let Some(run) = self.runs.last_mut() {
            (run.len, run.crc) = (len, crc);
        }
        self.data.clear();
        self.places.clear();
        Ok(())
    }

    /// Hands out the records by their keys. Errors: Io, and those of `each`.
    pub(super) fn drain(
        mut self,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), BoltError>,
    ) -> Result<(), BoltError> {
        if self.runs.is_empty() {
            self.sort();
            for place in &self.places {
                let (key, value) = record(&self.data[*place..]);
                each(key, value)?;
            }
            return Ok(());
        }
        if !self.places.is_empty() {
            self.spill()?;
        }
        (self.data, self.places) = Default::default();
        let mut readers = Vec::with_capacity(self.runs.len());
        for run in &self.runs {
            let mut reader = RunReader { run, at: 0, crc: 0, block: Vec::new(), begin: 0, len: 0 };
            if reader.advance()? {
                readers.push(reader);
            }
        }
        while let Some(first) = (0..readers.len()).min_by(|a, b| self.compare(&readers[*a], &readers[*b])) {
            let (key, value) = readers[first].record();
            each(key, value)?;
            if !readers[first].advance()? {
                readers.swap_remove(first);
            }
        }
        Ok(())
    }

    fn compare(&self, a: &RunReader<'_>, b: &RunReader<'_>) -> Ordering {
        self.order.compare(a.record().0, b.record().0)
    }
}

impl Drop for Sorter {
    fn drop(&mut self) {
        for run in &self.runs {
            // What cannot be removed is in nobody's way: the next import writes over it.
            let _ = self.disk.remove(&run.path);
        }
    }
}

/// A run that is being read: the record at `begin` of the block is the next one.
#[derive(Debug)]
struct RunReader<'r> {
    run: &'r Run,
    /// How far the file has been read.
    at: u64,
    crc: u32,
    block: Vec<u8>,
    begin: usize,
    /// Bytes of the record.
    len: usize,
}

impl RunReader<'_> {
    fn record(&self) -> (&[u8], &[u8]) {
        record(&self.block[self.begin..])
    }

    /// To the next record; false at the end.
    fn advance(&mut self) -> Result<bool, BoltError> {
        self.begin += self.len;
        self.len = 0;
        if self.begin == self.block.len() && self.at == self.run.len {
            if self.crc != self.run.crc {
                let source = std::io::Error::other("the bytes are not those that were written");
                return Err(BoltError::Io { path: self.run.path.clone(), action: "read", source });
            }
            return Ok(false);
        }
        self.fill(LENGTHS)?;
        let lengths = &self.block[self.begin..];
        let len = LENGTHS + get_u32(lengths, 0) as usize + get_u32(lengths, 4) as usize;
        self.fill(len)?;
        self.len = len;
        Ok(true)
    }

    /// Makes so many bytes from `begin` on be in the block.
    fn fill(&mut self, bytes: usize) -> Result<(), BoltError> {
        let held = self.block.len() - self.begin;
        if held >= bytes {
            return Ok(());
        }
        self.block.drain(..self.begin);
        self.begin = 0;
        let left = self.run.len - self.at;
        let more = (BLOCK.max(bytes - held) as u64).min(left);
        self.block.resize(held + more as usize, 0);
        let io = |source| BoltError::Io { path: self.run.path.clone(), action: "read", source };
        self.run.file.read_exact_at(&mut self.block[held..], self.at).map_err(io)?;
        self.crc = crc32c::crc32c_append(self.crc, &self.block[held..]);
        self.at += more;
        if self.block.len() < bytes {
            return Err(io(std::io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::rng::Rng;
    use trilith_disk::sim::SimDisk;

    #[test]
    fn records_come_back_in_order_with_and_without_files() {
        let mut rng = Rng(3);
        for budget in [1 << 20, 4000, 500] {
            let disk = SimDisk::new();
            disk.create_dir_all("d".as_ref()).unwrap();
            let mut sorter = Sorter::new(Arc::new(disk.clone()), "d/x".into(), Order::Bytes, budget);
            let mut expected = Vec::new();
            for i in 0..800u32 {
                let mut key = vec![0; rng.below(20)];
                key.iter_mut().for_each(|byte| *byte = rng.next() as u8);
                key.extend_from_slice(&i.to_be_bytes());
                let value = vec![i as u8; rng.below(if i == 77 { 1 << 20 } else { 40 })];
                sorter.push(&key, &value).unwrap();
                expected.push((key, value));
            }
            assert_eq!(sorter.runs.is_empty(), budget == 1 << 20);
            expected.sort();
            let mut found = Vec::new();
            sorter
                .drain(|key, value| {
                    found.push((key.to_vec(), value.to_vec()));
                    Ok(())
                })
                .unwrap();
            assert!(found == expected, "budget {budget}");
            assert!(disk.list("d".as_ref()).unwrap().is_empty(), "no file is left");
        }
    }

    #[test]
    fn a_run_that_rots_is_noticed() {
        let disk = SimDisk::new();
        disk.create_dir_all("d".as_ref()).unwrap();
        let mut sorter = Sorter::new(Arc::new(disk.clone()), "d/x".into(), Order::Bytes, 200);
        for i in 0..20u8 {
            sorter.push(&[i; 10], &[i; 10]).unwrap();
        }
        disk.corrupt("d/x.sort0".as_ref(), 20, 1).unwrap();
        let error = sorter.drain(|_, _| Ok(())).unwrap_err().to_string();
        assert!(error.contains("d/x.sort0: read: the bytes are not"), "{error}");
    }
}

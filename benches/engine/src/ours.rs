//! Our store.

use std::path::Path;
use std::sync::Arc;

use trilith_disk::RealDisk;
use trilith_engine::{KeyRange, Options, Store, TreeId};

use crate::{Engine, Outcome};

pub struct Ours(Store);

impl Engine for Ours {
    const NAME: &'static str = "trilith";

    fn create(folder: &Path) -> Outcome<Ours> {
        let (path, disk) = (folder.join("db"), Arc::new(RealDisk));
        Ok(Ours(Store::open(Options { path, disk, map: true, dirty_bytes_max: usize::MAX, compress: true })?))
    }

    fn put(&mut self, keys: &[[u8; 8]], value: &[u8]) -> Outcome<()> {
        for key in keys {
            let mut txn = self.0.txn();
            txn.put(key, value, 0)?;
            std::hint::black_box(txn.end());
        }
        self.0.publish();
        Ok(())
    }

    fn sync(&mut self) -> Outcome<()> {
        let job = self.0.begin_checkpoint().ok_or("nothing to write")?;
        self.0.finish_checkpoint(job.run()?)?;
        Ok(())
    }

    fn get(&self, keys: &[[u8; 8]]) -> Outcome<usize> {
        let root = self.0.reader().root();
        let view = root.view();
        let mut bytes = 0;
        for key in keys {
            for found in view.keys(KeyRange { start: key, end: None }, 0)? {
                bytes += std::hint::black_box(view.kv(found?.modified)?).len();
            }
        }
        Ok(bytes)
    }

    fn scan(&self, count: usize, each: &mut dyn FnMut(&[u8])) -> Outcome<()> {
        let root = self.0.reader().root();
        let mut cursor = root.view().seek(TreeId::Key, b"")?;
        for _ in 0..count {
            let Some(pair) = cursor.value()? else { break };
            each(&pair);
            cursor.next()?;
        }
        Ok(())
    }
}

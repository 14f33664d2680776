//! LMDB, which must not sync by itself.

use std::path::Path;

use heed::types::Bytes;
use heed::{Database, Env, EnvFlags, EnvOpenOptions};

use crate::{Engine, Outcome, index_key, index_value, pair, parse_index_value, revision_key};

pub struct Lmdb {
    env: Env,
    pairs: Database<Bytes, Bytes>,
    index: Database<Bytes, Bytes>,
    main: u64,
    pair: Vec<u8>,
}

impl Engine for Lmdb {
    const NAME: &'static str = "lmdb";

    #[allow(unsafe_code)]
    fn create(folder: &Path) -> Outcome<Lmdb> {
        // SAFETY: nothing else opens or changes the file, which is in a fresh folder of this process.
        let env = unsafe {
            EnvOpenOptions::new()
                .map_size(16 << 30)
                .max_dbs(2)
                .flags(EnvFlags::NO_SYNC | EnvFlags::NO_READ_AHEAD)
                .open(folder)?
        };
        let mut txn = env.write_txn()?;
        let pairs = env.create_database(&mut txn, Some("key"))?;
        let index = env.create_database(&mut txn, Some("index"))?;
        txn.commit()?;
        Ok(Lmdb { env, pairs, index, main: 1, pair: Vec::new() })
    }

    fn put(&mut self, keys: &[[u8; 8]], value: &[u8]) -> Outcome<()> {
        let mut txn = self.env.write_txn()?;
        for key in keys {
            self.main += 1;
            let newest = self.index.get_lower_than(&txn, &index_key(key, u64::MAX))?;
            let (version, created) = match newest {
                Some((entry, of)) if entry[..8] == key[..] => parse_index_value(of),
                _ => (0, self.main),
            };
            pair(&mut self.pair, key, value, self.main, version + 1, created);
            self.pairs.put(&mut txn, &revision_key(self.main, 0), &self.pair)?;
            self.index.put(&mut txn, &index_key(key, self.main), &index_value(version + 1, created))?;
        }
        Ok(txn.commit()?)
    }

    fn sync(&mut self) -> Outcome<()> {
        Ok(self.env.force_sync()?)
    }

    fn get(&self, keys: &[[u8; 8]]) -> Outcome<usize> {
        let txn = self.env.read_txn()?;
        let mut bytes = 0;
        for key in keys {
            let newest = self.index.get_lower_than(&txn, &index_key(key, u64::MAX))?;
            let (entry, _) = newest.filter(|(entry, _)| entry[..8] == key[..]).ok_or("no such key")?;
            let main = u64::from_be_bytes(entry[8..16].try_into()?);
            let found = self.pairs.get(&txn, &revision_key(main, 0))?.ok_or("no such revision")?;
            bytes += std::hint::black_box(found).len();
        }
        Ok(bytes)
    }

    fn scan(&self, count: usize, each: &mut dyn FnMut(&[u8])) -> Outcome<()> {
        let txn = self.env.read_txn()?;
        for found in self.pairs.iter(&txn)?.take(count) {
            each(found?.1);
        }
        Ok(())
    }
}

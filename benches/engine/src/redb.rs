//! redb: transactions without a sync, and one with a sync now and then.

use std::path::Path;

use redb::{Database, Durability, ReadableTable, TableDefinition};

use crate::{Engine, Outcome, index_key, index_value, pair, parse_index_value, revision_key};

const PAIRS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("key");
const INDEX: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("index");

pub struct Redb {
    base: Database,
    main: u64,
    pair: Vec<u8>,
}

impl Engine for Redb {
    const NAME: &'static str = "redb";

    fn create(folder: &Path) -> Outcome<Redb> {
        // A cache that holds it all, as the page cache does for the other two.
        let base = Database::builder().set_cache_size(4 << 30).create(folder.join("redb"))?;
        Ok(Redb { base, main: 1, pair: Vec::new() })
    }

    fn put(&mut self, keys: &[[u8; 8]], value: &[u8]) -> Outcome<()> {
        let mut txn = self.base.begin_write()?;
        txn.set_durability(Durability::None);
        {
            let (mut pairs, mut index) = (txn.open_table(PAIRS)?, txn.open_table(INDEX)?);
            for key in keys {
                self.main += 1;
                let (first, last) = (index_key(key, 0), index_key(key, u64::MAX));
                let newest = index.range(&first[..]..&last[..])?.next_back().transpose()?;
                let (version, created) =
                    newest.as_ref().map_or((0, self.main), |(_, of)| parse_index_value(of.value()));
                drop(newest);
                pair(&mut self.pair, key, value, self.main, version + 1, created);
                pairs.insert(&revision_key(self.main, 0)[..], &self.pair[..])?;
                index.insert(&index_key(key, self.main)[..], &index_value(version + 1, created)[..])?;
            }
        }
        Ok(txn.commit()?)
    }

    fn sync(&mut self) -> Outcome<()> {
        Ok(self.base.begin_write()?.commit()?)
    }

    fn get(&self, keys: &[[u8; 8]]) -> Outcome<usize> {
        let txn = self.base.begin_read()?;
        let (pairs, index) = (txn.open_table(PAIRS)?, txn.open_table(INDEX)?);
        let mut bytes = 0;
        for key in keys {
            let (first, last) = (index_key(key, 0), index_key(key, u64::MAX));
            let (entry, _) = index.range(&first[..]..&last[..])?.next_back().ok_or("no such key")??;
            let main = u64::from_be_bytes(entry.value()[8..16].try_into()?);
            let found = pairs.get(&revision_key(main, 0)[..])?.ok_or("no such revision")?;
            bytes += std::hint::black_box(found.value()).len();
        }
        Ok(bytes)
    }

    fn scan(&self, count: usize, each: &mut dyn FnMut(&[u8])) -> Outcome<()> {
        let txn = self.base.begin_read()?;
        let pairs = txn.open_table(PAIRS)?;
        for found in pairs.iter()?.take(count) {
            each(found?.1.value());
        }
        Ok(())
    }
}

//! Finds English texts that occur in more than one row. It sorts one part of the keys at a time, so that memory does
//! not grow with the corpus.

use std::collections::HashSet;

use futures::TryStreamExt;

use crate::Result;
use crate::store::Store;
use crate::table::{StoredTable, require_columns, u64s, unreadable};

/// Keys that are sorted at once, 16 MiB.
const KEYS_AT_ONCE: u64 = 2 << 20;
const COLUMN: &str = "english_key";

/// Returns the English keys that occur in more than one row of some cleaned tables.
pub(crate) async fn repeated_keys(store: &Store, cleaned: &[String]) -> Result<HashSet<u64>> {
    let mut rows = 0;
    for path in cleaned {
        rows += StoredTable::open(store, path).await?.rows();
    }
    let parts = rows.div_ceil(KEYS_AT_ONCE).max(1);
    let mut repeated = HashSet::new();
    let mut keys: Vec<u64> = Vec::with_capacity((rows / parts) as usize);
    for part in 0..parts {
        keys.clear();
        for path in cleaned {
            read_part(store, path, (part, parts), &mut keys).await?;
        }
        keys.sort_unstable();
        repeated.extend(keys.windows(2).filter(|two| two[0] == two[1]).map(|two| two[0]));
    }
    Ok(repeated)
}

/// Appends a table's keys that belong to part `part.0` of `part.1`.
async fn read_part(store: &Store, path: &str, part: (u64, u64), keys: &mut Vec<u64>) -> Result<()> {
    let name = store.describe(path);
    let mut batches = StoredTable::open(store, path).await?.stream(&[COLUMN])?;
    while let Some(batch) = batches.try_next().await.map_err(|e| unreadable(&name, &e))? {
        require_columns(&name, &batch, &[COLUMN])?;
        let belongs = |key: &u64| (u128::from(*key) * u128::from(part.1)) >> 64 == u128::from(part.0);
        keys.extend(u64s(&name, &batch, COLUMN)?.values().iter().copied().filter(belongs));
    }
    Ok(())
}

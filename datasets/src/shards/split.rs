//! Step two: decide over all sources which rows are kept and where they stand. Only keys are read, no text.
//!
//! A row's side follows from its split key alone: it stands in the holdout part when the key, as a share of the 64-bit
//! range, is below `holdout / (train + holdout)`. So a pair's side changes with the job's two numbers and with nothing
//! else: not with other rows, other sources or their order.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema};
use serde::{Deserialize, Serialize};

use super::{Progress, SOURCE_KEY};
use crate::clean::{DropReason, Tally};
use crate::manifest::ManifestArtifact;
use crate::rows::{Corpus, Side};
use crate::store::Store;
use crate::table::{Layout, Part, StoredTable, bad, encode_groups, u64s};
use crate::{Error, Result};

/// With `train_rows` 0, one row in this many is held out.
const HOLDOUT_ONE_IN: u64 = 10;

/// How to split a corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitSpec {
    /// What the corpus holds.
    pub corpus: Corpus,
    /// How many rows to train on. 0: all there are, and a tenth of the key range is the holdout part.
    pub train_rows: u64,
    /// How many rows to hold out; at least 1.
    pub holdout_rows: u64,
    /// How many rows a shard has; the last of a role may have fewer.
    pub shard_rows: u32,
}

/// A shard that [`split_corpus`] planned and [`super::write_shard`] writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedShard {
    /// Among the assignment's shards.
    pub index: u32,
    /// `pairs/train`, `pairs/holdout`, `instructions/train` or `instructions/validation`.
    pub role: String,
    /// Where it belongs, relative to the stage's folder: `<role>/NNNNN.parquet`.
    pub path: String,
    /// How many rows it will have.
    pub rows: u64,
}

/// What [`split_corpus`] decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// The assignment: a table of (shard, position, file, row) with one row group a shard.
    pub artifact: ManifestArtifact,
    /// Training shards first.
    pub shards: Vec<PlannedShard>,
    /// `rows = train + holdout + Σ dropped_<reason>`.
    pub counts: BTreeMap<String, u64>,
    /// Where there is less than was asked for.
    pub warnings: Vec<String>,
}

/// A row's keys and where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyRow {
    pub split_key: u64,
    pub id: u64,
    pub english_key: u64,
    pub file: u32,
    pub row: u32,
}

/// The rows of both sides, in the order of their split keys.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sides {
    pub train: Vec<KeyRow>,
    pub holdout: Vec<KeyRow>,
}

/// Reads the keys of all cleaned tables, decides, and writes the assignment to `path`.
///
/// Among pairs, rows that share an id, a foreign text or an English text (in the form in which texts compare) are
/// duplicates: the one with the lowest (split key, id) is kept. Instructions are duplicates only where they share an id:
/// several tasks may be asked of one text, and as the text decides the side, all of them stand on one.
///
/// # Errors
/// [`Error::Content`] where either side would be empty, or a cleaned table is not what it should be.
pub async fn split_corpus(
    spec: &SplitSpec,
    store: &Store,
    cleaned: &[String],
    path: &str,
    progress: Progress<'_>,
) -> Result<Split> {
    let refuse = |reason: String| Error::Content {
        path: store.describe(path),
        reason,
    };
    if spec.holdout_rows == 0 {
        return Err(refuse("holdout_rows is 0; hold out at least one row".into()));
    }
    if spec.shard_rows == 0 {
        return Err(refuse("shard_rows is 0; a shard needs at least one row".into()));
    }
    let rows = read_keys(store, cleaned, progress).await?;
    let all = rows.len() as u64;
    let (sides, tally) = decide(spec, rows);
    let (train, holdout) = (sides.train.len() as u64, sides.holdout.len() as u64);
    assert_eq!(
        all,
        train + holdout + tally.dropped(),
        "every row is kept or dropped for one reason"
    );
    let mut counts = tally.counts();
    counts.retain(|name, _| name.starts_with("dropped_"));
    counts.extend([
        ("rows".into(), all),
        ("train".into(), train),
        ("holdout".into(), holdout),
    ]);
    for (side, found) in [(Side::Train, train), (Side::Holdout, holdout)] {
        if found == 0 {
            let role = spec.corpus.role(side);
            return Err(refuse(format!(
                "no row is left for {role} of {all} cleaned ones ({counts:?}); add a source"
            )));
        }
    }
    let warnings = shortfalls(spec, train, holdout);
    for warning in &warnings {
        tracing::warn!("{warning}");
    }

    let mut shards = Vec::new();
    let mut batches = Vec::new();
    let schema = Arc::new(Schema::new(
        ["shard", "position", "file", "row"]
            .map(|name| Field::new(name, DataType::UInt32, false))
            .to_vec(),
    ));
    for (side, rows) in [(Side::Train, &sides.train), (Side::Holdout, &sides.holdout)] {
        let role = spec.corpus.role(side);
        for (number, rows) in rows.chunks(spec.shard_rows as usize).enumerate() {
            let index = shards.len() as u32;
            batches.push(assignment(&schema, index, rows).map_err(|e| refuse(e.to_string()))?);
            let path = format!("{role}/{number:05}.parquet");
            shards.push(PlannedShard {
                index,
                role: role.to_owned(),
                path,
                rows: rows.len() as u64,
            });
        }
    }
    let metadata = BTreeMap::new();
    let layout = Layout {
        dictionary: &["shard", "file"],
        statistics: &[],
        metadata: &metadata,
    };
    let content = encode_groups(&store.describe(path), &schema, &batches, &layout)?;
    let artifact = ManifestArtifact::of(path, "assignment", train + holdout, &content, metadata);
    store.put(path, content).await?;
    Ok(Split {
        artifact,
        shards,
        counts,
        warnings,
    })
}

/// The keys of all rows. Where rows are equal, the one from the source whose name sorts first stands first, so that the
/// order of the sources decides nothing.
async fn read_keys(store: &Store, cleaned: &[String], progress: Progress<'_>) -> Result<Vec<KeyRow>> {
    let mut rows = Vec::new();
    let mut sources = Vec::new();
    for (file, path) in (0_u32..).zip(cleaned) {
        let table = StoredTable::open(store, path).await?;
        let name = store.describe(path);
        let source = table
            .fact(SOURCE_KEY)
            .ok_or_else(|| bad(&name, "is no cleaned table".into()))?;
        sources.push(source);
        let mut row = 0_u32;
        for batch in table.read(&["split_key", "english_key", "id"], Part::All).await? {
            let split_key = u64s(&name, &batch, "split_key")?.values();
            let english_key = u64s(&name, &batch, "english_key")?.values();
            let id = u64s(&name, &batch, "id")?.values();
            for ((split_key, english_key), id) in split_key.iter().zip(english_key).zip(id) {
                rows.push(KeyRow {
                    split_key: *split_key,
                    id: *id,
                    english_key: *english_key,
                    file,
                    row,
                });
                row = row
                    .checked_add(1)
                    .ok_or_else(|| bad(&name, "has more than 4294967295 rows".into()))?;
            }
        }
        progress(u64::from(file) + 1, cleaned.len() as u64);
    }
    rows.sort_unstable_by(|a, b| {
        let source = |row: &KeyRow| (&sources[row.file as usize], row.file, row.row);
        (a.split_key, a.id)
            .cmp(&(b.split_key, b.id))
            .then_with(|| source(a).cmp(&source(b)))
    });
    Ok(rows)
}

/// Whether a split key belongs to the holdout part: `key / 2^64 < holdout / (train + holdout)`.
pub(crate) fn is_holdout(key: u64, spec: &SplitSpec) -> bool {
    let (part, whole) = match spec.train_rows {
        0 => (1, HOLDOUT_ONE_IN),
        train => (spec.holdout_rows, train.saturating_add(spec.holdout_rows)),
    };
    u128::from(key) * u128::from(whole) < u128::from(part) << 64
}

/// Keeps or drops each row. `rows` are sorted by (split key, id): the holdout part comes first.
pub(crate) fn decide(spec: &SplitSpec, rows: Vec<KeyRow>) -> (Sides, Tally) {
    let first_train = rows.partition_point(|row| is_holdout(row.split_key, spec));
    // The whole part's English, kept or not: what is trained on then does not hang on how many rows are held out.
    let holdout_english: HashSet<u64> = rows[..first_train].iter().map(|row| row.english_key).collect();
    let most_train = if spec.train_rows == 0 {
        u64::MAX
    } else {
        spec.train_rows
    };
    let mut sides = Sides::default();
    let mut tally = Tally::default();
    let mut english: HashSet<u64> = HashSet::with_capacity(rows.len());
    let mut last_kept: Option<KeyRow> = None;
    for (index, row) in rows.into_iter().enumerate() {
        let in_holdout = index < first_train;
        let duplicate = match spec.corpus {
            Corpus::Pairs => {
                last_kept.is_some_and(|last| last.split_key == row.split_key) || english.contains(&row.english_key)
            }
            Corpus::Instructions => last_kept.is_some_and(|last| last.id == row.id),
        };
        let (side, most) = if in_holdout {
            (&mut sides.holdout, spec.holdout_rows)
        } else {
            (&mut sides.train, most_train)
        };
        if !in_holdout && holdout_english.contains(&row.english_key) {
            tally.drop(DropReason::EnglishInHoldout);
        } else if duplicate {
            tally.drop(DropReason::Duplicate);
        } else {
            english.insert(row.english_key);
            last_kept = Some(row);
            if (side.len() as u64) < most {
                side.push(row);
            } else {
                tally.drop(DropReason::Surplus);
            }
        }
    }
    (sides, tally)
}

fn shortfalls(spec: &SplitSpec, train: u64, holdout: u64) -> Vec<String> {
    let mut warnings = Vec::new();
    for (side, found, wanted, key) in [
        (Side::Train, train, spec.train_rows, "train_rows"),
        (Side::Holdout, holdout, spec.holdout_rows, "holdout_rows"),
    ] {
        if found < wanted {
            let role = spec.corpus.role(side);
            warnings.push(format!(
                "{role} has {found} rows of the {wanted} asked for; add a source (or more sample rows), or lower `{key}`"
            ));
        }
    }
    warnings
}

fn assignment(
    schema: &Arc<Schema>,
    shard: u32,
    rows: &[KeyRow],
) -> std::result::Result<RecordBatch, arrow::error::ArrowError> {
    let count = rows.len() as u32;
    RecordBatch::try_new(
        Arc::clone(schema),
        vec![
            Arc::new(UInt32Array::from_iter_values((0..count).map(|_| shard))),
            Arc::new(UInt32Array::from_iter_values(0..count)),
            Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.file))),
            Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.row))),
        ],
    )
}

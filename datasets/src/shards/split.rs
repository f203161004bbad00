//! Step two: decide over all sources which rows are kept and where they stand. Only keys are read, no text.
//!
//! A row's side follows from its split key alone: it stands in the holdout part when the key, as a share of the 64-bit
//! range, is below `holdout / (train + holdout)`. So a pair's side changes with the job's two numbers and with nothing
//! else: not with other rows, other sources or their order.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema};
use serde::{Deserialize, Serialize};

use super::Progress;
use super::decide::{Decider, Place};
use super::merge::Merged;
use crate::manifest::ManifestArtifact;
use crate::near::NearDuplicates;
use crate::rows::{Corpus, Side};
use crate::store::Store;
use crate::table::{Layout, ZSTD_LEVEL, encode_groups};
use crate::{Error, Result};

/// Rows between two reports of progress.
const REPORT_EVERY: u64 = 65_536;

/// How to split a corpus.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SplitSpec {
    /// What the corpus holds.
    pub corpus: Corpus,
    /// How many rows to train on. 0: all there are, and a tenth of the key range is the holdout part.
    pub train_rows: u64,
    /// How many rows to hold out; at least 1.
    pub holdout_rows: u64,
    /// How many rows a shard has; the last of a role may have fewer.
    pub shard_rows: u32,
    /// What is done about rows that say almost the same; the cleaned tables hold signatures unless they are kept.
    pub near_duplicates: NearDuplicates,
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
    let mut rows = Merged::open(store, cleaned, spec.near_duplicates != NearDuplicates::Keep).await?;
    let mut sides = Decider::new(spec);
    let mut all = 0;
    while let Some(row) = rows.next().await? {
        sides.offer(&row);
        all += 1;
        if all % REPORT_EVERY == 0 {
            progress(all, rows.total());
        }
    }
    progress(all, all);
    let tally = std::mem::take(&mut sides.tally);
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
        page_rows: None,
        zstd_level: ZSTD_LEVEL,
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

fn shortfalls(spec: &SplitSpec, train: u64, holdout: u64) -> Vec<String> {
    let mut warnings = Vec::new();
    let [train_key, holdout_key] = match spec.corpus {
        Corpus::Pairs => ["corpus.train_pairs", "corpus.holdout_pairs"],
        Corpus::Instructions => ["instructions.train", "instructions.validation"],
    };
    for (side, found, wanted, key) in [
        (Side::Train, train, spec.train_rows, train_key),
        (Side::Holdout, holdout, spec.holdout_rows, holdout_key),
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
    rows: &[Place],
) -> std::result::Result<RecordBatch, arrow::error::ArrowError> {
    let count = rows.len() as u32;
    RecordBatch::try_new(
        Arc::clone(schema),
        vec![
            Arc::new(UInt32Array::from_iter_values((0..count).map(|_| shard))),
            Arc::new(UInt32Array::from_iter_values(0..count)),
            Arc::new(UInt32Array::from_iter_values(rows.iter().map(|place| place.0))),
            Arc::new(UInt32Array::from_iter_values(rows.iter().map(|place| place.1))),
        ],
    )
}

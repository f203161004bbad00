//! Step two of the `shard` stage: decides over all sources which rows are kept, on which side, and in which shard. It
//! reads keys and no text.
//!
//! A row's side follows from its split key alone. The row is held out if the key, as a share of the 64-bit range, is
//! below `holdout / (train + holdout)`. So a pair's side depends on the job's two numbers, and not on other rows, other
//! sources or their order. [`SidesBy::SecondHash`] uses a hash of the key instead.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Progress;
use super::assignment::Assignment;
use super::decide::{Decider, Share, SidesBy};
use super::merge::Merged;
use super::repeated::repeated_keys;
use crate::manifest::ManifestArtifact;
use crate::near::NearDuplicates;
use crate::role::{Corpus, Role, Side};
use crate::store::Store;
use crate::{Error, Result};

/// The count of held-out instructions whose text lies in the training part of the pairs.
pub const TRAINED_AS_PAIRS: &str = "trained_as_pairs";
/// The number of rows between two reports of progress.
const REPORT_EVERY: u64 = 65_536;

/// The rules for splitting a corpus.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SplitSpec {
    /// The kind of rows in the corpus.
    pub corpus: Corpus,
    /// Number of training rows; `None` stands for all rows, with a tenth of the key range held out.
    pub train_rows: Option<u64>,
    /// Number of held-out rows, at least 1.
    pub holdout_rows: u64,
    /// Number of rows in a shard; the last shard of a role may have fewer.
    pub shard_rows: u32,
    /// The treatment of near-duplicates. If they are searched, the cleaned tables must hold signatures.
    pub near_duplicates: NearDuplicates,
    /// The value that decides a row's side.
    pub sides_by: SidesBy,
    /// For instructions, the split of the pairs that Stage A trains on, to count held-out texts that Stage A may have
    /// seen.
    pub pairs: Option<Share>,
}

impl SplitSpec {
    fn share(&self) -> Share {
        Share { train_rows: self.train_rows, holdout_rows: self.holdout_rows }
    }

    /// Returns true if rows with this split key belong to the holdout part.
    pub(crate) fn holds_out(&self, key: u64) -> bool {
        self.sides_by.holds_out(key, self.share())
    }
}

/// A shard that [`split_corpus`] planned and [`super::write_shard`] writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedShard {
    /// The index of the shard in the assignment.
    pub index: u32,
    /// The role: [`Role::Shard`].
    pub role: Role,
    /// The path relative to the stage's folder: `<role>/NNNNN.parquet`.
    pub path: String,
    /// Number of rows.
    pub rows: u64,
}

/// The result of [`split_corpus`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// The assignment: a table of (shard, position, file, row) with one row group for each shard.
    pub artifact: ManifestArtifact,
    /// The shards, training shards first.
    pub shards: Vec<PlannedShard>,
    /// Counts with `rows = train + holdout + Σ dropped_<reason>`.
    pub counts: BTreeMap<String, u64>,
    /// Warnings if there are fewer rows than requested.
    pub warnings: Vec<String>,
}

/// Reads the keys of all cleaned tables, decides, and writes the assignment to `path`.
///
/// Pairs are duplicates if they share an id, a foreign text or an English text, compared in comparison form. The pair
/// with the lowest (split key, id) is kept. Instructions are duplicates only if they share an id: several tasks may be
/// about one text. The text decides the side, so all of them are on one side.
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
    let refuse = |reason: String| Error::Content { path: store.describe(path), reason };
    if spec.holdout_rows == 0 {
        return Err(refuse("holdout_rows is 0; hold out at least one row".into()));
    }
    if spec.shard_rows == 0 {
        return Err(refuse("shard_rows is 0; a shard needs at least one row".into()));
    }
    let repeated = repeated_keys(store, cleaned).await?;
    let mut sides = Decider::new(spec, repeated);
    let mut assignment = Assignment::new(&store.describe(path), spec.corpus, spec.shard_rows)?;
    let all = assign(spec, store, cleaned, &mut sides, &mut assignment, progress).await?;
    progress(all, all);
    let tally = std::mem::take(&mut sides.tally);
    let (train, holdout) = (sides.train, sides.holdout);
    assert_eq!(all, train + holdout + tally.dropped(), "every row is kept or dropped for one reason");
    let mut counts = tally.counts();
    counts.retain(|name, _| name.starts_with("dropped_"));
    counts.extend([("rows".into(), all), ("train".into(), train), ("holdout".into(), holdout)]);
    if spec.corpus == Corpus::Instructions {
        counts.insert(TRAINED_AS_PAIRS.into(), sides.trained_as_pairs);
    }
    no_side_is_empty(spec, &sides, &counts).map_err(refuse)?;
    let mut warnings = shortfalls(spec, &sides);
    warnings.extend(seen_by_stage_a(&sides));
    for warning in &warnings {
        tracing::warn!("{warning}");
    }

    let (content, shards) = assignment.finish()?;
    let artifact = ManifestArtifact::of(path, Role::Assignment, train + holdout, &content, BTreeMap::new());
    store.put(path, content).await?;
    Ok(Split { artifact, shards, counts, warnings })
}

/// Decides about all cleaned rows in the order of their keys, and writes the kept ones into `assignment`. Returns how many there are.
async fn assign(
    spec: &SplitSpec,
    store: &Store,
    cleaned: &[String],
    sides: &mut Decider<'_>,
    assignment: &mut Assignment,
    progress: Progress<'_>,
) -> Result<u64> {
    // Held-out rows come first, but their shards are listed last.
    let mut holdout_places = Vec::new();
    let mut all = 0;
    // By their keys, held-out rows come first in the order. By a second hash they are spread over the range.
    let parts: &[Option<bool>] = match spec.sides_by {
        SidesBy::Key => &[None],
        SidesBy::SecondHash => &[Some(true), Some(false)],
    };
    for part in parts {
        let mut rows = Merged::open(store, cleaned, spec.near_duplicates != NearDuplicates::Keep).await?;
        while let Some(row) = rows.next().await? {
            if part.is_some_and(|held_out| held_out != spec.holds_out(row.split_key)) {
                continue;
            }
            match sides.offer(&row) {
                Some(Side::Train) => assignment.push(Side::Train, (row.file, row.row))?,
                Some(Side::Holdout) => holdout_places.push((row.file, row.row)),
                None => {}
            }
            all += 1;
            if all % REPORT_EVERY == 0 {
                progress(all, rows.total());
            }
        }
    }
    assignment.end_side(Side::Train)?;
    for place in holdout_places {
        assignment.push(Side::Holdout, place)?;
    }
    assignment.end_side(Side::Holdout)?;
    Ok(all)
}

/// Returns an error that says why a side is empty, and what to do.
fn no_side_is_empty(
    spec: &SplitSpec,
    sides: &Decider<'_>,
    counts: &BTreeMap<String, u64>,
) -> std::result::Result<(), String> {
    let all = counts["rows"];
    for (side, found) in [(Side::Train, sides.train), (Side::Holdout, sides.holdout)] {
        if found > 0 {
            continue;
        }
        let role = Role::Shard(spec.corpus, side);
        let why = match sides.offered[usize::from(side == Side::Holdout)] {
            0 if all > 0 => all_on_the_other_side(spec, side, all),
            _ => format!("{all} cleaned rows ({}); add a source", listed(counts)),
        };
        return Err(format!("no row is left for {role}: {why}"));
    }
    Ok(())
}

/// Says why `side` has no row although there are `all` rows, and what to do.
fn all_on_the_other_side(spec: &SplitSpec, side: Side, all: u64) -> String {
    let held_out = 100.0 * spec.share().of_keys();
    let other = match side {
        Side::Holdout => "training",
        Side::Train => "held-out",
    };
    let rows = match all {
        1 => "the one cleaned row falls".to_owned(),
        all => format!("all {all} cleaned rows fall"),
    };
    let mut why = format!(
        "{rows} on the {other} side. The hash of its foreign text decides a row's side, and the lowest {held_out:.1} % of the hashes \
         are held out. "
    );
    why.push_str(match (spec.corpus, side, spec.sides_by) {
        (Corpus::Instructions, Side::Holdout, SidesBy::Key) => {
            "Instructions that were made from training pairs alone have no other text: make some from pairs/holdout, or set \
             `instructions.validation_from = \"train\"`, which draws validation from the texts there are, although Stage A may have \
             been trained on them as pairs"
        }
        (Corpus::Instructions, Side::Train, SidesBy::Key) => {
            "Instructions that were made from held-out pairs alone have no other text: make some from pairs/train"
        }
        (Corpus::Instructions, _, SidesBy::SecondHash) => "There are too few texts: add a source",
        (Corpus::Pairs, Side::Holdout, _) => "Raise `corpus.holdout_pairs` beside `corpus.train_pairs`, or add a source",
        (Corpus::Pairs, Side::Train, _) => "Lower `corpus.holdout_pairs` beside `corpus.train_pairs`, or add a source",
    });
    why
}

/// Returns a warning about held-out instructions whose texts are in the training part of the pairs.
fn seen_by_stage_a(sides: &Decider<'_>) -> Option<String> {
    let (seen, all) = (sides.trained_as_pairs, sides.holdout);
    (seen > 0).then(|| {
        format!(
            "instructions/validation: {seen} of {all} rows have a text on the training side of the pairs. Stage A may have been trained \
             on it, so that answers and held-out loss of Stage B are better than on new text"
        )
    })
}

/// Lists counts in words: `3 duplicate, 1 train`.
fn listed(counts: &BTreeMap<String, u64>) -> String {
    let one =
        |(name, rows): (&String, &u64)| format!("{rows} {}", name.trim_start_matches("dropped_").replace('_', " "));
    counts.iter().filter(|(_, rows)| **rows > 0).map(one).collect::<Vec<_>>().join(", ")
}

/// Returns warnings for a side with fewer rows than requested: how many, why, and what to do.
fn shortfalls(spec: &SplitSpec, sides: &Decider<'_>) -> Vec<String> {
    let mut warnings = Vec::new();
    let [train_key, holdout_key] = match spec.corpus {
        Corpus::Pairs => ["corpus.train_pairs", "corpus.holdout_pairs"],
        Corpus::Instructions => ["instructions.train", "instructions.validation"],
    };
    let [train_surplus, holdout_surplus] = sides.surplus;
    for (side, found, wanted, key, others) in [
        (Side::Train, sides.train, spec.train_rows.unwrap_or(0), train_key, holdout_surplus),
        (Side::Holdout, sides.holdout, spec.holdout_rows, holdout_key, train_surplus),
    ] {
        if found >= wanted {
            continue;
        }
        let role = Role::Shard(spec.corpus, side);
        let mut warning = format!(
            "{role} has {found} rows of the {wanted} asked for; add a source (or more sample rows), or lower `{key}`"
        );
        if others > 0 {
            warning.push_str(&format!(
                ". {others} rows are left over on the other side: a row's side is that of its text's hash, so that no \
                 source moves a row across, and rows are not handed from one side to the other"
            ));
        }
        let few =
            2.0 * (sides.offered[1] as f64) < spec.share().of_keys() * (sides.offered[0] + sides.offered[1]) as f64;
        if side == Side::Holdout && spec.corpus == Corpus::Instructions && spec.sides_by == SidesBy::Key && few {
            warning.push_str(
                ". `instructions.validation_from = \"train\"` draws validation from the instructions' own texts instead, although \
                 Stage A may have been trained on them as pairs",
            );
        }
        warnings.push(warning);
    }
    warnings
}

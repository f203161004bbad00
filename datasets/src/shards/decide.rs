//! Which rows are kept and on which side they stand: decided row by row, in the order of their split keys.

use std::collections::HashSet;

use super::merge::KeyRow;
use super::split::SplitSpec;
use crate::clean::{DropReason, Tally};
use crate::near::{NearDuplicates, NearIndex};
use crate::rows::Corpus;

/// With `train_rows` 0, one row in this many is held out.
const HOLDOUT_ONE_IN: u64 = 10;

/// Where a kept row lies: (file, row).
pub(crate) type Place = (u32, u32);

/// Whether a split key belongs to the holdout part: `key / 2^64 < holdout / (train + holdout)`.
pub(crate) fn is_holdout(key: u64, spec: &SplitSpec) -> bool {
    let (part, whole) = match spec.train_rows {
        0 => (1, HOLDOUT_ONE_IN),
        train => (spec.holdout_rows, train.saturating_add(spec.holdout_rows)),
    };
    u128::from(key) * u128::from(whole) < u128::from(part) << 64
}

/// Keeps or drops rows. They are offered in the order of (split key, id), so that the holdout part comes first. Memory
/// grows with the rows that are kept and with the holdout part's English, not with the corpus.
pub(crate) struct Decider<'a> {
    spec: &'a SplitSpec,
    pub train: Vec<Place>,
    pub holdout: Vec<Place>,
    pub tally: Tally,
    /// The whole part's English, kept or not: what is trained on then does not hang on how many rows are held out.
    holdout_english: HashSet<u64>,
    english: HashSet<u64>,
    last_kept: Option<(u64, u64)>,
    near: Option<[NearIndex; 2]>,
}

impl<'a> Decider<'a> {
    pub(crate) fn new(spec: &'a SplitSpec) -> Self {
        let near = spec.near_duplicates.similarity();
        Self {
            spec,
            train: Vec::new(),
            holdout: Vec::new(),
            tally: Tally::default(),
            holdout_english: HashSet::new(),
            english: HashSet::new(),
            last_kept: None,
            near: near.map(|similarity| [NearIndex::new(similarity), NearIndex::new(similarity)]),
        }
    }

    pub(crate) fn offer(&mut self, row: &KeyRow) {
        let in_holdout = is_holdout(row.split_key, self.spec);
        if in_holdout {
            self.holdout_english.insert(row.english_key);
        }
        match self.judge(row, in_holdout) {
            Err(reason) => self.tally.drop(reason),
            Ok(()) => {
                self.english.insert(row.english_key);
                self.last_kept = Some((row.split_key, row.id));
                let is_indexed = in_holdout || matches!(self.spec.near_duplicates, NearDuplicates::Everywhere(_));
                if let (Some(near), Some(signatures), true) = (&mut self.near, &row.signatures, is_indexed) {
                    for (index, signature) in near.iter_mut().zip(signatures) {
                        index.add(*signature);
                    }
                }
                let side = if in_holdout { &mut self.holdout } else { &mut self.train };
                side.push((row.file, row.row));
            }
        }
    }

    fn judge(&self, row: &KeyRow, in_holdout: bool) -> Result<(), DropReason> {
        let (side, most) = match (in_holdout, self.spec.train_rows) {
            (true, _) => (&self.holdout, self.spec.holdout_rows),
            (false, 0) => (&self.train, u64::MAX),
            (false, most) => (&self.train, most),
        };
        // First, so that what is remembered is bounded by what is kept.
        if side.len() as u64 >= most {
            return Err(DropReason::Surplus);
        }
        if !in_holdout && self.holdout_english.contains(&row.english_key) {
            return Err(DropReason::EnglishInHoldout);
        }
        let duplicate = match self.spec.corpus {
            Corpus::Pairs => {
                self.last_kept.is_some_and(|(key, _)| key == row.split_key) || self.english.contains(&row.english_key)
            }
            Corpus::Instructions => self.last_kept.is_some_and(|(_, id)| id == row.id),
        };
        if duplicate {
            return Err(DropReason::Duplicate);
        }
        if self.is_near(row, in_holdout) {
            let held_out = !in_holdout && matches!(self.spec.near_duplicates, NearDuplicates::Across(_));
            return Err(if held_out {
                DropReason::NearDuplicateInHoldout
            } else {
                DropReason::NearDuplicate
            });
        }
        Ok(())
    }

    fn is_near(&self, row: &KeyRow, in_holdout: bool) -> bool {
        let is_compared = !in_holdout || matches!(self.spec.near_duplicates, NearDuplicates::Everywhere(_));
        let (Some(near), Some(signatures), true) = (&self.near, &row.signatures, is_compared) else {
            return false;
        };
        near.iter()
            .zip(signatures)
            .any(|(index, signature)| index.holds(signature))
    }
}

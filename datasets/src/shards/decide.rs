//! Decides row by row, in the order of their split keys, which rows are kept and on which side.

use std::collections::HashSet;

use xxhash_rust::xxh3::xxh3_64;

use super::merge::KeyRow;
use super::split::SplitSpec;
use crate::clean::{DropReason, Tally};
use crate::near::{NearDuplicates, NearIndex};
use crate::rows::{Corpus, Side};

/// If `train_rows` is `None`, one row in this many is held out.
const HOLDOUT_ONE_IN: u64 = 10;
/// Makes the hash of [`SidesBy::SecondHash`] independent of the key itself.
const SECOND_HASH: u64 = 0x9e37_79b9_7f4a_7c15;

/// The sizes of the two sides, which give the holdout part's share of the key range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Number of training rows; `None` stands for all rows, of which a tenth is held out.
    pub train_rows: Option<u64>,
    /// Number of held-out rows.
    pub holdout_rows: u64,
}

impl Share {
    /// Returns true if a split key belongs to the holdout part: `key / 2^64 < holdout / (train + holdout)`.
    #[must_use]
    pub fn holds_out(self, key: u64) -> bool {
        let (part, whole) = self.fraction();
        u128::from(key) * u128::from(whole) < u128::from(part) << 64
    }

    /// Returns the holdout part's share of the key range.
    #[must_use]
    pub fn of_keys(self) -> f64 {
        let (part, whole) = self.fraction();
        part as f64 / whole as f64
    }

    fn fraction(self) -> (u64, u64) {
        match self.train_rows {
            None => (1, HOLDOUT_ONE_IN),
            Some(train) => (self.holdout_rows, train.saturating_add(self.holdout_rows)),
        }
    }
}

/// The value that decides the side of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SidesBy {
    /// The split key, so that a text is on the same side in every corpus with the same holdout share.
    #[default]
    Key,
    /// A second hash of the split key. It divides rows that are all on one side by their keys. Rows with the same text
    /// still stay together.
    SecondHash,
}

impl SidesBy {
    /// Returns true if a row with this split key is held out.
    pub(crate) fn holds_out(self, key: u64, share: Share) -> bool {
        share.holds_out(match self {
            Self::Key => key,
            Self::SecondHash => xxh3_64(&(key ^ SECOND_HASH).to_le_bytes()),
        })
    }
}

/// Keeps or drops rows. The holdout part is offered first, and each part in the order of (split key, id). Memory grows
/// with the English texts that occur more than once. If near-duplicates are searched, it also grows with the rows that
/// are compared.
pub(crate) struct Decider<'a> {
    spec: &'a SplitSpec,
    /// English keys that occur in more than one row; only these can be duplicates.
    repeated: HashSet<u64>,
    pub train: u64,
    pub holdout: u64,
    pub tally: Tally,
    /// The number of rows of the training and of the holdout part, kept or not.
    pub offered: [u64; 2],
    /// Rows of each part that came after the wanted number was reached.
    pub surplus: [u64; 2],
    /// The number of held-out instructions whose text is in the training part of the pairs.
    pub trained_as_pairs: u64,
    /// English keys of the whole holdout part, kept or not, so that the training rows do not depend on how many rows
    /// are held out.
    holdout_english: HashSet<u64>,
    english: HashSet<u64>,
    last_kept: Option<(u64, u64)>,
    near: Option<[NearIndex; 2]>,
}

impl<'a> Decider<'a> {
    pub(crate) fn new(spec: &'a SplitSpec, repeated: HashSet<u64>) -> Self {
        let near = spec.near_duplicates.similarity();
        Self {
            spec,
            repeated,
            train: 0,
            holdout: 0,
            tally: Tally::default(),
            offered: [0; 2],
            surplus: [0; 2],
            trained_as_pairs: 0,
            holdout_english: HashSet::new(),
            english: HashSet::new(),
            last_kept: None,
            near: near.map(|similarity| [NearIndex::new(similarity), NearIndex::new(similarity)]),
        }
    }

    /// Returns the side on which the row is kept, or `None` if it is dropped.
    pub(crate) fn offer(&mut self, row: &KeyRow) -> Option<Side> {
        let in_holdout = self.spec.holds_out(row.split_key);
        self.offered[usize::from(in_holdout)] += 1;
        let is_repeated = self.repeated.contains(&row.english_key);
        if in_holdout && is_repeated {
            self.holdout_english.insert(row.english_key);
        }
        if let Err(reason) = self.judge(row, in_holdout) {
            self.surplus[usize::from(in_holdout)] += u64::from(reason == DropReason::Surplus);
            self.tally.drop(reason);
            return None;
        }
        if is_repeated {
            self.english.insert(row.english_key);
        }
        self.last_kept = Some((row.split_key, row.id));
        let is_indexed = in_holdout || matches!(self.spec.near_duplicates, NearDuplicates::Everywhere(_));
        if let (Some(near), Some(signatures), true) = (&mut self.near, &row.signatures, is_indexed) {
            for (index, signature) in near.iter_mut().zip(signatures) {
                index.add(*signature);
            }
        }
        let (side, rows) = if in_holdout {
            let is_trained = |pairs: Share| !pairs.holds_out(row.split_key);
            self.trained_as_pairs += u64::from(self.spec.pairs.is_some_and(is_trained));
            (Side::Holdout, &mut self.holdout)
        } else {
            (Side::Train, &mut self.train)
        };
        *rows += 1;
        Some(side)
    }

    fn judge(&self, row: &KeyRow, in_holdout: bool) -> Result<(), DropReason> {
        let (kept, most) = match (in_holdout, self.spec.train_rows) {
            (true, _) => (self.holdout, self.spec.holdout_rows),
            (false, None) => (self.train, u64::MAX),
            (false, Some(most)) => (self.train, most),
        };
        // This check comes first, so that the kept rows limit the remembered ones.
        if kept >= most {
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
            return Err(if held_out { DropReason::NearDuplicateInHoldout } else { DropReason::NearDuplicate });
        }
        Ok(())
    }

    fn is_near(&self, row: &KeyRow, in_holdout: bool) -> bool {
        let is_compared = !in_holdout || matches!(self.spec.near_duplicates, NearDuplicates::Everywhere(_));
        let (Some(near), Some(signatures), true) = (&self.near, &row.signatures, is_compared) else {
            return false;
        };
        near.iter().zip(signatures).any(|(index, signature)| index.holds(signature))
    }
}

//! The cleaning rules of a corpus.

use serde::{Deserialize, Serialize};

/// The treatment of near-duplicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NearDuplicates {
    /// Near-duplicates are kept.
    Keep,
    /// A training row that says almost the same as a held-out row is dropped.
    Across,
    /// Of rows that say almost the same, all but the first are dropped.
    Everywhere,
}

impl NearDuplicates {
    /// Returns the name in job files and tasks.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Across => "across",
            Self::Everywhere => "everywhere",
        }
    }
}

/// The cleaning rules for pairs and instructions (`[cleaning]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CleaningSection {
    /// ISO 15924 code of the foreign side's script, such as Khmr. Absent: no script is checked on either side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// ISO 15924 code of the English side's script.
    pub english_script: String,
    /// The least share of a side's letters that must be in its script.
    pub min_script_share: f64,
    /// The greatest ratio of the two sides' lengths in characters; 0 allows any.
    pub max_length_ratio: f64,
    /// `keep` keeps near-duplicates, `across` drops training rows close to a held-out row, and `everywhere` drops all
    /// but the first.
    pub near_duplicates: NearDuplicates,
    /// The least Jaccard similarity of character 5-grams at which two texts are near-duplicates.
    pub similarity: f64,
}

impl Default for CleaningSection {
    fn default() -> Self {
        Self {
            script: None,
            english_script: "Latn".into(),
            min_script_share: 0.5,
            max_length_ratio: 0.0,
            near_duplicates: NearDuplicates::Across,
            similarity: 0.8,
        }
    }
}

//! What rows of a corpus must satisfy.

use serde::{Deserialize, Serialize};

/// What is done about rows that say almost the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NearDuplicates {
    /// Nothing.
    Keep,
    /// Training rows that say almost what a held-out row says are dropped.
    Across,
    /// All but the first of rows that say almost the same are dropped.
    Everywhere,
}

impl NearDuplicates {
    /// The name in job files and tasks.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Across => "across",
            Self::Everywhere => "everywhere",
        }
    }
}

/// `[cleaning]`: rules for pairs and instructions alike.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CleaningSection {
    /// ISO 15924 code of the foreign side's script, such as Khmr; absent: neither side's script is looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// ISO 15924 code of the English side's.
    pub english_script: String,
    /// The least share of a side's letters that must be of its script.
    pub min_script_share: f64,
    /// How many times as many characters the longer side may have; 0: any.
    pub max_length_ratio: f64,
    /// What is done about rows that say almost the same.
    pub near_duplicates: NearDuplicates,
    /// The Jaccard similarity of character 5-grams from which on two texts say almost the same.
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

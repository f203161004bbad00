//! The cleaning rules of a corpus.

use llink_proto::settings::{ABOVE_0, at_least, between, zero};
use serde::{Deserialize, Serialize};

/// The treatment of near-duplicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, strum::Display)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum NearDuplicates {
    Keep,
    /// A training row that says almost the same as a held-out row is dropped.
    Across,
    /// Of rows that say almost the same, all but the first are dropped.
    Everywhere,
}

/// The treatment of rows whose two sides have other numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Numbers {
    Any,
    MustAgree,
}

impl Numbers {
    /// Keeps the default out of the stages' keys.
    fn is_any(&self) -> bool {
        *self == Self::Any
    }
}

llink_proto::settings! {
    /// The cleaning rules for pairs and instructions (`[cleaning]`).
    pub struct CleaningSection = "cleaning" {
        result {
            /// ISO 15924 code of the foreign side's script, such as Khmr. Absent: no script is checked on either side.
            #[serde(skip_serializing_if = "Option::is_none")]
            script: Option<String> = None;
            /// ISO 15924 code of the English side's script.
            english_script: String = "Latn".into();
            /// The least share of a side's letters that must be in its script.
            min_script_share: f64 = 0.5, between(0.0, 1.0);
            /// The greatest ratio of the two sides' lengths in characters; 0 allows any.
            #[serde(with = "zero")]
            max_length_ratio: Option<f64> = None, at_least(1.0).because("0 allows any ratio");
            /// `must_agree` drops rows whose two sides have other numbers; `any`, the default, keeps them.
            #[serde(skip_serializing_if = "Numbers::is_any")]
            numbers: Numbers = Numbers::Any;
            /// `keep` keeps near-duplicates, `across` drops training rows close to a held-out row, and `everywhere` drops all
            /// but the first.
            near_duplicates: NearDuplicates = NearDuplicates::Across;
            /// The least Jaccard similarity of character 5-grams at which two texts are near-duplicates.
            similarity: f64 = 0.8, ABOVE_0.at_most(1.0);
        }
        run {
            /// Training pairs with a lower margin are left out of Stage A; 0.96 suits a multilingual sentence encoder. The margin is
            /// the cosine of the encoder's vectors of both sides over their mean cosine to their four nearest neighbors. It decides
            /// stage `align`, and no row moves in the split. Absent: none is left out.
            #[serde(skip_serializing_if = "Option::is_none")]
            margin: Option<f64> = None, between(0.1, 10.0);
        }
    }
}

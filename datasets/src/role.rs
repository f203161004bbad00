//! The roles of artifacts: what each object that a task wrote holds. On the wire and in manifests a role is its text.

use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use strum::{Display, EnumIter, IntoEnumIterator};

/// The kind of rows in a corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Display, EnumIter)]
#[strum(serialize_all = "kebab-case")]
pub enum Corpus {
    /// Sentences in both languages.
    Pairs,
    /// Instructions about foreign texts, with their answers.
    Instructions,
}

/// The side of the split on which a row stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, EnumIter)]
pub enum Side {
    /// Rows for training.
    Train,
    /// Rows for measuring, which no training reads.
    Holdout,
}

/// The origin of a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Display, EnumIter)]
#[strum(serialize_all = "kebab-case")]
pub enum Tower {
    /// The decoder's vector of the English text.
    Teacher,
    /// The encoder's vector of the foreign text.
    Encoder,
    /// The encoder's vector of the English text.
    EncoderEnglish,
    /// The encoder's vectors of the foreign text and of its windows.
    EncoderWindows,
}

/// A model that is read and not trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Display, EnumIter)]
#[strum(serialize_all = "kebab-case")]
pub enum Model {
    /// The model that reads the foreign text.
    Encoder,
    /// The model that answers.
    Decoder,
}

/// A file that a training writes, or that the bundle has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Display, EnumIter)]
#[strum(serialize_all = "kebab-case")]
pub enum Part {
    /// The weights of the projector.
    Projector,
    /// The statistics of the training vectors.
    Statistics,
    /// The weights of the slot expander.
    Slots,
    /// The weights of the LoRA adapter.
    Adapter,
    /// PEFT's configuration of the adapter.
    AdapterConfig,
    /// A JSON line for each step.
    Metrics,
    /// The bundle's configuration.
    Config,
    /// The bundle's model card.
    Card,
    /// A file of the decoder with the adapter folded in.
    Merged,
}

/// What an artifact holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Role {
    /// The cleaned rows of a source.
    Cleaned(Corpus),
    /// The place of each row in the shards.
    Assignment,
    /// A shard of rows.
    Shard(Corpus, Side),
    /// The vectors of a shard.
    Vectors(Tower, Corpus, Side),
    /// A file of a model that llink made.
    Model(Model),
    /// A result of a training.
    Trained(Part),
    /// A result of the direct arm, where it is trained beside the slots.
    Direct(Part),
    /// A file of the bundle.
    Bundle(Part),
    /// The training pairs of a shard that are left out, because their margin is too low.
    Dropped,
    /// The rank of each pair in the retrieval.
    Benchmark,
    /// The answers to held-out instructions.
    Answers,
    /// The answers to the job's evaluation set.
    SetAnswers,
    /// The judge's verdicts.
    Judgements,
    /// The measurements of `evaluate`.
    Report,
    /// The measurements as a page for people.
    ReportPage,
    /// A role that another version of llink wrote.
    Unknown(String),
}

impl Corpus {
    /// Returns the name of a side. The held-out side of instructions is called `validation`.
    #[must_use]
    pub fn side(self, side: Side) -> &'static str {
        match (self, side) {
            (_, Side::Train) => "train",
            (Self::Pairs, Side::Holdout) => "holdout",
            (Self::Instructions, Side::Holdout) => "validation",
        }
    }

    /// Returns the name of a side among the vectors of both corpora: `holdout` or `instructions-train`.
    #[must_use]
    pub fn set(self, side: Side) -> String {
        match self {
            Self::Pairs => self.side(side).to_owned(),
            Self::Instructions => format!("{self}-{}", self.side(side)),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cleaned(corpus) => write!(f, "cleaned/{corpus}"),
            Self::Assignment => f.write_str("assignment"),
            Self::Shard(corpus, side) => write!(f, "{corpus}/{}", corpus.side(*side)),
            Self::Vectors(tower, corpus, side) => write!(f, "embeddings/{tower}/{}", corpus.set(*side)),
            Self::Model(model) => write!(f, "models/{model}"),
            Self::Trained(part) => write!(f, "{part}"),
            Self::Direct(part) => write!(f, "direct-{part}"),
            Self::Bundle(part) => write!(f, "bundle/{part}"),
            Self::Dropped => f.write_str("dropped"),
            Self::Benchmark => f.write_str("benchmark"),
            Self::Answers => f.write_str("answers"),
            Self::SetAnswers => f.write_str("set-answers"),
            Self::Judgements => f.write_str("judgements"),
            Self::Report => f.write_str("report"),
            Self::ReportPage => f.write_str("report-page"),
            Self::Unknown(text) => f.write_str(text),
        }
    }
}

/// Every known role by its text.
static KNOWN: LazyLock<HashMap<String, Role>> = LazyLock::new(|| {
    let shards = || Corpus::iter().flat_map(|corpus| Side::iter().map(move |side| (corpus, side)));
    let vectors = Tower::iter().flat_map(|tower| shards().map(move |(c, side)| Role::Vectors(tower, c, side)));
    let parts = Part::iter().flat_map(|part| [Role::Trained(part), Role::Direct(part), Role::Bundle(part)]);
    let others = [
        Role::Assignment,
        Role::Dropped,
        Role::Benchmark,
        Role::Answers,
        Role::SetAnswers,
        Role::Judgements,
        Role::Report,
        Role::ReportPage,
    ];
    let roles = others.into_iter().chain(parts).chain(vectors);
    let roles = roles.chain(Corpus::iter().map(Role::Cleaned)).chain(Model::iter().map(Role::Model));
    let roles = roles.chain(shards().map(|(corpus, side)| Role::Shard(corpus, side)));
    roles.map(|role| (role.to_string(), role)).collect()
});

impl From<&str> for Role {
    fn from(text: &str) -> Self {
        KNOWN.get(text).cloned().unwrap_or_else(|| Self::Unknown(text.to_owned()))
    }
}

impl From<String> for Role {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl From<Part> for Role {
    fn from(part: Part) -> Self {
        Self::Trained(part)
    }
}

impl PartialEq<Role> for String {
    fn eq(&self, role: &Role) -> bool {
        Role::from(self.as_str()) == *role
    }
}

impl From<Role> for String {
    fn from(role: Role) -> Self {
        role.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_texts_are_those_of_manifests_and_every_text_comes_back() {
        for (text, role) in [
            ("cleaned/pairs", Role::Cleaned(Corpus::Pairs)),
            ("assignment", Role::Assignment),
            ("pairs/train", Role::Shard(Corpus::Pairs, Side::Train)),
            ("pairs/holdout", Role::Shard(Corpus::Pairs, Side::Holdout)),
            ("instructions/train", Role::Shard(Corpus::Instructions, Side::Train)),
            ("instructions/validation", Role::Shard(Corpus::Instructions, Side::Holdout)),
            ("embeddings/teacher/holdout", Role::Vectors(Tower::Teacher, Corpus::Pairs, Side::Holdout)),
            (
                "embeddings/encoder/instructions-validation",
                Role::Vectors(Tower::Encoder, Corpus::Instructions, Side::Holdout),
            ),
            ("embeddings/encoder-english/train", Role::Vectors(Tower::EncoderEnglish, Corpus::Pairs, Side::Train)),
            (
                "embeddings/encoder-windows/instructions-train",
                Role::Vectors(Tower::EncoderWindows, Corpus::Instructions, Side::Train),
            ),
            ("models/decoder", Role::Model(Model::Decoder)),
            ("projector", Role::Trained(Part::Projector)),
            ("adapter-config", Role::Trained(Part::AdapterConfig)),
            ("direct-adapter", Role::Direct(Part::Adapter)),
            ("bundle/config", Role::Bundle(Part::Config)),
            ("report-page", Role::ReportPage),
            ("judgements", Role::Judgements),
        ] {
            assert_eq!((role.to_string().as_str(), Role::from(text)), (text, role));
        }
        assert!(KNOWN.iter().all(|(text, role)| Role::from(text.as_str()) == *role));
    }

    #[test]
    fn a_role_of_another_version_keeps_its_text() {
        let role: Role = serde_json::from_str("\"votes/first\"").unwrap();
        assert_eq!(role, Role::Unknown("votes/first".into()));
        assert_eq!(serde_json::to_string(&role).unwrap(), "\"votes/first\"");
    }
}

//! The settings of the cached vectors (`[embed]`).

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Expect, at_least, between};

crate::settings! {
    /// The batching of sentences through the frozen models (`[embed]`).
    pub struct EmbedSettings = "embed" {
        result {
            /// The most characters of a foreign text that the encoder reads.
            max_chars: u32 = 256, at_least(1.0);
            /// The most tokens of a text that the encoder reads.
            max_tokens: u32 = 256, between(3.0, 512.0);
            /// The decoder states that represent an English sentence: `"slot"`, or `{ pool = "mean", layer = 0.33 }`.
            teacher: Teacher = Teacher::Slot;
        }
        run {
            /// The number of tokens in a batch, including padding.
            token_budget: u32 = 8192, at_least(256.0);
        }
    }
}

/// The decoder states that represent an English sentence. English references of instructions are read in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Teacher {
    /// `"slot"`: the last hidden state, after the final norm, at a slot token behind the sentence. This is the paper's
    /// form.
    #[default]
    Slot,
    /// `{ pool = "mean", layer = … }`: the mean of one hidden layer over the sentence's tokens.
    Pooled(PooledTeacher),
}

/// The mean of one hidden layer over the sentence's tokens (at most 127). The first token is left out unless it is the
/// only one. Decoders use it as an attention sink, and its norm dominates the others.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PooledTeacher {
    /// The pooling of the tokens.
    pub pool: Pool,
    /// The hidden layer.
    pub layer: TeacherLayer,
}

/// The pooling of the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// The mean of the tokens.
    Mean,
}

/// A layer of the decoder, as Transformers counts `hidden_states`: 0 is the embedding, the last is after the final
/// norm.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a layer's number (10), or a share of the depth (0.33)")]
pub enum TeacherLayer {
    /// The number of the layer, a whole number.
    Number(u32),
    /// A share of the depth, a number with a decimal point from 0.0 to 1.0. It is rounded to the nearest layer: 0.33 of
    /// 30 layers is layer 10.
    Share(f64),
}

impl EmbedSettings {
    /// Reports invalid values.
    pub fn check(&self, expect: Expect<'_>) {
        self.check_bounds(expect);
        if let Teacher::Pooled(PooledTeacher { layer: TeacherLayer::Share(share), .. }) = &self.teacher {
            let expected = "a layer's number (10), or a share of the depth from 0.0 to 1.0";
            expect((0.0..=1.0).contains(share), "embed.teacher.layer", share, expected);
        }
    }
}

impl Serialize for Teacher {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Slot => serializer.serialize_str("slot"),
            Self::Pooled(pooled) => pooled.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Teacher {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Teacher;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"slot\" or { pool = \"mean\", layer = 0.33 }")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Teacher, E> {
                match text {
                    "slot" => Ok(Teacher::Slot),
                    other => Err(E::unknown_variant(other, &["slot"])),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Teacher, A::Error> {
                PooledTeacher::deserialize(MapAccessDeserializer::new(map)).map(Teacher::Pooled)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl fmt::Display for Teacher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slot => f.write_str("last state at the slot token"),
            Self::Pooled(PooledTeacher { layer, .. }) => match layer {
                TeacherLayer::Number(number) => write!(f, "mean of layer {number}"),
                TeacherLayer::Share(share) => write!(f, "mean of the layer at {share} of the depth"),
            },
        }
    }
}

//! The frozen encoder and the frozen decoder (`[models]`).

use std::fmt;
use std::marker::PhantomData;

use llink_proto::settings::Expect;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::JobFile;

/// The name of the tiny models that come with llink and know the grammar of the sample corpus.
pub const TINY_MODEL: &str = "tiny";
/// The name of tiny models with random weights, whose tokenizers are made from the job's own text.
pub const RANDOM_MODEL: &str = "random";

/// A longer prefix is an error, because it would replace the text.
const LONGEST_PREFIX: usize = 1_000;

/// Returns true if llink makes the model itself, so that it is not a folder.
pub fn is_built_in(model: &str) -> bool {
    [TINY_MODEL, RANDOM_MODEL].contains(&model)
}

/// Returns true if a model is one GGUF file and not a folder.
pub fn is_gguf(model: &str) -> bool {
    model.to_ascii_lowercase().ends_with(".gguf")
}

/// The two frozen models (`[models]`). Each is a path as a string, or a table with `path` and more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelsSection {
    /// The model that reads the foreign text: XLM-R, RoBERTa or BERT.
    #[serde(deserialize_with = "path_or_table", serialize_with = "path_or_all")]
    pub encoder: EncoderModel,
    /// The model that answers: Llama, Mistral, Qwen2 or Qwen3.
    #[serde(deserialize_with = "path_or_table")]
    pub decoder: DecoderModel,
}

impl ModelsSection {
    pub fn paths(&self) -> [(&'static str, &str); 2] {
        [("models.encoder", self.encoder.path.as_str()), ("models.decoder", self.decoder.path.as_str())]
    }

    pub fn paths_mut(&mut self) -> [&mut String; 2] {
        [&mut self.encoder.path, &mut self.decoder.path]
    }
}

/// The encoder (`[models.encoder]`). Absent settings are taken from the folder's `modules.json` and
/// `1_Pooling/config.json`. Without these files, a text's vector is the mean of its last hidden states, as in the
/// paper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderModel {
    /// A folder in Hugging Face layout, `"tiny"` or `"random"`.
    #[serde(alias = "url")]
    pub path: String,
    /// The pooling of the last hidden states: `"mean"` of all, or `"cls"` for the first token's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pooling: Option<PoolingName>,
    /// Scale vectors to length 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalize: Option<bool>,
    /// The text before each text, such as `"query: "` for E5. It is added after the cut at `[embed] max_chars`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
}

/// The decoder (`[models.decoder]`): a folder, or a GGUF file, which is unpacked to bf16 when it is loaded.
///
/// Prompts use the decoder's own chat template (`chat_template.jinja`, else `chat_template` of
/// `tokenizer_config.json`), and match Transformers' `apply_chat_template` token by token. Templates that ask for the
/// date get 26 Jul 2024, so that a job stays the same job. Templates with a thinking mode get it turned off. Without a
/// template, Llama 3's turns are used if the vocabulary has their tokens, else a plain form: instruction, text, an
/// empty line, the answer, the end of the text.
///
/// A teacher's sentence begins with the model's BOS, even if `tokenizer.json` does not add it. A model whose files name
/// no `bos_token`, or say `add_bos_token = false`, gets none.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderModel {
    /// A folder in Hugging Face layout, a file that ends in `.gguf`, `"tiny"` or `"random"`.
    #[serde(alias = "url")]
    pub path: String,
}

/// The pooling of hidden states into the vector of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, strum::Display)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum PoolingName {
    Mean,
    Cls,
}

impl From<&str> for EncoderModel {
    fn from(path: &str) -> Self {
        Self { path: path.into(), pooling: None, normalize: None, prefix: None }
    }
}

impl From<&str> for DecoderModel {
    fn from(path: &str) -> Self {
        Self { path: path.into() }
    }
}

impl Default for EncoderModel {
    fn default() -> Self {
        TINY_MODEL.into()
    }
}

impl Default for DecoderModel {
    fn default() -> Self {
        TINY_MODEL.into()
    }
}

/// Writes an encoder as in a job file: a string if there is only a path.
fn path_or_all<S: Serializer>(model: &EncoderModel, serializer: S) -> Result<S::Ok, S::Error> {
    match *model == EncoderModel::from(model.path.as_str()) {
        true => model.path.serialize(serializer),
        false => model.serialize(serializer),
    }
}

impl Serialize for DecoderModel {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.path.serialize(serializer)
    }
}

/// What a job file gives as a path or as a table.
pub(super) trait PathOrTable: for<'a> From<&'a str> {
    const EXPECTED: &'static str;
}

const A_MODEL: &str = "\"tiny\", \"random\", a model folder, or a table with `path`";

impl PathOrTable for EncoderModel {
    const EXPECTED: &'static str = A_MODEL;
}

impl PathOrTable for DecoderModel {
    const EXPECTED: &'static str = A_MODEL;
}

struct PathOrTableVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de> + PathOrTable> Visitor<'de> for PathOrTableVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E>(self, path: &str) -> Result<T, E> {
        Ok(path.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

pub(super) fn path_or_table<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Deserialize<'de> + PathOrTable,
    D: Deserializer<'de>,
{
    deserializer.deserialize_any(PathOrTableVisitor(PhantomData))
}

pub(super) fn problems(job: &JobFile, expect: Expect<'_>) {
    let models = &job.models;
    for (key, path) in models.paths() {
        let expected = "\"tiny\", \"random\" or a model folder";
        expect(!path.is_empty(), key, &"empty", expected);
    }
    let length = models.encoder.prefix.as_ref().map_or(0, |prefix| prefix.chars().count());
    expect(length <= LONGEST_PREFIX, "models.encoder.prefix", &format!("{length} characters long"), "at most 1000");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::parse;

    fn models(text: &str) -> Result<ModelsSection, String> {
        let text = format!("[corpus]\nsource = \"sample\"\n{text}");
        parse("job.toml", &text).map(|job| job.models).map_err(|e| e.to_string())
    }

    #[test]
    fn a_model_is_a_path_or_a_table() {
        let plain = models("[models]\nencoder = \"m/e5\"\n").unwrap();
        assert_eq!((plain.encoder.path.as_str(), plain.decoder.path.as_str()), ("m/e5", "tiny"));
        for key in ["path", "url"] {
            let table = models(&format!("[models.encoder]\n{key} = \"m/e5\"\n")).unwrap();
            assert_eq!(table, plain);
        }
        let full = "[models.encoder]\npath = \"m/e5\"\npooling = \"cls\"\nnormalize = true\nprefix = \"query: \"\n\
                    [models.decoder]\npath = \"m/d\"\n";
        let full = models(full).unwrap();
        assert_eq!(full.encoder.pooling, Some(PoolingName::Cls));
        assert_eq!((full.encoder.normalize, full.encoder.prefix.as_deref()), (Some(true), Some("query: ")));
        assert_eq!(full.decoder.path, "m/d");
        // A stored section is read back unchanged.
        for section in [plain, full] {
            let text = serde_json::to_string(&section).unwrap();
            assert_eq!(serde_json::from_str::<ModelsSection>(&text).unwrap(), section, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_model_is_said() {
        for (text, words) in [
            ("[models.encoder]\npath = \"x\"\npooling = \"max\"\n", &["max", "mean", "cls"][..]),
            ("[models.encoder]\npooling = \"cls\"\n", &["models.encoder", "path"]),
            ("[models.encoder]\npath = \"x\"\nprefixes = \"q\"\n", &["prefixes", "did you mean `prefix`"]),
            ("[models]\nencoder = 3\n", &["models.encoder", "a model folder"]),
            ("[models]\nencoder = \"\"\n", &["models.encoder", "empty"]),
        ] {
            let said = models(text).unwrap_err();
            for word in words {
                assert!(said.contains(word), "{text}: {word:?} is not in {said}");
            }
        }
    }
}

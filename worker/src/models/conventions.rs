//! The conventions in a decoder's folder besides `tokenizer.json`: its chat template, its named special tokens, and the
//! ends of texts and answers.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::json;
use super::tokenizer::Tokenizer;
use crate::{Error, Result};

/// The named tokens that chat templates may use, with their names in Transformers.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
const BOS: &str = "bos_token";
const EOS: &str = "eos_token";

/// The tokens and the template with which a decoder's texts and turns begin and end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conventions {
    /// The folder or file that they were read from, for errors.
    pub path: String,
    /// The chat template in Jinja, as published with the model.
    pub chat_template: Option<String>,
    /// The named tokens, such as `bos_token`, by Transformers' names.
    pub named: BTreeMap<String, String>,
    /// The token that begins a text; see [`Conventions::read`].
    pub begin: Option<u32>,
    /// The tokens that the model's own files name as an end.
    pub end: Vec<u32>,
}

impl Conventions {
    /// Reads the JSON files of `dir` and `chat_template.jinja`. All of them are optional.
    ///
    /// The chat template is `chat_template.jinja`, else `chat_template` of `tokenizer_config.json`.
    ///
    /// A text begins with the model's BOS, even if the template of `tokenizer.json` does not add it. The BOS is
    /// `bos_token` of `tokenizer_config.json`, else of `special_tokens_map.json`. Otherwise it is `bos_token_id` of
    /// `config.json` if that is a special token, because some files have the default of a class.
    ///
    /// There is no BOS if one of the first two is null or `add_bos_token` is false. Qwen has none either, because its
    /// `bos_token_id` is the end of a text.
    ///
    /// # Errors
    /// [`Error::Model`] for a file that is not JSON, or a BOS that the vocabulary lacks.
    pub fn read(dir: &Path, tokenizer: &Tokenizer) -> Result<Self> {
        let config = read_json(&dir.join("config.json"))?;
        let generation = read_json(&dir.join("generation_config.json"))?;
        let of_tokenizer = read_json(&dir.join("tokenizer_config.json"))?;
        let map = read_json(&dir.join("special_tokens_map.json"))?;
        // A key decides if it exists, even with the value null.
        let said = |name: &str| of_tokenizer.get(name).or_else(|| map.get(name)).map(token_text);
        let mut named: BTreeMap<String, String> =
            NAMED.into_iter().filter_map(|name| Some((name.to_owned(), said(name)??))).collect();
        let qwen = config["model_type"].as_str().is_some_and(|kind| kind.starts_with("qwen"));
        if said(BOS).is_none()
            && !qwen
            && let Some(id) = ids(&config["bos_token_id"]).first().filter(|id| tokenizer.is_special(**id))
            && let Some(token) = tokenizer.id_to_token(*id)
        {
            named.insert(BOS.into(), token);
        }
        let mut end = ids(&generation["eos_token_id"]);
        end.extend(ids(&config["eos_token_id"]));
        if said(EOS).is_none()
            && let Some(token) = ids(&config["eos_token_id"]).first().and_then(|id| tokenizer.id_to_token(*id))
        {
            named.insert(EOS.into(), token);
        }
        let begin = match of_tokenizer["add_bos_token"].as_bool() {
            Some(false) => None,
            _ => named.get(BOS).map(|token| tokenizer.require(token)).transpose()?,
        };
        Ok(Self {
            path: dir.display().to_string(),
            chat_template: chat_template(dir, &of_tokenizer)?,
            named,
            begin,
            end,
        })
    }

    /// Returns the name of the token that ends a text.
    pub fn eos_token(&self) -> Option<&str> {
        self.named.get(EOS).map(String::as_str)
    }
}

/// Returns the folder's chat template. Of several in `tokenizer_config.json`, it is the one named `default`, else the
/// first.
fn chat_template(dir: &Path, of_tokenizer: &Value) -> Result<Option<String>> {
    let path = dir.join("chat_template.jinja");
    let said = |text: &str| Some(text).filter(|text| !text.trim().is_empty()).map(str::to_owned);
    match std::fs::read_to_string(&path) {
        Ok(text) => return Ok(said(&text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io(&path)(error)),
    }
    let written = &of_tokenizer["chat_template"];
    let text = match written.as_array() {
        None => written.as_str(),
        Some(several) => {
            let default = several.iter().find(|one| one["name"] == "default");
            default.or(several.first()).and_then(|one| one["template"].as_str())
        }
    };
    Ok(text.and_then(said))
}

/// Returns a token's text. These files write it as a string, or as an object that holds it.
fn token_text(value: &Value) -> Option<String> {
    let text = value.as_str().or_else(|| value["content"].as_str());
    text.filter(|text| !text.is_empty()).map(str::to_owned)
}

fn ids(value: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value.as_array() {
        Some(several) => several.iter().filter_map(id).collect(),
        None => id(value).into_iter().collect(),
    }
}

/// Reads a JSON file. Returns null if there is no such file.
fn read_json(path: &Path) -> Result<Value> {
    if path.exists() { json::read_with_nulls(path) } else { Ok(Value::Null) }
}

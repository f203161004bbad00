//! GGUF, llama.cpp's single file of weights, configuration, tokenizer and chat template. It is read like a folder in
//! Hugging Face layout, with Hugging Face's names and unpacked weights.

mod tensors;
mod tokenizer;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use candle_core::quantized::gguf_file::{Content, Value as Field};
use memmap2::Mmap;
use serde_json::{Value, json};

use super::conventions::Conventions;
use crate::ops::Memory;
use crate::{Error, Result};

/// The keys of the named tokens in the file, and their names in Transformers.
const NAMED: [(&str, &str); 4] = [
    ("bos_token", "tokenizer.ggml.bos_token_id"),
    ("eos_token", "tokenizer.ggml.eos_token_id"),
    ("unk_token", "tokenizer.ggml.unknown_token_id"),
    ("pad_token", "tokenizer.ggml.padding_token_id"),
];
/// The keys of the ends of a text, a turn and a message.
const ENDS: [&str; 3] = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
/// The supported architectures, and their names in Transformers.
const ARCHITECTURES: [(&str, &str); 3] =
    [("llama", "LlamaForCausalLM"), ("qwen2", "Qwen2ForCausalLM"), ("qwen3", "Qwen3ForCausalLM")];

pub(super) struct Gguf {
    path: String,
    file: Arc<Memory>,
    content: Content,
}

/// Returns whether a model's path or URL names a GGUF file.
pub fn is_gguf(path: &str) -> bool {
    let (path, _) = path.split_once('?').unwrap_or((path, ""));
    path.len() > 5 && path.to_ascii_lowercase().ends_with(".gguf")
}

impl Gguf {
    /// Maps a file and reads everything but its tensors.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Model`] when it is not a GGUF file of a supported kind.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let io = Error::io(path);
        let file = File::open(path).map_err(io)?;
        // SAFETY: the files are read-only inputs of a task, and nothing writes to them while they are mapped.
        let file = Memory::File(unsafe { Mmap::map(&file) }.map_err(io)?);
        let content = Content::read(&mut Cursor::new(&*file))
            .map_err(|error| Error::model(path.display(), format!("can't be read as GGUF: {error}")))?;
        Ok(Self { path: path.display().to_string(), file: Arc::new(file), content })
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Returns the model's configuration in the form of `config.json`.
    ///
    /// # Errors
    /// [`Error::Model`] for an architecture or a scaling of positions that is not supported, or a missing field.
    pub(super) fn config(&self) -> Result<Value> {
        let kind = self.text("general.architecture")?;
        let Some((_, architecture)) = ARCHITECTURES.iter().find(|(name, _)| *name == kind) else {
            let known = ARCHITECTURES.map(|(name, _)| name).join(", ");
            return Err(self.refuse(format!("general.architecture {kind:?} is not supported (supported: {known})")));
        };
        let key = |name: &str| format!("{kind}.{name}");
        let number = |name: &str| self.number(&key(name));
        if let Some(Field::String(scaling)) = self.field(&key("rope.scaling.type"))
            && scaling != "none"
        {
            return Err(self.refuse(format!("{} {scaling:?} is not supported", key("rope.scaling.type"))));
        }
        let experts = self.optional(&key("expert_count"))?.unwrap_or(0);
        if experts > 0 {
            return Err(self.refuse(format!("is a mixture of {experts} experts, which is not supported")));
        }
        let tensors = &self.content.tensor_infos;
        let embedding = tensors.get("token_embd.weight");
        let vocab_size = embedding.and_then(|info| info.shape.dims().first().copied());
        let heads = number("attention.head_count")?;
        let hidden = number("embedding_length")?;
        let head_dim = match self.optional(&key("attention.key_length"))? {
            Some(width) => width,
            None => self.optional(&key("rope.dimension_count"))?.unwrap_or(hidden / heads.max(1)),
        };
        Ok(json!({
            "architectures": [architecture],
            "model_type": kind,
            "vocab_size": vocab_size.ok_or_else(|| self.refuse("tensor token_embd.weight is missing"))?,
            "hidden_size": hidden,
            "intermediate_size": number("feed_forward_length")?,
            "num_hidden_layers": number("block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": self.optional(&key("attention.head_count_kv"))?.unwrap_or(heads),
            "head_dim": head_dim,
            "max_position_embeddings": number("context_length")?,
            "rms_norm_eps": self.decimal(&key("attention.layer_norm_rms_epsilon"))?,
            "rope_theta": match self.field(&key("rope.freq_base")) {
                Some(_) => self.decimal(&key("rope.freq_base"))?,
                None => 10_000.0,
            },
            "tie_word_embeddings": !tensors.contains_key("output.weight"),
            "attention_bias": kind == "llama" && tensors.contains_key("blk.0.attn_q.bias"),
        }))
    }

    /// Returns the conventions besides the vocabulary. As in [`Conventions::read`], a text begins with the BOS unless
    /// `tokenizer.ggml.add_bos_token` is false or the model is a Qwen.
    ///
    /// # Errors
    /// [`Error::Model`] for an id outside the vocabulary.
    pub(super) fn conventions(&self) -> Result<Conventions> {
        let tokens = self.list("tokenizer.ggml.tokens")?;
        let id = |key: &str| self.optional(key).map(|id| id.map(|id| id as u32));
        let mut named = BTreeMap::new();
        for (name, key) in NAMED {
            if let Some(id) = id(key)? {
                let token = tokens.get(id as usize).and_then(|token| token.to_string().ok());
                let token = token
                    .ok_or_else(|| self.refuse(format!("{key} {id} is not one of its {} tokens", tokens.len())))?;
                named.insert(name.to_owned(), token.clone());
            }
        }
        let qwen = self.text("general.architecture")?.starts_with("qwen");
        let left_out = matches!(self.field("tokenizer.ggml.add_bos_token"), Some(Field::Bool(false)));
        let mut end = Vec::new();
        for key in ENDS {
            end.extend(id(key)?);
        }
        Ok(Conventions {
            path: self.path.clone(),
            chat_template: match self.field("tokenizer.chat_template") {
                Some(Field::String(template)) if !template.trim().is_empty() => Some(template.clone()),
                _ => None,
            },
            begin: if qwen || left_out { None } else { id("tokenizer.ggml.bos_token_id")? },
            named,
            end,
        })
    }

    fn field(&self, key: &str) -> Option<&Field> {
        self.content.metadata.get(key)
    }

    fn required(&self, key: &str) -> Result<&Field> {
        self.field(key).ok_or_else(|| self.refuse(format!("{key} is missing")))
    }

    fn text(&self, key: &str) -> Result<&str> {
        let field = self.required(key)?.to_string();
        field.map(String::as_str).map_err(|_| self.refuse(format!("{key} is not a text")))
    }

    fn list(&self, key: &str) -> Result<&[Field]> {
        let field = self.required(key)?.to_vec();
        field.map(Vec::as_slice).map_err(|_| self.refuse(format!("{key} is not a list")))
    }

    fn number(&self, key: &str) -> Result<usize> {
        self.optional(key)?.ok_or_else(|| self.refuse(format!("{key} is missing")))
    }

    /// Returns a whole number of any width. If there is one for each layer, all must be equal.
    fn optional(&self, key: &str) -> Result<Option<usize>> {
        let whole = |field: &Field| match field {
            Field::I8(n) => u64::try_from(*n).ok(),
            Field::I16(n) => u64::try_from(*n).ok(),
            Field::I32(n) => u64::try_from(*n).ok(),
            Field::I64(n) => u64::try_from(*n).ok(),
            other => other.to_u64().ok(),
        };
        let value = match self.field(key) {
            None => return Ok(None),
            Some(Field::Array(each)) => {
                let first = each.first().and_then(whole);
                first.filter(|first| each.iter().all(|one| whole(one) == Some(*first)))
            }
            Some(field) => whole(field),
        };
        let value = value.ok_or_else(|| self.refuse(format!("{key} is not one whole number for all layers")))?;
        Ok(Some(value as usize))
    }

    /// Returns a number in f32 by its shortest decimals, so 1e-5 instead of 9.999999747378752e-6.
    fn decimal(&self, key: &str) -> Result<f64> {
        let refuse = || self.refuse(format!("{key} is not a number"));
        match self.required(key)? {
            Field::F32(value) => value.to_string().parse().map_err(|_| refuse()),
            Field::F64(value) => Ok(*value),
            _ => Err(refuse()),
        }
    }

    fn refuse(&self, reason: impl Into<String>) -> Error {
        Error::model(&self.path, reason)
    }
}

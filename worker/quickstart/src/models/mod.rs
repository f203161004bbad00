//! Small models in Hugging Face layout: the tiny ones that are shipped, and random ones with tokenizers made from the job's own
//! text. The bytes of a random model follow from the seed, the shape and the texts alone.

mod bpe;
mod unigram;

use std::collections::HashMap;
use std::fmt::Display;
use std::path::Path;

use bytes::Bytes;
use llink_datasets::built_in::ModelFiles;
use llink_datasets::{Error, Result};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::normal::Normal;

/// Standard deviation of matrices.
const MATRIX_STD: f64 = 0.08;
/// Standard deviation of what is added to the usual start of vectors (ones for norms, zeros for biases).
const VECTOR_STD: f64 = 0.05;
/// No more than so many characters of text go into a tokenizer.
const TRAINING_CHARS: usize = 200_000;

/// The shape of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width inside the feed-forward blocks.
    pub intermediate_size: usize,
    /// How many transformer layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; the encoder has as many as query heads.
    pub kv_heads: usize,
    /// Width of a head; the encoder's is `hidden_size / heads`.
    pub head_dim: usize,
    /// The tokenizer learns at most so many tokens.
    pub vocab_size: usize,
    /// The encoder's positions, the padding offset included; the decoder's are turned and need no table.
    pub positions: usize,
}

/// Two layers, not more: each random layer makes what a vector says of its text harder to read back.
impl Shape {
    /// The encoder `random`.
    pub const ENCODER: Self = Self {
        hidden_size: 192,
        intermediate_size: 512,
        layers: 2,
        heads: 12,
        kv_heads: 12,
        head_dim: 16,
        vocab_size: 2_000,
        positions: 514,
    };

    /// The decoder `random`.
    pub const DECODER: Self = Self { kv_heads: 4, vocab_size: 1_500, positions: 0, ..Self::ENCODER };

    /// The encoder `tiny`, small enough to be shipped.
    pub const PRETRAINED_ENCODER: Self = Self {
        hidden_size: 128,
        intermediate_size: 384,
        heads: 8,
        kv_heads: 8,
        vocab_size: 1_000,
        positions: 258,
        ..Self::ENCODER
    };

    /// The decoder `tiny`.
    pub const PRETRAINED_DECODER: Self =
        Self { intermediate_size: 160, layers: 3, vocab_size: 900, positions: 0, ..Self::PRETRAINED_ENCODER };
}

/// Returns the encoder `tiny`.
pub fn tiny_encoder() -> ModelFiles {
    shipped([
        ("config.json", include_bytes!("../../assets/encoder/config.json")),
        ("model.safetensors", include_bytes!("../../assets/encoder/model.safetensors")),
        ("tokenizer.json", include_bytes!("../../assets/encoder/tokenizer.json")),
    ])
}

/// Returns the decoder `tiny`.
pub fn tiny_decoder() -> ModelFiles {
    shipped([
        ("config.json", include_bytes!("../../assets/decoder/config.json")),
        ("model.safetensors", include_bytes!("../../assets/decoder/model.safetensors")),
        ("tokenizer.json", include_bytes!("../../assets/decoder/tokenizer.json")),
        ("tokenizer_config.json", include_bytes!("../../assets/decoder/tokenizer_config.json")),
    ])
}

fn shipped<const N: usize>(files: [(&'static str, &'static [u8]); N]) -> ModelFiles {
    files.map(|(name, content)| (name, Bytes::from_static(content))).into()
}

/// Makes an XLM-R with random weights. Its tokenizer is made from the first 200,000 characters of `texts`.
///
/// # Errors
/// [`Error::Content`] when the texts hold nothing to learn a tokenizer from.
pub fn random_encoder(texts: impl Iterator<Item = String>, seed: u64, shape: Shape) -> Result<ModelFiles> {
    let tokenizer = unigram::tokenizer(&training_texts(texts), shape.vocab_size)?;
    let vocab_size = tokenizer.get_vocab_size(true);
    let hidden = shape.hidden_size;
    let config = json!({
        "architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta", "dtype": "float32",
        "vocab_size": vocab_size, "hidden_size": hidden, "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "hidden_act": "gelu",
        "max_position_embeddings": shape.positions, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
        "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
        "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
    });
    let mut tensors = RandomTensors::new(seed, "tiny encoder");
    tensors.matrix("embeddings.word_embeddings.weight", vocab_size, hidden);
    tensors.matrix("embeddings.position_embeddings.weight", shape.positions, hidden);
    tensors.matrix("embeddings.token_type_embeddings.weight", 1, hidden);
    tensors.layer_norm("embeddings.LayerNorm", hidden);
    for layer in 0..shape.layers {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        for part in ["self.query", "self.key", "self.value", "output.dense"] {
            tensors.linear(&name(&format!("attention.{part}")), hidden, hidden);
        }
        tensors.layer_norm(&name("attention.output.LayerNorm"), hidden);
        tensors.linear(&name("intermediate.dense"), shape.intermediate_size, hidden);
        tensors.linear(&name("output.dense"), hidden, shape.intermediate_size);
        tensors.layer_norm(&name("output.LayerNorm"), hidden);
    }
    model(&config, &tensors, &tokenizer)
}

/// Makes a Llama with random weights, as [`random_encoder`] does, with the special and twelve reserved tokens of Llama 3.
pub fn random_decoder(texts: impl Iterator<Item = String>, seed: u64, shape: Shape) -> Result<ModelFiles> {
    let tokenizer = bpe::tokenizer(&training_texts(texts), shape.vocab_size)?;
    let vocab_size = tokenizer.get_vocab_size(true);
    let id = |token: &str| tokenizer.token_to_id(token);
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32",
        "vocab_size": vocab_size, "hidden_size": shape.hidden_size, "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim, "hidden_act": "silu",
        "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
        "attention_bias": false, "mlp_bias": false,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
        "bos_token_id": id(bpe::BEGIN_OF_TEXT), "eos_token_id": id(bpe::END_OF_TURN),
    });
    let (hidden, inner) = (shape.hidden_size, shape.intermediate_size);
    let (q_width, kv_width) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let mut tensors = RandomTensors::new(seed, "tiny decoder");
    tensors.matrix("model.embed_tokens.weight", vocab_size, hidden);
    for layer in 0..shape.layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        tensors.vector(&name("input_layernorm"), hidden, 1.0);
        for (part, rows) in [("q_proj", q_width), ("k_proj", kv_width), ("v_proj", kv_width)] {
            tensors.matrix(&name(&format!("self_attn.{part}")), rows, hidden);
        }
        tensors.matrix(&name("self_attn.o_proj"), hidden, q_width);
        tensors.vector(&name("post_attention_layernorm"), hidden, 1.0);
        tensors.matrix(&name("mlp.gate_proj"), inner, hidden);
        tensors.matrix(&name("mlp.up_proj"), inner, hidden);
        tensors.matrix(&name("mlp.down_proj"), hidden, inner);
    }
    tensors.vector("model.norm.weight", hidden, 1.0);
    let mut files = model(&config, &tensors, &tokenizer)?;
    let tokenizer_config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 131_072,
        "bos_token": bpe::BEGIN_OF_TEXT, "eos_token": bpe::END_OF_TURN,
    });
    files.push(("tokenizer_config.json", pretty(&tokenizer_config)));
    Ok(files)
}

/// The texts that a tokenizer is made from: the first ones, until there is enough.
fn training_texts(texts: impl Iterator<Item = String>) -> Vec<String> {
    let mut chars = 0;
    texts
        .take_while(|text| {
            let more = chars < TRAINING_CHARS;
            chars += text.chars().count();
            more
        })
        .collect()
}

/// Named random tensors; a tensor's values follow from the seed and its name.
struct RandomTensors {
    seed: u64,
    model: &'static str,
    tensors: Vec<(String, Vec<usize>, Vec<u8>)>,
}

impl RandomTensors {
    fn new(seed: u64, model: &'static str) -> Self {
        Self { seed, model, tensors: Vec::new() }
    }

    fn push(&mut self, name: &str, shape: Vec<usize>, mean: f64, std: f64) {
        let count = shape.iter().product();
        let numbers = Normal::new(self.seed, &format!("{}: {name}", self.model)).take(count);
        let bytes = numbers.flat_map(|x| ((mean + std * x) as f32).to_le_bytes()).collect();
        self.tensors.push((name.to_string(), shape, bytes));
    }

    fn matrix(&mut self, name: &str, rows: usize, columns: usize) {
        self.push(name, vec![rows, columns], 0.0, MATRIX_STD);
    }

    fn vector(&mut self, name: &str, width: usize, mean: f64) {
        self.push(name, vec![width], mean, VECTOR_STD);
    }

    fn linear(&mut self, name: &str, rows: usize, columns: usize) {
        self.matrix(&format!("{name}.weight"), rows, columns);
        self.vector(&format!("{name}.bias"), rows, 0.0);
    }

    fn layer_norm(&mut self, name: &str, width: usize) {
        self.vector(&format!("{name}.weight"), width, 1.0);
        self.vector(&format!("{name}.bias"), width, 0.0);
    }

    fn file(&self) -> Result<Bytes> {
        let views = self
            .tensors
            .iter()
            .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
            .collect::<std::result::Result<Vec<_>, _>>();
        // Transformers asks for the framework that the tensors are meant for.
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        let file = views.and_then(|views| safetensors::serialize(views, Some(metadata)));
        Ok(file.map_err(|error| crate::refused(self.model, error))?.into())
    }
}

fn model(config: &Value, tensors: &RandomTensors, tokenizer: &tokenizers::Tokenizer) -> Result<ModelFiles> {
    let tokenizer = tokenizer.to_string(true).map_err(untrainable)?;
    Ok(vec![
        ("config.json", pretty(config)),
        ("model.safetensors", tensors.file()?),
        ("tokenizer.json", tokenizer.into()),
    ])
}

fn pretty(value: &Value) -> Bytes {
    format!("{value:#}\n").into()
}

/// Writes a model into a folder, and creates the folder.
///
/// # Errors
/// [`Error::Store`] when a file can't be written.
pub fn write(dir: &Path, files: &ModelFiles) -> Result<()> {
    let written = std::fs::create_dir_all(dir).and_then(|()| {
        let mut files = files.iter();
        files.try_for_each(|(name, content)| std::fs::write(dir.join(name), content))
    });
    written.map_err(|error| Error::Store { path: dir.display().to_string(), source: Box::new(error) })
}

fn untrainable(error: impl Display) -> Error {
    crate::refused("random", format!("no tokenizer can be made from the texts: {error}"))
}

//! Tests that a GGUF file gives the same results as the decoder that it was made from. The golden decoder is written as
//! llama.cpp writes it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::skip::python_with;
use crate::common::{assert_close, assert_refused, edit_json, fixture, read_json, told_by};
use candle_core::quantized::gguf_file::{self, Value as Field};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use llink_worker::models::{Decoder, fingerprint};
use serde_json::{Value, json};

const TEXTS: [&str; 3] =
    ["The fisherman likes 4 small fish at the market today.", "អ្នកនេសាទ 12345 — “don't”", "a  <|eot_id|>\n\n b"];
/// All number formats of weights.
const KINDS: [GgmlDType; 11] = [
    GgmlDType::F32,
    GgmlDType::F16,
    GgmlDType::BF16,
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
];

fn golden() -> PathBuf {
    fixture("golden/seed8/decoder")
}

/// The golden decoder as a folder and as a file. The file's matrices have one format, and the folder has their unpacked
/// values.
struct Both {
    dir: tempfile::TempDir,
    metadata: Vec<(String, Field)>,
    tensors: Vec<(String, QTensor)>,
}

impl Both {
    fn of(kind: GgmlDType) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("folder");
        std::fs::create_dir(&folder).unwrap();
        let mut config = read_json(golden().join("config.json"));
        let (heads, kv_heads) = (config["num_attention_heads"].as_u64(), config["num_key_value_heads"].as_u64());
        let (heads, kv_heads) = (heads.unwrap() as usize, kv_heads.unwrap() as usize);
        let weights = candle_core::safetensors::load(golden().join("model.safetensors"), &Device::Cpu).unwrap();
        let (mut unpacked, mut tensors) = (HashMap::new(), Vec::new());
        for (name, tensor) in weights {
            let heads = match name.rsplit('.').nth(1) {
                Some("q_proj") => Some(heads),
                Some("k_proj") => Some(kv_heads),
                _ => None,
            };
            let reordered = heads.map_or_else(|| tensor.clone(), |heads| by_neighbours(&tensor, heads));
            let fits = tensor.rank() == 2 && tensor.dim(1).unwrap() % kind.block_size() == 0;
            let used = match fits {
                true => kind,
                false if tensor.rank() == 2 => GgmlDType::Q8_0,
                false => GgmlDType::F32,
            };
            let packed = QTensor::quantize(&reordered, used).unwrap();
            let values = packed.dequantize(&Device::Cpu).unwrap();
            let values = heads.map_or_else(|| values.clone(), |heads| by_halves(&values, heads));
            let exact = [GgmlDType::F32, GgmlDType::F16].contains(&used);
            let values = if exact { values } else { values.to_dtype(DType::BF16).unwrap() };
            unpacked.insert(name.clone(), values);
            tensors.push((llama_cpp_name(&name), packed));
        }
        tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        candle_core::safetensors::save(&unpacked, folder.join("model.safetensors")).unwrap();
        config["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 500_000.0});
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        std::fs::copy(golden().join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
        let metadata = metadata(&config, &read_json(golden().join("tokenizer.json")));
        Self { dir, metadata, tensors }
    }

    fn set(&mut self, key: &str, value: Option<Field>) {
        self.metadata.retain(|(name, _)| name != key);
        self.metadata.extend(value.map(|value| (key.to_owned(), value)));
    }

    fn write(&self) -> PathBuf {
        let path = self.dir.path().join("model.gguf");
        let metadata: Vec<(&str, &Field)> = self.metadata.iter().map(|(name, value)| (name.as_str(), value)).collect();
        let tensors: Vec<(&str, &QTensor)> =
            self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        gguf_file::write(&mut std::fs::File::create(&path).unwrap(), &metadata, &tensors).unwrap();
        path
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("folder")
    }
}

fn metadata(config: &Value, tokenizer: &Value) -> Vec<(String, Field)> {
    let mut tokens: Vec<(u64, String, i32)> = Vec::new();
    for (token, id) in tokenizer["model"]["vocab"].as_object().unwrap() {
        tokens.push((id.as_u64().unwrap(), token.clone(), 1));
    }
    for token in tokenizer["added_tokens"].as_array().unwrap() {
        tokens.push((token["id"].as_u64().unwrap(), token["content"].as_str().unwrap().into(), 3));
    }
    tokens.sort();
    let merge = |merge: &Value| match merge.as_array() {
        Some(pair) => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        None => merge.as_str().unwrap().to_owned(),
    };
    let merges = tokenizer["model"]["merges"].as_array().unwrap().iter().map(merge);
    let texts = |texts: &mut dyn Iterator<Item = String>| Field::Array(texts.map(Field::String).collect());
    let whole = |key: &str| Field::U32(config[key].as_u64().unwrap() as u32);
    let fields = [
        ("general.architecture", Field::String("llama".into())),
        ("llama.block_count", whole("num_hidden_layers")),
        ("llama.context_length", Field::U32(4_096)),
        ("llama.embedding_length", whole("hidden_size")),
        ("llama.feed_forward_length", whole("intermediate_size")),
        ("llama.attention.head_count", whole("num_attention_heads")),
        ("llama.attention.head_count_kv", whole("num_key_value_heads")),
        ("llama.rope.dimension_count", whole("head_dim")),
        ("llama.vocab_size", whole("vocab_size")),
        ("llama.rope.freq_base", Field::F32(500_000.0)),
        ("llama.attention.layer_norm_rms_epsilon", Field::F32(1e-5)),
        ("tokenizer.ggml.model", Field::String("gpt2".into())),
        ("tokenizer.ggml.pre", Field::String("llama-bpe".into())),
        ("tokenizer.ggml.tokens", texts(&mut tokens.iter().map(|(_, token, _)| token.clone()))),
        ("tokenizer.ggml.token_type", Field::Array(tokens.iter().map(|(.., kind)| Field::I32(*kind)).collect())),
        ("tokenizer.ggml.merges", texts(&mut merges.into_iter())),
        ("tokenizer.ggml.bos_token_id", whole("bos_token_id")),
        ("tokenizer.ggml.eos_token_id", whole("eos_token_id")),
    ];
    fields.map(|(key, value)| (key.to_owned(), value)).into()
}

fn llama_cpp_name(name: &str) -> String {
    let parts = [
        ("model.layers.", "blk."),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("input_layernorm", "attn_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.", "attn_"),
        ("mlp.", "ffn_"),
        ("_proj", ""),
    ];
    parts.iter().fold(name.to_owned(), |name, (theirs, ours)| name.replace(theirs, ours))
}

/// Reorders the rows of heads `[heads, 2, half]` to adjacent pairs `[heads, half, 2]`, or back.
fn by_neighbours(x: &Tensor, heads: usize) -> Tensor {
    swapped(x, (heads, 2, x.dim(0).unwrap() / heads / 2))
}

fn by_halves(x: &Tensor, heads: usize) -> Tensor {
    swapped(x, (heads, x.dim(0).unwrap() / heads / 2, 2))
}

fn swapped(x: &Tensor, (heads, a, b): (usize, usize, usize)) -> Tensor {
    let (rows, width) = x.dims2().unwrap();
    let x = x.reshape((heads, a, b, width)).unwrap().transpose(1, 2).unwrap();
    x.contiguous().unwrap().reshape((rows, width)).unwrap()
}

fn load(path: &Path) -> llink_worker::Result<Decoder> {
    Decoder::load(path, &Device::Cpu, DType::F32)
}

fn logits(decoder: &Decoder) -> Vec<f32> {
    let ids = decoder.tokenize_teacher(&TEXTS[..1]).unwrap();
    decoder.logits(&ids[0]).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn weights_of_every_kind_compute_what_the_folder_that_they_unpack_to_does() {
    for kind in KINDS {
        let both = Both::of(kind);
        let (file, folder) = (load(&both.write()).unwrap(), load(&both.folder()).unwrap());
        assert_eq!(logits(&file), logits(&folder), "{kind:?}");
    }
}

#[test]
fn texts_and_prompts_have_the_tokens_that_the_folder_gives() {
    let mut both = Both::of(GgmlDType::F16);
    let folder = load(&both.folder()).unwrap();
    let file = load(&both.write()).unwrap();
    assert_eq!(file.tokenize_teacher(&TEXTS).unwrap(), folder.tokenize_teacher(&TEXTS).unwrap());
    assert_eq!(file.teacher_slot(), folder.teacher_slot());
    for text in TEXTS {
        let direct = |decoder: &Decoder| decoder.direct_prompt("Say it.", text, 64).unwrap();
        assert_eq!(direct(&file), direct(&folder));
        assert_eq!(file.slot_prompt(text, 8).unwrap(), folder.slot_prompt(text, 8).unwrap());
        let answer = file.answer_tokens(text).unwrap();
        assert_eq!(answer, folder.answer_tokens(text).unwrap());
        assert_eq!(file.tokenizer().decode(&answer).unwrap(), text);
    }
    let template = "{{ bos_token }}Q: {{ messages[0].content }}{% if add_generation_prompt %}A: {% endif %}";
    both.set("tokenizer.chat_template", Some(Field::String(template.into())));
    let spoken = load(&both.write()).unwrap();
    assert_eq!(spoken.chat().form().text("{text}"), "<|begin_of_text|>Q: {instruction}\n{text}\nA: ");
    both.set("tokenizer.ggml.add_bos_token", Some(Field::Bool(false)));
    let without = load(&both.write()).unwrap().tokenize_teacher(&TEXTS).unwrap();
    assert_eq!(without[0], file.tokenize_teacher(&TEXTS).unwrap()[0][1..]);
}

#[test]
fn the_factors_of_rotary_frequencies_are_read_from_the_file() {
    let mut both = Both::of(GgmlDType::F32);
    let before = logits(&load(&both.write()).unwrap());
    // Halving every angle halves every frequency. A changed theta would not halve all of them.
    let factors = Tensor::full(2f32, 8, &Device::Cpu).unwrap();
    both.tensors.push(("rope_freqs.weight".into(), QTensor::quantize(&factors, GgmlDType::F32).unwrap()));
    let halved = logits(&load(&both.write()).unwrap());
    assert_ne!(before, halved);
    let scaling = json!({
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 2.0, "low_freq_factor": 1e9, "high_freq_factor": 2e9,
        "original_max_position_embeddings": 1,
    });
    edit_json(both.folder().join("config.json"), |config| config["rope_parameters"] = scaling);
    let expected = logits(&load(&both.folder()).unwrap());
    let apart = halved.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart < 1e-4, "{apart}");
}

#[test]
fn what_cannot_be_read_is_refused_with_its_name() {
    let mut both = Both::of(GgmlDType::Q8_0);
    let path = both.write();
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 4_000]).unwrap();
    assert_refused(load(&path), &["cut off", "model.gguf"]);
    std::fs::write(&path, b"version https://git-lfs.github.com/spec/v1\n").unwrap();
    assert_refused(load(&path), &["GGUF"]);
    for (key, value) in [
        ("general.architecture", "gemma2"),
        ("llama.rope.scaling.type", "yarn"),
        ("tokenizer.ggml.model", "rwkv"),
        ("tokenizer.ggml.pre", "klingon"),
    ] {
        let mut both = Both::of(GgmlDType::Q8_0);
        both.set(key, Some(Field::String(value.into())));
        assert_refused(load(&both.write()), &[value, "model.gguf"]);
    }
    both.set("llama.block_count", None);
    assert_refused(load(&both.write()), &["llama.block_count"]);
}

#[test]
fn a_files_fingerprint_follows_its_content() {
    let mut both = Both::of(GgmlDType::Q4_0);
    let first = fingerprint(&both.write()).unwrap();
    assert_eq!(first, fingerprint(&both.write()).unwrap());
    both.set("tokenizer.chat_template", Some(Field::String("{{ messages }}".into())));
    assert_ne!(first, fingerprint(&both.write()).unwrap());
}

/// Prints the logits that Transformers computes for a file.
const WITH_TRANSFORMERS: &str = r#"
import json, os, sys, torch
from transformers import AutoModelForCausalLM
path, ids = sys.argv[1], json.loads(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(os.path.dirname(path), gguf_file=os.path.basename(path), dtype=torch.float32)
with torch.no_grad():
    print(json.dumps(model(torch.tensor([ids])).logits[0].flatten().tolist()))
"#;

#[test]
fn transformers_reads_the_same_logits_from_the_same_file() {
    let Some(python) = python_with(&["torch", "transformers", "gguf"]) else {
        return;
    };
    for kind in [GgmlDType::Q4_1, GgmlDType::Q4K, GgmlDType::Q6K] {
        let both = Both::of(kind);
        let path = both.write();
        let decoder = load(&path).unwrap();
        let ids = decoder.tokenize_teacher(&TEXTS[..1]).unwrap().remove(0);
        let mut run = Command::new(&python);
        let theirs = told_by(run.args(["-c", WITH_TRANSFORMERS]).arg(&path).arg(json!(ids).to_string()));
        let theirs: Vec<f32> = serde_json::from_value(theirs).unwrap();
        // Here blocks are rounded to bf16; in Transformers they are not.
        assert_close(&format!("{kind:?}"), &logits(&decoder), &theirs, 1e-2);
    }
}
